"""What is known of a run that goes on, and the frame that shows it."""

from __future__ import annotations

import math
import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .console import clock, count, one_line, printable
from .curve import draw_curves
from .numbers import mix_of, numbers_of, scored_numbers_of

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

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
