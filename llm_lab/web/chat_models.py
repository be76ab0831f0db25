"""The models that a chat offers, and what the files of a model say about it, without loading it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_lab.errors import UserError
from llm_lab.estimate.adapter_base import find_base
from llm_lab.estimate.cached_models import cached_folder, cached_language_models
from llm_lab.estimate.gguf_header import has_chat_template, is_gguf
from llm_lab.recipe.registry import stage_of
from llm_lab.runs.folder import ROOT, RunFolder, find_checkpoint, find_model, is_reward_model, list_runs, run_of
from llm_lab.runs.loading import ADAPTER, inspect_folder
from llm_lab.runs.samples import last_prompts

PROMPTS = 3


def offered_models() -> list[dict[str, Any]]:
    """Return the runs with a model that can generate, newest first, and the models in the Hub's cache."""
    runs = [row for run in list_runs() for row in _rows(run)]
    hub = [{"name": name, "group": "Hub models on this machine", "about": ""} for name in cached_language_models()]
    return runs + hub


def newest_model() -> str | None:
    """Return the name of the newest finished run whose model can generate text, else of the newest one, or None."""
    rows = [row for run in list_runs() for row in _rows(run)]
    return next((row["name"] for row in [*(one for one in rows if one["done"]), *rows]), None)


def _rows(run: RunFolder) -> Iterator[dict[str, Any]]:
    """Yield the choices for a run; for a pipeline, its stages, the last first."""
    for one in reversed(run.stages() or [run]):
        try:
            folder = find_model(one.path)
        except UserError:
            continue
        if is_reward_model(folder):
            continue
        stage = stage_of(one.facts())
        about = [stage.title if stage else "", "chat" if _is_chat(folder) else "base model"]
        status = one.status()
        about += [] if status == "done" else [status]
        steps = [step for step, _ in one.saved_models()]
        row = {"name": _name_of(one), "group": "Runs", "about": " · ".join(filter(None, about)), "steps": steps}
        yield {**row, "done": status == "done"}


def describe_model(name: str) -> dict[str, Any]:
    """Return what is known about a model before it is loaded. Raises UserError if no model has this name.

    points: the saved checkpoints of its run, or of all stages of its pipeline, oldest first; model: what to load. step:
    null for the final model of a run. at: which of them this model is. base: the model it was trained from. prompts:
    those of the run's samples. chat: null if unknown.
    """
    found = find_checkpoint(name)
    folder = Path(found) if Path(found).exists() else cached_folder(found)
    if folder is None:
        return {"name": name, "step": None, "points": [], "at": None, "base": None, "prompts": [], "chat": None}
    run = run_of(folder) if Path(found).exists() else None
    points = list(_points(run)) if run and not is_gguf(folder) else []
    at = next((index for index, point in enumerate(points) if Path(point["folder"]).samefile(folder)), None)
    base = (run.facts().get("parent") or {}).get("path") if run else None
    if base is None and folder.is_dir() and inspect_folder(folder).kind == ADAPTER:
        base = find_base(folder)
    return {
        "name": name if at is None else points[at]["name"],
        "step": None if at is None else points[at]["step"],
        "points": points,
        "at": at,
        "base": _base_name(base),
        "prompts": [prompt for prompt in dict.fromkeys(last_prompts(run)) if prompt][:PROMPTS] if run else [],
        "chat": _is_chat(folder),
    }


def _points(run: RunFolder) -> Iterator[dict[str, Any]]:
    """Yield the saved models of a run; for a stage of a pipeline, those of all stages that can generate text."""
    outer = RunFolder(run.path.parent)
    stages = outer.stages() if run.path.name in outer.facts().get("stages", ()) else []
    for one in stages or [run]:
        saved = one.saved_models()
        for step, folder in saved:
            if is_reward_model(folder):
                continue
            is_last = (step, folder) == saved[-1]
            prefix = f"{one.path.name} " if stages else ""
            yield {
                "name": _name_of(one),
                "step": None if is_last else step,
                "number": step,
                "label": f"{prefix}step {step:,}" if step or not prefix else prefix.strip(),  # a merge has no steps
                "model": _name_of(one) if is_last else _short(folder),
                "folder": _short(folder),
                "chat": _is_chat(folder),
            }


def _base_name(base: str | None) -> str | None:
    if base is None:
        return None
    run = run_of(base)
    return _name_of(run) if run and run.model_path == Path(base) else base


def _is_chat(folder: Path) -> bool:
    return has_chat_template(folder) if is_gguf(folder) else inspect_folder(folder).has_chat_template


def _name_of(run: RunFolder) -> str:
    path = Path(_short(run.path))
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
