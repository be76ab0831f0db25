"""The user's consent to run code that is named in a recipe from a run's folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from llm_lab.recipe.trust import Code, UntrustedCode, allow

from .console import is_terminal, make_console, one_line
from .keyboard import shown_keys

T = TypeVar("T")


def with_consent(action: Callable[[], T]) -> T:
    """Do something that may run code named in a recipe from a run's folder; in a terminal, ask the user."""
    while True:
        try:
            return action()
        except UntrustedCode as error:
            if not is_terminal() or not confirm_code(error.codes):
                raise
            allow(error.codes)


def confirm_code(codes: Iterable[Code]) -> bool:
    """Show the code that is named in a recipe from a run's folder; return whether the user allows it to run."""
    from rich.text import Text

    console = make_console(stderr=True)
    for code in codes:
        digest = f", SHA-256 {code.digest[:16]}" if code.digest else ""
        console.print(Text(f"{code.key} runs code: {one_line(str(code.path))}{digest}", style="warn"))
        for line in code.first_lines():
            console.print(Text(f"    {one_line(line)}", style="dim"))
    console.print("The recipe was found in a folder, and may be someone else's.")
    with shown_keys():
        return input("Run this code? [y/N] ").strip().lower() in ("y", "yes")
