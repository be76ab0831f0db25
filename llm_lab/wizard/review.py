"""The review: every value, where it came from, and a way to change any of them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llm_lab.recipe.fields import flatten
from llm_lab.recipe.files import format_value
from llm_lab.terminal.console import make_console, one_line
from llm_lab.terminal.prompts import COLUMNS, Back, Option, choose
from llm_lab.terminal.screens import begin_screen

from .asking import Show, Step, ask_key, effect
from .draft import Draft

VALUE_COLUMNS = 14
LINE_COLUMNS = 73
WHY = (
    "answer: you said so. default: the schema's own. derived: it follows from the others, for the reason that "
    "stands beside it, and changes with them. Enter on a line changes it; Page Up and Page Down move faster."
)


@dataclass(frozen=True)
class Action:
    """A line above the values. why_not: what stands in its way now, or None."""

    name: str
    line: str
    why_not: Callable[[Draft], str | None] = lambda draft: None


def require_no_problem(draft: Draft) -> str | None:
    """Return why nothing can be made of the draft yet, or None."""
    return "first fix what is marked above" if draft.look()[1] else None


def review(
    draft: Draft,
    *,
    title: str,
    actions: Sequence[Action],
    show: Show,
    only: tuple[str, ...] = ("",),
    asker_of: Callable[[str], Step | None] = lambda path: None,
) -> tuple[str, Draft]:
    """Show all values until the user picks an action; returns (action, draft). Raises Back.

    only: how the shown keys begin. asker_of: the question of a key that has one of its own, else None.
    """
    at: Any = actions[0].name
    while True:
        above = _print_head(draft, title)
        options = [Option(action.name, action.line, action.why_not(draft)) for action in actions]
        options += value_lines(draft, only)
        picked = choose("All right? Enter on a line changes it.", options, default=at, why=WHY, above=above)
        if picked in [action.name for action in actions]:
            return picked, draft.with_notice("")
        at = picked
        try:
            asker = asker_of(picked)
            draft = asker(draft) if asker else ask_key(draft, picked, show=show)
        except Back:
            continue


def _print_head(draft: Draft, title: str) -> int:
    """Print what stands above the list; returns how many lines that is."""
    from rich.text import Text

    begin_screen(title, "review")
    console, lines = make_console(), 1
    resolved, problems = draft.look()
    texts = [(str(problem), "bad") for problem in problems] + [(draft.notice, "warn"), (effect(resolved), "dim")]
    for text, style in texts:
        for line in textwrap.wrap(text, COLUMNS):
            console.print(Text(line, style=style))
            lines += 1
    return lines


def value_lines(draft: Draft, only: tuple[str, ...] = ("",)) -> list[Option]:
    """Return one line for each value, with its origin; below the list, the whole of it and its help."""
    resolved, _ = draft.look()
    values = resolved.values if resolved else draft.raw
    lines = []
    for path, value in flatten(values):
        if not path.startswith(only) or path == "stage":
            continue
        origin = str(resolved.origins.get(path)) if resolved else "answer"
        shown = one_line(format_value(value))
        key = draft.key(path)
        about = f"{path} = {shown} ({origin})" + (f": {key.help}." if key else "")
        if len(shown) > VALUE_COLUMNS:
            shown = shown[: VALUE_COLUMNS - 1] + "…"
        line = f"{path:<33} {shown:<{VALUE_COLUMNS}} {origin}"
        lines.append(Option(path, line if len(line) <= LINE_COLUMNS else line[: LINE_COLUMNS - 1] + "…", about=about))
    return lines
