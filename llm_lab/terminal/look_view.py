"""The findings of a look inside a model, on the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .console import make_console, one_line
from .prompt_layout import wrapped

if TYPE_CHECKING:
    from llm_lab.looking.look import Looked


def print_look(looked: Looked) -> None:
    """Print the summary of a look, its checks, and the path of the report."""
    from rich.text import Text

    from llm_lab.looking.look_tables import summary_of

    console = make_console()
    wrap = not console.is_terminal
    console.print(Text(f"Inside {one_line(looked.inside.name)}", style="title"))
    for line in (*summary_of(looked), *looked.remarks):
        text = f"- {one_line(line)}"
        console.print(Text(text if wrap else wrapped(text, console.width, len("- "))), soft_wrap=wrap)
    console.print()
    models = [looked.inside] + ([looked.difference.other] if looked.difference else [])
    checks = [check for model in models for check in model.checks]
    failed = [check for check in checks if not check.holds]
    if not failed:
        error = max(check.error for check in checks)
        text = (
            f"Checks that the measured parts add up to the model: all {len(checks)} pass, with errors up to "
            f"{error:.1e}."
        )
        console.print(Text(text if wrap else wrapped(text, console.width)), soft_wrap=wrap)
    for check in failed:
        text = f"This check fails: {check.name} (error {check.error:.1e}, limit {check.limit:.0e})."
        console.print(Text(text, style="warn"), soft_wrap=wrap)
    console.print()
    console.print(Text(f"Pictures: {looked.page}", style="good"), soft_wrap=True)
