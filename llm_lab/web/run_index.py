"""Every run on disk as rows of a list. A file is read again only if it has changed.

A page polls each second; with hundreds of runs, reading every run.json each time would keep a core busy.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from llm_lab.errors import UserError
from llm_lab.estimate.adapter_base import read_object
from llm_lab.estimate.formatting import count
from llm_lab.recipe.files import read_recipe_file
from llm_lab.recipe.registry import stage_of
from llm_lab.runs.describe import headline_results
from llm_lab.runs.entries import PIPELINE, STUDY, kind_of_run
from llm_lab.runs.folder import EVALUATES_FIRST, ROOT, RunFolder, settle, status_of
from llm_lab.runs.glossary import name_of, write
from llm_lab.runs.record import is_number, read_facts, row_of
from llm_lab.safe_text import printable, redact_values
from llm_lab.studies.sweep import FILE as SWEEP_FILE

Stamp = tuple[int, int, int]
Row = dict[str, Any]
STATUS_NOTES = {
    "running": "Its process is running.",
    "done": "It ended as planned.",
    "stopped": "It was stopped. Its last checkpoint is saved; it can be resumed.",
    "interrupted": "Its process no longer exists: it was killed, or the machine was shut down. It can be resumed.",
    "failed": "An error ended it.",
    "broken": "Its run.json can't be read.",
    "unknown": "Its run.json names no status.",
}
# Errors raised by values that we did not write, such as an integer of a thousand digits.
STRANGE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
AT_MOST_EVERY = 0.4  # seconds between two scans of the disk, regardless of the number of pages
TAIL_BYTES = 16_384  # read from the end of metrics.jsonl for the newest rows
DEEPEST = 3  # levels of folders: a cell of a sweep may be a pipeline


def stamp_of(file: Path) -> Stamp | None:
    """Return a value that changes whenever a file does; None if there is no file."""
    try:
        found = file.stat()
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(found.st_mode):  # reading a pipe could block forever
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def max_steps_of(run: RunFolder, facts: Mapping[str, Any]) -> int | None:
    """Return how many steps a run does: those derived from its data, or those of its recipe. None if unknown."""
    derived = facts.get("max_steps")
    if isinstance(derived, int) and derived > 0:
        return derived
    recipe = facts.get("recipe")
    if not isinstance(recipe, Mapping):  # written by an older version
        try:
            recipe = read_recipe_file(run.recipe_path)
        except UserError:
            return None
    train = recipe.get("train")
    steps = train.get("max_steps") if isinstance(train, Mapping) else None
    return steps if isinstance(steps, int) and steps > 0 else None


def seconds_left(rows: list[dict[str, Any]], max_steps: int | None) -> float | None:
    """Return the remaining time at the speed of the newest rows of metrics.jsonl; None if too few are known.

    The time of a step is a median, so that one slow step has no influence. The first step, which warms up, is left out.
    Evaluations, which are recorded with the step before them, count in full.
    """
    marks = [(row["step"], row["wall_seconds"]) for row in rows if is_number(row.get("wall_seconds"))]
    pairs = [(after[0] - step, after[1] - then) for (step, then), after in pairwise(marks) if step > 0]
    per_step = [seconds / steps for steps, seconds in pairs if steps > 0]
    if max_steps is None or not per_step:
        return None
    others = sum(seconds for steps, seconds in pairs if steps == 0) / sum(steps for steps, _ in pairs if steps > 0)
    return max(0.0, (max_steps - marks[-1][0]) * (median(per_step) + others))


def stage_text(begun: int, total: int, name: str | None) -> str:
    """Return which stage a pipeline is at."""
    return f"stage {begun} of {total}: {name}" if name else f"starting the first of {total} stages"


def newest_rows(metrics: Path) -> list[dict[str, Any]]:
    """Return the last rows of metrics.jsonl, oldest first, without reading the rest of it."""
    try:
        with open(metrics, "rb") as file:
            start = max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES)
            file.seek(start)
            lines = file.read().split(b"\n")
    except OSError:
        return []
    found = (row_of(line) for line in lines[1 if start else 0 :])
    return [row for row in found if row is not None]


class RunIndex:
    """The rows of all runs under a folder, with the version in which each last changed."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._known: dict[str, tuple[Stamp, Row]] = {}  # contents of run.json or sweep.json, by name
        self._progress: dict[str, tuple[Stamp | None, Row]] = {}  # values from the newest metrics
        self._rows: dict[str, Row] = {}
        self._changed: dict[str, int] = {}  # the version in which a row was added, changed or removed
        self._version = 0
        self._born = time.time_ns()
        self._looked = 0.0

    def rows(self) -> dict[str, Row]:
        """Return the rows by name: demo, demo/sft."""
        with self._lock:
            self._look()
            return dict(self._rows)

    def since(self, cursor: Any) -> tuple[Any, Any] | None:
        """Return (cursor, rows added or changed and names removed since a cursor); None if nothing has changed."""
        with self._lock:
            self._look()
            now = [self._born, self._version]
            if not isinstance(cursor, list) or list(map(type, cursor)) != [int, int] or cursor[0] != self._born:
                return now, {"rows": list(map(_without_blanks, self._rows.values())), "gone": [], "all": True}
            names = [name for name, version in self._changed.items() if version > cursor[1]]
            if not names:
                return None
            rows = [_without_blanks(self._rows[name]) for name in names if name in self._rows]
            return now, {"rows": rows, "gone": [name for name in names if name not in self._rows], "all": False}

    def made_from(self, name: str) -> list[str]:
        """Return the names of the runs that were trained from the model of a run."""
        return [one for one, row in self.rows().items() if row.get("from") == name]

    def _look(self) -> None:
        if time.monotonic() - self._looked < AT_MOST_EVERY:
            return
        settle(self.root)
        found: dict[str, Row] = {}
        for path in _folders(self.root):
            self._add(found, path, path.name, None, 1)
        changed = [name for name, row in found.items() if self._rows.get(name) != row]
        changed += [name for name in self._rows if name not in found]
        if changed:
            self._version += 1
            self._changed.update(dict.fromkeys(changed, self._version))
        for known in (self._known, self._progress):
            for name in known.keys() - found.keys():
                del known[name]
        self._rows = found
        self._looked = time.monotonic()

    def _add(self, found: dict[str, Row], path: Path, name: str, parent: str | None, depth: int) -> None:
        """Add the row of a folder and those of the runs inside it, if it is a run, a study or a sweep."""
        run = RunFolder(path)
        stamp = stamp_of(run.run_json)
        if stamp is not None:
            base = self._read(name, stamp, lambda: _row_of_run(run, *read_facts(run.run_json)))
            inner = [path / child for child in base["inner"]]
        else:
            stamp = stamp_of(path / SWEEP_FILE)
            if stamp is None:
                return
            base = self._read(name, stamp, lambda: _row_of_sweep(path))
            inner = list(_folders(path))
        row = {key: value for key, value in base.items() if key not in ("inner", "facts", "damage", "evaluates")}
        row |= {"name": name, "label": printable(path.name), "parent": parent}
        found[name] = row  # before the runs inside it
        if depth < DEEPEST:
            for child in inner:
                self._add(found, child, f"{name}/{child.name}", name, depth + 1)
        children = [found[one] for one in (f"{name}/{child.name}" for child in inner) if one in found]
        row["children"] = len(children)
        if "planned" in base:
            row |= _state_of_sweep(base["planned"], children)
        elif base["facts"] is not None:
            row |= self._state(name, run, base)
        if row["kind"] == PIPELINE and row["status"] == "running":
            row["numbers"] = [
                stage_text(len(children), len(base["inner"]), children[-1]["label"] if children else None)
            ]

    def _read(self, name: str, stamp: Stamp, read: Any) -> Row:
        known = self._known.get(name)
        if known is None or known[0] != stamp:
            self._known[name] = known = (stamp, redact_values(read()))
        return known[1]

    def _state(self, name: str, run: RunFolder, base: Row) -> Row:
        """Return what may change although run.json does not: whether the process is alive, and its newest numbers."""
        status = status_of(run.path, base["facts"], base["damage"])
        if status not in ("running", "interrupted"):
            return {"status": status}
        stamp = stamp_of(run.metrics_path)
        known = self._progress.get(name)
        if known is None or known[0] != stamp:
            try:
                progress = _progress(newest_rows(run.metrics_path) if stamp else [], base["max_steps"])
            except STRANGE:
                progress = {}
            self._progress[name] = known = (stamp, progress)
        if status == "running" and not known[1]:
            return {"status": status, "step": 0, "numbers": ["first evaluation"] if base["evaluates"] else []}
        return {"status": status, **known[1]}


def _without_blanks(row: Row) -> Row:
    return {key: value for key, value in row.items() if value not in (None, "", [])}


def _folders(path: Path) -> Iterator[Path]:
    """Yield the folders in a folder that may be runs, without links, which may lead anywhere."""
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False) and _is_text(entry.name):
                    yield Path(entry.path)
    except OSError:
        return


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # not UTF-8: no address can name it
        return False
    return True


def _row_of_run(run: RunFolder, facts: Mapping[str, Any], damage: str | None) -> Row:
    """Return what run.json says about a run; valid until that file changes."""
    try:
        return _row_of_facts(run, facts, damage)
    except STRANGE as error:
        return _row_of_facts(run, {}, f"{type(error).__name__}: {error}")


def _row_of_facts(run: RunFolder, facts: Mapping[str, Any], damage: str | None) -> Row:
    results = facts.get("results") or {}
    stage = stage_of(facts)
    children = facts.get("children")
    inner = facts.get("stages") or (list(children) if isinstance(children, Mapping) else [])
    kind = kind_of_run(facts)
    parameters = facts.get("parameters")
    ended = facts.get("ended_at")
    is_live = facts.get("status") == "running"
    error = facts.get("error")
    return {
        "kind": kind,
        "stage": stage.label if stage else printable(str(facts.get("stage") or kind)),
        "parameters": parameters,
        "size": count(parameters) if is_number(parameters) else "",
        "numbers": _numbers(results) if kind != STUDY else [],
        "loss": _first(results, "eval_loss", "loss"),
        "created_at": facts.get("created_at"),
        "ended_at": ended if is_number(ended) else None,
        "seconds": results["wall_seconds"] if is_number(results.get("wall_seconds")) else None,
        "error": printable(str(error)) if error else None,
        "step": results["step"] if is_number(results.get("step")) else None,
        "max_steps": max_steps_of(run, facts) if is_live else None,
        "left": None,
        "evaluates": EVALUATES_FIRST in facts,
        "from": _parent(run.path, facts.get("parent")),
        "inner": [name for name in inner if isinstance(name, str) and Path(name).name == name],
        "facts": {"status": facts["status"], "process": facts.get("process") or {}} if "status" in facts else {},
        "damage": damage,
    }


def _parent(path: Path, recorded: Any) -> str | None:
    """Return the name of the run that a recorded model belongs to: demo/sft for checkpoints/demo/sft/model."""
    place = Path(recorded["path"]) if isinstance(recorded, Mapping) else None
    if place is None or not place.is_relative_to(ROOT):
        return None
    parts = place.relative_to(ROOT).parts
    ends = [at for at, part in enumerate(parts) if part in ("model", "steps")]
    return "/".join(parts[: ends[-1]] if ends else parts)


def _numbers(results: Mapping[str, Any]) -> list[str]:
    """Return the results that summarize a run; before any of them is measured, its training loss."""
    loss = results.get("loss")
    return headline_results(results) or ([f"{name_of('loss')} {write('loss', loss)}"] if is_number(loss) else [])


def _first(results: Mapping[str, Any], *keys: str) -> float | None:
    return next((results[key] for key in keys if is_number(results.get(key))), None)


def _progress(rows: list[dict[str, Any]], max_steps: int | None) -> Row:
    if not rows:
        return {}
    latest = {key: value for row in rows for key, value in row.items()}
    left = seconds_left(rows, max_steps)
    return {
        "numbers": _numbers(latest),
        "loss": _first(latest, "eval_loss", "loss"),
        "step": latest["step"],
        "left": None if left is None else round(left),
        "seconds": _first(latest, "wall_seconds"),
    }


def _row_of_sweep(path: Path) -> Row:
    record = read_object(path / SWEEP_FILE) or {}
    sizes = [len(record[key]) if isinstance(record.get(key), list) else 0 for key in ("configurations", "seeds")]
    created = record.get("created_at")
    return {
        **dict.fromkeys(("parameters", "loss", "ended_at", "seconds", "error", "step", "max_steps", "left", "damage")),
        "kind": "duel" if record.get("kind") == "duel" else "sweep",
        "stage": "duel" if record.get("kind") == "duel" else "sweep",
        "size": "",
        "numbers": [],
        "created_at": created if is_number(created) else None,
        "planned": sizes[0] * sizes[1],
        "facts": None,
    }


def _state_of_sweep(planned: int, children: list[Row]) -> Row:
    """Return the status of a sweep, from the statuses of its runs."""
    statuses = [row.get("status") for row in children]
    done = statuses.count("done")
    status = "done" if planned and done >= planned else "running" if "running" in statuses else "stopped"
    return {"status": status, "numbers": [f"{done:,} of {planned:,} runs done"]}


INDEX = RunIndex()
