"""The console that every screen prints to, which makes text safe to print."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from llm_lab.errors import LabError
from llm_lab.safe_text import one_line, printable, redact

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

__all__ = [
    *(
        "columns",
        "is_plain",
        "is_terminal",
        "make_console",
        "one_line",
        "print_error",
        "print_sentence",
        "print_text",
        "printable",
    ),
    *("prompt_styles", "rows"),
]

PLAIN = "LLM_LAB_PLAIN"  # the environment variable for plain mode, which child processes inherit
# The palette of all screens: one accent color, and three colors that always come with a word or a mark. All are among
# the terminal's own eight colors, which its user has made readable on its background.
PALETTE = {
    "title": "bold cyan",
    "help": "cyan",
    "accent": "bold cyan",  # the pointed line, and the user's own values
    "good": "green",
    "warn": "yellow",
    "attention": "bold yellow",
    "bad": "bold red",
    "dim": "dim",  # not bright black: some themes use that for the background
}


def is_plain() -> bool:
    """Whether screens consist of lines only, for screen readers and limited terminals.

    True after --plain, with LLM_LAB_PLAIN=1, and with TERM=dumb. Then there are no frames, no redrawing and no colors.
    """
    return os.environ.get(PLAIN, "0") not in ("", "0") or os.environ.get("TERM", "").lower() in ("dumb", "unknown")


def set_plain() -> None:
    """Switch plain mode on, for this process and its child processes."""
    os.environ[PLAIN] = "1"


def columns() -> int:
    """Return the width of the terminal, 80 if there is none. COLUMNS overrides it."""
    return shutil.get_terminal_size().columns


def rows() -> int:
    """Return the height of the terminal, 24 if there is none. LINES overrides it."""
    return shutil.get_terminal_size().lines


def prompt_styles() -> list[tuple[str, str]]:
    """Return the palette as prompt_toolkit writes it: (class, style)."""
    names = {"cyan": "ansicyan", "green": "ansigreen", "yellow": "ansiyellow", "red": "ansired"}
    return [(name, " ".join(names.get(word, word) for word in style.split())) for name, style in PALETTE.items()]


def make_console(stderr: bool = False) -> Console:
    """Return a console that respects NO_COLOR and accepts any text, whatever the terminal's encoding.

    Text is not interpreted as markup; control characters and secrets in it are replaced. In plain mode, tables and
    panels become lines.
    """
    from rich.console import Console
    from rich.segment import Segment
    from rich.theme import Theme

    class SafeConsole(Console):
        """The one place through which text reaches the terminal."""

        def print(self, *objects: Any, **options: Any) -> None:
            super().print(*(_plain_lines(objects) if is_plain() else objects), **options)

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
    if is_plain():
        # With both width and height set, rich does not assume 80 columns for a dumb terminal.
        options |= {"color_system": None, "width": columns(), "height": rows()}
    console = SafeConsole(markup=False, highlight=False, emoji=False, theme=Theme(PALETTE), **options)
    console.on_broken_pipe = partial(_silence, console)  # rich's own handler exits with code 1
    return console


def _plain_lines(objects: Iterable[Any]) -> Iterator[Any]:
    """Yield printable lines: panels without their frames, tables as one line per row."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.rule import Rule
    from rich.table import Table
    from rich.text import Text

    for item in objects:
        match item:
            case Panel():
                yield Group(*([item.title] if item.title else []), *_plain_lines([item.renderable]))
            case Table():
                yield Text("\n").join(_table_lines(item))
            case Rule():
                yield item.title
            case Group():
                yield Group(*_plain_lines(item.renderables))
            case _:
                yield item


def _table_lines(table: Table) -> Iterator[Text]:
    """Yield a table's title, and each row as "first: second, third", each cell with the name of its column."""
    from rich.text import Text

    if table.title:
        yield Text(str(table.title))
    heads = [str(column.header) if table.show_header else "" for column in table.columns]
    for row in zip(*(column.cells for column in table.columns), strict=True):
        cells = [(head, str(cell).strip()) for head, cell in zip(heads, row, strict=True) if str(cell).strip()]
        named = [f"{head} {cell}".strip() for head, cell in cells[1:]]
        yield Text(": ".join([*(cell for _, cell in cells[:1]), *([", ".join(named)] if named else [])]))


def _silence(console: Console) -> None:
    """Stop printing but continue the run: the reader has closed the pipe (`| head`)."""
    console.quiet = True
    os.dup2(os.open(os.devnull, os.O_WRONLY), console.file.fileno())


class SafeStream(io.TextIOBase):
    """A stream for the output of Python itself and of libraries, such as warnings and tracebacks."""

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


class _Captured(io.StringIO):
    """Standard output that is captured; it has the colors of the real one."""

    def __init__(self, inner: Any):
        super().__init__()
        self.inner = inner

    def isatty(self) -> bool:
        return self.inner.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.inner.encoding


@contextlib.contextmanager
def captured_output() -> Iterator[io.StringIO]:
    """Capture what is printed, as it would look in the terminal, instead of printing it."""
    captured = _Captured(sys.stdout)
    with contextlib.redirect_stdout(captured):
        yield captured


def clear_screen(console: Console) -> None:
    """Clear the terminal; in plain mode nothing is cleared."""
    global _waiting
    _waiting = ""
    if is_terminal() and not is_plain():
        console.clear()


def is_terminal() -> bool:
    """Whether standard input and output are both terminals."""
    try:
        return sys.stdin.isatty() and sys.stdout.isatty()
    except (AttributeError, ValueError):
        return False  # the stream is closed


_waiting = ""  # the last line that print_waiting wrote and that is still on the screen


def print_waiting(text: str) -> None:
    """Print a "please wait" line to standard error, in a terminal only; one already on the screen is not repeated."""
    global _waiting
    if is_terminal() and text != _waiting:
        _waiting = text
        make_console(stderr=True).print(one_line(text), style="dim")


def supports_unicode(console: Console) -> bool:
    """Whether the console's encoding supports braille and line-drawing characters."""
    return console.encoding.lower().replace("-", "").startswith("utf")


def has_colors(console: Console) -> bool:
    """Whether the console shows colors."""
    return console.color_system is not None and not console.no_color


def print_sentence(text: str) -> None:
    """Print a sentence to standard output, wrapped in a terminal."""
    console = make_console()
    console.print(text, soft_wrap=not console.is_terminal)


def print_text(text: str) -> None:
    """Print text to standard output without wrapping its lines."""
    make_console().print(text, soft_wrap=True)


def print_error(error: LabError) -> None:
    """Print each problem as a short paragraph, to standard error."""
    from rich.text import Text

    console = make_console(stderr=True)
    for problem in error.problems:
        subject, _, rest = str(problem).partition(": ")
        text = Text.assemble((printable(subject), "bad"), ": " if rest else "", printable(rest))
        console.print(text, soft_wrap=not console.is_terminal)
