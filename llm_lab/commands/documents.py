"""The output of `--json`: one JSON document per command, with stable names. docs/commands.md describes them."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_lab.errors import DONE, INTERNAL_ERROR, LabError, Problem
from llm_lab.safe_text import redact_values


@dataclass(frozen=True)
class Document:
    """The output of a command for --json, and its exit code."""

    values: Mapping[str, Any]
    code: int = DONE

    def as_json(self) -> str:
        """Return the document as JSON, without secrets. Numbers that JSON does not have, such as infinity, are null."""
        return json.dumps(redact_values(plain(self.values)), indent=2, ensure_ascii=False, allow_nan=False)


def plain(value: Any) -> Any:
    """Return a value in a form that JSON has: paths as text, dataclasses as objects, no NaN."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)


def error_document(error: Exception) -> Document:
    """Return the document of an error: its exit code, and its problems as key, value, why, allowed, fix and message."""
    if isinstance(error, LabError):
        code, problems = error.exit_code, [_problem(one) for one in error.problems]
    else:
        code, problems = INTERNAL_ERROR, [_problem(Problem("internal error", f"{type(error).__name__}: {error}"))]
    return Document({"error": {"exit_code": code, "problems": problems}}, code)


def _problem(problem: Problem | str) -> dict[str, Any]:
    if isinstance(problem, str):
        return {"key": None, "value": None, "why": problem, "allowed": None, "fix": None, "message": problem}
    value = plain(problem.value) if problem.has_value else None
    given = {"key": problem.key, "value": value, "why": problem.why, "allowed": problem.allowed, "fix": problem.fix}
    return {**given, "message": str(problem)}


# --- recipes


def plan_document(job: Any, *, overwrite: bool = False) -> Document:
    """Return the plan of a job: the resolved values of each stage, where they come from, and the cost.

    overwrite: whether the job replaces the run of its name.
    """
    stages = [_planned_stage(resolved, job.folder_of(resolved, overwrite=overwrite)) for resolved in job.stages]
    return Document({"name": job.name, "valid": True, "remarks": job.remarks, "stages": stages})


def _planned_stage(resolved: Any, folder: Path) -> dict[str, Any]:
    estimate = resolved.estimate
    numbers = ("parameters", "tokens", "memory_bytes", "memory_available_bytes", "disk_bytes", "wall_seconds", "fits")
    return {
        "name": resolved.values["name"],
        "stage": resolved.stage.name,
        "folder": folder,
        "recipe": resolved.values,
        "origins": {key: {"kind": origin.kind, "reason": origin.reason} for key, origin in resolved.origins.items()},
        "estimate": {name: getattr(estimate, name) for name in numbers} | {"basis": estimate.basis},
    }


def xray_document(stages: Sequence[Any]) -> Document:
    """Return the data of each stage as tokens: for each example, its pieces of text, and whether each is trained on."""
    found = plain(stages)
    for stage in found:
        for one in stage["sets"]:
            one["lengths"] = {name: _lengths(values) for name, values in one["lengths"].items()}
    return Document({"stages": found})


def _lengths(values: Sequence[int]) -> dict[str, float]:
    return {"median": statistics.median(values), "longest": max(values)} if values else {}


# --- lists


def list_document(what: str | None, recipes: Sequence[Path], entries: Sequence[Mapping[str, Any]]) -> Document:
    """Return the items of one kind, or of all kinds. entries: those of runs."""
    lists = {
        "recipes": lambda: _recipes(recipes),
        "data": lambda: _names("path", _data()),
        "models": _models,
        "parts": _parts,
        "runs": lambda: entries,
    }
    return Document({name: lists[name]() for name in ([what] if what else lists)})


def _names(key: str, texts: Mapping[str, str]) -> list[dict[str, str]]:
    return [{key: name, "about": text} for name, text in texts.items()]


def _recipes(recipes: Sequence[Path]) -> list[dict[str, Any]]:
    from llm_lab.wizard.recipe_question import recipe_summary

    return [{"name": file.stem, "file": file, "about": recipe_summary(file)} for file in recipes]


def _data() -> Mapping[str, str]:
    from llm_lab.terminal.listing import DATA_FORMS

    return DATA_FORMS


def _models() -> list[dict[str, Any]]:
    from llm_lab.recipe.what_fits import library

    return [
        {**plain(entry.model), "trains": entry.best.method if entry.best else None, "fits": plain(entry.fits)}
        for entry in library()
    ]


def _parts() -> dict[str, list[dict[str, str]]]:
    from llm_lab.terminal.listing import PARTS

    return {key: _names("name", choices) for key, choices in PARTS.items()}


def doctor_document(findings: Sequence[Any]) -> Document:
    """Return what this machine can do: name, status (good, warn, bad), text and fix of each finding."""
    return Document({"findings": findings})


# --- runs and models


def show_document(path: str, found: Path | None) -> Document:
    """Return the description of a run, a sweep, a study or a model, and its lineage.

    found: its folder, if it is one of the user's runs, sweeps or studies.
    """
    from llm_lab.hf.adapter import weights_digest
    from llm_lab.runs.entries import kind_of
    from llm_lab.runs.folder import ROOT, RunFolder
    from llm_lab.runs.lineage import find_traced, trace

    kind = kind_of(found) if found is not None else None
    if found is not None and kind not in ("run", "pipeline", None):
        return results_document(found)
    folder = find_traced(path)
    node = trace(folder, digest_of=weights_digest, root=ROOT)
    run = node.run if kind != "pipeline" else None
    run = run or (RunFolder(found) if found is not None else None)
    values = {
        "path": str(run.path) if run else folder,
        "kind": kind or ("run" if run else "model"),
        "status": run.status() if run else None,
        "run": run.facts() if run else None,
        "checkpoints": [{"step": step, "path": place} for step, place in run.checkpoints()] if run else [],
        "stages": [stage.path for stage in run.stages()] if run else [],
        "model": _model(folder),
        "lineage": list(_lineage(node)),
        "evaluations": node.evaluations,
    }
    return Document(values)


def _model(folder: str) -> dict[str, Any] | None:
    from llm_lab.estimate.adapter_base import find_base, read_adapter_json
    from llm_lab.estimate.compatibility import what_loads
    from llm_lab.estimate.parameters import context_in, read_config_json, shape_of_config

    config = read_config_json(folder) if Path(folder).exists() else None
    if config is None:
        return None
    shape, loads = shape_of_config(config), what_loads(config)
    return {
        "folder": folder,
        "type": config.get("model_type"),
        "parameters": shape.parameters if shape else None,
        "parameters_by_part": shape.parameters_by_part if shape else None,
        "vocabulary": config.get("vocab_size"),
        "context": context_in(config),
        "native": loads.architecture,
        "gguf": loads.gguf,
        "adapter": read_adapter_json(folder),
        "base": find_base(folder),
    }


def _lineage(node: Any) -> Iterator[dict[str, Any]]:
    from llm_lab.runs.lineage import line_of

    for one in line_of(node):
        links = [{"key": link.key, "place": link.place, "state": link.state} for link in one.links]
        yield {"place": one.place, "run": one.run.path if one.run else None, "stage": one.stage, "step": one.step,
               "made_from": links}  # fmt: skip


def results_document(folder: Path, code: int = DONE) -> Document:
    """Return the results of a sweep, a duel or a study, as its folder records them."""
    from llm_lab.runs.entries import list_entries
    from llm_lab.runs.folder import RunFolder

    entry = next((one for one in list_entries(folder.parent) if one["path"] == str(folder)), {})
    names = ["name", "kind", "status", "created_at", "bytes", "parts_done", "parts_planned"]
    kept = {key: entry[key] for key in names if key in entry}
    run = RunFolder(folder)
    if about := run.facts().get("study"):
        children = {name: RunFolder(folder / name).facts().get("results") for name in run.facts().get("children") or {}}
        return Document({"path": folder, **kept, "experiment": about.get("experiment"), "options": about.get("options"),
                         "results": run.facts().get("results"), "runs": children}, code)  # fmt: skip
    try:
        found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    return Document({"path": folder, **kept, **found, "sweep": folder.name}, code)


def sweep_plan_document(sweep: Any) -> Document:
    """Return the plan of a sweep or a duel: its configurations, and the folder and state of each run."""
    from llm_lab.studies.cells import state_of

    cells = [
        {"label": cell.label, "seed": cell.seed, "folder": cell.folder, "status": state_of(cell, sweep.measure).status}
        for cell in sweep.cells_to_run()
    ]
    configurations = [{"label": one.label, "values": one.values} for one in sweep.configurations]
    return Document({"path": sweep.folder, "kind": sweep.kind, "measure": sweep.measure, "seeds": sweep.seeds,
                     "configurations": configurations, "runs": cells})  # fmt: skip
