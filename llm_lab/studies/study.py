"""The interface for experiments: the folder, child runs, and the report."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from llm_lab.errors import Problem, UserError
from llm_lab.estimate.formatting import percent
from llm_lab.events import Event, Listener, MetricsLogged, Notice, Progress, RunWarning, TrainingStarted, ignore
from llm_lab.runs.disk import remove_folder, write_atomically
from llm_lab.runs.folder import RunFolder, slug
from llm_lab.runs.markdown import code, plain, table
from llm_lab.runs.page import Page
from llm_lab.safe_text import redact, redact_values

from .child_run import run_child

Cell = str | int | float | bool | None
REPORT_PAGE, REPORT_JSON = "report.html", "report.json"


@dataclass(frozen=True)
class _Block:
    """A part of the report. kind: heading, text, table or picture. file: its picture or table in the folder."""

    kind: str
    text: str
    file: str = ""
    head: tuple[str, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()
    svg: str = ""


class Study:
    """A running experiment, passed to `run(options, study)`. Everything that is added appears in the report at once."""

    def __init__(self, folder: RunFolder, listener: Listener = ignore):
        self.run = folder
        self._listener = listener
        self._blocks: list[_Block] = []
        self._results: dict[str, Any] = {}

    @property
    def folder(self) -> Path:
        """The study's run folder. Files that an experiment writes itself belong here."""
        return self.run.path

    def say(self, text: str) -> None:
        """Show one line of progress."""
        self._listener(Notice(text))

    def train(self, recipe: Mapping[str, Any], name: str) -> RunFolder:
        """Run a recipe in checkpoints/<study>/<name> and return the run; it is skipped if it is done.

        recipe: as in a recipe file, for one stage; its device is `auto` unless it names one. An interrupted run is
        resumed. A run of the same name with another recipe, from before the experiment was changed, is replaced. Raises
        KeyboardInterrupt if the run was stopped, and UserError or MachineError as `llm-lab run` reports them.
        """
        if slug(name) != name:
            raise UserError(Problem(name, "a name has letters, digits and ._- only", fix=f"Try {slug(name, 'run')}."))
        wanted = {"device": "auto", **recipe}
        child = self.child(name)
        children = dict(self.run.facts().get("children") or {})
        if children.get(name) != json.loads(json.dumps(wanted)) and child.path.exists():
            remove_folder(child.path)
        self.run.update(children=children | {name: wanted})
        if child.status() == "done":
            self.say(f"{name}: already done")
            return child
        run_child(wanted, child.path, listener=_as_progress(name, self._listener))
        if child.status() == "stopped":
            raise KeyboardInterrupt
        self.say(f"{name}: done")
        return child

    def child(self, name: str) -> RunFolder:
        """Return the run with a name in the study's folder, trained or not."""
        return RunFolder(self.folder / name)

    def heading(self, text: str) -> None:
        """Begin a section of the report."""
        self._add(_Block("heading", text))

    def text(self, paragraph: str) -> None:
        """Add a paragraph to the report."""
        self._add(_Block("text", " ".join(paragraph.split())))

    def table(self, name: str, head: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str = "") -> None:
        """Add a table to the report and write it as tables/<name>.csv and .json."""
        kept = tuple(tuple(map(_plain_value, row)) for row in rows)
        for row in kept:
            if len(row) != len(head):
                why = f"a row has {len(row)} cells and the head has {len(head)}"
                raise ValueError(f"table {name}: {why}")
        file = f"tables/{slug(name, 'table')}"
        text = io.StringIO()
        csv.writer(text).writerows([head, *kept])
        write_atomically(self.folder / f"{file}.csv", text.getvalue())
        records = [dict(zip(head, row, strict=True)) for row in kept]
        write_atomically(self.folder / f"{file}.json", json.dumps(records, indent=1, ensure_ascii=False) + "\n")
        self._add(_Block("table", caption, f"{file}.csv", tuple(head), kept))

    def picture(self, name: str, svg: str, caption: str) -> None:
        """Add a picture to the report and write it as pictures/<name>.svg. caption: what it shows."""
        file = f"pictures/{slug(name, 'picture')}.svg"
        write_atomically(self.folder / file, svg)
        self._add(_Block("picture", caption, file, svg=svg))

    def result(self, key: str, value: float | int | str) -> None:
        """Add one result of the study to run.json and the report."""
        self._results[key] = _plain_value(value)
        self.run.update(results=self._results)

    def _add(self, block: _Block) -> None:
        self._blocks.append(block)
        self.write_report()

    def write_report(self) -> None:
        """Write report.md and report.html with the current contents."""
        write_atomically(self.run.report_path, redact(self._markdown()))
        write_atomically(self.folder / REPORT_PAGE, redact(self._page()))
        blocks = redact_values([_as_json(block) for block in self._blocks])
        write_atomically(self.folder / REPORT_JSON, json.dumps(blocks, indent=1, ensure_ascii=False) + "\n")

    def _title(self) -> str:
        return str(self._facts().get("title") or self.run.path.name)

    def _facts(self) -> dict[str, Any]:
        return self.run.facts().get("study") or {}

    def _about(self) -> list[str]:
        """Return what the experiment's docstring says, in paragraphs."""
        about = self._facts()
        text = "\n\n".join((about.get("summary", ""), about.get("about", "")))
        return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()]

    def _results_rows(self) -> list[list[str]]:
        return [[key.replace("_", " "), shown(value)] for key, value in self._results.items()]

    def _markdown(self) -> str:
        parts: list[str] = [f"# {plain(self._title())}", *map(_marked, self._about())]
        if self._results:
            parts.append("\n".join(table(("result", "value"), self._results_rows())))
        for block in self._blocks:
            if block.kind == "heading":
                parts.append(f"## {plain(block.text)}")
            elif block.kind == "table":
                parts.append("\n".join(table(block.head, [list(map(shown, row)) for row in block.rows])))
                parts.append(f"{plain(block.text)} Data: [{block.file}]({quote(block.file)}).".strip())
            elif block.kind == "picture":
                parts += [f"![{plain(block.text)}]({quote(block.file)})", f"*{plain(block.text)}*"]
            else:
                parts.append(_marked(block.text))
        children = [f"- [{name}]({quote(name)}/report.md)" for name in self.run.facts().get("children") or {}]
        if children:
            parts += ["## Runs", "\n".join(children)]
        parts += ["## Run it again", code(str(self._facts().get("command")))]
        return "\n\n".join(filter(None, parts)) + "\n"

    def _page(self) -> str:
        page = Page(self._title())
        for paragraph in self._about():
            page.text(paragraph)
        if self._results:
            page.table(("result", "value"), self._results_rows())
        for block in self._blocks:
            if block.kind == "heading":
                page.heading(block.text)
            elif block.kind == "table":
                page.table(block.head, [list(map(shown, row)) for row in block.rows], caption=block.text)
            elif block.kind == "picture":
                page.picture(block.svg, block.text)
            else:
                page.text(block.text)
        page.heading("Run it again")
        page.code(str(self._facts().get("command")))
        return page.html()


def _as_json(block: _Block) -> dict[str, Any]:
    """Return a part of the report for report.json; a picture is given by its file name."""
    kept = {"kind": block.kind, "text": block.text, "file": block.file, "head": block.head, "rows": block.rows}
    return {key: value for key, value in kept.items() if value}


def _marked(text: str) -> str:
    """Return a text as Markdown that escapes everything but code between backticks."""
    parts = re.split(r"`([^`]+)`", text)
    return "".join(code(part) if number % 2 else _escaped(part) for number, part in enumerate(parts))


def _escaped(text: str) -> str:
    """Return a part of a text with Markdown escaped, including the spaces around it."""
    before, after = text[:1].isspace(), text[-1:].isspace() and bool(text.strip())
    return " " * before + plain(text) + " " * after


def _plain_value(value: Any) -> Cell:
    """Return a number of any library as a Python number; None if it is not finite."""
    if value is None or isinstance(value, str | bool | int):
        return redact(value) if isinstance(value, str) else value
    number = float(value)
    return number if math.isfinite(number) else None


def shown(value: Cell) -> str:
    """Return the display text of a cell: four digits of a fraction, thousands separated, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return f"{value:.4g}" if isinstance(value, float) else value


def shown_result(key: str, value: Cell) -> str:
    """Return the display text of a result of `Study.result`: of an accuracy, its percent."""
    return percent(value) if isinstance(value, float) and "accuracy" in key else shown(value)


def _as_progress(name: str, listener: Listener) -> Listener:
    """Return a listener for a child run: its steps become one line of progress, and its warnings are shown."""
    steps = 0

    def listen(event: Event) -> None:
        nonlocal steps
        if isinstance(event, TrainingStarted):
            steps = event.max_steps
        elif isinstance(event, MetricsLogged):
            listener(Progress(name, int(event.row.get("step", 0)), steps))
        elif isinstance(event, RunWarning):
            listener(RunWarning(f"{name}: {event.text}"))
        elif isinstance(event, Progress):
            listener(Progress(f"{name}: {event.label}", event.done, event.total))

    return listen
