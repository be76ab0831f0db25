"""The console that every screen prints to, and text that is safe to print."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from llm_lab.errors import LabError
from llm_lab.safe_text import one_line, printable, redact

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["is_terminal", "make_console", "one_line", "print_error", "print_text", "printable"]

THEME = {
    "title": "bold cyan",
    "help": "cyan",
    "good": "green",
    "warn": "yellow",
    "bad": "bold red",
    "dim": "dim",
}


def make_console(stderr: bool = False) -> Console:
    """Return a console that respects NO_COLOR and accepts any text, whatever the terminal's encoding.

    All text is shown as it is: markup in it means nothing, and control characters and secrets are replaced.
    """
    from rich.console import Console
    from rich.segment import Segment
    from rich.theme import Theme

    class SafeConsole(Console):
        """The one place through which text reaches the terminal."""

        def render(self, *arguments: Any, **options: Any) -> Iterator[Segment]:
            for text, style, control in super().render(*arguments, **options):
                yield Segment(text if control else redact(printable(text)), style, control)

    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, SafeStream):
        stream = stream.inner
    if isinstance(stream, io.TextIOWrapper):
        with contextlib.suppress(ValueError, OSError):
            stream.reconfigure(errors="replace")  # a character that the terminal can't show must not raise
    options: dict[str, Any] = {"file": stream} if stderr else {}
    console = SafeConsole(markup=False, highlight=False, emoji=False, theme=Theme(THEME), **options)
    console.on_broken_pipe = partial(_silence, console)  # rich's own handler exits with code 1
    return console


def _silence(console: Console) -> None:
    """Stop printing, but not the run: the reader has closed the pipe (`| head`)."""
    console.quiet = True
    os.dup2(os.open(os.devnull, os.O_WRONLY), console.file.fileno())


class SafeStream(io.TextIOBase):
    """A stream for what Python and the libraries write themselves, such as warnings and tracebacks."""

    def __init__(self, inner: Any):
        self.inner = inner

    def write(self, text: str) -> int:
        self.inner.write(redact(printable(text)))
        return len(text)

    def flush(self) -> None:
        self.inner.flush()

    def isatty(self) -> bool:
        return self.inner.isatty()

    def fileno(self) -> int:
        return self.inner.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.inner.encoding

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@contextlib.contextmanager
def safe_errors() -> Iterator[None]:
    """Make everything that is written to standard error safe for the terminal."""
    before = sys.stderr
    sys.stderr = SafeStream(before)
    try:
        yield
    finally:
        sys.stderr = before


def is_terminal() -> bool:
    """Whether standard input and output are both terminals."""
    try:
        return sys.stdin.isatty() and sys.stdout.isatty()
    except (AttributeError, ValueError):
        return False  # closed


def print_waiting(text: str) -> None:
    """Print a "please wait" line to standard error, in a terminal only."""
    if is_terminal():
        make_console(stderr=True).print(one_line(text), style="dim")


def supports_unicode(console: Console) -> bool:
    """Whether the console's encoding has braille and line-drawing characters."""
    return console.encoding.lower().replace("-", "").startswith("utf")


def has_colors(console: Console) -> bool:
    """Whether the console shows colors."""
    return console.color_system is not None and not console.no_color


def print_text(text: str) -> None:
    """Print text to standard output; its lines are not wrapped."""
    make_console().print(text, soft_wrap=True)


def print_error(error: LabError) -> None:
    """Print each problem as a short paragraph, to standard error."""
    from rich.text import Text

    console = make_console(stderr=True)
    for problem in error.problems:
        subject, _, rest = str(problem).partition(": ")
        text = Text.assemble((printable(subject), "bad"), ": " if rest else "", printable(rest))
        console.print(text, soft_wrap=not console.is_terminal)
