"""The review: every value, where it came from, and a way to change any of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from llm_lab.recipe.files import format_value
from llm_lab.recipe.rules import flatten

from .asking import Draft, ask_key
from .console import make_console, one_line
from .prompts import Back, Option, choose
from .screens import begin_screen

VALUE_COLUMNS = 20


def review(
    draft: Draft,
    *,
    title: str,
    actions: Sequence[tuple[str, str]],
    show: Callable[[Draft], None],
    only: tuple[str, ...] = ("",),
    askers: Mapping[str, Callable[[Draft], Draft]] = MappingProxyType({}),
) -> tuple[str, Draft]:
    """Show all values until the user picks an action; returns (action, draft). Raises Back.

    actions: (name, line) that stand above the values. only: how the shown keys begin. askers: keys with a
    question of their own.
    """
    at: Any = actions[0][0]
    while True:
        begin_screen(title, "review")
        _, problems = draft.look()
        console = make_console()
        for problem in problems:
            console.print(str(problem), style="bad")
        why_not = "first mend what is marked above" if problems else None
        options = [Option(name, line, why_not) for name, line in actions] + value_lines(draft, only)
        picked = choose("Anything to change?", options, default=at, why=WHY)
        if picked in dict(actions):
            return picked, draft
        at = picked
        try:
            asker = next((ask for key, ask in askers.items() if picked.split(".")[0] == key), None)
            draft = asker(draft) if asker else ask_key(draft, picked, show=show)
        except Back:
            continue


WHY = (
    "answer: you said so. override: set on the command line. default: the schema's own. derived: it follows from "
    "the others, for the reason that stands beside it. Enter on a line changes it."
)


def value_lines(draft: Draft, only: tuple[str, ...] = ("",)) -> list[Option]:
    """Return one line for each value, with its origin."""
    resolved, _ = draft.look()
    if resolved is None:
        return []
    lines = []
    for path, value in flatten(resolved.values):
        if not path.startswith(only) or path == "stage":
            continue
        origin = resolved.origins.get(path)
        shown = one_line(format_value(value))
        if len(shown) > VALUE_COLUMNS:
            shown = shown[: VALUE_COLUMNS - 1] + "…"
        lines.append(Option(path, f"{path:<34} {shown:<{VALUE_COLUMNS}} {origin}"))
    return lines
