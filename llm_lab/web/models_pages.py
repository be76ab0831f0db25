"""The page of models: the library with what fits on this machine, and the user's own designs and runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llm_lab.estimate.formatting import count
from llm_lab.estimate.machine import find_machine
from llm_lab.estimate.parameters import shape_at
from llm_lab.recipe.what_fits import METHODS, library
from llm_lab.runs.folder import ROOT, RunFolder
from llm_lab.wizard.home import MODELS, describe_run
from llm_lab.wizard.model_questions import generating_runs
from llm_lab.wizard.walk import forget_looks

from .responses import page

GATED = {True: "gated", False: "", None: "perhaps gated"}


def models_page(request: Request) -> Response:
    """Show the models that can be fine-tuned or used for chat."""
    forget_looks()  # new runs may exist
    runs = [{"name": str(run.path.relative_to(ROOT)), **_of_run(run)} for run in generating_runs()]
    folders = sorted(file.parent for file in MODELS.glob("*/config.json"))
    designs = [{"name": folder.name, **_shape_of(folder)} for folder in folders]
    data = {"library": library_rows(), "runs": runs, "designs": designs, "machine": find_machine().describe()}
    return page(request, "models.html", title="Models", data=data)


def library_rows() -> list[dict[str, Any]]:
    """Return the models of the library, with what fits on this machine and why."""
    machine, rows = find_machine(), []
    entries = library(machine)
    if machine.best_device == "cpu":  # first the small ones that leave much memory free: a CPU can train these
        entries = sorted(entries, key=lambda entry: (not entry.is_comfortable, entry.model.parameters))
    for entry in entries:
        model, best = entry.model, entry.best
        kind = "answers" if model.is_chat else "continues text"
        facts = [f"License {model.license}", GATED[model.gated], f"context {model.context:,} tokens", model.note]
        rows.append(
            {
                "name": model.name,
                "family": model.family,
                "about": f"{count(model.parameters)} parameters, {kind}",
                "facts": ", ".join(filter(None, facts)),
                "fits": entry.reason[:1].upper() + entry.reason[1:],
                "fits_here": best is not None,
                "license": model.license,
                "gated": GATED[model.gated],
                "is_chat": model.is_chat,
                "parameters": model.parameters,
                "context": model.context,
                "note": model.note,
                "methods": [
                    {"name": METHODS[fit.method], "fits": fit.fits, "reason": fit.reason} for fit in entry.fits
                ],
            }
        )
    return rows


def _of_run(run: RunFolder) -> dict[str, Any]:
    return {"about": describe_run(run).split(": ", 1)[-1], **_shape_of(run.path)}


def _shape_of(path: Path) -> dict[str, Any]:
    shape = shape_at(str(path))
    sizes = {"parameters": shape and shape.parameters, "context": shape and shape.max_position_embeddings}
    return {"path": str(path), **sizes}


ROUTES = [Route("/models", models_page)]
