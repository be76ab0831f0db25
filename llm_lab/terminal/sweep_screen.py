"""A sweep in the terminal: its plan, one line per cell while it runs, and the table at the end."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_lab.estimate.formatting import clock, duration, plural
from llm_lab.runs.glossary import name_of, write
from llm_lab.runs.plan_lines import BANNER
from llm_lab.studies.cells import CellState, Outcome, state_of
from llm_lab.studies.results import summarize
from llm_lab.studies.sweep import Sweep, open_sweep
from llm_lab.studies.sweep_report import describe_sweep, how_to_read, plan_rows, result_table, what_is_missing

from .console import is_plain, make_console, one_line
from .prompt_layout import fit_words, wrapped

if TYPE_CHECKING:
    from rich.console import Console

SEED = "seed "  # prefix of the heads of such columns
PLAIN_COLUMNS = 160  # width of a table in a file or a pipe
LEAST_NAME = 12
LEAST_DETAILS = 32  # columns of a result and its time, with the space before them
STYLES = {"done": "good", "failed": "bad", "stopped": "warn", "interrupted": "warn", "waiting": "dim"}


def print_sweep_plan(sweep: Sweep, states: Sequence[CellState], **more: Any) -> None:
    """Print what a sweep will run: configurations, remaining runs, time and disk space. more: as for plan_rows."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    rows = plan_rows(sweep, states, **more)
    first = next(iter(sweep.jobs.values())).stages[0]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name, Text(one_line(text), style="warn" if name == "note" else ""))
    title = Text(f"{sweep.kind.capitalize()}: {sweep.folder.name}", style="title")
    title.stylize("not dim")  # otherwise it is as dim as the frame
    console = make_console()
    banner = [Text(BANNER, style="warn")] if first.values.get("device") == "cpu" else []
    console.print(
        Panel(Group(*banner, table), title=title, title_align="left", width=min(100, console.width), border_style="dim")
    )


class SweepScreen:
    """The display of a running sweep: in a terminal one line per cell, elsewhere a line whenever a cell has ended."""

    def __init__(self, sweep: Sweep, console: Console | None = None):
        self.sweep, self.console = sweep, console or make_console()
        self._live: Any = None
        self._statuses: dict[str, str] = {}
        self._foot = "Ctrl-C stops with the work saved"
        self._last: tuple[Sequence[CellState], float | None] = ((), None)

    def __enter__(self) -> SweepScreen:
        if self.console.is_terminal and not is_plain():
            from rich.live import Live

            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)

    def __call__(self, states: Sequence[CellState], seconds_left: float | None) -> None:
        """Show the states of all cells."""
        self._last = states, seconds_left
        if self._live is not None:
            self._live.update(self._frame(states, seconds_left), refresh=True)
            return
        for state in states:
            before = self._statuses.get(state.cell.name)
            if before is not None and before != state.status and state.status != "waiting":
                self._say(state, states)
            self._statuses[state.cell.name] = state.status

    def stopping(self) -> None:
        """Print that the runs in progress are saving their work."""
        self._foot = "Stopping: the runs in progress save their work. Ctrl-C again stops at once, without saving."
        if self._live is not None:
            self(*self._last)
        else:
            self.console.print(self._foot)

    def _say(self, state: CellState, states: Sequence[CellState]) -> None:
        done = sum(one.status == "done" for one in states)
        text = f"{done}/{len(states)}  {state.cell.label}: {state.status}"
        details = self._details(state)
        self.console.print(one_line(f"{text}{', ' + details if details else ''}"), soft_wrap=True)

    def _details(self, state: CellState, room: int | None = None) -> str:
        """Return what is known about a cell. room: the columns available; the least informative parts are left out."""
        if state.status == "failed":
            return one_line(state.error) if room is None else fit_words(one_line(state.error), room)
        parts = []
        if state.value is not None:
            parts.append(f"{name_of(self.sweep.measure)} {write(self.sweep.measure, state.value)}")
        elif state.loss is not None:
            parts.append(f"{name_of('loss')} {write('loss', state.loss)}")
        if state.status != "done" and state.step:
            parts.append(f"step {state.step:,}" + (f" of {state.max_steps:,}" if state.max_steps else ""))
        if state.seconds:
            # As in the table at the end, once it is done.
            parts.append(duration(state.seconds) if state.status == "done" else clock(state.seconds))
        shown: list[str] = []
        for part in parts:
            if room is None or len(", ".join([*shown, part])) <= room:
                shown.append(part)
        return ", ".join(shown)

    def _frame(self, states: Sequence[CellState], seconds_left: float | None) -> Any:
        """Return the lines of all cells; if they don't fit, those around the ones in progress."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        done = sum(state.status == "done" for state in states)
        left = f"time left {clock(seconds_left)}" if seconds_left else ""
        width = self.console.width
        so_far = f"  {done} of {len(states)} done  {left}".rstrip()
        head = Text(fit_words(one_line(self.sweep.folder.name), max(8, width - len(so_far))) + so_far, style="title")
        room = max(3, self.console.height - 4)
        start = 0
        if len(states) > room:
            at = next((n for n, state in enumerate(states) if state.status == "running"), 0)
            start = min(max(0, at - room // 2), len(states) - room)
        table = Table.grid(padding=(0, 2))
        shown = states[start : start + room]
        statuses = max((len(state.status) for state in shown), default=0)
        labels = [one_line(state.cell.label) for state in shown]
        if max(map(len, labels), default=0) + statuses + LEAST_DETAILS > width:
            labels = [_without_keys(label) for label in labels]
        names = min(max(map(len, labels), default=0), max(LEAST_NAME, width - statuses - LEAST_DETAILS))
        for state, label in zip(shown, labels, strict=True):
            style, left_over = STYLES.get(state.status, ""), width - names - statuses - 2 * len("  ")
            table.add_row(fit_words(label, names), Text(state.status, style=style), self._details(state, left_over))
        hidden = len(states) - min(room, len(states))
        foot = [Text(f"and {plural(hidden, 'more run')}", style="dim")] if hidden else []
        if done < len(states) and all(state.status != "running" for state in states):
            foot.append(Text("The next run is starting ...", style="dim"))
        return Group(head, table, *foot, Text(self._foot, style="dim"))


def _without_keys(label: str) -> str:
    """Return the label of a cell without the names of its keys, which are the same in all cells."""
    parts = label.split(", ")
    return ", ".join(part if part.startswith("seed=") else part.partition("=")[2] or part for part in parts)


def print_sweep(folder: Path, *, hints: bool = True) -> None:
    """Print what a sweep or a duel has found so far. UserError if it can't be read. hints: as in print_sweep_end."""
    sweep = open_sweep(folder)
    states = [state_of(cell, sweep.measure) for cell in sweep.cells()]
    if sweep.kind == "duel":
        print_duel_end(sweep, Outcome(states), "both", hints=hints)
    else:
        print_sweep_end(sweep, Outcome(states), hints=hints)


def print_sweep_end(sweep: Sweep, outcome: Outcome, *, hints: bool = True) -> None:
    """Print the table, what failed, the path of the report, and how to continue what is not done.

    hints: whether to print the command that continues it; the wizard asks instead.
    """
    from rich.text import Text

    console, rows = make_console(), summarize(sweep)
    console.print(one_line(describe_sweep(sweep)), style="dim")
    console.print()
    print_result_table(console, *result_table(sweep, rows))
    console.print()
    console.print(one_line(how_to_read(sweep, rows)), style="dim")
    for line in what_is_missing(rows):
        console.print(Text(line, style="warn"))
    console.print()
    _print_end(console, sweep, outcome, hints=hints)


def print_duel_end(duel: Sweep, outcome: Outcome, by: str, *, hints: bool = True) -> None:
    """Print the pairs and the verdicts of a duel, what failed, and how to continue. hints: as in print_sweep_end."""
    from rich.text import Text

    from llm_lab.studies.duel import compare
    from llm_lab.studies.duel_report import pair_table, verdict_words

    console = make_console()
    for one in compare(duel, by):
        if one.verdict is not None:
            print_result_table(console, *pair_table(duel, one))
            console.print()
        words = one_line(verdict_words(duel, one))
        verdict = Text(wrapped(words, console.width) if console.is_terminal else words)
        verdict.stylize("title", 0, len(re.split(r"(?<=\.) |(?<=:) (?=the )", words)[0]))  # the verdict
        console.print(verdict, soft_wrap=not console.is_terminal)
        console.print(one_line(one.how), style="dim")
        console.print()
    _print_end(console, duel, outcome, hints=hints)


def _print_end(console: Console, sweep: Sweep, outcome: Outcome, *, hints: bool) -> None:
    """Print what failed, the path of the report, and how to continue."""
    from rich.text import Text

    for state in outcome.states:
        if state.status == "failed":
            failed = Text(f"{state.cell.label}: {state.error}", style="bad")
            console.print(failed, soft_wrap=not console.is_terminal)
    report = sweep.folder / "report.html"
    console.print(f"Report: {report}", soft_wrap=True)
    console.print("Next to it: report.md, results.csv, results.json")
    hint = ""
    if outcome.stopped:
        console.print("Stopped; the work is saved.")
        hint = f"Resume: {sweep.command}"
    elif outcome.count("running"):
        console.print("The runs in progress belong to another command; the one that ends last writes the report.")
    elif outcome.count("failed"):
        hint = f"Try the failed runs again: {sweep.command} --retry-failed"
    elif outcome.count("done") < len(outcome.states):
        hint = f"Run what is left: {sweep.command}"
    if hint and hints:
        console.print(hint, soft_wrap=not console.is_terminal)


def print_result_table(console: Console, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with its numbers aligned to the right.

    If it is wider than the terminal, the columns of the seeds are left out: the mean and the spread summarize them.
    """
    from rich.table import Table
    from rich.text import Text

    if not console.is_terminal:
        console.width = max(console.width, PLAIN_COLUMNS)
    widths = [max(len(one_line(row[number])) for row in [head, *rows]) + 2 for number in range(len(head))]
    shown = list(range(len(head)))
    if sum(widths) - 2 > console.width:
        shown = [number for number in shown if not head[number].startswith(SEED)]
    fits = sum(widths[number] for number in shown) - 2 <= console.width
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for number in shown:
        side: Any = "right" if number else "left"
        table.add_column(Text(head[number], style="title"), justify=side, overflow="fold", no_wrap=fits)
    for row in rows:
        table.add_row(*(Text(one_line(row[number])) for number in shown))
    console.print(table)
