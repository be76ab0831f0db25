"""Text that is safe to publish: Markdown that untrusted text can't break, without local paths."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from llm_lab.safe_text import printable


class Markdown(str):
    """Text that is already Markdown, so it is not escaped again."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table; none if there are no rows. Cells that are not Markdown are escaped."""
    rows = [list(row) for row in rows]
    lines: list[Sequence[str]] = [[*head], [Markdown("---")] * len(head), *rows]
    return ["| " + " | ".join(map(cell, line)) + " |" for line in lines] if rows else []


def cell(text: str) -> str:
    """Return a text that fits in one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|") if isinstance(text, Markdown) else _escape(text)


# Characters that start emphasis, code, a link, an image, a cell, strikethrough, a formula or an entity.
_SPECIAL = re.compile(r"[\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|&(?=#?\w+;)")
# Characters that start a heading, a list or a quotation at the beginning of a text.
_AT_START = re.compile(r"^(?:[#>]|[+=-](?=\s|$|[=-])|\d{1,9}(?=[.)](?:\s|$)))")


def _escape(text: str) -> str:
    text = " ".join(printable(str(text)).split())
    return _SPECIAL.sub(r"\\\g<0>", text).replace("<", "&lt;")


def plain(text: str) -> Markdown:
    """Return a text on one line, escaped so that nothing in it is Markdown or HTML."""
    escaped = _escape(text)
    return Markdown(_AT_START.sub(lambda found: f"{found[0]}\\" if found[0].isdigit() else f"\\{found[0]}", escaped))


def code(text: str) -> Markdown:
    """Return a text as inline code."""
    return Markdown("`" + " ".join(printable(str(text)).split()).replace("`", "'") + "`")


def fence(text: str, language: str = "") -> str:
    """Return a text as a block of code, whatever backticks it contains."""
    text = printable(text)
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}{language}\n{text}\n{marks}\n"


# An absolute path of at least two parts, of Unix or Windows, or one under a home folder; not one inside a URL.
_PATH = re.compile(r"(?<![\w.:/\\~<-])(?:~\w*[/\\]|(?:[A-Za-z]:)?[/\\])(?:[\w.@+-]+[/\\])*(?P<last>[\w.@+*?-]+)[/\\]?")


def without_paths(text: str, known: Iterator[str] | tuple[str, ...] = ()) -> str:
    """Return a text with absolute paths shortened to their last part.

    known: paths in the text that may contain spaces.
    """
    for path in sorted(set(known), key=len, reverse=True):
        parts = [part for part in re.split(r"[/\\]", path) if part]
        if is_absolute(path) and len(parts) > 1 and "\n" not in path:
            text = text.replace(path, parts[-1])
    return _PATH.sub(_shorten, text)


def _shorten(match: re.Match[str]) -> str:
    text = match.group()
    parts = [part for part in re.split(r"[/\\]", text) if part]
    # "/compare" and the like are not local paths.
    return match["last"] if len(parts) > 1 or text.startswith("~") else text


def is_absolute(path: str) -> bool:
    """Whether a path starts at the root, a drive or a home folder."""
    return path.startswith(("/", "~", "\\\\")) or re.match(r"[A-Za-z]:[\\/]", path) is not None


def texts_in(values: Any) -> Iterator[str]:
    """Yield every string in nested values."""
    if isinstance(values, Mapping):
        values = list(values.values())
    if isinstance(values, list | tuple):
        for item in values:
            yield from texts_in(item)
    elif isinstance(values, str):
        yield values
