"""What a run shows while it works: a live frame in a terminal, plain lines elsewhere."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from llm_lab.estimate.formatting import clock
from llm_lab.events import (
    CheckpointSaved,
    Event,
    MetricsLogged,
    Notice,
    Progress,
    RunWarning,
    SampleWritten,
    ScoresReported,
    TrainingEnded,
    TrainingStarted,
)
from llm_lab.runs.report import describe_scores

from .console import make_console, one_line, printable, supports_unicode
from .frame import Track, draw_frame, measure, numbers_of

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.live import Live

REFRESH_SECONDS = 0.25
PLAIN_PROGRESS_SECONDS = 5.0


def make_display(console: Console | None = None) -> PlainDisplay | TerminalDisplay:
    """Return the live display where there is a terminal that can do it, else plain lines."""
    console = console or make_console()
    live = console.is_terminal and not console.is_dumb_terminal and console.file.isatty()
    return TerminalDisplay(console) if live else PlainDisplay(console)


def print_scores(console: Console, scores: Mapping[str, Mapping[str, float]]) -> None:
    """Print the scores of a pipeline's stages as a table."""
    from rich.text import Text

    head, *rows = describe_scores(scores)
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    console.print()
    for row in [head, *rows]:
        numbers = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        line = Text("  ".join([row[0].ljust(widths[0]), *numbers]), style="title" if row is head else "")
        console.print(line, soft_wrap=True)
    console.print()


class _Display:
    """Hands each event to the method that shows it."""

    def __call__(self, event: Event) -> None:
        match event:
            case Notice(text) | RunWarning(text):
                self.notice(text)
            case Progress(label, done, total):
                self.progress(label, done, total)
            case TrainingStarted(max_steps, first_step, facts):
                self.begin(max_steps=max_steps, first_step=first_step, facts=facts)
            case MetricsLogged(row):
                self.log(row)
            case SampleWritten(step, prompt, text):
                self.sample(step, prompt, text)
            case CheckpointSaved(step, path):
                self.saved(step, path)
            case ScoresReported(scores):
                self.scores(scores)
            case TrainingEnded():
                self.end()


class PlainDisplay(_Display):
    """One line for every row, without control characters: for log files, pipes and dumb terminals."""

    def __init__(self, console: Console | None = None, *, now: Callable[[], float] = time.monotonic):
        self._console = console or make_console()
        self._now = now
        self._track = Track(now)
        self._progress_label = ""
        self._progress_at = 0.0

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def notice(self, text: str) -> None:
        self._say(text)

    def progress(self, label: str, done: int, total: int) -> None:
        is_new = label != self._progress_label
        if is_new or done >= total > 0 or self._now() - self._progress_at >= PLAIN_PROGRESS_SECONDS:
            self._progress_label = "" if done >= total > 0 else label
            self._progress_at = self._now()
            self._say(f"{label} {measure(done, total)}")

    def begin(self, *, max_steps: int, first_step: int, facts: Mapping[str, Any]) -> None:
        self._track = Track(self._track.now)  # a pipeline's next stage is reckoned for itself
        self._track.begin(max_steps, first_step, facts)
        self._say(f"{self._track.heading}: {'on ' if first_step else ''}from step {first_step:,} to {max_steps:,}")

    def log(self, row: Mapping[str, Any]) -> None:
        track = self._track
        track.log(row)
        words = [f"step {row.get('step', 0)}/{track.max_steps}"]
        if "loss" not in row:
            words.append("evaluation")
        for label, value in numbers_of(row, track.facts, short=True):
            words.append(f"{value} {label}" if label == "tok/s" else f"{label} {value}")
        if "loss" in row:
            left = track.seconds_left()
            words.append(clock(track.elapsed()) + (f", {clock(left)} left" if left is not None else ""))
        self._say("  ".join(words))

    def sample(self, step: int, prompt: str, text: str) -> None:
        self._say(f"sample at step {step}" + (f", from {one_line(prompt)!r}" if prompt else "") + ":")
        for line in text.splitlines() or [""]:
            self._say(f"  | {line}")

    def saved(self, step: int, path: str) -> None:
        self._say(f"saved step {step}: {path}")

    def scores(self, scores: Mapping[str, Mapping[str, float]]) -> None:
        print_scores(self._console, scores)

    def end(self) -> None:
        """Nothing stays on the screen to be cleared."""

    def _say(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(printable(text)), soft_wrap=True)


class TerminalDisplay(_Display):
    """A frame that stays at the bottom of the terminal; notices scroll above it.

    The frame is drawn by a thread of its own, so that the clock runs while a step compiles.
    """

    def __init__(self, console: Console | None = None, *, now: Callable[[], float] = time.monotonic):
        self._console = console or make_console()
        self._track = Track(now)
        self._live: Live | None = None
        self._drawn = (0, 0)  # columns and lines of the last frame
        self._lock = threading.RLock()
        self._ended = threading.Event()

    def __enter__(self) -> TerminalDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def notice(self, text: str) -> None:
        from rich.text import Text

        with self._lock:
            self._console.print(Text(printable(text)))

    def progress(self, label: str, done: int, total: int) -> None:
        with self._lock:
            self._track.progress = None if done >= total > 0 else (label, done, total)
            if self._track.progress:
                self._start()
            elif not self._track.begun:
                self._stop(keep_frame=False)

    def begin(self, *, max_steps: int, first_step: int, facts: Mapping[str, Any]) -> None:
        with self._lock:
            self._track.begin(max_steps, first_step, facts)
            self._start()

    def log(self, row: Mapping[str, Any]) -> None:
        with self._lock:
            self._track.log(row)

    def sample(self, step: int, prompt: str, text: str) -> None:
        with self._lock:
            self._track.sample = (step, prompt, text)

    def saved(self, step: int, path: str) -> None:
        with self._lock:
            self._track.saved_step = step

    def scores(self, scores: Mapping[str, Mapping[str, float]]) -> None:
        with self._lock:
            print_scores(self._console, scores)

    def end(self) -> None:
        """Leave the last frame standing and the cursor shown. May be called again, and at any time."""
        with self._lock:
            self._track.end()
            self._stop(keep_frame=self._track.begun)
            self._track = Track(self._track.now)

    def _start(self) -> None:
        if self._live is None:
            self._live = self._new_live()
            self._ended = threading.Event()
            atexit.register(self.end)
            threading.Thread(target=self._keep_drawing, args=(self._ended,), daemon=True).start()
        self._draw()

    def _new_live(self) -> Live:
        from rich.live import Live

        live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")
        live.start()
        return live

    def _stop(self, *, keep_frame: bool) -> None:
        if self._live is None:
            return
        self._ended.set()
        atexit.unregister(self.end)
        live, self._live = self._live, None
        try:
            if keep_frame:
                live.update(self._frame())
        finally:
            live.transient = not keep_frame
            live.stop()

    def _keep_drawing(self, ended: threading.Event) -> None:
        while not ended.wait(REFRESH_SECONDS):
            with self._lock:
                if not ended.is_set():
                    self._draw()

    def _draw(self) -> None:
        columns, lines = self._console.size
        if self._live is not None and (columns < self._drawn[0] or lines <= self._drawn[1]):
            # The terminal has folded the old frame's lines, so it can't be found again to draw over it.
            self._live.transient = True
            self._live.stop()
            self._console.clear()
            self._live = self._new_live()
        if self._live is not None:
            self._live.update(self._frame(), refresh=True)

    def _frame(self) -> Group:
        columns, lines = self._console.size
        frame = draw_frame(self._track, columns, lines, unicode=supports_unicode(self._console))
        self._drawn = (max(part.cell_len for part in frame.renderables), len(frame.renderables))
        return frame
