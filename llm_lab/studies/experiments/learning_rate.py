"""How the learning rate changes what a model learns, and how the right one depends on the width of the model.

The same small models are pretrained on short stories for the same number of steps, with learning rates from far too
small to far too large. Everything else is equal: the data, their order, the seed, the schedule.

What to expect: plotted against the learning rate, the validation loss is a valley. On its left side the model learns
too slowly: the loss still falls when the run ends. On its right side the steps are so large that the model overshoots:
the loss jumps, ends higher, or the run diverges. The valley is wide on a logarithmic axis, so a rate that is off by a
factor of two costs little, and one that is off by ten costs much. That is why learning rates are searched on a
logarithmic scale.

What it teaches: read the training curve to see on which side you are. A smooth curve that is still falling steeply at
the end means too small; a curve that jumps or flattens early at a high loss means too large. With AdamW, the best rate
of a model's matrices falls in proportion to 1 / width as a model grows (Yang et al. 2022, Tensor Programs V). At these
small sizes and in such short runs the effect can be weaker than a step of the grid, and the report says what was found.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field

from llm_lab.runs.plots import Line, draw_heatmap, draw_lines
from llm_lab.studies.small_runs import last, points, pretraining

if TYPE_CHECKING:
    from llm_lab.runs.folder import RunFolder
    from llm_lab.studies.study import Study

APP_NAME = "Learning rate: too small, right, too large"
TAKES = "about 5 minutes on two cores"
BYTES = 257  # vocabulary size of the byte tokenizer
LOOKS = {  # how a training curve looks
    "too small": "smooth, and still high at the end",
    "right": "falls fast, and still falls at the end",
    "too large": "falls to a higher loss and stays there",
    "diverges": "leaves the picture within a few steps, and the run is stopped",
}


class Options(BaseModel):
    """What is compared."""

    learning_rates: list[float] = Field(
        [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0], min_length=2, description="learning rates to compare"
    )
    widths: list[int] = Field([32, 64, 128], min_length=1, description="hidden sizes to compare")
    layers: int = Field(2, ge=1, description="layers of each model")
    steps: int = Field(200, ge=10, description="training steps of each model")
    batch: int = Field(16, ge=1, description="sequences in a step")
    length: int = Field(64, ge=8, description="tokens in a sequence")
    seed: int = Field(1337, ge=0, description="random seed of all models")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the models are trained")


def run(options: Options, study: Study) -> None:
    """Train a model for each width and learning rate."""
    from llm_lab.training.seat_belts import Diverged

    rates = sorted(set(options.learning_rates))
    runs: dict[tuple[int, float], RunFolder] = {}
    failed: dict[tuple[int, float], str] = {}
    for width in options.widths:
        for rate in rates:
            name = _name(width, rate)
            recipe = pretraining(
                width=width,
                layers=options.layers,
                steps=options.steps,
                learning_rate=rate,
                vocabulary=None,
                length=options.length,
                batch=options.batch,
                device=options.device,
                seed=options.seed,
            )
            try:
                runs[width, rate] = study.train(recipe, name)
            except Diverged as error:
                failed[width, rate] = str(error)
                study.say(f"{name}: diverged")
    losses = {key: last(each, "eval_loss") for key, each in runs.items()}
    _draw_valley(options, study, rates, losses, failed)
    _draw_curves(options, study, rates, losses, failed)
    if len(options.widths) > 1:
        _compare_widths(options, study, rates, losses)
    study.heading("All runs")
    study.table(
        "losses",
        ["width", "learning rate", "validation loss", "outcome"],
        [
            (width, rate, losses.get((width, rate)), "diverged" if (width, rate) in failed else "done")
            for width in options.widths
            for rate in rates
        ],
        "Validation loss in nats per byte after the last step.",
    )


def _name(width: int, rate: float) -> str:
    """Return the name of a run: 1e+06 is written 1e06."""
    return f"width-{width}-rate-{rate:g}".replace("+", "")


def _best(rates: list[float], losses: dict[tuple[int, float], float | None], width: int) -> float | None:
    """Return the learning rate with the lowest loss, or None if no run of this width has finished."""
    known = [(loss, rate) for rate in rates if (loss := losses.get((width, rate))) is not None]
    return min(known)[1] if known else None


def _draw_valley(
    options: Options,
    study: Study,
    rates: list[float],
    losses: dict[tuple[int, float], float | None],
    failed: dict[tuple[int, float], str],
) -> None:
    guess = math.log(BYTES)
    lines = []
    for width in options.widths:
        known = [(rate, loss) for rate in rates if (loss := losses.get((width, rate))) is not None]
        lines.append(Line(f"width {width}", known))
    lines.append(Line("a uniform guess", [(rates[0], guess), (rates[-1], guess)], dashed=True))
    top = 1.06 * max(guess, *(loss for loss in losses.values() if loss is not None))
    if failed:
        lines.append(Line("diverged", [(rate, top) for rate in sorted({rate for _, rate in failed})], dashed=True))
    study.heading("The valley")
    svg = draw_lines(lines, title="Validation loss by learning rate", x="learning rate", y="nats per byte", log_x=True)
    caption = (
        "Each dot is one model after the same number of steps. On the left, the rate is too small: the model is "
        "still learning. "
    )
    caption += "At the bottom, it is right. On the right, it is too large."
    if failed:
        caption += " Dots on the top line are learning rates with which at least one model diverged, so it has no loss."
    study.picture("valley", svg, caption)
    for width in options.widths:
        best = _best(rates, losses, width)
        if best is None:
            study.text(f"With a width of {width}, every run diverged.")
            continue
        lowest = losses[width, best]
        assert lowest is not None
        study.result(f"best_learning_rate_width_{width}", best)
        study.result(f"best_loss_width_{width}", lowest)
        edge = "" if rates[0] < best < rates[-1] else " It is at the edge of the grid, so the best one may lie beyond."
        near = [rate for rate in rates if (loss := losses.get((width, rate))) is not None and loss < lowest + 0.05]
        study.text(
            f"Width {width}: the lowest loss is {lowest:.3f}, at a learning rate of {best:g}. "
            + (f"Rates from {near[0]:g} to {near[-1]:g} are" if len(near) > 1 else "No other rate is")
            + f" within 0.05 of it.{edge}"
        )


def _draw_curves(
    options: Options,
    study: Study,
    rates: list[float],
    losses: dict[tuple[int, float], float | None],
    failed: dict[tuple[int, float], str],
) -> None:
    width = options.widths[len(options.widths) // 2]
    best = _best(rates, losses, width)
    if best is None:
        return
    ended = [rate for rate in rates if losses.get((width, rate)) is not None]
    diverged = [rate for rate in rates if (width, rate) in failed]
    named = {rates[0]: "too small", ended[-1]: "too large", best: "right"} | dict.fromkeys(diverged[:1], "diverges")
    most = 1.1 * math.log(BYTES)
    lines = []
    for rate, name in sorted(named.items()):
        curve = points(study.child(_name(width, rate)), "loss")
        lines.append(Line(f"{name}: {rate:g}", [(step, loss) for step, loss in curve if loss < most]))
    study.heading("What it looks like while it trains")
    caption = " ".join(f"{name.capitalize()}: {look}." for name, look in LOOKS.items() if name in named.values())
    title = f"Training loss, width {width}"
    study.picture("curves", draw_lines(lines, title=title, x="step", y="nats per byte"), caption)


def _compare_widths(
    options: Options, study: Study, rates: list[float], losses: dict[tuple[int, float], float | None]
) -> None:
    study.heading("Learning rate and width")
    study.picture(
        "grid",
        draw_heatmap(
            [[losses.get((width, rate)) for rate in rates] for width in options.widths],
            rows=[str(width) for width in options.widths],
            columns=[f"{rate:g}" for rate in rates],
            title="Validation loss by width and learning rate",
            x="learning rate",
            y="width",
        ),
        "One cell is one model; an empty cell diverged. The lowest cell of each row is the best rate of that width.",
    )
    lowest = {width: rate for width in options.widths if (rate := _lowest_point(rates, losses, width)) is not None}
    if len(lowest) < 2:
        return
    for width, rate in lowest.items():
        study.result(f"interpolated_learning_rate_width_{width}", rate)
    found = ", ".join(f"{rate:.2g} for a width of {width}" for width, rate in lowest.items())
    narrow, wide = lowest[min(lowest)], lowest[max(lowest)]
    by_rule = max(lowest) / min(lowest)
    if wide < narrow:
        verdict = f"From the narrowest to the widest it falls by a factor of {narrow / wide:.1f}; in proportion to "
        verdict += f"1 / width, it would be {by_rule:g}."
    else:
        verdict = "It does not fall with the width here, against the rule: one seed, and short runs."
    study.text(
        "The grid is coarse, so here is the lowest point of a parabola through the best cell of each row and its "
        f"neighbors: {found}. {verdict}"
    )


def _lowest_point(rates: list[float], losses: dict[tuple[int, float], float | None], width: int) -> float | None:
    """Return where a parabola through the lowest loss and its neighbors is lowest, over the logarithm of the rate.

    None if the lowest loss is at the edge of the grid, or next to a run that diverged.
    """
    best = _best(rates, losses, width)
    at = rates.index(best) if best is not None else 0
    if not 0 < at < len(rates) - 1:
        return None
    near = [(math.log(rate), losses.get((width, rate))) for rate in rates[at - 1 : at + 2]]
    (x0, y0), (x1, y1), (x2, y2) = near
    if y0 is None or y1 is None or y2 is None:
        return None
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    bend = (right - left) / (x2 - x0)
    return math.exp((x0 + x1) / 2 - left / (2 * bend)) if bend > 0 else None
