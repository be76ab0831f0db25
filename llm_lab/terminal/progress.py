"""What a run shows while it works: a live frame in a terminal, plain lines elsewhere."""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import sys
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

from .console import has_colors, make_console, one_line, printable, supports_unicode
from .frame import HELP_HINT, Track, describe_progress, draw_frame, numbers_of, turn_help_page

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
    from rich.table import Table
    from rich.text import Text

    head, *rows = describe_scores(scores)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for number, name in enumerate(head):
        table.add_column(Text(name, style="title"), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print()
    console.print(table)
    console.print()


class PlainDisplay:
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
        """Nothing stays on the screen to be cleared."""

    def __call__(self, event: Event) -> None:
        match event:
            case Notice(text) | RunWarning(text):
                self._say(text)
            case Progress(label, done, total):
                self._show_progress(label, done, total)
            case TrainingStarted(max_steps, first_step, facts):
                self._track = track = Track(self._now)  # each stage of a pipeline is timed for itself
                track.begin(max_steps, first_step, facts)
                start = f"resumes after step {first_step:,} of {max_steps:,}" if first_step else f"{max_steps:,} steps"
                self._say(f"{track.heading}: {start}")
            case MetricsLogged(row):
                self._log(row)
            case SampleWritten(step, prompt, text):
                self._say(f"sample at step {step}" + (f", prompt {one_line(prompt)!r}" if prompt else "") + ":")
                for line in text.splitlines() or [""]:
                    self._say(f"  | {line}")
            case CheckpointSaved(step, path):
                self._say(f"saved step {step}: {path}")
            case ScoresReported(scores):
                print_scores(self._console, scores)

    def _show_progress(self, label: str, done: int, total: int) -> None:
        is_new = label != self._progress_label
        if is_new or done >= total > 0 or self._now() - self._progress_at >= PLAIN_PROGRESS_SECONDS:
            self._progress_label = "" if done >= total > 0 else label
            self._progress_at = self._now()
            self._say(f"{label} {describe_progress(done, total)}")

    def _log(self, row: Mapping[str, Any]) -> None:
        track = self._track
        track.log(row)
        words = [f"step {row.get('step', 0)}/{track.max_steps}"]
        if "loss" not in row:
            words.append("evaluation")
        shown = {key: value for key, value in row.items() if key != "train_tokens"}
        words += [f"{name} {number}" for name, number in numbers_of(shown, track.facts)]
        if "loss" in row:
            left = track.seconds_left()
            words.append(clock(track.elapsed()) + (f", {clock(left)} left" if left is not None else ""))
        self._say("  ".join(words))

    def _say(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(printable(text)), soft_wrap=True)


class TerminalDisplay:
    """A frame that stays at the bottom of the terminal; notices scroll above it.

    The frame is drawn by a thread of its own, so that the clock runs while a step compiles. The same thread reads the
    keys: `?` shows what the numbers mean.
    """

    def __init__(self, console: Console | None = None, *, now: Callable[[], float] = time.monotonic):
        self._console = console or make_console()
        self._track = Track(now)
        self._keyboard = Keyboard()
        self._live: Live | None = None
        self._drawn = (0, 0)  # columns and lines of the last frame
        self._lock = threading.RLock()
        self._ended = threading.Event()

    def __enter__(self) -> TerminalDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def __call__(self, event: Event) -> None:
        from rich.text import Text

        with self._lock:
            match event:
                case Notice(text) | RunWarning(text):
                    self._console.print(Text(printable(text)))
                case Progress(label, done, total):
                    self._show_progress(label, done, total)
                case TrainingStarted(max_steps, first_step, facts):
                    self._track.begin(max_steps, first_step, facts)
                    self._start()
                case MetricsLogged(row):
                    self._track.log(row)
                case SampleWritten(step, prompt, text):
                    self._track.sample = (step, prompt, text)
                case CheckpointSaved(step):
                    self._track.saved_step = step
                case ScoresReported(scores):
                    print_scores(self._console, scores)
                case TrainingEnded():
                    self._end()

    def _show_progress(self, label: str, done: int, total: int) -> None:
        self._track.progress = None if done >= total > 0 else (label, done, total)
        if self._track.progress:
            self._start()
        elif not self._track.begun:
            self._stop(keep_frame=False)

    def _end(self) -> None:
        """Leave the last frame on the screen, the cursor shown and the terminal as it was. May be called again."""
        with self._lock:
            self._track.end()
            self._stop(keep_frame=self._track.begun)
            self._track = Track(self._track.now)

    def _start(self) -> None:
        if self._live is None:
            self._live = self._new_live()
            self._ended = threading.Event()
            atexit.register(self._end)
            self._keyboard.open()
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
        atexit.unregister(self._end)
        live, self._live = self._live, None
        try:
            if keep_frame:
                live.update(self._frame(hint=""))
        finally:
            live.transient = not keep_frame
            try:
                live.stop()
            finally:
                self._keyboard.close()

    def _keep_drawing(self, ended: threading.Event) -> None:
        while not ended.wait(REFRESH_SECONDS):
            with self._lock:
                if not ended.is_set():
                    if "?" in self._keyboard.read():
                        turn_help_page(self._track, *self._console.size)
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
            self._live.update(self._frame(hint=HELP_HINT if self._keyboard.is_open else ""), refresh=True)

    def _frame(self, *, hint: str) -> Group:
        columns, lines = self._console.size
        unicode, colors = supports_unicode(self._console), has_colors(self._console)
        frame = draw_frame(self._track, columns, lines, unicode=unicode, colors=colors, hint=hint)
        self._drawn = (max(part.cell_len for part in frame.renderables), len(frame.renderables))
        return frame


class Keyboard:
    """Keys read one by one, without echo, while a frame is shown. Ctrl-C still sends its signal.

    Does nothing if standard input is not a terminal, on Windows, and in a background job (which the system would stop
    for touching the terminal).
    """

    def __init__(self) -> None:
        self._before: list[Any] | None = None  # the terminal's settings

    @property
    def is_open(self) -> bool:
        return self._before is not None

    def open(self) -> None:
        """Switch off echo and line editing."""
        if not self.is_open and _owns_terminal():
            with contextlib.suppress(*_terminal_errors()):
                self._before = _silence()

    def read(self) -> str:
        """Return the keys pressed since the last call; does not wait."""
        if not self.is_open or not _owns_terminal():
            return ""
        try:
            _silence()  # a shell may have changed the settings while the run was suspended
            descriptor = sys.stdin.fileno()
            ready, _, _ = select.select([descriptor], [], [], 0)
            return os.read(descriptor, 1024).decode("ascii", "replace") if ready else ""
        except _terminal_errors():
            return ""

    def close(self) -> None:
        """Restore the terminal and drop the keys that nobody read."""
        before, self._before = self._before, None
        if before is not None and _owns_terminal():
            import termios

            with contextlib.suppress(*_terminal_errors()):
                termios.tcsetattr(sys.stdin.fileno(), termios.TCSAFLUSH, before)


def _silence() -> list[Any]:
    """Switch off echo and line editing of the terminal where they are on; returns the settings before."""
    import termios

    descriptor = sys.stdin.fileno()
    before, quiet = termios.tcgetattr(descriptor), termios.tcgetattr(descriptor)
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    if quiet != before:
        termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
    return before


def _terminal_errors() -> tuple[type[Exception], ...]:
    """Return what fails when the terminal no longer exists."""
    import termios

    return termios.error, OSError, ValueError


def _owns_terminal() -> bool:
    """Whether standard input is a terminal whose foreground process this is."""
    try:
        return sys.stdin.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (AttributeError, OSError, ValueError):
        return False
