"""A small line plot out of braille characters, or of plain ones where the terminal has no braille."""

from __future__ import annotations

import itertools
import math
import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llm_lab.estimate.formatting import clock, count

from .console import one_line, printable
from .numbers import mix_of, numbers_of, scored_numbers_of

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

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


MAX_COLUMNS = 100
NUMBER_LINES = 5
CURVE_LINES = 8
SAMPLE_LINES = 3
MAX_POINTS = 2_000
# What is drawn, the first pair that was heard of: (training, held-out), and what each is called.
CURVES = {"reward": "reward", "eval_reward": "held-out reward", "loss": "training loss", "eval_loss": "eval loss"}
SPEED_WINDOW = 20  # log rows that the time left is reckoned from


@dataclass
class Track:
    """What was heard of a run so far."""

    now: Callable[[], float] = time.monotonic
    begun: bool = False
    ended: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    max_steps: int = 0
    step: int = 0
    latest: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: {key: [] for key in CURVES})
    sample: tuple[int, str, str] | None = None
    saved_step: int | None = None
    progress: tuple[str, int, int] | None = None
    _marks: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=SPEED_WINDOW))
    _from_begin: bool = True
    _clock_zero: float = 0.0

    @property
    def heading(self) -> str:
        """The run in one line."""
        facts = self.facts
        parameters = facts.get("parameters")
        words = [
            facts.get("name") or "run",
            facts.get("model"),
            f"{count(parameters)} parameters" if parameters else None,
            facts.get("device"),
        ]
        return one_line(" · ".join(str(word) for word in words if word))

    def begin(self, max_steps: int, first_step: int, facts: Mapping[str, Any]) -> None:
        self.begun, self.facts, self.max_steps, self.step = True, dict(facts), max_steps, first_step
        self._clock_zero = self.now()
        self._marks.append((self.now(), first_step))

    def log(self, row: Mapping[str, Any]) -> None:
        """Take in one row of metrics.jsonl."""
        step = int(row.get("step", self.step))
        self.latest.update(row)
        for key, points in self.curves.items():
            if isinstance(row.get(key), int | float):
                points.append((step, float(row[key])))
                if len(points) > MAX_POINTS:
                    del points[1:-1:2]
        if "loss" in row:
            if self._from_begin and len(self._marks) == 2:
                self._marks.popleft()  # the first steps compile and warm up: no measure of the others
                self._from_begin = False
            self._marks.append((self.now(), step))
        if isinstance(row.get("wall_seconds"), int | float):
            self._clock_zero = self.now() - row["wall_seconds"]
        self.step = max(self.step, step)

    def end(self) -> None:
        self.ended = True
        self.progress = None

    def elapsed(self) -> float:
        return self.now() - self._clock_zero if self.begun else 0.0

    def seconds_left(self) -> float | None:
        """Reckon the time left from the steps of late, or None while there is nothing to reckon from."""
        if len(self._marks) < 2:
            return None
        (then, first), (last, step) = self._marks[0], self._marks[-1]
        if step <= first or step >= self.max_steps:
            return 0.0 if step >= self.max_steps else None
        return max(0.0, (self.max_steps - step) * (last - then) / (step - first) - (self.now() - last))


def measure(done: int, total: int) -> str:
    """Return how far a piece of work is, in words."""
    return f"{100 * done // total} % ({done:,}/{total:,})" if total > 0 else f"{done:,}"


def draw_frame(track: Track, columns: int, lines: int, *, unicode: bool = True) -> Group:
    """Draw a run for a terminal of this size, on at most `lines` - 2 lines."""
    from rich.console import Group
    from rich.text import Text

    columns = min(columns - 1, MAX_COLUMNS)
    parts: list[Text] = []
    if track.begun:
        parts += [
            Text(track.heading, style="title"),
            _steps(track, columns, unicode),
            *_numbers(track, columns),
            *_mix(track),
        ]
    if track.progress:
        label, done, total = track.progress
        parts.append(_bar(f"{one_line(label)} ", done, total, " " + measure(done, total), columns, unicode))
    free = lines - 2 - len(parts)
    sample = _sample(track, columns, min(SAMPLE_LINES, free - 1)) if track.sample and free >= 2 else []
    free -= len(sample)
    if track.curves["loss"] and free >= 5:
        parts += _curve(track, columns, min(CURVE_LINES, free - 1), unicode)
    parts += sample
    for part in parts:
        part.no_wrap = True
        part.truncate(columns, overflow="ellipsis" if unicode else "crop")
    return Group(*parts[: max(1, lines - 2)])


def _bar(before: str, done: int, total: int, after: str, columns: int, unicode: bool) -> Text:
    from rich.text import Text

    width = max(0, min(40, columns - len(before) - len(after)))
    full = round(width * min(1.0, done / total)) if total > 0 else 0
    on, off = ("━", "─") if unicode else ("#", "-")
    return Text.assemble(before, (on * full, "good"), (off * (width - full), "dim"), after)


def _steps(track: Track, columns: int, unicode: bool) -> Text:
    share = 100 * track.step // max(1, track.max_steps)
    times = f"{clock(track.elapsed())} elapsed"
    left = track.seconds_left()
    if not track.ended and left is not None:
        times += f", {clock(left)} left"
    if not track.latest and not track.ended:
        dots = "." * (1 + int(track.now()) % 3)
        times += f", first step{dots:3}"
    after = f" {share} %  {times}"
    return _bar(f"step {track.step:,}/{track.max_steps:,} ", track.step, track.max_steps, after, columns, unicode)


def _numbers(track: Track, columns: int) -> Iterator[Text]:
    """Lay the numbers out in columns, as many lines as they take, at most NUMBER_LINES."""
    from rich.text import Text

    scored = "reward" in track.latest
    read = scored_numbers_of(track.latest) if scored else numbers_of(track.latest, track.facts, short=False)
    pairs = list(read)
    if track.saved_step is not None:
        pairs.append(("saved at step", f"{track.saved_step:,}"))
    across, widths = _across(pairs, columns)
    for start in range(0, min(len(pairs), NUMBER_LINES * across), across):
        line = Text()
        for (name, number), width in zip(pairs[start : start + across], widths, strict=False):
            style = "bad" if number in ("nan", "inf", "-inf") else "bold"
            line.append(name + " ", style="dim").append(number.ljust(width - len(name) - 1), style=style)
        yield line


def _across(pairs: list[tuple[str, str]], columns: int) -> tuple[int, list[int]]:
    """Return how many numbers stand side by side, and how wide each column is."""
    for across in (4, 3, 2):
        stacks = [pairs[start::across] for start in range(across)]
        widths = [max((len(name) + len(number) for name, number in stack), default=0) + 4 for stack in stacks]
        if sum(widths) <= columns + 3:
            spare = max(0, columns - sum(widths)) // across
            return across, [width + spare for width in widths]
    return 1, [columns]


def _mix(track: Track) -> Iterator[Text]:
    """Put the mix of several sources on a line of its own: it is wider than a number."""
    from rich.text import Text

    pairs = list(mix_of(track.latest))
    if pairs:
        yield Text("   ").join(Text.assemble((name + " ", "dim"), (numbers, "bold")) for name, numbers in pairs)


def _curve(track: Track, columns: int, lines: int, unicode: bool) -> Iterator[Text]:
    from rich.text import Text

    names = ("reward", "eval_reward") if track.curves["reward"] else ("loss", "eval_loss")
    train, held_out = (track.curves[name] for name in names)
    legend = Text.assemble("        ", (CURVES[names[0]], "dim cyan"))
    if held_out:
        legend.append("  ").append(CURVES[names[1]], style="bold yellow")
    yield legend
    styles = {None: "dim", 0: "dim cyan", 1: "bold yellow"}
    rows = draw_curves(
        [train, held_out], columns, lines, ascii_only=not unicode, y_max=_ceiling(train) if names[0] == "loss" else None
    )
    for row in rows:
        yield Text.assemble(*((text, styles[index]) for text, index in row))


def _ceiling(points: list[tuple[float, float]]) -> float | None:
    """Return the greatest loss after the first steps, whose fall would flatten all the rest."""
    first, last = points[0][0], points[-1][0]
    later = [y for x, y in points if x > first + 0.05 * (last - first) and math.isfinite(y)]
    return max(later) if len(points) > 20 and later else None


def _sample(track: Track, columns: int, lines: int) -> list[Text]:
    from rich.text import Text

    step, prompt, text = track.sample or (0, "", "")
    heading = f"sample at step {step:,}" + (f", from {one_line(prompt)!r}" if prompt else "")
    wrapped = [part for line in printable(text).expandtabs(4).split("\n") for part in textwrap.wrap(line, columns)]
    return [Text(heading, style="dim"), *map(Text, wrapped[:lines])]
