"""A small line plot out of braille characters, or of plain ones where the terminal has no braille."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

Points = Sequence[tuple[float, float]]

# The bit of each dot in a braille character, by row and column.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BRAILLE = 0x2800
_LABEL = 7  # columns of the numbers beside the axis


def draw_curve(
    points: Points, width: int, height: int, *, ascii_only: bool = False, y_max: float | None = None
) -> list[str]:
    """Draw (x, y) points as `height` lines of at most `width` columns, the last one being the x axis.

    y_max: values above it are drawn at the top edge.
    """
    lines = draw_curves([points], width, height, ascii_only=ascii_only, y_max=y_max)
    return ["".join(text for text, _ in line).rstrip() for line in lines]


def draw_curves(
    series: Sequence[Points], width: int, height: int, *, ascii_only: bool = False, y_max: float | None = None
) -> list[list[tuple[str, int | None]]]:
    """Draw several curves in one frame, later ones on top.

    Returns lines of (text, index of the curve that the text belongs to; None for the frame).
    """
    finite = [[(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for points in series]
    everything = [point for points in finite for point in points]
    columns, rows = max(4, width - _LABEL - 1), max(1, height - 1)
    if not everything:
        return [[(" " * width, None)] for _ in range(rows + 1)]
    left, right = _span(x for x, _ in everything)
    bottom, top = _span(min(y, y_max) if y_max is not None else y for _, y in everything)
    across, down = (1, 1) if ascii_only else (2, 4)
    owner: dict[tuple[int, int], int] = {}
    dots: dict[tuple[int, int], int] = {}
    for index, points in enumerate(finite):
        places = [
            (
                round((x - left) / (right - left) * (columns * across - 1)),
                round((top - min(y, top)) / (top - bottom) * (rows * down - 1)),
            )
            for x, y in points
        ]
        for x, y in _joined(places):
            cell = (y // down, x // across)
            if owner.get(cell, index) != index:
                dots[cell] = 0  # two curves in one cell can't both be told apart
            owner[cell] = index
            dots[cell] = dots.get(cell, 0) | _DOTS[y % down][x % across]
    lines = []
    for row in range(rows):
        line: list[tuple[str, int | None]] = [(_y_label(row, rows, bottom, top, ascii_only), None)]
        for column in range(columns):
            dot, index = dots.get((row, column), 0), owner.get((row, column))
            mark = "*" if ascii_only else chr(_BRAILLE + dot)
            line.append((mark if dot else " ", index))
        lines.append(line)
    ends = [x for x, _ in everything]
    first, last = _x_number(min(ends)), _x_number(max(ends))
    gap = columns - len(first) - len(last)
    axis = f"{first}{' ' * gap}{last}" if gap > 0 else last
    lines.append([(" " * (_LABEL + 1) + axis, None)])
    return lines


def _span(values: Iterable[float]) -> tuple[float, float]:
    """Return the least and the greatest value, set apart where they are the same."""
    found = list(values)
    low, high = min(found), max(found)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-300):
        margin = abs(high) * 0.05 or 0.5
        return low - margin, high + margin
    return low, high


def _joined(places: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the dots of the line through all places."""
    yield from places[:1]
    for (x0, y0), (x1, y1) in itertools.pairwise(places):
        steps = max(abs(x1 - x0), abs(y1 - y0))
        for step in range(1, steps + 1):
            yield round(x0 + (x1 - x0) * step / steps), round(y0 + (y1 - y0) * step / steps)


def _y_label(row: int, rows: int, bottom: float, top: float, ascii_only: bool) -> str:
    labelled = row in (0, rows - 1) or (rows >= 5 and row == rows // 2)
    value = top - (top - bottom) * row / max(1, rows - 1)
    bar = ("+" if labelled else "|") if ascii_only else ("┤" if labelled else "│")
    return (_y_number(value, top - bottom) if labelled else "").rjust(_LABEL - 1) + " " + bar


def _y_number(value: float, span: float) -> str:
    """Return a value with as many digits as tell it from the others on the axis."""
    digits = max(0, 1 - math.floor(math.log10(span)))
    return f"{value:.{digits}f}" if digits <= 4 and abs(value) < 1e5 else f"{value:.0e}"


def _x_number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e9 else f"{value:.3g}"
