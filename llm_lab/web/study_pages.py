"""The page of a study, a sweep or a duel: its progress, its results so far, its report; stop and resume."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import time
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llm_lab.errors import LabError, Problem, UserError
from llm_lab.estimate.adapter_base import read_object
from llm_lab.runs.describe import headline_results
from llm_lab.runs.entries import sweep_folders
from llm_lab.runs.folder import ROOT, RunFolder, status_of
from llm_lab.runs.glossary import name_of
from llm_lab.runs.lock import is_holder
from llm_lab.runs.record import is_number
from llm_lab.safe_text import printable
from llm_lab.studies import duel_report
from llm_lab.studies.cells import CellState, commands_at_work, state_of
from llm_lab.studies.duel import TOKENS, Comparison, compare
from llm_lab.studies.experiment_files import defaults_of, find_experiment, read_values, written
from llm_lab.studies.grid import Configuration
from llm_lab.studies.study import REPORT_JSON, shown_result
from llm_lab.studies.sweep import FILE, Cell, Sweep, open_sweep
from llm_lab.studies.sweep_report import build_report, describe_sweep

from .addresses import inside
from .comparison_pages import form_of, start_again
from .lab import lab_of
from .launches import form_address, last_lines, recorded_command, stop_run
from .responses import answer, body_of, page
from .run_index import Stamp, stamp_of

WAIT_FOR_COMMAND = 2.0  # seconds: between two runs, a sweep does not hold its lock for a moment


def study_page(request: Request) -> Response:
    """Show a study, a sweep or a duel. One that has just been started has no folder yet; the page waits for it."""
    name = request.path_params["name"]
    if not _is_known(name) and lab_of(request).launches.newest_of(name) is None:
        raise HTTPException(404, f"There is no study, sweep or duel named {name} in {ROOT}/.")
    found = study_topic(name, None)
    data = {"name": name, "study": found[1] if found else None, "stamp": found[0] if found else None}
    return page(request, "study.html", title=name, data=data)


def _is_known(name: str) -> bool:
    folder = inside(ROOT, name)
    return (folder / FILE).is_file() or bool(_study_in(RunFolder(folder)))


def _study_in(run: RunFolder) -> dict[str, Any]:
    """Return what a run records about its study; {} if it is not one."""
    found = run.facts().get("study")
    return found if isinstance(found, dict) else {}


def list_results() -> list[dict[str, Any]]:
    """Return all studies, sweeps and duels, newest first."""
    found = []
    for file in ROOT.glob("*/run.json"):
        stamp = stamp_of(file)
        facts = stamp and _study_facts(file.resolve(), stamp)
        if stamp and facts:
            about = facts["study"]
            values = (facts.get("results") or {}).items()
            results = [f"{key.replace('_', ' ')} {shown_result(key, value)}" for key, value in values]
            if error := facts.get("error"):
                results = [printable(str(error))]
            found.append(
                {
                    "name": file.parent.name,
                    "kind": "study",
                    "experiment": about.get("experiment") or Path(str(about.get("file", ""))).stem,
                    "title": about.get("title"),
                    "status": status_of(file.parent, facts, None),
                    "created_at": facts.get("created_at", 0),
                    "form": _form_of(about.get("command")),
                    "results": results[:3],
                }
            )
    for folder in sweep_folders():
        try:
            sweep = open_sweep(folder)
        except LabError:
            continue
        statuses = _statuses(sweep)
        found.append(
            {
                "name": folder.name,
                "kind": sweep.kind,
                "experiment": None,
                "title": describe_sweep(sweep),
                "status": _sweep_status(sweep, statuses),
                "created_at": _time_of((read_object(folder / FILE) or {}).get("created_at")),
                "results": [f"{statuses.count('done')} of {len(statuses)} runs done"],
            }
        )
    return sorted(found, key=lambda one: -one["created_at"])


@lru_cache(maxsize=4096)
def _study_facts(file: Path, stamp: Stamp) -> dict[str, Any] | None:
    """Return what run.json says about a study, None for another run. stamp: a file is read again if it has changed."""
    facts = RunFolder(file.parent).facts()
    return facts if isinstance(facts.get("study"), dict) else None


def _time_of(value: Any) -> float:
    return value if is_number(value) else 0.0


# --- what the page shows


def study_topic(argument: str, cursor: Any) -> tuple[Any, Any] | None:
    """Return everything that the page of a study or sweep shows, if any of its files has changed."""
    folder = inside(ROOT, argument)
    if not _is_known(argument):
        return None
    sweep = open_sweep(folder) if (folder / FILE).is_file() else None
    status = _sweep_status(sweep, _statuses(sweep)) if sweep else RunFolder(folder).status()
    stamp = f"{status} {_stamp(folder)}"
    if stamp == cursor:
        return None
    return stamp, _sweep(sweep, status) if sweep else _study(RunFolder(folder), status)


def _stamp(folder: Path) -> str:
    """Return a value that changes with every file that the page is made from."""
    newest, size = 0, 0
    for pattern in ("*.json", "*/run.json", "*/metrics.jsonl"):
        for file in folder.glob(pattern):
            try:
                stat = file.stat()
            except OSError:
                continue
            newest, size = max(newest, stat.st_mtime_ns), size + stat.st_size
    return f"{newest} {size}"


def _study(run: RunFolder, status: str) -> dict[str, Any]:
    facts = run.facts()
    about = facts["study"]
    text = "\n\n".join((str(about.get("summary", "")), str(about.get("about", ""))))
    children = [_child(RunFolder(run.path / name)) for name in facts.get("children") or {}]
    return {
        "kind": "study",
        "title": about.get("title") or run.path.name,
        "experiment": about.get("experiment"),
        "about": [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()],
        "status": status,
        "error": facts.get("error"),
        "command": recorded_command(about.get("command")),
        "form": _form_of(about.get("command")),
        "started": facts.get("created_at"),
        "ended": facts.get("ended_at") if status != "running" else None,
        "results": [
            [key.replace("_", " "), shown_result(key, value)] for key, value in (facts.get("results") or {}).items()
        ],
        "runs": children,
        "measure": None,
        "blocks": _blocks(run.path),
        "resumable": status in ("stopped", "failed", "interrupted"),
    }


def _form_of(recorded: Any) -> str | None:
    command = recorded_command(recorded)
    return form_address(shlex.split(command)[1:]) if command else None


def _child(run: RunFolder) -> dict[str, Any]:
    name = run.path.name
    state = state_of(Cell(Configuration(name, name, {}, {}), 0, run.path, {}), "loss")
    return {**_run_row(state, name), "results": headline_results(run.facts().get("results") or {})}


def _run_row(state: CellState, label: str) -> dict[str, Any]:
    return {
        "name": str(state.cell.folder.relative_to(ROOT)),
        "label": label,
        "status": state.status,
        "step": state.step,
        "max_steps": state.max_steps,
        "loss": state.loss,
        "value": state.value,
        "seconds": state.seconds,
        "error": state.error,
    }


def _blocks(folder: Path) -> list[dict[str, Any]]:
    """Return the parts of a study's report; for one that an older version wrote, its tables and pictures."""
    try:
        found = json.loads((folder / REPORT_JSON).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return _older_blocks(folder)
    return [_dated(folder, block) for block in found if isinstance(block, dict)]


def _dated(folder: Path, block: Mapping[str, Any]) -> dict[str, Any]:
    """Return a block with the time of its picture, so that the page loads a new one."""
    file = folder / str(block.get("file", ""))
    return {**block, "changed": file.stat().st_mtime if block.get("kind") == "picture" and file.is_file() else None}


def _older_blocks(folder: Path) -> list[dict[str, Any]]:
    found: list[tuple[float, dict[str, Any]]] = []
    for file in folder.glob("tables/*.json"):
        try:
            rows = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        head = list(rows[0]) if rows else []
        title = file.stem.replace("-", " ").replace("_", " ")
        block = {"kind": "table", "text": title, "head": head, "rows": [list(row.values()) for row in rows]}
        found.append((file.stat().st_mtime, block))
    for file in folder.glob("pictures/*.svg"):
        block = {"kind": "picture", "text": "", "file": f"pictures/{file.name}"}
        found.append((file.stat().st_mtime, _dated(folder, block)))
    return [block for _, block in sorted(found, key=lambda one: one[0])]


def _sweep(sweep: Sweep, status: str) -> dict[str, Any]:
    is_duel = sweep.kind == "duel"
    report = duel_report.build_report(sweep, _compared(sweep)) if is_duel else build_report(sweep)
    states = [state_of(cell, sweep.measure) for cell in sweep.cells()]
    return {
        "kind": sweep.kind,
        "title": sweep.folder.name,
        "experiment": None,
        "about": [describe_sweep(sweep)],
        "status": status,
        "error": None,
        "command": recorded_command(sweep.command),
        "form": _form_of(sweep.command),
        "started": None,
        "ended": None,
        "results": [],
        "runs": [{**_run_row(state, state.cell.label), "results": []} for state in states],
        "measure": name_of(sweep.measure),
        "blocks": _sections(report.blocks()[1:]),
        "resumable": status not in ("running", "done") and form_of(sweep) is not None,
    }


def _compared(duel: Sweep) -> list[Comparison]:
    """Return what has been compared so far; the equal-time part only if it has runs, which not every duel has."""
    return [one for one in compare(duel) if one.by == TOKENS or one.verdict is not None]


def _sections(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the parts of a report without the last section (the command) and without headings that have no content."""
    last = max(at for at, block in enumerate(blocks) if block["kind"] == "heading")
    kept = [*blocks[:last], {"kind": "heading"}]
    return [one for one, after in pairwise(kept) if not one["kind"] == after["kind"] == "heading"]


def _statuses(sweep: Sweep) -> list[str]:
    runs = [RunFolder(cell.folder) for cell in sweep.cells()]
    return [run.status() if run.run_json.is_file() else "waiting" for run in runs]


def _sweep_status(sweep: Sweep, statuses: list[str]) -> str:
    """Return the status of a sweep, which is not recorded, from its runs and the commands that work on it."""
    if "running" in statuses or commands_at_work(sweep.folder):
        return "running"
    if all(status == "done" for status in statuses):
        return "done"
    return "failed" if all(status in ("done", "failed") for status in statuses) else "stopped"


def log_state(request: Request) -> Response:
    """Return the end of the output of the command that this server started last in a folder; empty for others."""
    launch = lab_of(request).launches.newest_of(request.path_params["name"])
    if launch is None:
        return answer({"log": "", "exit_code": None})
    return answer({"log": last_lines(launch.log), "exit_code": launch.process.poll(), "error": launch.error()})


# --- stop and resume


async def stop_study(request: Request) -> Response:
    """Stop a study, sweep or duel as Ctrl-C does: finished work is saved."""
    name = str((await body_of(request)).get("name"))
    await run_in_threadpool(_stop, name)
    return answer({"stopped": name})


def _stop(name: str) -> None:
    folder = inside(ROOT, name)
    if not (folder / FILE).is_file():
        stop_run(RunFolder(folder))
        return
    until = time.monotonic() + WAIT_FOR_COMMAND
    while not (found := [one for place, one in commands_at_work(folder).items() if is_holder(place, one)]):
        if time.monotonic() > until:
            raise UserError(Problem(str(folder), "no command is working on it on this machine"))
        time.sleep(0.05)
    for pid in {process["pid"] for process in found}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)


async def resume_study(request: Request) -> Response:
    """Start the same command again: finished runs are skipped, and stopped ones are resumed."""
    name = str((await body_of(request)).get("name"))
    folder = inside(ROOT, name)
    if (folder / FILE).is_file():
        form = form_of(await run_in_threadpool(open_sweep, folder))
        if form is None:
            why = "its command is not one that the page starts, so it can't be started again from here"
            raise UserError(Problem(str(folder), why, fix="Start it in a terminal."))
        return answer(await start_again(request, form))
    words = await run_in_threadpool(_words_again, RunFolder(folder))
    launch = await run_in_threadpool(lab_of(request).launches.start, words, run=name)
    return answer({"launch": launch.number, "run": name})


def _words_again(run: RunFolder) -> list[str]:
    """Return the words of a study's command. UserError if its record has an option that the experiment lacks."""
    about = _study_in(run)
    experiment = find_experiment(str(about.get("experiment")))
    defaults = defaults_of(experiment)
    given = {key: tuple(one) if isinstance(one, list) else one for key, one in (about.get("options") or {}).items()}
    changed = {key: one for key, one in given.items() if key not in defaults or defaults[key] != one}
    words = [f"{key}={written(one)}" for key, one in changed.items()]
    read_values(experiment, words)
    return ["study", experiment.name, *words]


ROUTES = [
    Route("/experiments/run/{name:path}", study_page),
    Route("/api/experiments/stop", stop_study, methods=["POST"]),
    Route("/api/experiments/resume", resume_study, methods=["POST"]),
    Route("/api/experiments/log/{name:path}", log_state),
]
TOPICS = {"study": study_topic}
