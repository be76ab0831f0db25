"""The contents of checkpoints/: runs, pipelines, sweeps, duels, studies. The home screen uses it: few imports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_lab.estimate.adapter_base import read_object
from llm_lab.estimate.formatting import plural

from .disk import bytes_under
from .folder import ROOT, RunFolder, last_active, settle, status_of
from .lock import NAME as LOCK
from .lock import is_at_work
from .record import WEIGHTS, is_number, read_facts

RUN, PIPELINE, STUDY = "run", "pipeline", "study"  # kinds of folders; that of a sweep is in its sweep.json


def kind_of(folder: Path) -> str | None:
    """Return what a folder is: run, pipeline, sweep, duel or study; None if LLM Lab did not make it."""
    if (folder / "sweep.json").is_file():
        kind = (read_object(folder / "sweep.json") or {}).get("kind")
        return kind if isinstance(kind, str) else "sweep"
    facts, damage = read_facts(folder / "run.json")
    if not facts and not damage:
        return None
    return kind_of_run(facts)


def kind_of_run(facts: Mapping[str, Any]) -> str:
    """Return what a folder with these facts is: run, pipeline or study."""
    return STUDY if facts.get("study") else PIPELINE if facts.get("stages") else RUN


def runs_in(folder: Path) -> Iterator[RunFolder]:
    """Yield the run of a folder and the runs inside it: stages, cells of a sweep, models of a study."""
    if (folder / "run.json").is_file():
        yield RunFolder(folder)
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not path.is_symlink() and path.name[0] != "." and path.name not in WEIGHTS:
                yield from runs_in(path)


def describe_count(root: Path = ROOT) -> str:
    """Describe how many runs, sweeps and duels there are."""
    kinds = [kind for path in root.iterdir() if (kind := kind_of(path))] if root.is_dir() else []
    compared = [plural(kinds.count(kind), kind) for kind in ("sweep", "duel") if kind in kinds]
    return ", ".join([plural(len(kinds) - kinds.count("sweep") - kinds.count("duel"), "run"), *compared])


def list_entries(root: Path = ROOT, *, inner: bool = False) -> list[dict[str, Any]]:
    """Return a description of each run, pipeline, sweep and study in a folder, the most recently active first.

    inner: also describe the runs inside pipelines, sweeps and studies. Keys: name, path, kind, stage, status,
    created_at, active_at (when it ended or, before that, was created; for a sweep, that of its most recent run),
    parameters, bytes, step, results, parent, part_of, parts, parts_done, parts_planned, data.
    """
    settle(root)
    found: list[dict[str, Any]] = []
    for path in root.iterdir() if root.is_dir() else ():
        if not path.is_dir() or path.name.startswith(".") or (kind := kind_of(path)) is None:
            continue
        parts = [run for run in runs_in(path) if run.path != path]
        found.append(_describe(path, kind, parts, root))
        if inner:
            found += [_describe(run.path, kind_of(run.path) or RUN, (), root, part_of=path) for run in parts]
    return sorted(found, key=lambda entry: (-entry["active_at"], entry["name"]))


def list_sweeps(root: Path = ROOT) -> list[dict[str, Any]]:
    """Return a description of each sweep and duel in a folder, as list_entries does."""
    return [describe_folder(path, root=root) for path in sweep_folders(root)]


def sweep_folders(root: Path = ROOT) -> list[Path]:
    """Return the folders of all sweeps and duels, by name."""
    return sorted(file.parent for file in root.glob("*/sweep.json"))


def describe_folder(path: Path, *, root: Path = ROOT) -> dict[str, Any]:
    """Return a description of one run, pipeline, sweep or study, as list_entries does."""
    return _describe(path, kind_of(path) or RUN, [run for run in runs_in(path) if run.path != path], root)


def _describe(
    path: Path, kind: str, parts: Sequence[RunFolder], root: Path, *, part_of: Path | None = None
) -> dict[str, Any]:
    facts, damage = read_facts(path / "run.json")
    sweep = read_object(path / "sweep.json") or {}
    created = sweep.get("created_at") or facts.get("created_at") or path.stat().st_mtime
    created = created if is_number(created) else 0.0
    active = [last_active(run.facts()) for run in parts] if sweep else [last_active(facts)]
    results = facts.get("results") or {}
    return {
        "name": path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path),
        "path": str(path),
        "kind": kind,
        "stage": facts.get("stage") or kind,
        "status": _status_of_sweep(path, sweep, parts) if sweep else status_of(path, facts, damage),
        "created_at": created,
        "active_at": max([created, *active]),
        "parameters": facts.get("parameters") or next(filter(None, _parameters(parts)), None),
        "bytes": bytes_under(path),
        "step": results.get("step"),
        "results": {key: value for key, value in results.items() if is_number(value) or isinstance(value, str)},
        "parent": (facts.get("parent") or {}).get("path"),
        "part_of": None if part_of is None else part_of.relative_to(root).as_posix(),
        "parts": len(parts),
        "parts_done": sum(run.status() == "done" for run in parts),
        "parts_planned": _planned(sweep) if sweep else len(parts),
        "data": [source["path"] for source in facts.get("data") or ()],
    }


def _parameters(parts: Sequence[RunFolder]) -> Iterator[int | None]:
    return (run.facts().get("parameters") for run in reversed(parts))


def _status_of_sweep(path: Path, sweep: Mapping[str, Any], parts: Sequence[RunFolder]) -> str:
    statuses = [run.status() for run in parts]
    if any(claims(path)):  # a run that is starting has no status yet
        return "running"
    for status in ("running", "failed"):
        if status in statuses:
            return status
    return "done" if statuses.count("done") >= _planned(sweep) else "stopped"


def _planned(sweep: Mapping[str, Any]) -> int:
    return len(sweep.get("configurations") or ()) * len(sweep.get("seeds") or ())


def claims(sweep: Path) -> Iterator[Path]:
    """Yield the locks that commands hold in a sweep while they work on its runs."""
    for claim in sweep.glob(f".claims/*/{LOCK}"):
        if is_at_work(claim.parent, read_object(claim) or {}):
            yield claim.parent
