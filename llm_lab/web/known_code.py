"""The page's rule for Python code that recipes name: it runs only code that the user has already run on this machine.

In a terminal, typing the name of a recipe counts as consent. Here, a recipe is one click in a list.
"""

from __future__ import annotations

from collections.abc import Iterable

from llm_lab.errors import Problem, UserError
from llm_lab.recipe.trust import Code, UntrustedCode, require_allowed


def require_known(codes: Iterable[Code], command: str) -> None:
    """Raise UserError for code that has not run on this machine. command: the command that runs it in a terminal."""
    try:
        require_allowed(dict.fromkeys(codes))
    except UntrustedCode as error:
        problems = [
            Problem(
                code.key,
                "the page runs only Python code that you have run on this machine before",
                value=code.spec,
                fix=f"Review {code.path}, then run it once in a terminal: {command}",
            )
            for code in error.codes
        ]
        raise UserError(*problems) from None
