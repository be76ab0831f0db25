"""The pictures of reports, as SVG: the curves of a run, the scores of a pipeline, predicted against actual."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from xml.sax.saxutils import escape

from .glossary import name_of

Points = Sequence[tuple[float, float]]
Series = Mapping[str, Points]  # key in metrics.jsonl: its (step, value) points

WIDTH, RIGHT = 760, 24
COLOURS = ("#7da0c4", "#c0392b", "#2e8b57")
GREY, LIGHT, BLACK = "#555", "#e4e4e4", "#000"
CHARACTER_WIDTH = 6.6  # pixels, about, at font size 12


def picture(height: float, parts: Sequence[str]) -> str:
    """Return a complete SVG of a height."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" '
        f'height="{height:g}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{WIDTH}" height="{height:g}" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def dot(x: float, y: float, colour: str, radius: float = 2.5) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{colour}"/>'


def bar(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def frame(x: float, y: float, width: float, height: float) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="none" stroke="{GREY}"/>'


def words(x: float, y: float, text: str, anchor: str, colour: str = GREY, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{weight}>{escape(text)}</text>'


def width_of(text: str) -> float:
    """Return the approximate width of a text in pixels."""
    return CHARACTER_WIDTH * len(text)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Return about `about` round numbers from low to high, at least two where they fit."""
    if high <= low:
        return [low]
    raw = (high - low) / about
    unit = 10 ** math.floor(math.log10(raw))
    steps = [unit * many for many in (0.2, 0.5, 1, 2, 2.5, 5, 10)]
    at = next(index for index, step in enumerate(steps) if step >= raw)
    for step in reversed(steps[: at + 1]):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last > first:
            break
    return [number * step for number in range(first, last + 1)]


def powers(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten from low to high; only the powers where those would be many."""
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [many * 10.0**power for power in tens for many in (1, 2, 5) if low <= many * 10.0**power <= high]
    return found if len(found) <= 6 else [10.0**power for power in tens if low <= 10.0**power <= high]


def tick_labels(marks: Sequence[float]) -> list[str]:
    """Return the numbers of an axis in as few digits as show each of them exactly, so no two look alike."""
    apart = min((abs(b - a) for a, b in pairwise(marks)), default=math.inf)
    for digits in range(4, 17):
        texts = [f"{mark + 0.0:.{digits}g}" for mark in marks]
        if all(abs(float(text) - mark) <= 0.01 * apart for text, mark in zip(texts, marks, strict=True)):
            break
    return texts


# The curves of a run: the loss across the whole width, the other panels below it, two in a row

LEFT, BETWEEN = 64, 76  # room for the numbers of an axis: at the left, and between two panels
TOP, GAP, BOTTOM = 30, 52, 36
WIDE, SMALL = 240, 130  # heights
# Above this ratio of largest to smallest value, a curve of positive values is drawn on a logarithmic scale.
WIDE_RANGE = 30.0


@dataclass(frozen=True)
class Panel:
    """One axis and the metrics drawn on it, by their keys in metrics.jsonl.

    from_zero: the axis starts at 0. linear: never logarithmic.
    """

    keys: tuple[str, ...]
    from_zero: bool = False
    linear: bool = False

    @property
    def title(self) -> str:
        """The words that the names of the panel's metrics share."""
        names = [_words_of(key) for key in self.keys]
        return " ".join(word for word in names[0] if all(word in other for other in names))

    @property
    def labels(self) -> dict[str, str]:
        """For each key, the words that distinguish it from the panel's other metrics."""
        if len(self.keys) == 1:
            return {self.keys[0]: "last"}
        shared = self.title.split()
        rest = {key: [word for word in _words_of(key) if word not in shared] for key in self.keys}
        return {key: " ".join(words) or "training" for key, words in rest.items()}


def _words_of(key: str) -> list[str]:
    return name_of(key).replace("(", "").replace(")", "").split()


PANELS = (
    Panel(("loss", "eval_loss")),
    Panel(("reward", "eval_reward_sampled"), linear=True),
    Panel(("exact_match", "exact_match_sampled"), from_zero=True, linear=True),
    Panel(("accuracy", "eval_accuracy"), from_zero=True, linear=True),
    Panel(("margin", "eval_margin"), linear=True),
    Panel(("kl",), from_zero=True, linear=True),
    Panel(("entropy",), from_zero=True),
    Panel(("token_accuracy",), linear=True),
    Panel(("completion_length", "eval_completion_length"), from_zero=True),
    Panel(("value_loss",), from_zero=True),
    Panel(("unclipped_share",), from_zero=True, linear=True),
    Panel(("learning_rate",), from_zero=True, linear=True),
    Panel(("grad_norm",), from_zero=True),
)
MEASURED_RARELY = ("eval_", "exact_match")  # keys that start so have a dot at every point


@dataclass(frozen=True)
class Box:
    """The place of a panel in pixels, and the steps it spans."""

    left: float
    top: float
    width: float
    height: float
    first: float
    last: float

    def across(self, step: float) -> float:
        return self.left + (step - self.first) / ((self.last - self.first) or 1) * self.width

    def marks(self) -> list[float]:
        """The steps with a label: whole numbers, as many as fit."""
        about = max(2, int(self.width // 70))
        return [step for step in ticks(self.first, self.last, about) if step == int(step)]


def draw_curves(rows: Iterable[Mapping[str, Any]]) -> str | None:
    """Draw the rows of metrics.jsonl, or return None where there is nothing to draw."""
    rows = list(rows)
    drawn = []
    for panel in PANELS:
        series: Series = {
            key: [(row["step"], row[key]) for row in rows if _is_number(row.get(key))] for key in panel.keys
        }
        series = {key: points for key, points in series.items() if points}
        if series and not _repeats_exact_match(panel, series, rows):
            drawn.append((panel, series))
    # A single point makes a poor curve: the table of results shows it better.
    curves = [(panel, series) for panel, series in drawn if max(map(len, series.values())) > 1]
    return draw_panels(curves or drawn) if drawn else None


def _repeats_exact_match(panel: Panel, series: Series, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the panel shows nothing but a held-out reward that equals the exact match."""
    scored = [row for row in rows if "eval_reward_sampled" in row]
    same = all(row["eval_reward_sampled"] == row.get("exact_match_sampled") for row in scored)
    return list(series) == ["eval_reward_sampled"] and same


def draw_panels(panels: Sequence[tuple[Panel, Series]]) -> str:
    """Draw each panel's series, none of them empty, over the steps of all panels.

    The first panel has the full width, and so has a last one without a neighbor.
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


def _panel(panel: Panel, series: Series, box: Box) -> list[str]:
    values = [y for points in series.values() for _, y in points]
    down, marks = _scale(panel, values, box)
    right, bottom = box.left + box.width, box.top + box.height
    steps = box.marks()
    parts = [line(box.across(step), box.top, box.across(step), bottom, LIGHT) for step in steps]
    parts += [line(box.left, down(mark), right, down(mark), LIGHT) for mark in marks]
    parts.append(frame(box.left, box.top, box.width, box.height))
    numbers = zip(marks, tick_labels(marks), strict=True)
    parts += [words(box.left - 6, down(mark) + 4, text, "end") for mark, text in numbers]
    parts += [words(box.across(step), bottom + 16, f"{step:,.0f}", "middle") for step in steps]
    parts.append(words(box.left, box.top - 8, panel.title, "start", "#000", bold=True))
    # A color belongs to a metric, whether the panel's other curves are drawn or not.
    colours = dict(zip(panel.keys, COLOURS, strict=False))
    offset = right
    for key, points in reversed(list(series.items())):
        label = f"{panel.labels[key]} {points[-1][1]:.4g}"
        parts.append(words(offset, box.top - 8, label, "end", colours[key]))
        offset -= width_of(label) + 12
    for key, points in series.items():
        path = " ".join(f"{box.across(x):.1f},{down(y):.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colours[key]}" stroke-width="1.8"/>')
        dotted = len(points) <= 30 and key.startswith(MEASURED_RARELY)
        parts += [dot(box.across(x), down(y), colours[key]) for x, y in (points if dotted else points[-1:])]
    return parts


def _scale(panel: Panel, values: Sequence[float], box: Box) -> tuple[Callable[[float], float], list[float]]:
    """Return the function from a value to its height in the picture, and the values with a label."""
    low, high = min(values), max(values)
    logarithmic = low > 0 and high / low > WIDE_RANGE and not panel.linear
    if panel.from_zero and not logarithmic:
        low = min(0.0, low)
    scale = math.log10 if logarithmic else float
    bottom, top = scale(low), scale(high)
    room = 0.06 * (top - bottom)  # keeps curves off the frame
    top += room
    bottom -= 0.0 if low == 0.0 and not logarithmic else room

    def down(value: float) -> float:
        share = (scale(value) - bottom) / (top - bottom) if top > bottom else 0.5
        return box.top + (1 - share) * box.height

    marks = powers(low, high) if logarithmic else ticks(bottom, top, max(4, int(box.height // 45)))
    return down, marks


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


# Scores of a pipeline, and predictions

ROW, HEAD, FOOT = 26, 34, 28
BAR = 12


def draw_scores(scores: Mapping[str, Mapping[str, float]]) -> str | None:
    """Draw the exact match of each stage, greedy and sampled, or else the reward. None without either."""
    is_exact = any("exact_match" in row for row in scores.values())
    panel = Panel(("exact_match", "exact_match_sampled")) if is_exact else Panel(("eval_reward_sampled",))
    labels = list(panel.labels.values()) if is_exact else [panel.title]
    keys = panel.keys if is_exact else ("reward",)  # the key in a pipeline's scores
    values = [row[key] for row in scores.values() for key in keys if key in row]
    if not values:
        return None
    low, high = (0.0, 1.0) if is_exact else (min(0.0, *values), max(values) or 1.0)
    left = 24 + max(width_of(stage) for stage in scores)
    right, height = float(WIDTH - RIGHT - 8), ROW * len(scores)

    def across(value: float) -> float:
        return left + (value - low) / ((high - low) or 1) * (right - left)

    marks = ticks(low, high, 5)
    parts = [line(across(mark), HEAD, across(mark), HEAD + height, LIGHT) for mark in marks]
    parts.append(frame(left, HEAD, right - left, height))
    texts = [f"{100 * mark:.0f} %" for mark in marks] if is_exact else tick_labels(marks)
    for mark, text in zip(marks, texts, strict=True):
        parts.append(words(across(mark), HEAD + height + 16, text, "middle"))
    parts.append(words(left, HEAD - 12, f"{panel.title}, held-out prompts", "start", BLACK, bold=True))
    offset = right
    for number, name in reversed(list(enumerate(labels))):
        parts.append(words(offset, HEAD - 12, name, "end", COLOURS[number]))
        parts.append(dot(offset - width_of(name) - 8, HEAD - 16, COLOURS[number], 4))
        offset -= width_of(name) + 28
    for index, (stage, row) in enumerate(scores.items()):
        middle = HEAD + ROW * (index + 0.5)
        parts.append(words(left - 8, middle + 4, stage, "end", BLACK))
        found = [(number, row[key]) for number, key in enumerate(keys) if key in row]
        if len(found) > 1:
            parts.append(line(across(found[0][1]), middle, across(found[1][1]), middle, "#bbb"))
        parts += [dot(across(value), middle, COLOURS[number], 5) for number, value in found]
    return picture(HEAD + height + FOOT, parts)


def draw_predictions(rows: Sequence[tuple[str, float, float, str, str]]) -> str | None:
    """Draw pairs of bars from (title, predicted, actual, both as texts); each pair has its own scale."""
    rows = [row for row in rows if row[1] > 0 and row[2] > 0]
    if not rows:
        return None
    left = 24 + max(width_of(title) for title, *_ in rows)
    room = WIDTH - RIGHT - left - 150  # leaves space for the number after the longest bar
    parts = []
    for index, (title, predicted, actual, predicted_text, actual_text) in enumerate(rows):
        top = 10 + index * (2 * BAR + 18)
        parts.append(words(left - 10, top + BAR + 4, title, "end", BLACK))
        both = (("predicted", predicted, predicted_text), ("actual", actual, actual_text))
        for number, (name, value, text) in enumerate(both):
            width = room * value / max(predicted, actual)
            parts.append(bar(left, top + number * (BAR + 2), width, BAR, COLOURS[number]))
            parts.append(words(left + width + 6, top + number * (BAR + 2) + 10, f"{name} {text}", "start"))
    return picture(10 + len(rows) * (2 * BAR + 18), parts)
