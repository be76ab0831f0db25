"""The page Testing: a tuned model and its base on the same prompts and texts, side by side."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llm_lab.errors import Problem, UserError
from llm_lab.estimate.adapter_base import read_adapter_json
from llm_lab.runs.folder import ROOT, RunFolder, run_of
from llm_lab.wizard.model_questions import describe_run, generating_runs
from llm_lab.wizard.walk import forget_looks

from .lab import lab_of
from .responses import body_of, lines, page

WORKER = "testing"
CALLS = "llm_lab.web.testing_calls"
MOST_PROMPTS, MOST_MODELS, MOST_TOKENS = 20, 4, 2048


def testing_page(request: Request) -> Response:
    """Show what a model can be tested on."""
    model = request.query_params.get("model", "")
    model = str(ROOT / model) if model and (ROOT / model).is_dir() else model
    forget_looks()  # new runs may exist
    runs = [{"path": str(run.path), "about": describe_run(run)} for run in generating_runs()]
    bases = {run["path"]: base_of(run["path"]) for run in runs}
    if model:
        bases.setdefault(model, base_of(model))
    return page(request, "testing.html", title="Test a model", data={"model": model, "runs": runs, "bases": bases})


def base_of(model: str) -> dict[str, Any]:
    """Return the model that a run started from, and whether the run is an adapter on it."""
    parent = (RunFolder(Path(model)).facts().get("parent") or {}).get("path")
    run = run_of(parent) if parent else None
    # The final model of a run is shown by the run's name.
    base = str(run.path) if run and str(run.model_path) == parent else parent
    return {"base": base, "is_adapter": read_adapter_json(model) is not None}


async def compare(request: Request) -> Response:
    """Compare models; send the progress, then the result. Leaving ends the process that holds the models."""
    arguments = _arguments(await body_of(request))
    workers = lab_of(request).workers
    worker = workers.get(WORKER, CALLS)

    async def pieces() -> AsyncIterator[Any]:
        done = False
        try:
            async for piece in worker.stream("compare_models", **arguments):
                done = "result" in piece
                yield piece
        finally:
            if not done:
                await workers.end(WORKER)

    return lines(pieces())


def _arguments(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of compare_models. UserError for values that the page does not send."""
    found = {key: _texts(body, key, most) for key, most in (("names", MOST_MODELS), ("prompts", MOST_PROMPTS))}
    found["data"] = _texts(body, "data", MOST_MODELS)
    if not found["names"]:
        raise UserError(Problem("model", "name a model to test"))
    settings = {}
    for key, low, high in (("max_new_tokens", 1, MOST_TOKENS), ("temperature", 0, 10)):
        value = body.get(key)
        if not isinstance(value, int | float) or not low <= value <= high:
            raise UserError(Problem(key, "not a number in this range", value, f"{low} to {high:,}"))
        settings[key] = value if key == "temperature" else int(value)
    prompt_set = str(body.get("prompt_set") or "").strip() or None
    return {**found, "settings": settings, "prompt_set": prompt_set, "adapter_off": bool(body.get("adapter_off"))}


def _texts(body: Mapping[str, Any], key: str, most: int) -> list[str]:
    values = body.get(key) or []
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UserError(Problem(key, "this is not a list of strings"))
    texts = [value for value in values if value.strip()]
    if len(texts) > most:
        raise UserError(Problem(key, f"{len(texts)} are too many", allowed=f"at most {most}"))
    return texts


ROUTES = [Route("/test", testing_page), Route("/api/test/compare", compare, methods=["POST"])]
