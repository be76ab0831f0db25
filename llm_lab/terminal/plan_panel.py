"""The plan of a run, before it starts: what it will produce, and what it needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_lab.errors import sentence
from llm_lab.recipe.fields import flatten
from llm_lab.recipe.resolve import Resolved
from llm_lab.runs.folder import ROOT, free_name
from llm_lab.runs.plan_lines import BANNER, plan_lines

from .console import columns, make_console, one_line
from .prompt_layout import in_pieces, wrapped

if TYPE_CHECKING:
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

MAX_COLUMNS = 110  # longer lines are hard to read
BESIDE_TEXT = 6  # columns of the frame and of the space after the names
VALUE_COLUMNS = 20


def plan_panel(resolved: Resolved, folder: Path | None = None) -> Panel:
    """Return the plan as a panel of the width of the terminal, with about 20 lines at 80 columns.

    folder: that of the run; by default a new one in checkpoints/, with a free name.
    """
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    values, width = resolved.values, min(MAX_COLUMNS, columns())
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    folder = folder or ROOT / free_name(str(values.get("name")))
    lines = list(plan_lines(resolved, folder))
    room = max(20, width - BESIDE_TEXT - max(len(name) for name, _, _ in lines))
    for name, text, style in lines:
        table.add_row(name, Text(wrapped(one_line(text), room), style=style))
    banner = [Text(BANNER, style="warn")] if values.get("device") == "cpu" else []
    name, stage = one_line(folder.name), values["stage"]
    title = Text(f"Plan: {name}" if name == stage else f"Plan: {name} · {stage}", style="title")
    title.stylize("not dim")  # otherwise it is as dim as the frame
    return Panel(Group(*banner, table), title=title, title_align="left", width=width, border_style="dim")


def derived_table(resolved: Resolved) -> Table:
    """Return every derived value with its reason, as a table."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.title, table.title_justify, table.title_style = "Derived values (keys not set)", "left", "title"
    table.add_column(no_wrap=True)
    table.add_column(style="bold", overflow="fold", max_width=VALUE_COLUMNS)
    table.add_column(style="dim", overflow="fold")
    found = dict(flatten(resolved.values))
    last = ""
    for path, origin in resolved.origins.items():
        if origin.kind != "derived":
            continue
        group, _, key = path.rpartition(".")
        if group and group != last:
            table.add_row(Text(group, style="dim"))
        last = group
        table.add_row(("  " if group else "") + key, _format_value(found.get(path)), Text(one_line(origin.reason)))
    return table


def _format_value(value: Any) -> Text:
    from rich.text import Text

    if isinstance(value, bool) or value is None:
        return Text({True: "true", False: "false", None: "none"}[value])
    return Text(f"{value:g}" if isinstance(value, float) else in_pieces(one_line(str(value)), VALUE_COLUMNS))


def print_plan(resolved: Resolved, folder: Path | None = None) -> None:
    """Print the plan of a run, and its derived values. folder: as in plan_panel."""
    console = make_console()
    console.print(plan_panel(resolved, folder))
    if any(origin.kind == "derived" for origin in resolved.origins.values()):
        console.print(derived_table(resolved))
        console.print()


def print_checked(plans: Sequence[tuple[Resolved, Path]], remarks: Sequence[str]) -> None:
    """Print that a recipe is valid, and whether this machine can run it. plans: each stage, and its folder."""
    from rich.text import Text

    console = make_console()
    for remark in remarks:
        console.print(Text(sentence(remark), style="warn"))
    for resolved, folder in plans:
        console.print(plan_panel(resolved, folder))
        if resolved.values["device"] == "cuda" and resolved.machine.cuda_problem:
            text = f"The recipe is valid, but can't run on this machine: {resolved.machine.cuda_problem}."
            console.print(Text(text, style="warn"))
        else:
            console.print(Text("The recipe is valid.", style="good"))
