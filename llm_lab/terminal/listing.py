"""Tables of what there is: recipes, data, parts, runs; the machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from llm_lab.errors import UserError
from llm_lab.recipe.files import read_recipe_file
from llm_lab.recipe.parts import ACTIVATIONS, ATTENTIONS, NORMS, POSITIONS, SIZE_CHOICES
from llm_lab.recipe.schema import OPTIMIZERS, SCHEDULERS
from llm_lab.runs.folder import RunFolder, list_runs

from .console import count, make_console, one_line

STATUS_STYLE = {"done": "good", "running": "help", "failed": "bad", "interrupted": "warn", "stopped": "warn"}
DATA_FORMS = {
    "builtin:stories": "little English stories, made on the spot; no network needed",
    "a file": "txt, md (one document), jsonl, csv, parquet (a document a row)",
    "a folder or glob": "all its files of one kind: texts/, 'data/*.jsonl'",
    "a Hub name": "owner/name, with subset, split and text_column",
}


def table(title: str, rows: Iterable[Sequence[Any]]) -> Any:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.title, table.title_justify, table.title_style = title, "left", "title"
    for row in rows:
        if not table.columns:
            for number in range(len(row)):
                table.add_column(no_wrap=number == 0, overflow="fold")
        table.add_row(*row)
    return table


def print_listing(what: str | None, recipes: Sequence[Path]) -> None:
    """Print one list, or all four."""
    console = make_console()
    printers = {
        "recipes": lambda: console.print(_recipes(recipes)),
        "data": lambda: console.print(table("data: what data.0.path can name", DATA_FORMS.items())),
        "parts": lambda: _print_parts(console),
        "runs": lambda: console.print(runs_table(list_runs())),
    }
    for number, name in enumerate([what] if what else printers):
        if number:
            console.print()
        printers[name]()


def _recipes(recipes: Sequence[Path]) -> Any:
    rows = [(file.stem, recipe_summary(file)) for file in recipes]
    return table("recipes: llm-lab run NAME", rows or [("none", "configs/ is empty")])


def recipe_summary(file: Path) -> str:
    """Return a recipe's own first comment line, or what it does in words."""
    try:
        first = file.read_text(encoding="utf-8").splitlines()[0]
        if first.startswith("#"):
            return first.lstrip("# ").rstrip()
        raw = read_recipe_file(file)
        return str(raw.get("stage") or f"pipeline of {len(raw.get('stages', []))} stages")
    except (OSError, IndexError, UnicodeDecodeError, UserError):
        return "(not readable)"


def _print_parts(console: Any) -> None:
    groups = {
        "model.size": SIZE_CHOICES,
        "model.position_embedding": POSITIONS,
        "model.norm": NORMS,
        "model.attention": ATTENTIONS,
        "model.activation": ACTIVATIONS,
        "optimizer.name": OPTIMIZERS,
        "scheduler.name": SCHEDULERS,
    }
    for number, (key, choices) in enumerate(groups.items()):
        if number:
            console.print()
        console.print(table(key, choices.items()))


def runs_table(runs: Sequence[RunFolder], limit: int | None = None) -> Any:
    """Return a table of runs, newest first."""
    from rich.text import Text

    rows = []
    for run in runs[:limit]:
        facts, status = run.facts(), run.status()
        loss = facts.get("results", {}).get("eval_loss")
        when = datetime.fromtimestamp(facts.get("created_at", 0)).strftime("%d %b %H:%M")
        rows.append(
            (
                one_line(str(run.path)),
                Text(status, style=STATUS_STYLE.get(status, "")),
                f"{count(facts['parameters'])} params" if facts.get("parameters") else "",
                f"val loss {loss:.3f}" if loss is not None else "",
                Text(when, style="dim"),
            )
        )
    return table("runs", rows or [("none yet", "", "", "", "")])


def print_doctor(findings: Sequence[Any]) -> None:
    """Print what the machine can do, with what to do about what it can't."""
    from rich.text import Text

    console = make_console()
    marks = {"good": "ok", "warn": "--", "bad": "!!"}
    rows = []
    for finding in findings:
        text = Text(finding.text)
        if finding.fix:
            text.append(f"\n{finding.fix}", style="help")
        rows.append((Text(marks[finding.status], style=finding.status), finding.name, text))
    console.print(table("doctor", rows))
