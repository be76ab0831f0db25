"""The report of these tasks: the distance of each model from Bayes, and the inside of the Transformer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from llm_lab.estimate.formatting import percent
from llm_lab.hf.load import load_model
from llm_lab.runs.plots import Interval, Line, draw_heatmap, draw_intervals, draw_lines, draw_scatter

from .bayes import Task
from .bayes_geometry import (
    EntropyAxis,
    entropy_axis,
    errors_without_heads,
    expected_cosine,
    key_cosines,
    read_states,
    value_manifold,
)
from .bayes_models import LSTM, NAMES, TRANSFORMER, held_out, measure
from .study import Study

Results = Mapping[str, Sequence[Mapping[str, Any]]]
POINTS = 800  # points in a picture of the manifold


def report_distance(study: Study, task: Task, results: Results) -> None:
    """Write the distance of each model from Bayes, by position and over training."""
    study.heading("Distance from Bayes")
    study.text(
        f"Every model saw new sequences at every step and is measured on {len(held_out(task)):,} others. "
        "Two distances are given. The error of the entropy is |model's entropy - Bayes' entropy|, averaged over the "
        "positions of each sequence and then over sequences. KL(Bayes || model) also counts a model that is as unsure "
        "as Bayes about the wrong answers; it is 0 only for the exact posterior."
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
    if (blind := task.blind_error()) is not None:
        rows.append(("formula for a model without memory", None, None, None, blind, blind))
        study.result("formula_without_memory_bits", blind)
    caption = "Distance from Bayes at the end of training" + (f", mean of {seeds} seeds." if seeds > 1 else ".")
    study.table("distance", head, rows, caption)
    if seeds > 1:
        _report_seeds(study, results)

    positions = range(1, task.length + 1)
    bayes = results[TRANSFORMER][0]["figures"]["bayes_by_position"]
    lines = []
    for kind, kept in results.items():
        curves = [one["figures"]["entropy_by_position"] for one in kept]
        lines.append(_band(NAMES[kind], list(positions), curves))
    lines.append(Line("Bayes", list(zip(positions, bayes, strict=True)), dashed=True))
    study.picture(
        "entropy",
        draw_lines(lines, title=f"Entropy of the {task.answer}", x=task.position, y="entropy (bits)"),
        f"{task.why_it_falls} A model with a memory can follow it; without attention the entropy stays at the start. "
        "These are means over sequences: the table above does not let errors of opposite sign cancel.",
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
    """The findings inside the Transformer of the first seed, at the end of training unless stated otherwise."""

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


def report_inside(study: Study, task: Task, folder: Path) -> Inside:
    """Examine the checkpoints of one Transformer, and write the findings."""
    tokens = held_out(task)
    saved = sorted((folder / "steps").glob("checkpoint-*"), key=_step_of)
    models = {_step_of(path): load_model(str(path)) for path in saved}
    first, last = models[min(models)], models[max(models)]
    study.heading("Inside the Transformer")
    example = " ".join(task.tokenizer().convert_ids_to_tokens(task.inputs(tokens)[0].tolist()))
    study.text(
        f'The checkpoints are ordinary model folders: `llm-lab look {folder}/model --prompt "{example}"` opens '
        "the last one. The following is measured on the first seed."
    )
    rows, manifolds = [], {}
    for step, model in models.items():
        states = read_states(model, task, tokens)
        manifolds[step] = found = value_manifold(states)
        error = float(measure(model, task, tokens).errors.mean())
        rows.append((step, error, *found.shares, found.r2, *_mean_of(key_cosines(model, task))))
    head = ["share of component 1", "share of component 2", "R² of the entropy on component 1"]
    keys = ["mean |cosine| of keys, layer 0"] if task.key_tokens else []
    study.table(
        "checkpoints",
        ("step", "error of the entropy (bits)", *head, *keys),
        rows,
        "What training changes: the principal components of the last attention's output"
        + (", and the keys of the key tokens in the first layer, averaged over heads" if keys else "")
        + ". Step 0 is the untrained model.",
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
                x=f"component 1, {percent(found.shares[0], 0)} of the variance",
                y=f"component 2, {percent(found.shares[1], 0)}",
                color_name="Bayes' entropy (bits)",
            ),
            f"Every point is what the last attention adds at one {task.position}, {words}, projected on its first two "
            "principal components. The color is the exact entropy there. A straight line along component 1 explains "
            f"{percent(found.r2, 0)} of the entropy.",
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


def _mean_of(values: Sequence[float]) -> list[float]:
    return [fmean(values)] if values else []


def _step_of(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _axes(model: Any, task: Task, tokens: torch.Tensor) -> list[EntropyAxis]:
    states = read_states(model, task, tokens)
    return [entropy_axis(model, task, tokens, layer, states) for layer in range(len(states.layers))]


def _draw_geometry(study: Study, rows: Sequence[tuple[Any, ...]], expected: float) -> None:
    trained = [row for row in rows if row[0]]

    def line(name: str, of: Callable[[tuple[Any, ...]], float]) -> Line:
        return Line(name, [(row[0], of(row)) for row in trained])

    lines = [line("share of component 1", lambda row: row[2]), line("R² on component 1", lambda row: row[4])]
    about = "How the geometry changes over training."
    if any(len(row) > 5 for row in trained):
        lines.append(line("keys: mean |cosine|", lambda row: row[5]))
        lines.append(Line("random directions", [(row[0], expected) for row in trained], dashed=True))
        about += " Keys below the dashed line are more orthogonal than random directions of the same size."
    study.picture(
        "geometry", draw_lines(lines, title="Geometry over training", x="step", y="0 to 1", log_x=True), about
    )


def _report_causes(study: Study, inside: Inside) -> None:
    layers, heads = len(inside.without_heads), len(inside.without_heads[0])
    study.picture(
        "heads",
        draw_heatmap(
            [[value - inside.whole for value in row] for row in inside.without_heads],
            rows=[f"layer {layer}" for layer in range(layers)],
            columns=[f"head {head}" for head in range(heads)],
            title="Which heads matter: error added without each head (bits)",
        ),
        f"The error of the entropy that is added when one head's output is set to zero. The whole model has "
        f"{inside.whole:.4f} bits. Layers and heads are counted from 0, as in `llm-lab look`.",
    )
    if inside.cosines:
        study.table(
            "first-layer-heads",
            ("head of layer 0", "mean |cosine| of its keys", "error added without it (bits)"),
            [
                (f"head {head}", cosine, inside.without_heads[0][head] - inside.whole)
                for head, cosine in enumerate(inside.cosines)
            ],
            "If orthogonal keys made a head important, the smallest cosine would have the largest error. Random "
            f"directions have {inside.expected:.3f}.",
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
            (layer, after.r2, before.r2, after.within_position_r2, after.without, after.without_random)
            for layer, (after, before) in enumerate(zip(inside.axes, inside.axes_before, strict=True))
        ],
        "The entropy axis: a linear reading of Bayes' entropy from the residual stream, tested on other sequences. "
        "Then the model runs with that direction removed at those positions. R² within positions is empty where the "
        "entropy depends on the position alone.",
    )
