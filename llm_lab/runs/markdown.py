"""Markdown in which what users wrote (paths, prompts, recipes) breaks nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table; none where there are no rows."""
    rows = [[*row] for row in rows]
    lines = [[*head], ["---"] * len(head), *rows]
    return ["| " + " | ".join(map(cell, line)) + " |" for line in lines] if rows else []


def cell(text: str) -> str:
    """Return a text that stays within one cell of a table."""
    return " ".join(plain(text).split()).replace("|", "\\|")


def plain(text: str) -> str:
    """Return a text of which nothing is taken for HTML; code in backticks stays as it is."""
    parts = re.split(r"(`[^`]*`)", str(text))
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


def code(text: str) -> str:
    """Return a text as code within a line."""
    return "`" + str(text).replace("`", "'") + "`"


def fence(text: str, language: str = "") -> str:
    """Return a text as a block of code, whatever backticks it holds."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}{language}\n{text}\n{marks}\n"
