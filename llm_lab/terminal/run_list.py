"""The list of runs with their sizes and results, and of what is about to be deleted."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_lab.estimate.formatting import age, count, size
from llm_lab.runs.entries import PIPELINE, RUN, STUDY
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.housekeeping import CHECKPOINT, Leftover, Removal, short_result
from llm_lab.runs.record import is_number

from .console import is_plain, make_console, one_line

STATUS_STYLE = {"done": "good", "running": "help", **dict.fromkeys(("failed", "broken"), "bad")}
STATUS_STYLE |= dict.fromkeys(("interrupted", "stopped"), "warn")
HEADS = ("run", "stage", "size", "disk", "age", "status", "result")
LEFT_OUT_FIRST = ("disk", "size", "age")  # if the terminal is narrow
GAP = 2  # columns between columns
LEAST_NAME, USUAL_NAME = 16, 24  # columns; longer names are wrapped if there is no room for them
SHOWN = 30  # lines of leftovers


def print_runs(entries: Sequence[Mapping[str, Any]], *, is_filtered: bool = False) -> None:
    """Print runs as a table, and the disk space that they use together."""
    from rich.table import Table
    from rich.text import Text

    console = make_console()
    if not entries:
        console.print("No run matches." if is_filtered else "No runs yet. Train one: llm-lab run stories", style="dim")
        return
    rows = [_cells_of(entry) for entry in entries]
    widths = {head: max(len(head), *(len(row[head]) for row in rows)) + GAP for head in HEADS}
    widths["run"] = min(widths["run"], USUAL_NAME + GAP)  # one long name is wrapped instead
    for head in LEFT_OUT_FIRST:
        if sum(widths.values()) - GAP > console.width:
            del widths[head]
    room = max(LEAST_NAME, console.width - sum(widths.values()) + widths["run"])
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
    for head in widths:
        justify: Any = "right" if head in ("size", "disk", "age") else "left"
        table.add_column(head, justify=justify, no_wrap=head != "result", overflow="fold")
    for row in rows:
        name = row["run"] if is_plain() else "\n".join(textwrap.wrap(row["run"], room))
        status = Text(row["status"], style=STATUS_STYLE.get(row["status"], ""))
        table.add_row(*({**row, "run": name, "status": status}[head] for head in widths))
    console.print(table)
    console.print()
    outer = [entry for entry in entries if entry["part_of"] is None] or entries
    total = size(sum(entry["bytes"] for entry in outer))
    console.print(f"{len(entries)} run{'' if len(entries) == 1 else 's'}, {total} on disk", style="dim")
    if "result" in widths:
        console.print("Losses, accuracies and rewards are those on held-out data.", style="dim")


def _cells_of(entry: Mapping[str, Any]) -> dict[str, str]:
    return {
        "run": one_line(entry["name"]),
        "stage": one_line(entry["stage"]),
        "size": count(entry["parameters"]) if entry["parameters"] else "",
        "disk": size(entry["bytes"]),
        "age": age(time.time() - entry["active_at"]),
        "status": one_line(entry["status"]),
        "result": result_of(entry),
    }


def result_of(entry: Mapping[str, Any]) -> str:
    """Return the result of a run, in two words; for a sweep, how many of its runs are done."""
    if found := short_result(entry["results"]):
        return found
    if entry["kind"] not in (RUN, PIPELINE, STUDY):
        return f"{entry['parts_done']} of {entry['parts_planned']} runs done"
    if entry["parts"]:
        return f"{entry['parts']} run{'' if entry['parts'] == 1 else 's'}"
    return f"step {entry['step']:,}" if is_number(entry["step"]) else ""


def print_removals(removals: Sequence[Removal]) -> None:
    """Print what will be deleted, its size, and what depends on it."""
    from rich.text import Text

    console = make_console()
    for removal in removals:
        console.print(Text(f"{removal.path}/  {removal.kind}, {size(removal.bytes)}", style="title"))
        for note in removal.notes:
            console.print(Text(f"  {one_line(note)}", style="warn"))


def print_leftovers(leftovers: Sequence[Leftover]) -> None:
    """Print what `gc` deletes: a line for each run and kind of file, the largest first, with its bytes."""
    from rich.table import Table

    console = make_console()
    if not leftovers:
        console.print("Nothing to delete.")
        return
    table = Table.grid(padding=(0, 2))
    for justify in ("right", "left"):
        table.add_column(justify=justify, no_wrap=justify == "right", overflow="fold")
    groups: dict[tuple[Path, str], list[Leftover]] = {}
    for one in leftovers:
        groups.setdefault((_home_of(one), one.what), []).append(one)
    lines = [
        (_bytes(group), f"{one_line(str(home))}: {_describe(what, group)}") for (home, what), group in groups.items()
    ]
    lines.sort(key=lambda line: -line[0])
    if rest := lines[SHOWN:]:
        lines[SHOWN:] = [(sum(number for number, _ in rest), f"{len(rest)} more")]
    for number, text in (*lines, (_bytes(leftovers), "together")):
        table.add_row(size(number), text)
    console.print(table)
    console.print()


def _bytes(leftovers: Sequence[Leftover]) -> int:
    return sum(one.bytes for one in leftovers)


def _home_of(leftover: Leftover) -> Path:
    """Return where a leftover is listed: the run of a checkpoint, the folder of other files."""
    path = leftover.path
    return path.parents[1] if leftover.what == CHECKPOINT else path


def _describe(what: str, group: Sequence[Leftover]) -> str:
    """Describe a group of leftovers; for checkpoints, which are deleted and which are kept."""
    if what != CHECKPOINT:
        return what
    gone = {one.path for one in group}
    points = RunFolder(_home_of(group[0])).checkpoints()
    steps = [step for step, path in points if path in gone]
    kept = [f"{step:,}" for step, path in points if path not in gone]
    which = f"step {steps[0]:,}" if len(steps) == 1 else f"steps {steps[0]:,} to {steps[-1]:,}"
    stay = f"{', '.join(kept) or 'none'} stay{'s' if len(kept) == 1 else ''}"
    return f"{len(steps)} of {len(points)} checkpoints, {which}; {stay}"
