"""Text that is safe to publish: Markdown that user text can't break, without local paths and secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table; none where there are no rows."""
    rows = [[*row] for row in rows]
    lines = [[*head], ["---"] * len(head), *rows]
    return ["| " + " | ".join(map(cell, line)) + " |" for line in lines] if rows else []


def cell(text: str) -> str:
    """Return a text that fits in one cell of a table."""
    return " ".join(plain(text).split()).replace("|", "\\|")


def plain(text: str) -> str:
    """Return a text in which nothing is read as HTML; code in backticks is left as it is."""
    parts = re.split(r"(`[^`]*`)", str(text))
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


def code(text: str) -> str:
    """Return a text as inline code."""
    return "`" + str(text).replace("`", "'") + "`"


def fence(text: str, language: str = "") -> str:
    """Return a text as a block of code, whatever backticks it contains."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}{language}\n{text}\n{marks}\n"


# An absolute path of two parts or more, of Unix or Windows, or one under a home folder; not one inside a URL.
_PATH = re.compile(r"(?<![\w.:/\\~<-])(?:~\w*[/\\]|(?:[A-Za-z]:)?[/\\])(?:[\w.@+-]+[/\\])*(?P<last>[\w.@+*?-]+)[/\\]?")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}\b")
_SECRET_NAMES = ("TOKEN", "_KEY", "SECRET", "PASSWORD", "PASSWD", "_PASS")
HIDDEN = "***"


def without_paths(text: str, known: Iterator[str] | tuple[str, ...] = ()) -> str:
    """Return a text in which absolute paths are shortened to their last part.

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


def without_secrets(text: str) -> str:
    """Return a text without the tokens and passwords in the environment, and without Hub tokens."""
    for name, value in os.environ.items():
        if name.upper().endswith(_SECRET_NAMES) and len(value) >= 8:
            text = text.replace(value, HIDDEN)
    return _TOKEN.sub(HIDDEN, text)


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
