"""What the wizard has done for it by other layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class FoundExamples:
    """What was recognised in a set of examples: in words, one of them as text, and how many there are (None: many)."""

    description: str
    specimen: str = ""
    count: int | None = None


@dataclass(frozen=True)
class Actions:
    """What the wizard has done for it by other layers; it never does the work itself."""

    start: Callable[..., int]  # (recipe, overrides, resume=, ask=, show_plan=) runs it
    chat: Callable[[str], int]  # talks to a checkpoint
    doctor: Callable[[], int]
    show: Callable[[str], int]  # prints what a checkpoint is
    describe_data: Callable[[Mapping[str, Any]], str]  # looks at a data source
    write_config: Callable[[str, Mapping[str, Any]], Path]  # a design as config.json
    recipes: Callable[[], list[Path]]
    summary: Callable[[Path], str]
    problems: Callable[[str, Sequence[str]], list[str]]  # all that is wrong with a recipe and its overrides
    describe_examples: Callable[[Mapping[str, Any], str], FoundExamples]  # (set, kind of example)
    columns: Callable[[Mapping[str, Any], str], Sequence[str]]  # (set, kind of example): what columns it has
    check_function: Callable[[str], Any]  # of file.py:function, which is not run; raises UserError
    compare: Callable[[Any], int]  # prints a Comparison (wizard/comparing.py)
    replay: Callable[[str], int]  # makes a checkpoint again, from its line's beginning
    xray: Callable[[Mapping[str, Any]], Sequence[Any]]  # a recipe's data as tokens
