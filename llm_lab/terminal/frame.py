"""The frame that shows a run in a terminal: its numbers, its curve, and on request what the numbers mean."""

from __future__ import annotations

import itertools
import math
import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llm_lab.estimate.formatting import clock, count
from llm_lab.runs.glossary import name_of, quantity, rank, write

from .console import one_line, printable

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

Points = Sequence[tuple[float, float]]

MAX_COLUMNS = 100
NUMBER_LINES = 7
HELD_OUT = "o"  # the mark of the second curve where there are no colors
CURVE_LINES = 8
SAMPLE_LINES = 3
MAX_POINTS = 2_000
SPEED_WINDOW = 20  # log rows from which the time left is estimated
SOURCES_SHOWN = 4
# What is drawn: the first pair with data, (training, held out).
CURVES = (("reward", "eval_reward_sampled"), ("loss", "eval_loss"))
# Keys that are not measurements, or that the frame shows elsewhere.
NOT_SHOWN = {"step", "wall_seconds", "epoch", "time", "mix", "epochs"}
# Numbers that the frame leaves to metrics.jsonl, the log lines and the report.
DETAILS = {"policy_loss", "critic_grad_norm", "reward_chosen", "reward_rejected", "logps_rejected"}
# Scores that come first in a stage that is trained on rewards.
REWARDED = (
    *("reward", "reward_std", "zero_spread_share", "kl", "clip_fraction", "entropy", "completion_length"),
    *("cut_off_share", "exact_match", "exact_match_sampled", "eval_reward", "eval_reward_sampled"),
    *("explained_variance", "value_loss"),
)
HELP_HINT = "? help"

# The bit of each dot in a braille character, by row and column.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BRAILLE = 0x2800
_LABEL = 7  # columns of the numbers next to the axis
LEAST_SPAN = 2e-3  # of the values on the y axis: numbers of these columns could not show a smaller one


@dataclass
class Track:
    """What is known of a run so far. help_page: which page of explanations is shown, None for none."""

    now: Callable[[], float] = time.monotonic
    begun: bool = False
    ended: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    max_steps: int = 0
    step: int = 0
    latest: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, list[tuple[float, float]]] = field(
        default_factory=lambda: {key: [] for pair in CURVES for key in pair}
    )
    sample: tuple[int, str, str] | None = None
    saved_step: int | None = None
    progress: tuple[str, int, int] | None = None
    help_page: int | None = None
    _marks: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=SPEED_WINDOW))
    _includes_start: bool = True
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
        """Add one row of metrics.jsonl."""
        step = int(row.get("step", self.step))
        self.latest.update(row)
        for key, points in self.curves.items():
            if isinstance(row.get(key), int | float):
                points.append((step, float(row[key])))
                if len(points) > MAX_POINTS:
                    del points[1:-1:2]
        if "loss" in row:
            if self._includes_start and len(self._marks) == 2:
                self._marks.popleft()  # the first steps compile and warm up: they say nothing about the others
                self._includes_start = False
            self._marks.append((self.now(), step))
        if isinstance(row.get("wall_seconds"), int | float):
            self._clock_zero = self.now() - row["wall_seconds"]
        self.step = max(self.step, step)

    def end(self) -> None:
        self.ended = True
        self.progress = self.help_page = None

    def elapsed(self) -> float:
        return self.now() - self._clock_zero if self.begun else 0.0

    def seconds_left(self) -> float | None:
        """Return the time left, estimated from recent steps; None while too few are known."""
        if len(self._marks) < 2:
            return None
        (then, first), (last, step) = self._marks[0], self._marks[-1]
        if step <= first or step >= self.max_steps:
            return 0.0 if step >= self.max_steps else None
        return max(0.0, (self.max_steps - step) * (last - then) / (step - first) - (self.now() - last))


def mfu(row: Mapping[str, Any], facts: Mapping[str, Any]) -> float | None:
    """Return the model FLOPs utilization, or None where the GPU's peak is not known."""
    speed, flops, peak = row.get("tokens_per_second"), facts.get("flops_per_token"), facts.get("peak_flops")
    return speed * flops / peak if speed and flops and peak else None


def values_of(row: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, float]:
    """Return every number of a row by its key, in the order of the glossary."""
    values = {**row, "mfu": mfu(row, facts)}
    keys = [key for key, value in values.items() if isinstance(value, int | float) and key not in NOT_SHOWN]
    return {key: values[key] for key in sorted(keys, key=rank)}


def numbers_of(row: Mapping[str, Any], facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (name, number) of everything in a row."""
    values = values_of(row, facts)
    return [*((one_line(name_of(key)), write(key, value)) for key, value in values.items()), *mix_of(row)]


def mix_of(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (name, numbers) of the shares of the data sources, and of how often each was read."""
    if isinstance(row.get("mix"), list):
        yield name_of("mix"), _of_each([f"{100 * share:.0f}" for share in row["mix"]]) + " %"
    if isinstance(row.get("epochs"), list):
        yield name_of("epochs"), _of_each(["<1" if times is None else f"{times:.2f}" for times in row["epochs"]])


def _of_each(numbers: list[str]) -> str:
    """Join the numbers of the data sources; of many, the first ones."""
    return "/".join(numbers if len(numbers) <= SOURCES_SHOWN else [*numbers[: SOURCES_SHOWN - 1], ".."])


def _frame_values(track: Track) -> dict[str, float]:
    """Return what the frame shows, the most informative first."""
    row = track.latest
    values = {key: value for key, value in values_of(row, track.facts).items() if key not in DETAILS}
    for kind in ("", "_sampled"):  # where the reward only repeats the exact match
        if values.get(f"eval_reward{kind}") == values.get(f"exact_match{kind}"):
            values.pop(f"eval_reward{kind}", None)
    if "reward" not in values:
        return values
    values.pop("train_tokens", None)
    return {key: values[key] for key in sorted(values, key=lambda key: (key not in REWARDED, _place(key)))}


def _place(key: str) -> int:
    return REWARDED.index(key) if key in REWARDED else rank(key)


def describe_progress(done: int, total: int) -> str:
    """Return how far a piece of work is: 30 % (3/10)."""
    return f"{100 * done // total} % ({done:,}/{total:,})" if total > 0 else f"{done:,}"


def draw_frame(
    track: Track, columns: int, lines: int, *, unicode: bool = True, colors: bool = True, hint: str = ""
) -> Group:
    """Draw a run for a terminal of this size, on at most `lines` - 2 lines. hint: shown after the heading."""
    from rich.console import Group
    from rich.text import Text

    columns = min(columns - 1, MAX_COLUMNS)
    parts: list[Text] = []
    if track.begun:
        heading = Text.assemble((track.heading, "title"), (f"   {hint}" if hint else "", "dim"))
        parts += [heading, _steps(track, columns, unicode)]
    if track.begun and track.help_page is not None:
        parts += _explanations(track, columns, lines - 2 - len(parts))
    else:
        parts += _body(track, columns, lines - 2 - len(parts), unicode, colors)
    for part in parts:
        part.no_wrap = True
        part.truncate(columns, overflow="ellipsis" if unicode else "crop")
    return Group(*parts[: max(1, lines - 2)])


def _body(track: Track, columns: int, free: int, unicode: bool, colors: bool) -> list[Text]:
    """Return numbers, curve and sample on at most `free` lines."""
    parts = [*_numbers(track, columns), *_mix(track)] if track.begun else []
    if track.progress:
        label, done, total = track.progress
        parts.append(_bar(f"{one_line(label)} ", done, total, " " + describe_progress(done, total), columns, unicode))
    free -= len(parts)
    sample = _sample(track, columns, min(SAMPLE_LINES, free - 1)) if track.sample and free >= 2 else []
    free -= len(sample)
    if track.curves["loss"] and free >= 5:
        parts += _curve(track, columns, min(CURVE_LINES, free - 1), unicode, colors)
    return parts + sample


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
    """Lay the numbers out in columns, on at most NUMBER_LINES lines."""
    from rich.text import Text

    pairs = [(one_line(name_of(key)), write(key, value)) for key, value in _frame_values(track).items()]
    if track.saved_step is not None:
        pairs.append(("saved at step", f"{track.saved_step:,}"))
    across, widths = _columns(pairs, columns)
    for start in range(0, min(len(pairs), NUMBER_LINES * across), across):
        line = Text()
        for (name, number), width in zip(pairs[start : start + across], widths, strict=False):
            style = "bad" if number in ("nan", "inf", "-inf") else "bold"
            line.append(name + " ", style="dim").append(number.ljust(width - len(name) - 1), style=style)
        yield line


def _columns(pairs: list[tuple[str, str]], columns: int) -> tuple[int, list[int]]:
    """Return how many numbers fit on one line, and how wide each column is."""
    for across in (4, 3, 2):
        stacks = [pairs[start::across] for start in range(across)]
        widths = [max((len(name) + len(number) for name, number in stack), default=0) + 3 for stack in stacks]
        if sum(widths) <= columns + 2:
            spare = max(0, columns - sum(widths)) // across
            return across, [width + spare for width in widths]
    return 1, [columns]


def _mix(track: Track) -> Iterator[Text]:
    """Put the mix of several sources on a line of its own: it is wider than a number."""
    from rich.text import Text

    pairs = list(mix_of(track.latest))
    if pairs:
        yield Text("   ").join(Text.assemble((name + " ", "dim"), (numbers, "bold")) for name, numbers in pairs)


def help_pages(track: Track, columns: int, free: int) -> list[list[list[Text]]]:
    """Return what the shown quantities mean, in pages of at most `free` lines; each entry is a list of lines."""
    from rich.text import Text

    keys = [*_frame_values(track), *(key for key in ("mix", "epochs") if isinstance(track.latest.get(key), list))]
    pages: list[list[list[Text]]] = [[]]
    for key in keys:
        known = quantity(key)
        if not known.meaning:
            continue
        text = known.meaning + (f" Healthy: {known.healthy}" if known.healthy else "")
        name = one_line(known.name)
        lines = textwrap.wrap(f"{name}  {text}", max(20, columns), subsequent_indent="  ") or [""]
        entry = [Text.assemble((name, "bold"), lines[0][len(name) :]), *map(Text, lines[1:])]
        if pages[-1] and sum(map(len, pages[-1])) + len(entry) > free:
            pages.append([])
        pages[-1].append(entry)
    return pages


def _explanations(track: Track, columns: int, free: int) -> list[Text]:
    from rich.text import Text

    pages = help_pages(track, columns, free - 1)
    number = min(track.help_page or 0, len(pages) - 1)
    more = f"page {number + 1} of {len(pages)}, ? for the next page" if number + 1 < len(pages) else "? closes the help"
    lines = [line for entry in pages[number] for line in entry] or [Text("No numbers yet.")]
    return [*lines[: max(0, free - 1)], Text(more, style="dim")]


def turn_help_page(track: Track, columns: int, lines: int) -> None:
    """Show the first page of explanations, then the next; after the last, the numbers again."""
    if not track.begun or track.ended:
        return
    following = 0 if track.help_page is None else track.help_page + 1
    count_of_pages = len(help_pages(track, min(columns - 1, MAX_COLUMNS), lines - 5))
    track.help_page = following if following < count_of_pages else None


def _curve(track: Track, columns: int, lines: int, unicode: bool, colors: bool) -> Iterator[Text]:
    from rich.text import Text

    pair = next(pair for pair in CURVES if track.curves[pair[0]])
    train, held_out = (track.curves[key] for key in pair)
    legend = Text.assemble("        ", (name_of(pair[0]), "dim cyan"))
    if held_out:
        legend.append("  ").append(name_of(pair[1]) + ("" if colors else f" ({HELD_OUT})"), style="bold yellow")
    yield legend
    styles = {None: "dim", 0: "dim cyan", 1: "bold yellow"}
    y_max = _ceiling(train) if pair[0] == "loss" else None
    for row in draw_curves([train, held_out], columns, lines, ascii_only=not unicode, y_max=y_max):
        marked = ((HELD_OUT if index == 1 and not colors else text, styles[index]) for text, index in row)
        yield Text.assemble(*marked)


def _ceiling(points: list[tuple[float, float]]) -> float | None:
    """Return the greatest loss after the first steps, whose fall would flatten all the rest."""
    first, last = points[0][0], points[-1][0]
    later = [y for x, y in points if x > first + 0.05 * (last - first) and math.isfinite(y)]
    return max(later) if len(points) > 20 and later else None


def _sample(track: Track, columns: int, lines: int) -> list[Text]:
    from rich.text import Text

    step, prompt, text = track.sample or (0, "", "")
    heading = f"sample at step {step:,}" + (f", prompt {one_line(prompt)!r}" if prompt else "")
    wrapped = [part for line in printable(text).expandtabs(4).split("\n") for part in textwrap.wrap(line, columns)]
    return [Text(heading, style="dim"), *map(Text, wrapped[:lines])]


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
        for x, y in _joined(places):
            cell = (y // down, x // across)
            if owner.get(cell, index) != index:
                dots[cell] = 0  # a cell has one color: the later curve takes it
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
    """Return the least and the greatest value, with a margin where they differ by less than a share of their size."""
    low, high = min(values), max(values)
    if high - low <= least * max(abs(low), abs(high), 1e-300):
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
    """Return a value with enough digits to differ from the others on the axis."""
    digits = max(0, 1 - math.floor(math.log10(span)))
    return f"{value:.{digits}f}" if digits <= 4 and abs(value) < 1e5 else f"{value:.1e}".replace("e-0", "e-")


def _x_number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e9 else f"{value:.3g}"
