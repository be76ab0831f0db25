"""The scores of a pipeline's stages, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def print_scores(console: Console, scores: Mapping[str, Mapping[str, float]]) -> None:
    """Print the scores of a pipeline's stages as a table."""
    from rich.table import Table
    from rich.text import Text

    from llm_lab.runs.report import describe_scores

    head, *rows = describe_scores(scores)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for number, name in enumerate(head):
        table.add_column(Text(name, style="title"), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print()
    console.print(table)
    console.print()
