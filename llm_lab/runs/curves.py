"""A run's curves as one SVG: panels below each other over the same steps, drawn without any library."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

Points = Sequence[tuple[float, float]]

WIDTH, LEFT, RIGHT = 760, 64, 36
TOP, GAP, BOTTOM = 30, 36, 40
COLOURS = ("#7da0c4", "#c0392b", "#2e8b57")
GREY, LIGHT = "#555", "#e4e4e4"
# Above this ratio of largest to smallest a curve that is never negative is drawn on a logarithmic scale.
WIDE_RANGE = 30.0


@dataclass(frozen=True)
class Panel:
    """One axis: its title, its height, and the metrics drawn on it as {name in metrics.jsonl: words}."""

    title: str
    height: int
    metrics: Mapping[str, str]
    from_zero: bool = False


PANELS = (
    Panel("loss", 240, {"loss": "training", "eval_loss": "validation"}),
    Panel("reward", 150, {"reward": "training"}),
    Panel("score", 150, {"score": "held out"}),
    Panel("learning rate", 110, {"learning_rate": "last"}, from_zero=True),
    Panel("gradient norm", 110, {"grad_norm": "last"}, from_zero=True),
)


def draw_curves(rows: Iterable[Mapping[str, Any]]) -> str | None:
    """Draw what rows of metrics.jsonl hold, or return None where that is nothing."""
    rows = list(rows)
    drawn = []
    for panel in PANELS:
        series = {
            words: [(row["step"], row[name]) for row in rows if _is_number(row.get(name))]
            for name, words in panel.metrics.items()
        }
        series = {words: points for words, points in series.items() if points}
        if series:
            drawn.append((panel, series))
    return draw_panels(drawn) if drawn else None


def draw_panels(panels: Sequence[tuple[Panel, Mapping[str, Points]]]) -> str:
    """Draw each panel's series (words -> (step, value) points, none empty) over the steps of all of them."""
    steps = [x for _, series in panels for points in series.values() for x, _ in points]
    first, last = min(steps), max(steps)
    height = TOP + sum(panel.height + GAP for panel, _ in panels) - GAP + BOTTOM

    def across(step: float) -> float:
        return LEFT + (step - first) / ((last - first) or 1) * (WIDTH - LEFT - RIGHT)

    ticks = [step for step in _ticks(first, last, 6) if step == int(step)]
    body = [f'<rect width="{WIDTH}" height="{height}" fill="white"/>']
    top = TOP
    for panel, series in panels:
        body += _panel(panel, series, top, across, ticks)
        top += panel.height + GAP
    under = top - GAP
    body += [_text(across(step), under + 16, f"{step:,.0f}", "middle") for step in ticks]
    body.append(_text(WIDTH - RIGHT, under + 32, "step", "end"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="12">\n' + "\n".join(body) + "\n</svg>\n"
    )


def _panel(panel: Panel, series: Mapping[str, Points], top: int, across: Any, steps: Sequence[float]) -> list[str]:
    values = [y for points in series.values() for _, y in points]
    low, high = min(values), max(values)
    logarithmic = low > 0 and high / low > WIDE_RANGE and panel.title != "learning rate"
    if panel.from_zero and not logarithmic:
        low = min(0.0, low)
    scale = math.log10 if logarithmic else float
    bottom, top_value = scale(low), scale(high)
    room = 0.06 * (top_value - bottom)  # so that no curve runs along the frame
    top_value += room
    bottom -= 0.0 if low == 0.0 and not logarithmic else room

    def down(value: float) -> float:
        share = (scale(value) - bottom) / (top_value - bottom) if top_value > bottom else 0.5
        return top + (1 - share) * panel.height

    right = WIDTH - RIGHT
    about = max(3, panel.height // 45)
    marks = _powers(low, high) if logarithmic else _ticks(bottom, top_value, about)
    parts = [_line(across(step), top, across(step), top + panel.height, LIGHT) for step in steps]
    parts += [_line(LEFT, down(mark), right, down(mark), LIGHT) for mark in marks]
    parts.append(
        f'<rect x="{LEFT}" y="{top}" width="{right - LEFT}" height="{panel.height}" fill="none" stroke="{GREY}"/>'
    )
    parts += [_text(LEFT - 6, down(mark) + 4, f"{mark + 0.0:.4g}", "end") for mark in marks]
    parts.append(_text(LEFT, top - 8, panel.title, "start", "#000", ' font-weight="bold"'))
    offset = right
    for number, (words, points) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        few = points if len(points) <= 30 and number else points[-1:]
        parts += [f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="2.5" fill="{colour}"/>' for x, y in few]
        label = f"{words} {points[-1][1]:.4g}"
        parts.append(_text(offset, top - 8, label, "end", colour))
        offset -= 8 * len(label)
    return parts


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from low to high, about so many."""
    if high <= low:
        return [low]
    raw = (high - low) / about
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * many for many in (1, 2, 2.5, 5, 10) if unit * many >= raw)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _powers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten from low to high; the powers alone where those are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [many * 10.0**power for power in powers for many in (1, 2, 5) if low <= many * 10.0**power <= high]
    return found if len(found) <= 6 else [10.0**power for power in powers if low <= 10.0**power <= high]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str, colour: str = GREY, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{more}>{escape(text)}</text>'
