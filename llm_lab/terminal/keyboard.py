"""The keyboard while a run is shown: single keys without echo, the terminal restored afterwards, and Ctrl-C."""

from __future__ import annotations

import atexit
import codecs
import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from math import inf
from types import FrameType
from typing import Any

# Signals that end a process by default; the terminal is restored first.
ENDING = ("SIGTERM", "SIGHUP", "SIGQUIT")
OWN = "llm_lab"
RETRY_SECONDS = 0.1
STOPPING = b"Stopping when the libraries are loaded ...\n"
_open: list[Keyboard] = []  # open keyboards, the innermost last


class Keyboard:
    """Keys read one by one, without echo. Ctrl-C still sends its signal, and Ctrl-Z suspends the process.

    Does nothing if standard input is not a terminal, on Windows, and in a background job (which the system would stop
    for touching the terminal). suspend, resume: called before the process is suspended, and after it continues.
    """

    def __init__(self, suspend: Callable[[], None] = lambda: None, resume: Callable[[], None] = lambda: None) -> None:
        self._suspend, self._resume = suspend, resume
        self._before: list[Any] | None = None  # the terminal's settings before
        self._handlers: dict[int, Any] = {}
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.unread = ""  # the keys that were pressed before the keyboard was closed, and that nothing had read

    @property
    def is_open(self) -> bool:
        return self._before is not None

    def open(self) -> None:
        """Switch off echo and line editing, until the keyboard is closed or the process ends."""
        if self.is_open or not owns_terminal():
            return
        with contextlib.suppress(*_terminal_errors()):
            found = _silence()
            self._before = _open[0]._before if _open else found
            _open.append(self)
            atexit.register(self.close)
            self._handle_signals()

    def read(self) -> str:
        """Return the keys pressed since the last call; does not wait."""
        if not self.is_open or not owns_terminal():
            return ""
        try:
            _silence()  # a shell may have changed the settings while the run was suspended
            descriptor = sys.stdin.fileno()
            ready, _, _ = select.select([descriptor], [], [], 0)
            return self._decoder.decode(os.read(descriptor, 1024)) if ready else ""
        except _terminal_errors():
            return ""

    def close(self) -> None:
        """Restore the terminal and drop the unread keys, which would otherwise answer the next question."""
        self.unread = self.read()
        before, self._before = self._before, None
        for number, handler in self._handlers.items():
            if threading.current_thread() is threading.main_thread():
                signal.signal(number, handler)
        self._handlers = {}
        atexit.unregister(self.close)
        if self in _open:
            _open.remove(self)
        if not _open:
            _restore(before)
        elif before is not None:
            _drop_typed()

    def _handle_signals(self) -> None:
        """Handle the signals that have no handler; a training run installs its own handlers and restores these."""
        if threading.current_thread() is not threading.main_thread():
            return
        wanted: dict[str, Callable[..., None]] = {**dict.fromkeys(ENDING, self._end), "SIGTSTP": self._stop}
        for name, handler in wanted.items():
            number = getattr(signal, name, None)
            before = signal.getsignal(number) if number is not None else None
            is_free = before == signal.SIG_DFL or isinstance(getattr(before, "__self__", None), Keyboard)
            if number is not None and is_free:
                self._handlers[number] = signal.signal(number, handler)

    def _end(self, signum: int, frame: Any) -> None:
        _restore(self._before)
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)

    def _stop(self, signum: int, frame: Any) -> None:
        """Suspend the process as Ctrl-Z does, with the terminal restored to its state before the run."""
        with contextlib.suppress(Exception):
            self._suspend()
        try:
            _restore(self._before)
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)  # execution continues here after SIGCONT
            signal.signal(signum, self._stop)
            if owns_terminal():
                with contextlib.suppress(*_terminal_errors()):
                    _silence()
        finally:
            with contextlib.suppress(Exception):
                self._resume()


@contextlib.contextmanager
def ignored_keys() -> Iterator[Keyboard]:
    """Ignore what is typed while something works: it is not shown, and does not answer the next question.

    Yields the keyboard; at the end, its `unread` is what was typed.
    """
    keyboard = Keyboard()
    keyboard.open()
    try:
        yield keyboard
    finally:
        keyboard.close()


@contextlib.contextmanager
def shown_keys() -> Iterator[None]:
    """Within ignored_keys, show what is typed, for a question that reads a line."""
    if not _open:
        yield
        return
    _restore(_open[0]._before)
    try:
        yield
    finally:
        with contextlib.suppress(*_terminal_errors()):
            _silence()


@contextlib.contextmanager
def finished_imports() -> Iterator[None]:
    """Delay Ctrl-C until the import of a library has ended, for a process that continues after it.

    If the import of torch is interrupted, the process can't import torch again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    retry_at = inf  # finite while an import delays Ctrl-C

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal retry_at
        now = time.monotonic()
        if not _imports_a_library(frame):
            retry_at = inf
            signal.default_int_handler(signum, frame)
        if retry_at < inf and now < retry_at:
            return  # Ctrl-C was pressed again
        if retry_at == inf and sys.__stderr__:
            os.write(sys.__stderr__.fileno(), STOPPING)
        retry_at = now + RETRY_SECONDS
        again = threading.Timer(RETRY_SECONDS, os.kill, (os.getpid(), signum))
        again.daemon = True
        again.start()

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # Ctrl-C is ignored, or something else handles it
        yield
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _imports_a_library(frame: FrameType | None) -> bool:
    """Whether a frame is within the import of a package other than ours."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename == "<frozen importlib._bootstrap>" and code.co_name == "_find_and_load":
            name = str(frame.f_locals.get("name", ""))
            if name.partition(".")[0] != OWN:
                return True
        frame = frame.f_back
    return False


def _restore(before: list[Any] | None) -> None:
    if before is not None and owns_terminal():
        import termios

        with contextlib.suppress(*_terminal_errors()):
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSAFLUSH, before)


def _drop_typed() -> None:
    import termios

    with contextlib.suppress(*_terminal_errors()):
        termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)


def _silence() -> list[Any]:
    """Switch off echo and line editing of the terminal if they are on; return the previous settings."""
    import termios

    descriptor = sys.stdin.fileno()
    before, quiet = termios.tcgetattr(descriptor), termios.tcgetattr(descriptor)
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    if quiet != before:
        termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
    return before


def _terminal_errors() -> tuple[type[Exception], ...]:
    """Return the errors that are raised when the terminal no longer exists."""
    import termios

    return termios.error, OSError, ValueError


def owns_terminal() -> bool:
    """Whether standard input is a terminal whose foreground process this is."""
    try:
        return sys.stdin.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (AttributeError, OSError, ValueError):
        return False
