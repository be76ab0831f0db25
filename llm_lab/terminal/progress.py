"""What a run shows while it works: a live frame in a terminal, plain lines elsewhere."""

from __future__ import annotations

import atexit
import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from llm_lab.events import (
    CheckpointSaved,
    Evaluating,
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

from .console import has_colors, is_plain, make_console, supports_unicode
from .frame import ESCAPE, View, draw_frame, press
from .keyboard import Keyboard, owns_terminal
from .prompt_layout import fitted
from .scores_table import print_scores
from .track import Track, describe_progress, describe_row, describe_sample, text_of_sample

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.live import Live

    from .notebook import NotebookDisplay

REFRESH_SECONDS = 0.25
KEY_SECONDS = 0.05  # between two checks of the keyboard
SEQUENCE = re.compile(r"\x1b(?:\[[0-9;?<]*[ -/]*[@-~]|O.)")  # arrow keys and the like
PLAIN_PROGRESS_SECONDS = 5.0


def make_display(console: Console | None = None) -> SafeDisplay:
    """Return the live display if there is a notebook or a terminal that supports it, else plain lines.

    A failure of a display does not end the run.
    """
    console = console or make_console()
    if console.is_jupyter:
        from .notebook import NotebookDisplay

        return SafeDisplay(NotebookDisplay())
    live = console.is_terminal and not is_plain() and console.file.isatty()
    return SafeDisplay(TerminalDisplay(console) if live else PlainDisplay(console))


@contextlib.contextmanager
def show_progress() -> Iterator[Listener]:
    """Yield the progress display, in the first process only; restore the terminal, also after errors."""
    if is_first_process():
        with make_display() as display:
            yield display
    else:
        yield ignore


class SafeDisplay:
    """A display whose failures do not end the run: a closed terminal or pipe, or an error in drawing.

    After a failure of the live view, it prints plain lines, and after a failure of those, nothing.
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
        """Do nothing: there is nothing on the screen to clear."""

    def __call__(self, event: Event) -> None:
        match event:
            case Notice(text) | RunWarning(text):
                self._say(text)
            case Progress(label, done, total):
                self._show_progress(label, done, total)
            case TrainingStarted(max_steps, first_step, facts, earlier):
                self._track = track = Track(self._now)  # each stage of a pipeline is timed separately
                track.begin(max_steps, first_step, facts, earlier)
                start = f"resumes after step {first_step:,} of {max_steps:,}" if first_step else f"{max_steps:,} steps"
                self._say(f"{track.heading}: {start}")
            case MetricsLogged(row):
                self._track.log(row)
                self._say(describe_row(self._track, row))
            case SampleWritten(step, prompt, text):
                self._say(f"{describe_sample(step, prompt)}:")
                for line in text.splitlines() if text.strip() else [text_of_sample(text)]:
                    self._say(f"  {line}" if is_plain() else f"  | {line}")
            case CheckpointSaved(step, path):
                self._say(f"saved step {step:,}: {path}")
            case ScoresReported(scores):
                print_scores(self.console, scores)

    def _show_progress(self, label: str, done: int, total: int) -> None:
        is_new = label != self._progress_label
        if is_new or done >= total > 0 or self._now() - self._progress_at >= PLAIN_PROGRESS_SECONDS:
            self._progress_label = "" if done >= total > 0 else label
            self._progress_at = self._now()
            self._say(f"{label} {describe_progress(done, total)}")

    def _say(self, text: str) -> None:
        from rich.text import Text

        # A log keeps each line whole. In a terminal, lines are wrapped here, because it would break them within a word.
        self.console.print(Text(fitted(self.console, text)), soft_wrap=not self.console.is_terminal)


class TerminalDisplay:
    """A frame at the bottom of the terminal; notices scroll above it.

    A thread draws the frame, so that the clock runs while a step compiles. The same thread reads the keys, which change
    only what is shown.
    """

    def __init__(self, console: Console | None = None, *, now: Callable[[], float] = time.monotonic):
        self.console = console or make_console()
        self._track = Track(now)
        self._view = View()
        self._keyboard = Keyboard(suspend=self._hide, resume=self._show)
        self._live: Live | None = None
        self._drawn = (0, 0)  # columns and lines of the last frame
        self._lock = threading.RLock()
        self._ended = threading.Event()

    def __enter__(self) -> TerminalDisplay:
        self._keyboard.open()  # for the whole run, so that keys typed during it do not answer a later question
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
                case Notice(text):
                    # It stays above the frame, so it need not be in the log.
                    self.console.print(Text(fitted(self.console, text)))
                case RunWarning(text):
                    self.console.print(Text(fitted(self.console, text), style="warn"))
                    self._track.warning = text
                    self._track.lines.append(f"warning: {text}")
                case Progress(label, done, total):
                    self._show_progress(label, done, total)
                case TrainingStarted(max_steps, first_step, facts, earlier, samples):
                    self._track.begin(max_steps, first_step, facts, earlier, samples)
                    self.console.print()
                    self._start()
                case MetricsLogged(row):
                    self._track.log(row)
                    self._track.lines.append(describe_row(self._track, row))
                case Evaluating(is_over):
                    self._track.progress = None if is_over else ("evaluating", 0, 0)
                    self._draw()
                case SampleWritten(step, prompt, text):
                    self._track.write(step, prompt, text)
                case CheckpointSaved(step, path):
                    self._track.saved_step = step
                    self._track.lines.append(f"saved step {step:,}: {path}")
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
        """Leave the last frame on the screen, show the cursor and restore the terminal. May be called again."""
        with self._lock:
            self._track.end()
            self._stop(keep_frame=self._track.begun)
            self._track, self._view = Track(self._track.now), View()

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
                live.update(self._frame(keys=False))
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
        """Draw the frame again, below the output of the shell."""
        try:
            if self._live is not None:
                self._live = self._new_live()
                self._draw()
        finally:
            self._lock.release()

    def _keep_drawing(self, ended: threading.Event) -> None:
        drawn_at = 0.0
        while not ended.wait(KEY_SECONDS):
            with self._lock, contextlib.suppress(Exception):  # the next event will fail too, and is handled
                if not ended.is_set() and (self._read_keys() or time.monotonic() - drawn_at >= REFRESH_SECONDS):
                    drawn_at = time.monotonic()
                    self._draw()

    def _read_keys(self) -> bool:
        """Handle the keys pressed since the last call; return whether there were any."""
        typed = self._keyboard.read()
        keys = [typed] if typed == ESCAPE else SEQUENCE.sub("", typed).replace(ESCAPE, "")
        for key in keys:
            self._view = press(key, self._view, self._track, *self.console.size)
        return bool(typed)

    def _draw(self) -> None:
        if self._keyboard.is_open and not owns_terminal():
            return  # in the background, where the terminal belongs to the shell
        columns, lines = self.console.size
        if self._live is not None and (columns < self._drawn[0] or lines <= self._drawn[1]):
            # The terminal has rewrapped the lines of the old frame, so it can't be found and drawn over.
            self._live.transient = True
            self._live.stop()
            self.console.clear()
            self._live = self._new_live()
        if self._live is not None:
            self._live.update(self._frame(keys=self._keyboard.is_open), refresh=True)

    def _frame(self, *, keys: bool) -> Group:
        columns, lines = self.console.size
        unicode, colors = supports_unicode(self.console), has_colors(self.console)
        view = self._view if keys else View()
        frame = draw_frame(self._track, columns, lines, unicode=unicode, colors=colors, view=view, keys=keys)
        self._drawn = (max(part.cell_len for part in frame.renderables), len(frame.renderables))
        return frame
