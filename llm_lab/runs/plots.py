"""Pictures of experiments as SVG: curves, intervals, a scatter of points, bars. Heatmaps are in heatmap.py.

Values that are not finite numbers are left out, and the picture says how many. If no value remains, it says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from .axis import SMALLEST, Axis, axis_of, draw_flat, draw_upright, number, tick_labels
from .color_scale import scale_of
from .figure import EDGE, Figure, decimals_of, is_number, with_decimals
from .heatmap import draw_heatmap
from .palette import SERIES, series_color
from .svg import WIDTH, area, bar, curve, dot, line, ring, spread, width_of, words

__all__ = ["Interval", "Line", "draw_bars", "draw_heatmap", "draw_intervals", "draw_lines", "draw_scatter"]

HEIGHT = 300.0  # height of a plot with two axes
LABEL_GAP = 15.0  # between the centers of two labels
LABEL_ROOM, NAME_ROOM = 190.0, 230.0
ROW = 38.0
DASHES = ("", "7 4", "2 3", "9 3 2 3")
FEW = 30  # a curve of at most this many points has a dot at each

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Line:
    """A named curve of (x, y) points; low and high, one number per point, are the edges of a band around it."""

    name: str
    points: Sequence[Point]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dashed: bool = False


class _Curve:
    """A line in a form to draw: the points that can be drawn, sorted by x, in parts without gaps."""

    def __init__(self, index: int, line: Line, log_x: bool, log_y: bool) -> None:
        self.name = line.name
        self.color = series_color(index)
        self.dashes = DASHES[1] if line.dashed else DASHES[index // len(SERIES) % len(DASHES)]

        def fits(x: float | None, y: float | None) -> bool:
            return is_number(x) and is_number(y) and (x > SMALLEST or not log_x) and (y > SMALLEST or not log_y)

        known = [at for at, (x, _) in enumerate(line.points) if fits(x, 1)]
        known.sort(key=lambda at: line.points[at][0])
        self.parts: list[list[Point]] = [[]]
        for at in known:
            if fits(*line.points[at]):
                self.parts[-1].append(line.points[at])
            elif self.parts[-1]:
                self.parts.append([])
        self.parts = [part for part in self.parts if part]
        self.points = [point for part in self.parts for point in part]
        self.missing = len(line.points) - len(self.points)
        self.band = [
            (line.points[at][0], line.low[at], line.high[at])
            for at in known
            if line.low is not None and line.high is not None and fits(1, line.low[at]) and fits(1, line.high[at])
        ]


def draw_lines(lines: Sequence[Line], *, title: str, x: str, y: str, log_x: bool = False, log_y: bool = False) -> str:
    """Draw curves over one pair of axes, each with its name at its end."""
    figure = Figure(title)
    curves = [_Curve(index, each, log_x, log_y) for index, each in enumerate(lines)]
    why = "not a finite number" + (", or not above 0 on a logarithmic axis" if log_x or log_y else "")
    figure.left_out(sum(each.missing for each in curves), "point", why)
    curves = [each for each in curves if each.points]
    if not curves:
        return figure.nothing()
    named = [each for each in curves if each.name]
    height = max(HEIGHT, LABEL_GAP * (len(named) + 1))
    room = min(max((width_of(each.name) for each in named), default=0.0), LABEL_ROOM)
    right = WIDTH - EDGE - (room + 24 if named else 8)
    values = [up for each in curves for _, up in each.points]
    values += [edge for each in curves for _, *edges in each.band for edge in edges]
    steps = [across for each in curves for across, _ in each.points]
    flat, upright = _draw_axes(figure, steps, values, x, y, right, height, log_x=log_x, log_y=log_y)

    for each in curves:
        if len(each.band) > 1:
            upper = [(flat.place(at), upright.place(high)) for at, _, high in each.band]
            lower = [(flat.place(at), upright.place(low)) for at, low, _ in each.band]
            figure.add(area(upper + lower[::-1], each.color))
    for each in curves:
        for part in each.parts:
            pixels = [(flat.place(across), upright.place(up)) for across, up in part]
            if len(pixels) > 1:
                about = f"{each.name}: {number(each.points[-1][1])} at the end"
                figure.add(curve(pixels, each.color, dashes=each.dashes, about=about))
            if len(each.points) <= FEW and len(curves) <= 12:
                figure.add(*(dot(*pixel, each.color) for pixel in pixels))
            elif len(pixels) == 1:
                figure.add(dot(*pixels[0], each.color))
    ends = [(flat.place(across), upright.place(up)) for across, up in (each.points[-1] for each in named)]
    places = spread([down for _, down in ends], LABEL_GAP, upright.end + 4, upright.start - 4)
    for each, (across, down), place in zip(named, ends, places, strict=True):
        # A dotted line connects a curve that ends early with its name.
        dashes = "1 3" if across < right - 8 else ""
        figure.add(line(across + 4, down, right + 16, place, each.color, width=0.8, dashes=dashes))
        figure.add(words(right + 20, place + 4, each.name, color=each.color, room=room + 1))
    about = "; ".join(f"{each.name or 'the curve'} ends at {number(each.points[-1][1])}" for each in curves[:12])
    return figure.finish(upright.start + 36, f"{y} over {x}: {about}.")


def _draw_axes(
    figure: Figure,
    across: Sequence[float],
    up: Sequence[float],
    x: str,
    y: str,
    right: float,
    height: float = HEIGHT,
    *,
    log_x: bool = False,
    log_y: bool = False,
    room: float = 0.0,
) -> tuple[Axis, Axis]:
    """Draw a grid with numbers and the names of both axes; returns the axes. room: the free share at each side."""
    y = "" if y.lower() == figure.title.lower() else y  # the title already says it
    top = figure.top + (24 if y else 10)
    bottom = top + height
    upright = axis_of(up, bottom, top, log=log_y)
    marks = upright.marks(max(4, int(height // 55)))
    left = EDGE + max(map(width_of, tick_labels(marks))) + 8
    figure.add(*draw_upright(upright, marks, left, right))
    flat = axis_of(across, left, right, log=log_x, room=room)
    marks = flat.marks(max(2, int((right - left) // 70)))
    if all(value == int(value) for value in across):  # layers, steps, epochs: no marks between whole numbers
        marks = [mark for mark in marks if mark == int(mark)]
    figure.add(*draw_flat(flat, marks, bottom))
    figure.add(words(EDGE, top - 12, y, room=WIDTH / 2 - EDGE) if y else "")
    figure.add(words(right, bottom + 34, x, "end", room=right - EDGE))
    return flat, upright


@dataclass(frozen=True)
class Interval:
    """A configuration: the value of each seed, their mean, and the ends of an interval around it; NaN where unknown."""

    name: str
    values: Sequence[float]
    mean: float
    low: float
    high: float


def draw_intervals(
    rows: Sequence[Interval], *, title: str, x: str, reference: float | None = None, reference_name: str = ""
) -> str:
    """Draw a row per configuration: the mean as a mark on its interval, and each seed as a dot below.

    reference: a value that gets a vertical line, such as 0 for differences.
    """
    figure = Figure(title)
    values = [value for row in rows for value in (*row.values, row.mean, row.low, row.high) if is_number(value)]
    figure.left_out(sum(not is_number(value) for row in rows for value in row.values), "value", "not a finite number")
    if not values:
        return figure.nothing()
    digits = decimals_of(values)
    texts = [_interval_text(row, digits) for row in rows]
    left = EDGE + min(max(width_of(row.name) for row in rows), NAME_ROOM) + 14
    right = WIDTH - EDGE - max(map(width_of, texts)) - 16
    bounds = [*values, reference] if is_number(reference) else values
    top, height = figure.top + (20 if reference_name else 4), ROW * len(rows)
    axis = axis_of(bounds, left, right, room=0.06)
    figure.add(*draw_flat(axis, axis.marks(max(2, int((right - left) // 70))), top + height, top))
    figure.add(words(right, top + height + 34, x, "end", room=right - EDGE))
    if is_number(reference):
        figure.add(line(axis.place(reference), top - 4, axis.place(reference), top + height, "soft", dashes="4 3"))
        half = min(width_of(reference_name), right - left) / 2
        middle = min(max(axis.place(reference), left + half), right - half)
        figure.add(words(middle, top - 9, reference_name, "middle", room=2 * half + 1))
    for index, (row, text) in enumerate(zip(rows, texts, strict=True)):
        down = top + ROW * (index + 0.5)
        about = f"{row.name}: {text}"
        figure.add(words(left - 12, down + 4, row.name, "end", "ink", room=NAME_ROOM))
        if is_number(row.low) and is_number(row.high):
            start, width = axis.place(row.low), axis.place(row.high) - axis.place(row.low)
            figure.add(bar(start, down - 8, max(width, 1.0), 6, "axis", radius=3, about=about))
        figure.add(*_seeds(row, axis, down + 5))
        if is_number(row.mean) and len(row.values) != 1:
            figure.add(bar(axis.place(row.mean) - 1.25, down - 12, 2.5, 14, "ink", about=about))
        figure.add(words(WIDTH - EDGE, down + 4, text, "end", "ink"))
    about = "; ".join(f"{row.name}: {text}" for row, text in zip(rows[:20], texts, strict=False))
    return figure.finish(top + height + 36, f"{x}, mean and interval. {about}.")


def _interval_text(row: Interval, digits: int) -> str:
    mean = with_decimals(row.mean, digits) if is_number(row.mean) else "no value"
    known = is_number(row.low) and is_number(row.high)
    return f"{mean}  [{with_decimals(row.low, digits)}, {with_decimals(row.high, digits)}]" if known else mean


def _seeds(row: Interval, axis: Axis, down: float) -> list[str]:
    """Return a dot for each seed; a dot that would hide another one is moved down."""
    placed: list[Point] = []
    parts = []
    for value in sorted(value for value in row.values if is_number(value)):
        across = axis.place(value)
        for away in (0, 5, 10):
            if all(abs(across - other) >= 6 or abs(down + away - high) >= 4 for other, high in placed):
                break
        placed.append((across, down + away))
        parts.append(ring(across, down + away, "c0", 3.6, about=f"{row.name}: {number(value, 6)}"))
    return parts


def draw_scatter(
    points: Sequence[tuple[float, float, float | None]],
    *,
    title: str,
    x: str,
    y: str,
    color_name: str = "",
    names: Sequence[str] = (),
) -> str:
    """Draw points of (x, y, value or None); the value is shown as color, with a color bar named color_name.

    names: one for each point, written next to it.
    """
    figure = Figure(title)
    named = list(zip(points, names or [""] * len(points), strict=True))
    named = [(point, name) for point, name in named if is_number(point[0]) and is_number(point[1])]
    known = [point for point, _ in named]
    figure.left_out(len(points) - len(known), "point", "not a finite number")
    if not known:
        return figure.nothing()
    colored = [value for *_, value in known if is_number(value)]
    scale = scale_of(colored, first=0.25) if colored else None
    right = WIDTH - EDGE - (scale.width(HEIGHT) + 26 if scale else 8)
    flat, upright = _draw_axes(
        figure, [point[0] for point in known], [point[1] for point in known], x, y, right, room=0.04
    )
    radius = 4.5 if len(known) <= 300 else 3.0
    if names:
        places = [(flat.place(point[0]), upright.place(point[1])) for point in known]
        figure.add(*_labels(places, [name for _, name in named], (flat.start, upright.end, right, upright.start)))
    for (across, up, value), name in named:
        color = "c0" if scale is None else scale.color(value) if is_number(value) else "axis"
        about = f"{name} {number(across)}, {number(up)}" + (f": {number(value)}" if is_number(value) else "")
        figure.add(ring(flat.place(across), upright.place(up), color, radius, about=about.strip()))
    if scale:
        figure.add(*scale.draw(right + 22, upright.end, HEIGHT))
        figure.add(words(WIDTH - EDGE, upright.end - 12, color_name, "end", room=WIDTH / 2 - 2 * EDGE))
    return figure.finish(upright.start + 36, f"{len(known):,} points: {y} over {x}.")


def _labels(places: Sequence[Point], names: Sequence[str], plot: Box) -> list[str]:
    """Return a name next to each dot: to its right, or else where it does not hide a dot or another name.

    If there is no such place, the name is shown only under the pointer.
    """
    parts: list[str] = []
    left, top, right, bottom = plot
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    for (x, y), name in sorted(zip(places, names, strict=True), key=lambda place: place[0][0]):
        room = min(LABEL_ROOM, max(right - x, x - left) - 8)
        wide = min(width_of(name), room)
        sides = [x + 8, x - 8 - wide] if x + 8 + wide <= right else [x - 8 - wide]
        aways = sorted((14.0 * step for step in range(-12, 13)), key=abs)
        for start, down in ((side, y + 4 + away) for away in aways for side in sides):
            box = (start, down - 10, start + wide, down + 3)
            # A name to the left of its dot must not seem to belong to the previous dot.
            free = (start - 24, *box[1:]) if start < x else box
            inside = start >= left and box[1] >= top - 8 and box[3] <= bottom
            if inside and not any(map(partial(_overlap, free), taken)):
                break
        else:
            continue
        taken.append(box)
        if down != y + 4:
            parts.append(line(x, y, start - 2 if start > x else x - 6, down - 4, "axis"))
        parts.append(words(start if start > x else x - 8, down, name, "start" if start > x else "end", room=room + 1))
    return parts


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def draw_bars(rows: Sequence[tuple[str, float]], *, title: str, x: str) -> str:
    """Draw a horizontal bar from 0 for each (name, value)."""
    figure = Figure(title)
    values = [value for _, value in rows if is_number(value)]
    if not values:
        return figure.nothing()
    texts = _bar_texts([value for _, value in rows])
    names = EDGE + min(max(width_of(name) for name, _ in rows), NAME_ROOM)
    left = names + 14
    beyond = max(map(width_of, texts)) + 8  # for the number at the end of a bar
    if min(values) < 0:
        left += beyond
    step, top = 24.0, figure.top + 4
    bottom = top + step * len(rows)
    right = WIDTH - EDGE - beyond
    axis = axis_of(values, left, right, zero=True, room=0.0)
    figure.add(*draw_flat(axis, axis.marks(max(2, int((right - left) // 70))), bottom, top))
    figure.add(words(right, bottom + 34, x, "end", room=right - EDGE))
    zero = axis.place(0.0)
    for index, ((name, value), text) in enumerate(zip(rows, texts, strict=True)):
        down = top + step * (index + 0.5)
        figure.add(
            words(
                names,
                down + 4,
                name,
                "end",
                "ink",
                room=NAME_ROOM,
            )
        )
        if is_number(value):
            end = axis.place(value)
            figure.add(bar(min(zero, end), down - 7, abs(end - zero), 14, "c0", about=f"{name}: {text}"))
            anchor = "start" if value >= 0 else "end"
            figure.add(words(end + (6 if value >= 0 else -6), down + 4, text, anchor, "ink"))
        else:
            figure.add(words(zero + 6, down + 4, text))
    figure.add(line(zero, top, zero, bottom, "axis"))
    about = "; ".join(f"{name}: {text}" for (name, _), text in zip(rows[:20], texts, strict=False))
    return figure.finish(bottom + 36, f"{x}. {about}.")


def _bar_texts(values: Sequence[float]) -> list[str]:
    """Return the texts of values with the same number of decimals, unless small ones would lose their digits."""
    sizes = [abs(value) for value in values if is_number(value) and value]
    digits = decimals_of([value for value in values if is_number(value)])
    alike = bool(sizes) and min(sizes) >= 10 ** (1 - digits)
    write = partial(with_decimals, decimals=digits) if alike else number
    return [write(value) if is_number(value) else "no value" for value in values]
