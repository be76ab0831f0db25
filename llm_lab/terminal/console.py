"""The one console of the product, and how text and numbers look on it."""

from __future__ import annotations

import contextlib
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
# Format characters that turn or hide the text around them: a terminal obeys these too.
_MISLEADING = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C, 0x2028, 0x2029, 0xFEFF}
_DELETE = 0x7F


def make_console(stderr: bool = False) -> Console:
    """Return a console that honours NO_COLOR and takes any text, whatever the terminal's encoding."""
    from rich.console import Console
    from rich.theme import Theme

    stream = sys.stderr if stderr else sys.stdout
    with contextlib.suppress(AttributeError, ValueError, OSError):
        stream.reconfigure(errors="replace")  # a terminal that can't show a character is no reason to stop
    console = Console(stderr=stderr, highlight=False, emoji=False, theme=Theme(THEME))
    console.on_broken_pipe = partial(_go_on_unheard, console)  # rich's own ends the program, with exit code 1
    return console


def _go_on_unheard(console: Console) -> None:
    """The reader has left (`| head`): that ends no run."""
    console.quiet = True
    os.dup2(os.open(os.devnull, os.O_WRONLY), console.file.fileno())


def is_terminal() -> bool:
    """Whether a person sits at both ends: standard input and output are terminals."""
    try:
        return sys.stdin.isatty() and sys.stdout.isatty()
    except (AttributeError, ValueError):
        return False  # closed, or taken away


def say_wait(text: str) -> None:
    """Say in a terminal what takes seconds now, so that it does not look dead."""
    if is_terminal():
        make_console(stderr=True).print(one_line(text), style="dim", markup=False)


def speaks_unicode(console: Console) -> bool:
    """Whether the console's encoding has braille and line drawing."""
    return console.encoding.lower().replace("-", "").startswith("utf")


def print_error(error: LabError) -> None:
    """Print each problem as a short paragraph, to standard error."""
    from rich.text import Text

    console = make_console(stderr=True)
    for problem in error.problems:
        what, _, rest = str(problem).partition(": ")
        text = Text.assemble((printable(what), "bad"), ": " if rest else "", printable(rest))
        console.print(text, soft_wrap=not console.is_terminal)


def printable(text: str) -> str:
    """Return text in which nothing can steer a terminal: control characters become visible signs."""
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
    """Return printable text on one line, line ends shown as a sign."""
    return printable(text).replace("\n", "⏎").replace("\t", " ")


def count(number: float) -> str:
    """Return a count for people: 9,500, 12 k, 1.2 M, 3.4 B."""
    if number < 9_999.5:
        return f"{number:,.0f}"
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= unit * 0.9995:
            return f"{_two_digits(number / unit)} {name}"
    return f"{_two_digits(number / 1e3)} k"


def size(number: float) -> str:
    """Return bytes for people: 3.4 GiB."""
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= unit * 0.9995:
            return f"{_two_digits(number / unit)} {name}"
    return f"{number:.0f} bytes"


def _two_digits(number: float) -> str:
    return f"{number:.0f}" if number >= 9.95 else f"{number:.1f}"


def clock(seconds: float) -> str:
    """Return a length of time as a clock shows it: 0:12, 1:02:03, 2d 03:00:00."""
    minutes, second = divmod(int(max(0.0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24}d {hours % 24:02d}:{minute:02d}:{second:02d}"
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def about(seconds: float) -> str:
    """Return an estimated length of time in words: about 2 min."""
    if seconds < 10:
        return "a few seconds"
    if seconds < 90:
        return f"about {round(seconds, -1):.0f} s"
    if seconds < 5_400:
        return f"about {seconds / 60:.0f} min"
    number, name = (seconds / 3_600, "h") if seconds < 172_800 else (seconds / 86_400, "days")
    return f"about {number:.1f} {name}" if number < 9.95 else f"about {number:,.0f} {name}"
