"""The page Look inside: a model, a text, and what the model computes; measured in a worker that holds the model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from llm_lab import looking
from llm_lab.errors import MachineError, Problem, UserError
from llm_lab.runs.folder import find_checkpoint
from llm_lab.runs.palette import ramps

from .chat_models import describe_model, newest_model
from .lab import Lab, lab_of
from .launches import Launch, Launches, command_text
from .responses import answer, body_of, lines, page
from .workers import Worker, WorkerEnded

CALLS = "llm_lab.web.look_calls"
IDLE_SECONDS = 10 * 60.0
WORKER = "look:"  # prefix of the worker's name; one process per model, one at a time
MOST_REPORTS = 2  # reports written at a time, because each loads a model
LONGEST_PROMPT = 200_000  # characters; models read far fewer
SHARED = ("maps.js", "maps.css")  # drawing code that the report also uses
LOOKING = Path(looking.__file__).parent


def look_page(request: Request) -> Response:
    """Show the page: ?model=NAME&against=NAME&prompt=TEXT&step=N."""
    asked = {name: request.query_params.get(name, "") for name in ("model", "against", "prompt", "step", "raw")}
    newest = newest_model()
    body = {"model": asked["model"] or newest or "", "against": asked["against"], "prompt": asked["prompt"]}
    try:
        described = _described(_asked(body))
    except UserError:  # the page requests this again, and shows the error
        described = None
    data = {**asked, "newest": newest, "described": described, "ramps": ramps()}
    return page(request, "look.html", title="Look inside", data=data)


def shared_file(request: Request) -> FileResponse:
    """Return the script or the style that the page shares with the report."""
    name = request.url.path.rpartition("/")[2]
    assert name in SHARED
    return FileResponse(LOOKING / name, headers={"cache-control": "no-cache"})


async def describe(request: Request) -> Response:
    """Return the checkpoints of a model's run, its base, and the command that looks inside it."""
    return answer(await run_in_threadpool(_described, _asked(await body_of(request))))


def _described(asked: dict[str, Any]) -> dict[str, Any]:
    return {**describe_model(asked["model"]), "command": command_text(_words(asked))}


async def measure(request: Request) -> Response:
    """Measure; send lines with the progress, then {"result": what to draw}."""
    body = _asked(await body_of(request))
    return lines(_measured(lab_of(request), body))


async def _measured(lab: Lab, body: dict[str, Any]) -> AsyncIterator[Any]:
    worker = await _worker(lab, body["model"])
    if not worker.is_running:
        yield {"doing": "Starting a process for the model ..."}
    try:
        async for piece in worker.stream("measure", **body):
            yield piece
    except WorkerEnded:
        raise _ended(body["model"]) from None


def _ended(model: str) -> MachineError:
    why = "the process of this model ended unexpectedly: it crashed, or the system stopped it to free memory"
    return MachineError(Problem(model, why, fix="Try again, with a shorter text or a smaller model."))


async def _worker(lab: Lab, model: str) -> Worker:
    """Return the process of a model; end that of any other model, which frees its memory.

    UserError if there is no such model.
    """
    await run_in_threadpool(find_checkpoint, model)  # a wrong name must not end another process
    name = f"{WORKER}{model}"
    for other in lab.workers.names():
        if other.startswith(WORKER) and other != name:
            await lab.workers.end(other)
    return lab.workers.get(name, CALLS, idle_seconds=IDLE_SECONDS)


async def attribution(request: Request) -> Response:
    """Return the direct logit attribution after one token of the text."""
    return await _one(request, "attribution", ("position",))


async def ablation(request: Request) -> Response:
    """Return how much the model loses without one head."""
    return await _one(request, "ablation", ("layer", "head"))


async def _one(request: Request, call: str, names: tuple[str, ...]) -> Response:
    body = await body_of(request)
    asked = _asked(body)
    del asked["against"]
    numbers = {name: body.get(name) for name in names}
    if not all(type(value) is int for value in numbers.values()):
        raise UserError(Problem(call, "these are not whole numbers", value=str(numbers)))
    worker = await _worker(lab_of(request), asked["model"])
    try:
        return answer(await worker.call(call, **asked, **numbers))
    except WorkerEnded:
        raise _ended(asked["model"]) from None


async def write_report(request: Request) -> Response:
    """Write the standalone report with `llm-lab look`, in a process of its own."""
    body = await body_of(request)
    launches, words = lab_of(request).launches, _words(_asked(body), steps=body.get("steps") is True)
    return answer({"launch": (await run_in_threadpool(_start_report, launches, words)).number})


def _start_report(launches: Launches, words: list[str]) -> Launch:
    """Start a report. UserError if this machine is already writing as many as it can."""
    launch = launches.start_once(words) if launches.at_work("look") < MOST_REPORTS else launches.working_on(words)
    if launch is None:
        why = f"{MOST_REPORTS} reports are being written"
        raise UserError(Problem("report", why, fix="Wait until one of them is done."))
    return launch


def _asked(body: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of a request. UserError without a model, and for a text that is far too long."""
    found: dict[str, Any] = {"model": _text(body, "model").strip(), "prompt": _text(body, "prompt")}
    found |= {name: _text(body, name).strip() or None for name in ("against", "checkpoint")}
    found["chat"] = body.get("chat") is True
    if not found["model"]:
        raise UserError(Problem("model", "it is empty", fix="Choose a model."))
    if any(str(found[name] or "").startswith("-") for name in ("model", "against", "checkpoint")):
        raise UserError(Problem("model", "a name does not begin with -", value=found["model"]))
    if len(found["prompt"]) > LONGEST_PROMPT:
        why = f"the text has {len(found['prompt']):,} characters"
        raise UserError(Problem("--prompt", why, allowed=f"at most {LONGEST_PROMPT:,}", fix="Use a shorter text."))
    return found


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    return value if isinstance(value, str) else ""


def _words(asked: dict[str, Any], *, steps: bool = False) -> list[str]:
    words = ["look", asked["checkpoint"] or asked["model"]]
    words += ["--against", asked["against"]] if asked["against"] else []
    prompt = asked["prompt"]
    if prompt.strip():
        words += [f"--prompt={prompt}"] if prompt.startswith("-") else ["--prompt", prompt]
    return words + (["--steps"] if steps else [])


ROUTES = [
    Route("/look", look_page),
    *(Route(f"/static/{name}", shared_file) for name in SHARED),
    Route("/api/look/model", describe, methods=["POST"]),
    Route("/api/look/measure", measure, methods=["POST"]),
    Route("/api/look/attribution", attribution, methods=["POST"]),
    Route("/api/look/ablation", ablation, methods=["POST"]),
    Route("/api/look/report", write_report, methods=["POST"]),
]
