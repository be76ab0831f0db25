"""The console that every screen prints to, and text that is safe to print."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import unicodedata
from functools import partial
from typing import TYPE_CHECKING

from llm_lab.errors import LabError

if TYPE_CHECKING:
    from rich.console import Console

THEME = {
    "title": "bold cyan",
    "help": "cyan",
    "good": "green",
    "warn": "yellow",
    "bad": "bold red",
    "dim": "dim",
}
# Format characters that reverse or hide the text around them.
_MISLEADING = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C, 0x2028, 0x2029, 0xFEFF}
_DELETE = 0x7F


def make_console(stderr: bool = False) -> Console:
    """Return a console that respects NO_COLOR and accepts any text, whatever the terminal's encoding."""
    from rich.console import Console
    from rich.theme import Theme

    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        with contextlib.suppress(ValueError, OSError):
            stream.reconfigure(errors="replace")  # a character that the terminal can't show must not raise
    console = Console(stderr=stderr, highlight=False, emoji=False, theme=Theme(THEME))
    console.on_broken_pipe = partial(_silence, console)  # rich's own handler exits with code 1
    return console


def _silence(console: Console) -> None:
    """Stop printing, but not the run: the reader has closed the pipe (`| head`)."""
    console.quiet = True
    os.dup2(os.open(os.devnull, os.O_WRONLY), console.file.fileno())


def is_terminal() -> bool:
    """Whether standard input and output are both terminals."""
    try:
        return sys.stdin.isatty() and sys.stdout.isatty()
    except (AttributeError, ValueError):
        return False  # closed


def print_waiting(text: str) -> None:
    """Print a "please wait" line to standard error, in a terminal only."""
    if is_terminal():
        make_console(stderr=True).print(one_line(text), style="dim", markup=False)


def supports_unicode(console: Console) -> bool:
    """Whether the console's encoding has braille and line-drawing characters."""
    return console.encoding.lower().replace("-", "").startswith("utf")


def has_colors(console: Console) -> bool:
    """Whether the console shows colors."""
    return console.color_system is not None and not console.no_color


def print_error(error: LabError) -> None:
    """Print each problem as a short paragraph, to standard error."""
    from rich.text import Text

    console = make_console(stderr=True)
    for problem in error.problems:
        subject, _, rest = str(problem).partition(": ")
        text = Text.assemble((printable(subject), "bad"), ": " if rest else "", printable(rest))
        console.print(text, soft_wrap=not console.is_terminal)


def printable(text: str) -> str:
    """Return text that can't control a terminal: control characters become visible symbols."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_printable, text.replace("\r\n", "\n")))


def _printable(character: str) -> str:
    code = ord(character)
    if character in "\n\t":
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    if code == _DELETE:
        return "\u2421"
    if code in _MISLEADING or unicodedata.category(character) in ("Cc", "Cs"):
        return "\ufffd"
    return character


def one_line(text: str) -> str:
    """Return printable text on one line, with line ends shown as a symbol."""
    return printable(text).replace("\n", "⏎").replace("\t", " ")
