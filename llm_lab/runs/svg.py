"""SVG by hand: lines, texts, round marks on an axis. No library draws our pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
