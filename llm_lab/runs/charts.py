"""SVG by hand: lines, texts, round marks on an axis. No library draws our pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

WIDTH, RIGHT = 760, 24
COLOURS = ("#7da0c4", "#c0392b", "#2e8b57")
GREY, LIGHT, BLACK = "#555", "#e4e4e4", "#000"
CHARACTER_WIDTH = 6.6  # of the font's 12 pixels, about


def picture(height: float, parts: Sequence[str]) -> str:
    """Return a whole picture of that height."""
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
    """Return about how wide a text is, in pixels."""
    return CHARACTER_WIDTH * len(text)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Return round numbers from low to high, about so many, and two at least where there is room for them."""
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
    """Return 1, 2 and 5 times the powers of ten from low to high; the powers alone where those are many."""
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [many * 10.0**power for power in tens for many in (1, 2, 5) if low <= many * 10.0**power <= high]
    return found if len(found) <= 6 else [10.0**power for power in tens if low <= 10.0**power <= high]


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


ROW, HEAD, FOOT = 26, 34, 28  # of the chart of scores
BAR = 12


def draw_scores(scores: Mapping[str, Mapping[str, float]]) -> str | None:
    """Draw exact match, greedy and sampled, of each stage; where there is none, the reward. None without either."""
    exact = {"exact_match": "greedy", "exact_match_sampled": "sampled"}
    series = exact if any("exact_match" in row for row in scores.values()) else {"reward": "reward"}
    values = [row[key] for row in scores.values() for key in series if key in row]
    if not values:
        return None
    is_exact = series is exact
    low, high = (0.0, 1.0) if is_exact else (min(0.0, *values), max(values) or 1.0)
    left = 24 + max(width_of(stage) for stage in scores)
    right, height = WIDTH - RIGHT - 8, ROW * len(scores)

    def across(value: float) -> float:
        return left + (value - low) / ((high - low) or 1) * (right - left)

    marks = ticks(low, high, 5)
    parts = [line(across(mark), HEAD, across(mark), HEAD + height, LIGHT) for mark in marks]
    parts.append(frame(left, HEAD, right - left, height))
    told = [f"{100 * mark:.0f} %" if is_exact else f"{mark:.4g}" for mark in marks]
    parts += [words(across(mark), HEAD + height + 16, text, "middle") for mark, text in zip(marks, told, strict=True)]
    parts.append(
        words(left, HEAD - 12, "exact match, held out" if is_exact else "reward, held out", "start", BLACK, bold=True)
    )
    offset = right
    for number, name in reversed(list(enumerate(series.values()))):
        parts.append(words(offset, HEAD - 12, name, "end", COLOURS[number]))
        parts.append(dot(offset - width_of(name) - 8, HEAD - 16, COLOURS[number], 4))
        offset -= width_of(name) + 28
    for index, (stage, row) in enumerate(scores.items()):
        middle = HEAD + ROW * (index + 0.5)
        parts.append(words(left - 8, middle + 4, stage, "end", BLACK))
        found = [(number, row[key]) for number, key in enumerate(series) if key in row]
        if len(found) > 1:
            parts.append(line(across(found[0][1]), middle, across(found[1][1]), middle, "#bbb"))
        parts += [dot(across(value), middle, COLOURS[number], 5) for number, value in found]
    return picture(HEAD + height + FOOT, parts)


def draw_predictions(rows: Sequence[tuple[str, float, float, str, str]]) -> str | None:
    """Draw pairs of bars: (title, predicted, actual, and both in words); each pair has a scale of its own."""
    rows = [row for row in rows if row[1] > 0 and row[2] > 0]
    if not rows:
        return None
    left = 24 + max(width_of(title) for title, *_ in rows)
    room = WIDTH - RIGHT - left - 150  # beside the longest bar stands its number
    parts = []
    for index, (title, predicted, actual, *told) in enumerate(rows):
        top = 10 + index * (2 * BAR + 18)
        parts.append(words(left - 10, top + BAR + 4, title, "end", BLACK))
        both = (("predicted", predicted, told[0]), ("actual", actual, told[1]))
        for number, (name, value, text) in enumerate(both):
            width = room * value / max(predicted, actual)
            parts.append(bar(left, top + number * (BAR + 2), width, BAR, COLOURS[number]))
            parts.append(words(left + width + 6, top + number * (BAR + 2) + 10, f"{name} {text}", "start"))
    return picture(10 + len(rows) * (2 * BAR + 18), parts)
