"""A run's curves as one SVG: the loss across the whole width, the other panels below it, two in a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .svg import COLOURS, LIGHT, RIGHT, WIDTH, dot, frame, line, picture, powers, ticks, width_of, words

Points = Sequence[tuple[float, float]]

LEFT, BETWEEN = 64, 76  # room for the numbers of an axis: at the left, and between two panels
TOP, GAP, BOTTOM = 30, 52, 36
WIDE, SMALL = 240, 130  # heights
# Above this ratio of largest to smallest a curve that is never negative is drawn on a logarithmic scale.
WIDE_RANGE = 30.0


@dataclass(frozen=True)
class Panel:
    """One axis: its title, and the metrics drawn on it as {name in metrics.jsonl: words}.

    from_zero: the axis begins at 0. linear: whatever the range.
    """

    title: str
    metrics: Mapping[str, str]
    from_zero: bool = False
    linear: bool = False


TRAINED = "training"
HELD_OUT = "held out"
PANELS = (
    Panel("loss", {"loss": TRAINED, "eval_loss": HELD_OUT}),
    Panel("reward", {"reward": TRAINED, "eval_reward_sampled": HELD_OUT}, linear=True),
    Panel("exact match", {"exact_match": "greedy", "exact_match_sampled": "sampled"}, from_zero=True, linear=True),
    Panel("accuracy", {"accuracy": TRAINED, "eval_accuracy": HELD_OUT}, from_zero=True, linear=True),
    Panel("margin", {"margin": TRAINED, "eval_margin": HELD_OUT}, linear=True),
    Panel("KL", {"kl": "last"}, from_zero=True, linear=True),
    Panel("entropy", {"entropy": "last"}, from_zero=True),
    Panel("token accuracy", {"token_accuracy": "last"}, linear=True),
    Panel("answer length", {"completion_length": TRAINED, "eval_completion_length": HELD_OUT}, from_zero=True),
    Panel("value loss", {"value_loss": "last"}, from_zero=True),
    Panel("unclipped share", {"unclipped_share": "last"}, from_zero=True, linear=True),
    Panel("learning rate", {"learning_rate": "last"}, from_zero=True, linear=True),
    Panel("gradient norm", {"grad_norm": "last"}, from_zero=True),
)


@dataclass(frozen=True)
class Box:
    """Where a panel stands, in pixels, and the steps that it spans."""

    left: float
    top: float
    width: float
    height: float
    first: float
    last: float

    def across(self, step: float) -> float:
        return self.left + (step - self.first) / ((self.last - self.first) or 1) * self.width

    def marks(self) -> list[float]:
        """The steps that are marked: whole numbers, with room for them."""
        about = max(2, int(self.width // 70))
        return [step for step in ticks(self.first, self.last, about) if step == int(step)]


def draw_curves(rows: Iterable[Mapping[str, Any]]) -> str | None:
    """Draw what rows of metrics.jsonl hold, or return None where that is nothing."""
    rows = list(rows)
    drawn = []
    for panel in PANELS:
        series = {
            name: [(row["step"], row[metric]) for row in rows if _is_number(row.get(metric))]
            for metric, name in panel.metrics.items()
        }
        series = {name: points for name, points in series.items() if points}
        if series and not _repeats_exact_match(panel, series, rows):
            drawn.append((panel, series))
    # A single point is no curve: the table of results says it better.
    curves = [(panel, series) for panel, series in drawn if max(map(len, series.values())) > 1]
    return draw_panels(curves or drawn) if drawn else None


def _repeats_exact_match(panel: Panel, series: Mapping[str, Points], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the panel shows nothing but a held-out reward that is the exact match."""
    told = [row for row in rows if "eval_reward_sampled" in row]
    same = all(row["eval_reward_sampled"] == row.get("exact_match_sampled") for row in told)
    return panel.title == "reward" and list(series) == [HELD_OUT] and same


def draw_panels(panels: Sequence[tuple[Panel, Mapping[str, Points]]]) -> str:
    """Draw each panel's series (words -> (step, value) points, none empty) over the steps of all of them.

    The first panel takes the whole width; a last one that is left alone does too.
    """
    steps = [x for _, series in panels for points in series.values() for x, _ in points]
    first, last = min(steps), max(steps)
    whole = WIDTH - LEFT - RIGHT
    half = (whole - BETWEEN) / 2
    parts: list[str] = []
    top = TOP
    rows = [panels[:1], *(panels[start : start + 2] for start in range(1, len(panels), 2))]
    for row in rows:
        height = WIDE if row is rows[0] else SMALL
        for column, (panel, series) in enumerate(row):
            width = whole if len(row) == 1 else half
            box = Box(LEFT + column * (half + BETWEEN), top, width, height, first, last)
            parts += _panel(panel, series, box)
        top += height + GAP
    under = top - GAP
    parts.append(words(WIDTH - RIGHT, under + 32, "step", "end"))
    return picture(under + BOTTOM, parts)


def _panel(panel: Panel, series: Mapping[str, Points], box: Box) -> list[str]:
    values = [y for points in series.values() for _, y in points]
    down, marks = _scale(panel, values, box)
    right, bottom = box.left + box.width, box.top + box.height
    steps = box.marks()
    parts = [line(box.across(step), box.top, box.across(step), bottom, LIGHT) for step in steps]
    parts += [line(box.left, down(mark), right, down(mark), LIGHT) for mark in marks]
    parts.append(frame(box.left, box.top, box.width, box.height))
    parts += [words(box.left - 6, down(mark) + 4, f"{mark + 0.0:.4g}", "end") for mark in marks]
    parts += [words(box.across(step), bottom + 16, f"{step:,.0f}", "middle") for step in steps]
    parts.append(words(box.left, box.top - 8, panel.title, "start", "#000", bold=True))
    offset = right
    # A colour belongs to what is measured, whether the other curve of its panel is there or not.
    colours = dict(zip(panel.metrics.values(), COLOURS, strict=False))
    for name, points in reversed(series.items()):
        label = f"{name} {points[-1][1]:.4g}"
        parts.append(words(offset, box.top - 8, label, "end", colours[name]))
        offset -= width_of(label) + 12
    for name, points in series.items():
        path = " ".join(f"{box.across(x):.1f},{down(y):.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colours[name]}" stroke-width="1.8"/>')
        is_measured_rarely = len(points) <= 30 and name not in (TRAINED, "last")
        few = points if is_measured_rarely else points[-1:]
        parts += [dot(box.across(x), down(y), colours[name]) for x, y in few]
    return parts


def _scale(panel: Panel, values: Sequence[float], box: Box) -> tuple[Callable[[float], float], list[float]]:
    """Return where a value stands from above, and which values are marked."""
    low, high = min(values), max(values)
    logarithmic = low > 0 and high / low > WIDE_RANGE and not panel.linear
    if panel.from_zero and not logarithmic:
        low = min(0.0, low)
    scale = math.log10 if logarithmic else float
    bottom, top = scale(low), scale(high)
    room = 0.06 * (top - bottom)  # so that no curve runs along the frame
    top += room
    bottom -= 0.0 if low == 0.0 and not logarithmic else room

    def down(value: float) -> float:
        share = (scale(value) - bottom) / (top - bottom) if top > bottom else 0.5
        return box.top + (1 - share) * box.height

    marks = powers(low, high) if logarithmic else ticks(bottom, top, max(4, int(box.height // 45)))
    return down, marks


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
