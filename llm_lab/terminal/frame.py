"""The frame that shows a run in a terminal: its numbers, its curve, its samples, and explanations of the numbers."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_lab.estimate.formatting import clock
from llm_lab.runs.glossary import name_of, quantity, write

from .console import one_line, printable
from .prompt_layout import wrapped
from .track import MEASURED, Track, describe_progress, describe_sample, mix_of, shown_values, text_of_sample

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

Points = Sequence[tuple[float, float]]

WIDE_COLUMNS, WIDE_LINES = 100, 30  # from this size, the curve is to the right of the numbers
NUMBER_LINES = 7
CURVE_LINES, WIDE_CURVE_LINES = 8, 18
BLANK_LINES = 3  # above and below the curve and the sample of a wide frame
LEAST_CURVE_LINES = 5  # including its legend
SAMPLE_LINES = 3
SPACED_LINES = 16  # terminal lines; from this number, blank lines separate the parts
ATTENTION = " !"  # the mark of a number that does not look healthy
HELD_OUT = "o"  # the mark of the second curve if there are no colors
CURVE_STYLES = {None: "dim", 0: "cyan", 1: "bold"}
# What each key shows; a narrow footer keeps the first ones.
KEYS = {"?": "explain", "c": "next curve", "s": "samples", "l": "log"}
ESCAPE = "\x1b"

# The bit of each dot in a braille character, by row and column.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BRAILLE = 0x2800
_LABEL = 7  # columns for the numbers of the y axis
LEAST_SPAN = 2e-3  # the least range of the y axis: its numbers are too short to show a smaller one


@dataclass(frozen=True)
class View:
    """What the frame shows below the progress: the numbers (no key), or what a key opened, and its page."""

    key: str = ""
    page: int = 0


def press(key: str, view: View, track: Track, columns: int, lines: int) -> View:
    """Return the view after a key; a key without a meaning changes nothing. `c` switches to the next curve."""
    if not track.begun or track.ended:
        return view
    if key == ESCAPE:
        return View()
    if key == "c":
        track.curve = (track.curve + 1) % max(1, len(track.panels()))
        return View()
    if key not in KEYS:
        return view
    following = View(key, view.page + 1 if view.key == key else 0)
    return following if following.page < len(_pages(following.key, track, columns - 1, _room(lines))) else View()


def _room(lines: int) -> int:
    """Return how many lines a view has between the progress and the keys."""
    return max(1, lines - (7 if lines >= SPACED_LINES else 5))


def draw_frame(
    track: Track,
    columns: int,
    lines: int,
    *,
    unicode: bool = True,
    colors: bool = True,
    view: View | None = None,
    keys: bool = False,
) -> Group:
    """Draw a run for a terminal of this size, on at most `lines` - 2 lines. keys: whether keys are read, and listed."""
    from rich.console import Group
    from rich.text import Text

    columns, view = columns - 1, view or View()
    head = [_heading(track, columns), *_steps(track, columns, unicode)] if track.begun else []
    foot = [_footer(view, track, columns, lines, unicode)] if keys and track.begun and lines >= 8 else []
    free = lines - 2 - len(head) - len(foot)
    if track.begun and view.key:
        pages = _pages(view.key, track, columns, _room(lines))
        blocks = [pages[min(view.page, len(pages) - 1)][: max(0, free)] if pages else [Text("Nothing yet.")]]
    elif track.begun and columns >= WIDE_COLUMNS - 1 and lines >= WIDE_LINES:
        blocks = _wide_body(track, columns, free, unicode, colors)
    else:
        blocks = _body(track, columns, free, unicode, colors)
    parts = _spaced([head, *blocks, foot], lines - 2)
    for part in parts:
        part.no_wrap = True
        part.truncate(columns, overflow="ellipsis" if unicode else "crop")
    body = parts[: len(parts) - len(foot)]
    return Group(*body[: max(1, lines - 2 - len(foot))], *foot)


def _spaced(blocks: list[list[Text]], lines: int) -> list[Text]:
    """Return the lines of blocks, with as many blank lines between them as fit, the last ones first."""
    from rich.text import Text

    shown = [block for block in blocks if block]
    spare = lines - sum(map(len, shown))
    parts: list[Text] = []
    for left, block in zip(reversed(range(len(shown))), shown, strict=True):
        parts += [*([Text()] if parts and left < spare else []), *block]
    return parts


def _heading(track: Track, columns: int) -> Text:
    """Return the heading without the parts that are too long for the line."""
    from rich.text import Text

    words = track.headings
    while len(words) > 1 and len(" · ".join(words)) > columns:
        words.pop()
    return Text(" · ".join(words), style="title")


def _footer(view: View, track: Track, columns: int, lines: int, unicode: bool) -> Text:
    """Return the descriptions of the keys, as many as fit."""
    from rich.text import Text

    if view.key:
        count = len(_pages(view.key, track, columns, _room(lines)))
        is_last = view.page + 1 >= count
        shown = (
            [(view.key, "back")]
            if is_last
            else [(view.key, f"next page ({view.page + 2} of {count})"), ("Esc", "back")]
        )
    else:
        known = {"c": len(track.panels()) > 1, "s": bool(track.samples)}
        stop = "save and stop" if columns >= 70 else "stop"
        shown = [("Ctrl-C", stop), *((key, text) for key, text in KEYS.items() if known.get(key, True))]
    foot = Text()
    for key, text in shown:
        more = Text.assemble("  " if foot else "", (key, "bold"), (f" {text}", "dim"))
        if foot.cell_len + more.cell_len <= columns:
            foot.append_text(more)
    return foot


def _body(track: Track, columns: int, free: int, unicode: bool, colors: bool) -> list[list[Text]]:
    """Return numbers, curve and sample, one below the other, on at most `free` lines."""
    most = max(2, min(NUMBER_LINES, (free + 2) // 3))
    numbers = [*_numbers(track, columns, most), *_mix(track, columns)] if track.begun else []
    if not track.begun:
        numbers = _progress("", track, columns, unicode)
    warning = _warning(track, columns) if track.begun else []
    blank = 1 if free >= SPACED_LINES - 5 else 0  # before and after each part
    free -= blank + sum(len(part) + blank for part in (numbers, warning) if part)
    has_curve = bool(track.panels()) and free >= LEAST_CURVE_LINES + blank
    left = free - blank - (LEAST_CURVE_LINES + blank if has_curve else 0)
    sample = _sample(track, columns, min(SAMPLE_LINES, left - 1)) if left >= 2 else []
    free -= blank + (len(sample) + blank if sample else 0)
    curve = _curve(track, columns, min(CURVE_LINES, free - 1), unicode, colors) if has_curve else []
    return [numbers, warning, curve, sample]


def _wide_body(track: Track, columns: int, free: int, unicode: bool, colors: bool) -> list[list[Text]]:
    """Return the numbers next to the curve, warnings, and the sample below them, on at most `free` lines."""
    from rich.text import Text

    under = [_mix(track, columns), _warning(track, columns)]
    taken = sum(len(block) + 1 for block in under if block)
    pairs = _pairs(track)
    if any(number.endswith(ATTENTION) for _, number, _ in pairs):  # keep the digits aligned
        unmarked = " " * len(ATTENTION)
        pairs = [
            (name, number if number.endswith(ATTENTION) else number + unmarked, style) for name, number, style in pairs
        ]
    names, width = max(len(name) for name, *_ in pairs), max(len(number) for _, number, _ in pairs)
    left = [
        Text.assemble((name.ljust(names), "dim"), "  ", (number.rjust(width), style)) for name, number, style in pairs
    ]
    sample = _sample(track, columns, free // 3)
    # The curve takes the lines that the sample and the blank lines leave.
    rows = max(WIDE_CURVE_LINES, len(left), free - taken - max(len(sample), SAMPLE_LINES) - BLANK_LINES)
    rows = min(rows, free - taken - SAMPLE_LINES)
    side = names + width + 2
    right = list(_curve(track, columns - side - 4, rows - 1, unicode, colors))
    bar = " │ " if unicode else " | "
    lines = [
        Text.assemble(one, " " * (side - one.cell_len), (bar, "dim"), other)
        for one, other in itertools.zip_longest(left[:rows], right, fillvalue=Text())
    ]
    return [lines, *under, sample[: max(SAMPLE_LINES, free - len(lines) - taken - BLANK_LINES)]]


def _progress(before: str, track: Track, columns: int, unicode: bool) -> list[Text]:
    """Return the line of work other than training steps, like an evaluation. before: the start of the line."""
    from rich.text import Text

    if track.progress is None:
        return []
    label, done, total = track.progress
    if not (done or total):
        return [Text.assemble(before, (f"{one_line(label)} {_dots(track)}", "help"))]
    return [_bar(f"{before}{one_line(label)} ", done, total, " " + describe_progress(done, total), columns, unicode)]


def _bar(before: str, done: int, total: int, after: str, columns: int, unicode: bool) -> Text:
    from rich.text import Text

    width = max(0, min(40, columns - len(before) - len(after)))
    full = round(width * min(1.0, done / total)) if total > 0 else 0
    on, off = ("━", "─") if unicode else ("#", "-")
    return Text.assemble(before, (on * full, "help"), (off * (width - full), "dim"), after)


def _steps(track: Track, columns: int, unicode: bool) -> list[Text]:
    """Return the line of the steps. An evaluation takes the place of the bar: nothing below it moves."""
    step = f"step {track.step:,}/{track.max_steps:,}"
    if track.progress is not None:
        return _progress(f"{step}, ", track, columns, unicode)
    share = 100 * track.step // max(1, track.max_steps)
    times = f"{clock(track.elapsed())} elapsed"
    left = track.seconds_left()
    if not track.ended and left is not None and track.step < track.max_steps:
        times += f", {clock(left)} left"
    if not track.latest and not track.ended:
        times += f", first step{_dots(track)}"
    after = f" {share} %  {times}"
    return [_bar(f"{step} ", track.step, track.max_steps, after, columns, unicode)]


def _dots(track: Track) -> str:
    """Return dots that change each second: the run is working."""
    return f"{'.' * (1 + int(track.now()) % 3):3}"


def _pairs(track: Track) -> list[tuple[str, str, str]]:
    """Return (name, number, style) for each number in the frame; one that needs attention has a mark."""
    pairs = []
    for key, value in shown_values(track).items():
        health = track.health(key)
        is_bad = health is not None and health.is_good is False
        number = write(key, value) + (ATTENTION if is_bad else "")
        pairs.append((one_line(name_of(key)), number, "attention" if is_bad else "bold"))
    steps = {"saved at step": track.saved_step}
    if track.evaluated_step is not None and track.evaluated_step < track.step:  # old results stay visible
        steps = {"evaluated at step": track.evaluated_step, **steps}
        if track.saved_step == track.evaluated_step:
            steps = {"saved, evaluated at step": track.saved_step}
    pairs += [(name, f"{step:,}", "bold") for name, step in steps.items() if step is not None]
    return pairs or [("", "", "")]


def _numbers(track: Track, columns: int, most: int) -> Iterator[Text]:
    """Lay the numbers out in columns, on at most `most` lines."""
    from rich.text import Text

    pairs = _pairs(track)
    across, widths = _columns(pairs, columns)
    if across == 1:  # the names are too long for several columns
        yield from _one_after_another(pairs, columns, most)
        return
    for start in range(0, min(len(pairs), most * across), across):
        line = Text()
        for (name, number, style), width in zip(pairs[start : start + across], widths, strict=False):
            line.append(name + " ", style="dim").append(number.ljust(width - len(name) - 1), style=style)
        line.rstrip()
        yield line


def _one_after_another(pairs: list[tuple[str, str, str]], columns: int, most: int) -> list[Text]:
    """Fill lines with numbers one after another, without columns."""
    from rich.text import Text

    lines = [Text()]
    for name, number, style in pairs:
        part = Text.assemble((name + " ", "dim"), (number, style))
        if lines[-1] and lines[-1].cell_len + 3 + part.cell_len <= columns:
            lines[-1].append("   ").append_text(part)
        else:
            lines.append(part)
    return lines[1 : most + 1]


def _columns(pairs: list[tuple[str, str, str]], columns: int) -> tuple[int, list[int]]:
    """Return how many numbers fit on one line, and how wide each column is."""
    for across in (4, 3, 2):
        stacks = [pairs[start::across] for start in range(across)]
        widths = [max((len(name) + len(number) for name, number, _ in stack), default=0) + 3 for stack in stacks]
        if sum(widths) <= columns + 2:
            spare = max(0, columns - sum(widths)) // across
            return across, [width + spare for width in widths]
    return 1, [columns]


def _mix(track: Track, columns: int) -> list[Text]:
    """Put the mixture of several sources on its own lines, because it is wider than a number."""
    from rich.text import Text

    parts = [Text.assemble((name + " ", "dim"), (numbers, "bold")) for name, numbers in mix_of(track.latest)]
    line = Text("   ").join(parts)
    return [] if not parts else [line] if line.cell_len <= columns else parts


def _warning(track: Track, columns: int) -> list[Text]:
    """Return the newest warning."""
    from rich.text import Text

    lines = wrapped(f"! {printable(track.warning)}", columns, 2).split("\n") if track.warning else []
    if len(lines) > SAMPLE_LINES:
        lines = [*lines[: SAMPLE_LINES - 1], "  (l shows all of it)"]
    return [Text(line, style="warn") for line in lines]


def _sample(track: Track, columns: int, lines: int) -> list[Text]:
    """Return the heading of the first sample, and up to `lines` lines of its text."""
    from rich.text import Text

    if not track.samples:
        return []
    step, prompt, text = track.samples[0]
    heading = textwrap.shorten(describe_sample(step, prompt), columns, placeholder=" ...")
    return [Text(heading, style="dim"), *map(Text, _wrapped(text_of_sample(text), columns)[: max(0, lines)])]


def _wrapped(text: str, columns: int) -> list[str]:
    return [part for line in printable(text).expandtabs(4).split("\n") for part in textwrap.wrap(line, columns)]


# What a key opens: pages of lines


def _pages(key: str, track: Track, columns: int, room: int) -> list[list[Text]]:
    """Return what a key opens, in pages of at most `room` lines."""
    return {"?": help_pages, "s": _sample_pages, "l": _log_pages}[key](track, columns, room)


def help_pages(track: Track, columns: int, room: int) -> list[list[Text]]:
    """Return an explanation of each number on the screen, and whether it looks healthy."""
    from rich.text import Text

    keys = [*shown_values(track), *(key for key in ("mix", "epochs") if isinstance(track.latest.get(key), list))]
    pages: list[list[Text]] = [[]]
    for key in keys:
        known, health = quantity(key), track.health(key)
        if not known.meaning:
            continue
        name = one_line(known.name)
        number = "" if isinstance(track.latest.get(key), list) else f" {write(key, shown_values(track)[key])}"
        looks = f": {_VERDICTS[health.is_good]}{health.words}" if health else ""
        style = "" if health is None or health.is_good is None else "good" if health.is_good else "warn"
        text = known.meaning + (f" Healthy: {known.healthy}" if known.healthy else "")
        head, *rest = wrapped(f"{name}{number}{looks}", max(18, columns - 2)).split("\n")
        entry = [Text(head, style=style), *(Text(f"  {line}", style=style) for line in rest)]
        entry[0].stylize("bold", 0, len(name + number))
        meaning = wrapped(text, max(18, columns - 2)).split("\n")
        entry += [Text(f"  {line}", style="dim") for line in meaning]
        if pages[-1] and len(pages[-1]) + len(entry) > room:
            pages.append([])
        pages[-1] += entry
    return pages if pages[0] else []


_VERDICTS = {True: "looks healthy, ", False: "needs attention (!), ", None: ""}


def _sample_pages(track: Track, columns: int, room: int) -> list[list[Text]]:
    from rich.text import Text

    pages: list[list[Text]] = []
    for number, (step, prompt, text) in enumerate(track.samples, 1):
        count = f"{number} of {len(track.samples)}, " if len(track.samples) > 1 else ""
        head = [Text(line, style="title") for line in textwrap.wrap(count + describe_sample(step, prompt), columns)]
        head, each = head[: max(1, room - 1)], max(1, room - len(head))
        lines = _wrapped(text_of_sample(text), columns)
        pages += [[*head, *map(Text, lines[start : start + each])] for start in range(0, len(lines), each)]
    return pages


def _log_pages(track: Track, columns: int, room: int) -> list[list[Text]]:
    """Return the newest log lines as one page."""
    from rich.text import Text

    lines: list[str] = []
    for entry in reversed(track.lines):
        parts = wrapped(printable(entry), columns, 2).split("\n")
        if lines and len(lines) + len(parts) > room:
            break
        lines = [*parts[:room], *lines]
    return [[Text(line) for line in lines]] if lines else []


# Curves


def _curve(track: Track, columns: int, lines: int, unicode: bool, colors: bool) -> list[Text]:
    """Return the curves of a panel, with their names above them; nothing until there is a point."""
    from rich.text import Text

    panels = track.panels()
    if not panels or columns < 20 or lines < 3:
        return []
    panel = panels[track.curve % len(panels)]
    scale, unit = (100, " (%)") if panel.is_percent else (1, "")
    series = [[(x, scale * y) for x, y in track.history.get(key, ())] for key in panel.keys]
    legend = Text(" " * (_LABEL + 1))
    # The second curve is drawn as marks if there are no colors, and if it is measured rarely.
    rarely = [key.startswith(MEASURED) for key in panel.keys]
    dotted = tuple(index for index in range(1, len(series)) if not colors or (rarely[index] and not rarely[0]))
    for index, (key, points) in enumerate(zip(panel.keys, series, strict=True)):
        if points:
            mark = f" ({HELD_OUT})" if index in dotted else ""
            text = f"{name_of(key)}{unit}{mark}  "
            if legend.cell_len + len(text) <= columns + 2:
                legend.append(text, style=CURVE_STYLES[index])
    where = f"curve {track.curve % len(panels) + 1} of {len(panels)}"
    legend.rstrip()
    if len(panels) > 1 and legend.cell_len + 2 + len(where) <= columns:
        legend.append(where.rjust(columns - legend.cell_len), style="dim")
    y_max = ceiling(series[0]) if panel.keys[0] == "loss" and "reward" not in track.history else None
    drawn = [legend]
    for row in draw_curves(series, columns, lines, ascii_only=not unicode, y_max=y_max, dotted=dotted):
        marked = ((HELD_OUT if index in dotted and text.strip() else text, CURVE_STYLES[index]) for text, index in row)
        drawn.append(Text.assemble(*marked))
    return drawn


def ceiling(points: Points) -> float | None:
    """Return the greatest loss after the first steps, whose fall would flatten the rest of the curve."""
    if len(points) <= 20:
        return None
    first, last = points[0][0], points[-1][0]
    later = [y for x, y in points if x > first + 0.05 * (last - first) and math.isfinite(y)]
    return max(later) if later else None


def draw_curve(
    points: Points, width: int, height: int, *, ascii_only: bool = False, y_max: float | None = None
) -> list[str]:
    """Draw (x, y) points as `height` lines of at most `width` columns; the last line is the x axis.

    y_max: values above it are drawn at the top edge.
    """
    lines = draw_curves([points], width, height, ascii_only=ascii_only, y_max=y_max)
    return ["".join(text for text, _ in line).rstrip() for line in lines]


def draw_curves(
    series: Sequence[Points],
    width: int,
    height: int,
    *,
    ascii_only: bool = False,
    y_max: float | None = None,
    dotted: Container[int] = (),
) -> list[list[tuple[str, int | None]]]:
    """Draw several curves in one frame, later ones on top. dotted: indices of the curves whose points are not joined.

    Returns lines of (text, index of the curve that the text belongs to; None for the frame).
    """
    finite = [[(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for points in series]
    everything = [point for points in finite for point in points]
    columns, rows = max(4, width - _LABEL - 1), max(1, height - 1)
    if not everything:
        return [[(" " * width, None)] for _ in range(rows + 1)]
    left, right = _span([x for x, _ in everything], 1e-9)
    bottom, top = _span([min(y, y_max) if y_max is not None else y for _, y in everything], LEAST_SPAN)
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
        for x, y in places if index in dotted else _joined(places):
            cell = (y // down, x // across)
            if owner.get(cell, index) != index:
                dots[cell] = 0  # a cell has only one color: the later curve wins
            owner[cell] = index
            dots[cell] = dots.get(cell, 0) | _DOTS[y % down][x % across]
    lines = []
    for row in range(rows):
        line: list[tuple[str, int | None]] = [(_y_label(row, rows, bottom, top, ascii_only), None)]
        for column in range(columns):
            dot = dots.get((row, column), 0)
            mark = "*" if ascii_only else chr(_BRAILLE + dot)
            line.append((mark if dot else " ", owner.get((row, column))))
        lines.append(line)
    ends = [x for x, _ in everything]
    first, last = _x_number(min(ends)), _x_number(max(ends))
    gap = columns - len(first) - len(last)
    axis = f"{first}{' ' * gap}{last}" if gap > 0 else last
    lines.append([(" " * (_LABEL + 1) + axis, None)])
    return lines


def _span(values: Sequence[float], least: float) -> tuple[float, float]:
    """Return the least and the greatest value; add a margin if they differ by less than a share of their size.

    If no value is negative, the margin does not go below 0: most quantities can't be negative.
    """
    low, high = min(values), max(values)
    if high - low <= least * max(abs(low), abs(high), 1e-300):
        margin = abs(high) * 0.05 or 0.5
        return (max(0.0, low - margin) if low >= 0 else low - margin), high + margin
    return low, high


def _joined(places: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the dots of the line through all points."""
    yield from places[:1]
    for (x0, y0), (x1, y1) in itertools.pairwise(places):
        steps = max(abs(x1 - x0), abs(y1 - y0))
        for step in range(1, steps + 1):
            yield round(x0 + (x1 - x0) * step / steps), round(y0 + (y1 - y0) * step / steps)


def _y_label(row: int, rows: int, bottom: float, top: float, ascii_only: bool) -> str:
    # A value in the middle is drawn in this row, although an even number of rows has no middle one.
    is_middle = rows >= 5 and row == rows // 2
    labeled = row in (0, rows - 1) or is_middle
    value = (top + bottom) / 2 if is_middle else top - (top - bottom) * row / max(1, rows - 1)
    bar = ("+" if labeled else "|") if ascii_only else ("┤" if labeled else "│")
    return (_y_number(value, top - bottom) if labeled else "").rjust(_LABEL - 1) + " " + bar


def _y_number(value: float, span: float) -> str:
    """Return a value with enough digits to differ from the others on the axis."""
    digits = max(0, 1 - math.floor(math.log10(span)))
    value = round(value, digits) + 0.0 if digits <= 4 else value  # avoids "-0.00"
    return f"{value:.{digits}f}" if digits <= 4 and abs(value) < 1e5 else f"{value:.1e}".replace("e-0", "e-")


def _x_number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e9 else f"{value:.3g}"
