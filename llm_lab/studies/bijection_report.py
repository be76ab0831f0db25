"""The report of the bijection task: how far each model is from Bayes, what is inside, and the doubts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from llm_lab.hf.load import load_model
from llm_lab.runs.plots import Interval, Line, draw_heatmap, draw_intervals, draw_lines, draw_scatter

from .bijection_geometry import (
    EntropyAxis,
    entropy_axis,
    errors_without_heads,
    expected_cosine,
    key_cosines,
    read_states,
    value_manifold,
)
from .bijection_models import LSTM, NAMES, POSITIONS, TRANSFORMER, held_out, measure
from .bijections import Bijections
from .study import Study

Results = Mapping[str, Sequence[Mapping[str, Any]]]
POINTS = 800  # in a picture of the manifold
# What the paper and its code report (arXiv 2512.22471): 20 values, 19 or 20 pairs.
PAPER = (
    ("Transformer, 2.67 M parameters, version 1 of the paper", "0.003"),
    ("Transformer, version 3", "0.007"),
    ("Mamba, version 3", "0.010"),
    ("LSTM, version 3", "0.009"),
    ("no attention (MLP), as printed in the paper", "1.85"),
    ("no attention (MLP), in the authors' code; the formula gives 1.107", "1.107"),
)


def report_distance(study: Study, task: Bijections, results: Results) -> None:
    """Write how far each model is from Bayes, by position and over training."""
    study.heading("How far from Bayes")
    study.text(
        f"Every model saw new sequences at every step and is measured on {len(held_out(task)):,} others. "
        "Two distances are given. The error of the entropy is |model's entropy - Bayes' entropy|, averaged over the "
        "positions of each sequence and then over sequences. KL(Bayes || model) also counts a model that is as unsure "
        "as Bayes about the wrong values; it is 0 only for the exact posterior."
    )
    head = ("model", "parameters", "training tokens", "CPU seconds", "error of the entropy (bits)", "KL (bits)")
    rows: list[tuple[Any, ...]] = []
    for kind, kept in results.items():
        rows.append(
            (
                NAMES[kind],
                kept[0]["parameters"],
                kept[0]["tokens"],
                round(fmean(one["cpu_seconds"] for one in kept)),
                fmean(one["figures"]["mae_bits"] for one in kept),
                fmean(one["figures"]["kl_bits"] for one in kept),
            )
        )
        study.result(f"{kind.replace('-', '_')}_mae_bits", rows[-1][4])
        study.result(f"{kind.replace('-', '_')}_kl_bits", rows[-1][5])
    seeds = len(results[TRANSFORMER])
    if not task.repeated:
        rows.append(("formula for a model without memory", None, None, None, task.blind_error(), task.blind_error()))
        study.result("formula_without_memory_bits", task.blind_error())
    caption = "Distance from Bayes at the end of training" + (f", mean of {seeds} seeds." if seeds > 1 else ".")
    study.table("distance", head, rows, caption)
    if seeds > 1:
        _report_seeds(study, results)

    positions = range(1, task.pairs + 1)
    bayes = results[TRANSFORMER][0]["figures"]["bayes_by_position"]
    lines = []
    for kind, kept in results.items():
        curves = [one["figures"]["entropy_by_position"] for one in kept]
        lines.append(_band(NAMES[kind], list(positions), curves))
    lines.append(Line("Bayes", list(zip(positions, bayes, strict=True)), dashed=True))
    study.picture(
        "entropy",
        draw_lines(lines, title="Entropy of the next value", x="pair", y="entropy (bits)"),
        "Uncertainty about the value of each pair's key. Bayes' entropy falls as values are used up. A model with a "
        "memory follows it; without attention the entropy stays at the start. These are means over sequences: the "
        "table above does not let errors of opposite sign cancel.",
    )
    over_time = [
        _band(
            NAMES[kind],
            [row["tokens"] for row in kept[0]["curve"] if row["step"]],
            [[row["mae_bits"] for row in one["curve"] if row["step"]] for one in kept],
        )
        for kind, kept in results.items()
    ]
    study.picture(
        "training",
        draw_lines(
            over_time,
            title="Distance from Bayes during training",
            x="training tokens",
            y="error of the entropy (bits)",
            log_x=True,
            log_y=True,
        ),
        "The error of the entropy over training, both axes logarithmic. The model without attention reaches its limit "
        "early and stays there, because what it needs is at other positions.",
    )


def _report_seeds(study: Study, results: Results) -> None:
    rows = []
    for kind in (TRANSFORMER, LSTM):
        values = [one["figures"]["mae_bits"] for one in results[kind]]
        rows.append(Interval(NAMES[kind], values, fmean(values), min(values), max(values)))
    study.picture(
        "seeds",
        draw_intervals(rows, title="Error of the entropy by seed", x="bits"),
        "Each dot is one training seed; the bar goes from the smallest to the largest.",
    )
    head = ("seed", *(f"{NAMES[kind]} (bits)" for kind in NAMES))
    columns = [[one["figures"]["mae_bits"] for one in results[kind]] for kind in NAMES]
    seeds = [one["plan"]["seed"] for one in results[TRANSFORMER]]
    study.table("seeds", head, list(zip(seeds, *columns, strict=True)), "Error of the entropy of every seed.")


def _band(name: str, across: Sequence[float], curves: Sequence[Sequence[float]]) -> Line:
    """Return the mean of curves, with a band from the lowest to the highest if there are several."""
    columns = list(zip(*curves, strict=True))
    points = [(x, fmean(column)) for x, column in zip(across, columns, strict=True)]
    if len(curves) == 1:
        return Line(name, points)
    return Line(name, points, [min(column) for column in columns], [max(column) for column in columns])


@dataclass(frozen=True)
class Inside:
    """What was found inside the Transformer of the first seed, at the end of training unless said otherwise."""

    cosines: list[float]
    cosines_before: list[float]
    expected: float
    first_component: float
    first_component_before: float
    manifold_r2: float
    manifold_r2_before: float
    axes: list[EntropyAxis]
    axes_before: list[EntropyAxis]
    whole: float
    without_heads: list[list[float]]


def report_inside(study: Study, task: Bijections, folder: Path) -> Inside:
    """Look into the checkpoints of one Transformer, and write what is there."""
    tokens = held_out(task)
    saved = sorted((folder / "steps").glob("checkpoint-*"), key=_step_of)
    models = {_step_of(path): load_model(str(path)) for path in saved}
    first, last = models[min(models)], models[max(models)]
    study.heading("Inside the Transformer")
    study.text(
        f'The checkpoints are ordinary model folders: `llm-lab look {folder}/model --prompt "x0 y1 x2 y0 x1"` opens '
        "the last one. The following is measured on the first seed."
    )
    rows, manifolds = [], {}
    for step, model in models.items():
        states = read_states(model, task, tokens)
        manifolds[step] = found = value_manifold(states)
        error = float(measure(model, task, tokens).errors.mean())
        rows.append((step, error, fmean(key_cosines(model, task)), *found.shares, found.r2))
    study.table(
        "checkpoints",
        (
            "step",
            "error of the entropy (bits)",
            "mean |cosine| of keys, layer 1",
            "share of component 1",
            "share of component 2",
            "R² of the entropy on component 1",
        ),
        rows,
        "What training changes: the keys of the key tokens in the first layer, averaged over heads, and the principal "
        "components of the last attention's output. Step 0 is the untrained model.",
    )
    _draw_geometry(study, rows, expected_cosine(last))
    for step, words in ((min(models), "before training"), (max(models), "after training")):
        found = manifolds[step]
        kept = torch.randperm(len(found.entropy), generator=torch.Generator().manual_seed(0))[:POINTS]
        points = [
            (x, y, value)
            for (x, y), value in zip(found.coordinates[kept].tolist(), found.entropy[kept].tolist(), strict=True)
        ]
        study.picture(
            f"manifold-{step}",
            draw_scatter(
                points,
                title=f"Output of the last attention {words}",
                x=f"component 1, {found.shares[0]:.0%} of the variance",
                y=f"component 2, {found.shares[1]:.0%}",
                color_name="Bayes' entropy (bits)",
            ),
            f"Every point is what the last attention adds at one key, {words}, on its first two principal components. "
            f"The color is the exact entropy there. A straight line along component 1 explains {found.r2:.0%} of the "
            "entropy.",
        )
    inside = Inside(
        key_cosines(last, task),
        key_cosines(first, task),
        expected_cosine(last),
        manifolds[max(models)].shares[0],
        manifolds[min(models)].shares[0],
        manifolds[max(models)].r2,
        manifolds[min(models)].r2,
        _axes(last, task, tokens),
        _axes(first, task, tokens),
        float(measure(last, task, tokens).errors.mean()),
        errors_without_heads(last, task, tokens),
    )
    _report_causes(study, inside)
    return inside


def _step_of(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _axes(model: Any, task: Bijections, tokens: torch.Tensor) -> list[EntropyAxis]:
    states = read_states(model, task, tokens)
    return [entropy_axis(model, task, tokens, layer, states) for layer in range(len(states.layers))]


def _draw_geometry(study: Study, rows: Sequence[tuple[Any, ...]], expected: float) -> None:
    trained = [row for row in rows if row[0]]

    def line(name: str, of: Callable[[tuple[Any, ...]], float]) -> Line:
        return Line(name, [(row[0], of(row)) for row in trained])

    lines = [
        line("keys: mean |cosine|", lambda row: row[2]),
        Line("random directions", [(row[0], expected) for row in trained], dashed=True),
        line("share of component 1", lambda row: row[3]),
        line("R² on component 1", lambda row: row[5]),
    ]
    study.picture(
        "geometry",
        draw_lines(lines, title="Geometry over training", x="step", y="0 to 1", log_x=True),
        "How the geometry changes over training. Keys below the dashed line are more orthogonal than random directions "
        "of the same size.",
    )


def _report_causes(study: Study, inside: Inside) -> None:
    layers, heads = len(inside.without_heads), len(inside.without_heads[0])
    study.picture(
        "heads",
        draw_heatmap(
            [[value - inside.whole for value in row] for row in inside.without_heads],
            rows=[f"layer {layer + 1}" for layer in range(layers)],
            columns=[f"head {head + 1}" for head in range(heads)],
            title="Which heads matter: error added without each head (bits)",
        ),
        f"The error of the entropy that is added when one head's output is set to zero. The whole model has "
        f"{inside.whole:.4f} bits.",
    )
    study.table(
        "first-layer-heads",
        ("head of layer 1", "mean |cosine| of its keys", "error added without it (bits)"),
        [
            (f"head {head + 1}", cosine, inside.without_heads[0][head] - inside.whole)
            for head, cosine in enumerate(inside.cosines)
        ],
        f"If orthogonal keys made a head important, the smallest cosine would have the largest loss. Random directions "
        f"have {inside.expected:.3f}.",
    )
    study.table(
        "entropy-axis",
        (
            "after layer",
            "R² of the entropy",
            "R² in the untrained model",
            "R² within positions",
            "error without the axis (bits)",
            "error without a random axis (bits)",
        ),
        [
            (layer + 1, after.r2, before.r2, after.within_position_r2, after.without, after.without_random)
            for layer, (after, before) in enumerate(zip(inside.axes, inside.axes_before, strict=True))
        ],
        "The entropy axis: a linear reading of Bayes' entropy from the residual stream, tested on other sequences. "
        "Then the model runs with that direction removed at the keys. R² within positions is empty where the entropy "
        "depends on the position alone.",
    )


def report_doubts(study: Study, task: Bijections, results: Results, inside: Inside) -> None:
    """Write each claim of the paper with what was measured here and the doubt about it."""
    means = {kind: fmean(one["figures"]["mae_bits"] for one in kept) for kind, kept in results.items()}
    lookups = (
        "Keys may occur again here, so the model does have to look values up."
        if task.repeated
        else "With each key used once, the best prediction depends only on which values were seen. The model never has "
        "to find the value of a key, and the entropy depends on nothing but the position. `repeated_keys=true` runs "
        "the task in which keys must be looked up; it takes many more steps to learn."
    )
    smaller = min((TRANSFORMER, LSTM), key=lambda kind: means[kind])
    study.heading("Claims and doubts")
    for claim, seen in (
        (
            "Transformers do Bayesian inference",
            f"The distance from Bayes is {means[TRANSFORMER]:.4f} bits here. {lookups}",
        ),
        (
            "Attention is what makes it possible",
            f"Without attention the error is {means[POSITIONS]:.3f} bits"
            + ("" if task.repeated else f", as the formula says ({task.blind_error():.3f})")
            + f". But that model has no memory at all. The LSTM has memory without attention and reaches "
            f"{means[LSTM]:.4f} bits with as many parameters and training tokens: the {NAMES[smaller]} is closer here. "
            "Each has its own learning rate, found with a few trials and not with a full sweep; the order may change "
            "with it. An independent replication of the paper also reports the LSTM ahead (0.003 against 0.096 bits).",
        ),
        (
            "The keys become orthogonal",
            f"In the first layer, their mean |cosine| goes from {fmean(inside.cosines_before):.3f} to "
            f"{fmean(inside.cosines):.3f}; random directions have {inside.expected:.3f}. {_about_keys(task, inside)} "
            f"{_which_head(inside)} The "
            "authors' own later notes say that orthogonality does not find the important head, and that removing heads "
            "does.",
        ),
        (
            "Values lie on a curve that is ordered by entropy",
            f"After training, component 1 of the last attention's output has {inside.first_component:.0%} of the "
            f"variance and gives the entropy with R² = {inside.manifold_r2:.2f}. Before training it is "
            f"{inside.first_component_before:.0%} and {inside.manifold_r2_before:.2f}. "
            + (
                ""
                if task.repeated
                else "Because the entropy depends on the position alone, an axis of uncertainty and an axis of "
                "position can't be distinguished here."
            ),
        ),
        ("The model has an axis that represents its uncertainty", _about_axis(inside)),
    ):
        study.text(f"Claim: {claim}. {seen}")
    study.text(
        "About the paper: it reports the error of the mean curve, in which errors of opposite sign cancel; here it is "
        f"{fmean(one['figures']['mae_of_means_bits'] for one in results[TRANSFORMER]):.4f} bits for the Transformer "
        f"against {means[TRANSFORMER]:.4f} by sequence. It prints 1.85 bits for the model without attention, while the "
        "formula and the authors' code have 1.107 for 20 values and 19 pairs. By reading its code (not running it), "
        "its training script has another task by default: keys that are repeated, with only the last one trained."
    )
    rows = [
        (
            f"{NAMES[kind]}, this study: {task.values} values, {task.pairs} pairs, "
            f"{results[kind][0]['tokens'] / 1e6:.1f} M tokens",
            f"{value:.4f}",
        )
        for kind, value in means.items()
    ]
    study.table(
        "paper",
        ("model", "error of the entropy (bits)"),
        [*rows, *PAPER],
        "Next to the figures of the paper, which are for 20 values, a Transformer of 2.67 M parameters, and at least "
        "100,000 steps of 64 or more sequences (250 M tokens). They are quoted and were not run here.",
    )


def _about_keys(task: Bijections, inside: Inside) -> str:
    """Say how the keys have changed, and why."""
    if fmean(inside.cosines) <= inside.expected:
        return "They are more orthogonal than random directions."
    why = "" if task.repeated else ", because which key it is does not matter in this task"
    return f"Here they do not become orthogonal, but more alike{why}."


def _which_head(inside: Inside) -> str:
    """Say whether the first-layer head with the most orthogonal keys is the one that matters most."""
    first = inside.without_heads[0]
    orthogonal = min(range(len(inside.cosines)), key=lambda head: inside.cosines[head])
    needed = max(range(len(first)), key=lambda head: first[head])
    if len(first) == 1:
        return "The layer has one head, so heads can't be compared."
    if len(inside.cosines) != len(first):
        return ""
    if orthogonal == needed:
        return f"Head {needed + 1} has the most orthogonal keys and is also the one that matters most."
    return (
        f"Head {orthogonal + 1} has the most orthogonal keys, but the error rises most without head {needed + 1} "
        f"({first[needed] - inside.whole:.3f} bits, against {first[orthogonal] - inside.whole:.3f})."
    )


def _about_axis(inside: Inside) -> str:
    last, before = inside.axes[-1], inside.axes_before[-1]
    changes = "; ".join(
        f"layer {layer + 1}: {axis.without - inside.whole:+.4f} (random {axis.without_random - inside.whole:+.4f})"
        for layer, axis in enumerate(inside.axes)
    )
    return (
        f"The entropy can be read from the last layer with R² = {last.r2:.2f}; from the untrained model already with "
        f"{before.r2:.2f}. That it can be read does not mean that the model uses it. The error of the entropy changes "
        f"as follows when the axis is removed (in bits, next to a random direction) after {changes}. The authors' "
        "later notes report R² = 1.00 and no effect."
    )
