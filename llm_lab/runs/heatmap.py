"""A table of numbers as a picture: one colored cell per value."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from .axis import number
from .color_scale import scale_of
from .figure import EDGE, Figure, is_number, with_decimals
from .svg import SIZE, WIDTH, bar, stroke, width_of, words

LARGEST, HIGHEST, SMALLEST = 84.0, 28.0, 3.0  # the largest width and height of a cell, and its smallest width
BAR_HEIGHT = 300.0  # the largest height of the color bar
LABEL = 13.0  # pixels for a row's label


def draw_heatmap(
    values: Sequence[Sequence[float | None]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    x: str = "",
    y: str = "",
    diverging: bool = False,
    digits: int = 2,
    low: float | None = None,
    high: float | None = None,
) -> str:
    """Draw values[row][column] as colored cells with their numbers, if those fit; None is an empty cell.

    x and y: the names of the axes. diverging: the middle of the color scale is 0. low and high set the ends of the
    color scale, so that several pictures can be compared. ValueError if values and names don't match.
    """
    if len(values) != len(rows) or any(len(row) != len(columns) for row in values):
        raise ValueError(f"values must have {len(rows)} rows of {len(columns)} columns")
    figure = Figure(title)
    found = [value for row in values for value in row if is_number(value)]
    if not found:
        return figure.nothing()
    scale = scale_of(found, diverging=diverging, low=low, high=high)

    left = EDGE + (18 if y else 0) + min(max(map(width_of, map(str, rows))), 190.0) + 8
    room = WIDTH - EDGE - left - 96
    wide = max(min(room / len(columns), LARGEST), SMALLEST)
    tall = min(max(wide, 16.0 if len(rows) <= 40 else 0.0), HIGHEST)
    right = left + wide * len(columns)
    upward = max(map(width_of, map(str, columns))) > wide - 6
    head = figure.top + (18 if x else 0)
    over = min(max(map(width_of, map(str, columns))), 120.0) if upward else SIZE
    top = head + over + 8
    bottom = top + tall * len(rows)
    if x:
        middle = (left + right) / 2
        figure.add(words(middle, figure.top + 10, x, "middle", room=2 * min(middle, WIDTH - middle) - 2 * EDGE))
    if y:
        figure.add(words(EDGE + 8, (top + bottom) / 2, y, "middle", upward=True, room=max(bottom - top, 60)))

    every = max(1, -(-int(LABEL) // max(int(wide), 1))) if upward else 1
    for index, name in enumerate(columns):
        middle = left + wide * (index + 0.5)
        if index % every == 0 and upward:
            figure.add(words(middle + 4, top - 6, name, "start", room=over + 1, upward=True))
        elif index % every == 0:
            figure.add(words(middle, top - 6, name, "middle"))
    every = max(1, -(-int(LABEL) // max(int(tall), 1)))
    for index, name in enumerate(rows):
        if index % every == 0:
            figure.add(words(left - 6, top + tall * (index + 0.5) + 4, name, "end", room=190))

    all_zero = any(found) and max(map(abs, found)) < 0.5 * 10**-digits
    write = partial(number, digits=2) if all_zero else partial(with_decimals, decimals=digits)
    widest = max(width_of(write(value), 11) for value in found)
    written = tall >= 14 and widest <= wide - 4
    strange = 0
    gap = 1.0 if wide >= 10 else 0.0
    for row, cells in enumerate(values):
        for column, value in enumerate(cells):
            across, down = left + wide * column, top + tall * row
            about = f"{rows[row]}, {columns[column]}"
            if is_number(value):
                name = scale.color(value)
                text = write(value)
                figure.add(bar(across, down, wide - gap, tall - gap, name, about=f"{about}: {value:.{digits + 2}g}"))
                if written:
                    figure.add(
                        words(across + (wide - gap) / 2, down + tall / 2 + 4, text, "middle", f"on-{name}", size=11)
                    )
            else:
                strange += value is not None
                figure.add(
                    f'<rect x="{across + 0.5:.1f}" y="{down + 0.5:.1f}" width="{wide - gap - 1:.1f}" '
                    f'height="{tall - gap - 1:.1f}" {stroke("grid")} fill="none"/>'
                )
    if scale.low < scale.high:
        figure.add(*scale.draw(right + 18, top, min(max(bottom - top - gap, 60), BAR_HEIGHT)))
    figure.left_out(strange, "cell", "not a finite number")
    description = (
        f"{len(rows)} rows and {len(columns)} columns, from {min(found):.{digits + 2}g} to {max(found):.{digits + 2}g}."
    )
    return figure.finish(max(bottom, top + 60) + 8, description)
