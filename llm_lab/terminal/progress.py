"""What a run shows while it works: a live frame in a terminal, plain lines elsewhere."""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from llm_lab.estimate.formatting import clock
from llm_lab.events import (
    CheckpointSaved,
    Event,
    Listener,
    MetricsLogged,
    Notice,
    Progress,
    RunWarning,
    SampleWritten,
    ScoresReported,
    TrainingEnded,
    TrainingStarted,
    ignore,
)
from llm_lab.runs.processes import is_first_process

from .console import has_colors, is_plain, make_console, one_line, printable, supports_unicode
from .frame import HELP_HINT, Track, describe_progress, draw_frame, numbers_of, turn_help_page
from .keyboard import Keyboard, owns_terminal
from .scores_table import print_scores

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.live import Live

    from .notebook import NotebookDisplay

REFRESH_SECONDS = 0.25
PLAIN_PROGRESS_SECONDS = 5.0


def make_display(console: Console | None = None) -> SafeDisplay:
    """Return the live display where there is a terminal that can do it, or a notebook, else plain lines.

    None of them ends the run.
    """
    console = console or make_console()
    if console.is_jupyter:
        from .notebook import NotebookDisplay

        return SafeDisplay(NotebookDisplay())
    live = console.is_terminal and not is_plain() and console.file.isatty()
    return SafeDisplay(TerminalDisplay(console) if live else PlainDisplay(console))


@contextlib.contextmanager
def show_progress() -> Iterator[Listener]:
    """Yield what shows the progress, in the first process only; leaves the terminal as it was, also after errors."""
    if is_first_process():
        with make_display() as display:
            yield display
    else:
        yield ignore


class SafeDisplay:
    """A display whose failures end nothing: a closed terminal or pipe, or an error in drawing.

    After a failure of the live view come plain lines, and after a failure of those, nothing.
    """

    def __init__(self, display: PlainDisplay | TerminalDisplay | NotebookDisplay):
        self.display: PlainDisplay | TerminalDisplay | NotebookDisplay | None = display

    def __enter__(self) -> SafeDisplay:
        self._try(lambda display: display.__enter__())
        return self

    def __exit__(self, *_: object) -> None:
        self._try(lambda display: display.__exit__())

    def __call__(self, event: Event) -> None:
        self._try(lambda display: display(event))

    def _try(self, act: Callable[[Any], Any]) -> None:
        failed = self.display
        if failed is None:
            return
        try:
            act(failed)
        except Exception:
            with contextlib.suppress(Exception):
                failed.__exit__()
            self.display = None if isinstance(failed, PlainDisplay) else PlainDisplay(failed.console)


class PlainDisplay:
    """One line for every row, without control characters: for log files, pipes and dumb terminals."""

    def __init__(self, console: Console | None = None, *, now: Callable[[], float] = time.monotonic):
        self.console = console or make_console()
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
                print_scores(self.console, scores)

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

        self.console.print(Text(printable(text)), soft_wrap=True)


class TerminalDisplay:
    """A frame that stays at the bottom of the terminal; notices scroll above it.

    The frame is drawn by a thread of its own, so that the clock runs while a step compiles. The same thread reads the
    keys: `?` shows what the numbers mean.
    """

    def __init__(self, console: Console | None = None, *, now: Callable[[], float] = time.monotonic):
        self.console = console or make_console()
        self._track = Track(now)
        self._keyboard = Keyboard(suspend=self._hide, resume=self._show)
        self._live: Live | None = None
        self._drawn = (0, 0)  # columns and lines of the last frame
        self._lock = threading.RLock()
        self._ended = threading.Event()

    def __enter__(self) -> TerminalDisplay:
        self._keyboard.open()  # for the whole run, so that nothing typed during it answers a later question
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._end()
        finally:
            self._keyboard.close()

    def __call__(self, event: Event) -> None:
        from rich.text import Text

        with self._lock:
            match event:
                case Notice(text) | RunWarning(text):
                    self.console.print(Text(printable(text)))
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
                    print_scores(self.console, scores)
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
            threading.Thread(target=self._keep_drawing, args=(self._ended,), daemon=True).start()
        self._draw()

    def _new_live(self) -> Live:
        from rich.live import Live

        live = Live(console=self.console, auto_refresh=False, vertical_overflow="crop")
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
            live.stop()

    def _hide(self) -> None:
        """Remove the frame and show the cursor, before the process is suspended (Ctrl-Z)."""
        self._lock.acquire()  # the other thread must not draw until it continues
        if self._live is not None:
            self._live.transient = True
            self._live.stop()

    def _show(self) -> None:
        """Draw the frame again, below what the shell has printed."""
        try:
            if self._live is not None:
                self._live = self._new_live()
                self._draw()
        finally:
            self._lock.release()

    def _keep_drawing(self, ended: threading.Event) -> None:
        while not ended.wait(REFRESH_SECONDS):
            with self._lock, contextlib.suppress(Exception):  # the next event fails too, and is handled
                if not ended.is_set():
                    if "?" in self._keyboard.read():
                        turn_help_page(self._track, *self.console.size)
                    self._draw()

    def _draw(self) -> None:
        if self._keyboard.is_open and not owns_terminal():
            return  # in the background, where the terminal is the shell's
        columns, lines = self.console.size
        if self._live is not None and (columns < self._drawn[0] or lines <= self._drawn[1]):
            # The terminal has folded the old frame's lines, so it can't be found again to draw over it.
            self._live.transient = True
            self._live.stop()
            self.console.clear()
            self._live = self._new_live()
        if self._live is not None:
            self._live.update(self._frame(hint=HELP_HINT if self._keyboard.is_open else ""), refresh=True)

    def _frame(self, *, hint: str) -> Group:
        columns, lines = self.console.size
        unicode, colors = supports_unicode(self.console), has_colors(self.console)
        frame = draw_frame(self._track, columns, lines, unicode=unicode, colors=colors, hint=hint)
        self._drawn = (max(part.cell_len for part in frame.renderables), len(frame.renderables))
        return frame
