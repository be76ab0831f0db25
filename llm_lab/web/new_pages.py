"""The page New run: choose what to do, fill in the form, look at the data, start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llm_lab.data.builtin import ABOUT_BUILTIN, BUILTIN, BUILTIN_EXAMPLES
from llm_lab.errors import MachineError, Problem, UserError
from llm_lab.job import Job, list_recipes, read_job
from llm_lab.recipe.fields import IN_WORDS, NAME
from llm_lab.recipe.files import parse_yaml, read_recipe_file
from llm_lab.recipe.registry import STAGES, stage_of
from llm_lab.recipe.resolve import Resolved
from llm_lab.recipe.scoring import REWARD_OPTIONS
from llm_lab.recipe.trust import code_in
from llm_lab.runs.disk import write_atomically
from llm_lab.runs.folder import ROOT, list_runs
from llm_lab.wizard.home import MODELS, describe_run
from llm_lab.wizard.model_questions import generating_runs, reward_models
from llm_lab.wizard.recipe_question import recipe_summary
from llm_lab.wizard.review import recipe_text

from .addresses import find_run
from .form_draft import CONFIGS, begin, cannot_start, change, look, plan_of, recipe_file, take_up
from .form_fields import describe_form
from .known_code import require_known
from .lab import DATA_CALLS, lab_of
from .launches import Launch, Launches, command_text
from .models_pages import library_rows
from .responses import answer, body_of, lines, page, part_of
from .uploads import LARGEST_UPLOAD, SUFFIXES, list_uploads, save_upload

KINDS = ("text", "conversation", "preference", "prompt")  # kinds of data
XRAY = "xray"  # a worker of its own: leaving the X-ray ends it, and nothing else waits for it
RECENT_RUNS = 30
NO_CHECKPOINT = "it has not saved a checkpoint yet"


def new_page(request: Request) -> Response:
    """Show what can be started, or the form for a stage, a recipe or a run."""
    asked = request.query_params
    if "recipe" in asked or "from" in asked:
        file = _recipe_of_run(asked["from"]) if "from" in asked else _shipped(asked["recipe"])
        raw = read_recipe_file(file)
        if "stages" in raw:
            return _pipeline_page(request, file)
        raw = take_up(raw) if "from" in asked else raw
        return _form_page(request, {"name": file.stem, **raw}, file.stem if file.is_absolute() else str(file))
    stage = asked.get("stage")
    if stage is None:
        return page(request, "new.html", title="New run", **_choices())
    if stage not in STAGES:
        raise HTTPException(404, f"There is no stage named {stage}.")
    raw = begin(stage, asked.get("model"))
    if "config" in asked:
        raw["model"] = {"config": asked["config"]}
    return _form_page(request, raw, "")


def _choices() -> dict[str, Any]:
    stages = list(STAGES.values())
    recipes = [{"name": file.stem, "about": recipe_summary(file)} for file in list_recipes()]
    runs = [run for run in list_runs() if (run.path / "recipe.yaml").is_file()][:RECENT_RUNS]
    return {
        "trained": [stage for stage in stages if stage.trains],
        "others": [stage for stage in stages if not stage.trains],
        "recipes": recipes,
        "runs": [{"name": str(run.path.relative_to(ROOT)), "about": describe_run(run)} for run in runs],
    }


def _recipe_of_run(name: str) -> Path:
    file = find_run(name).recipe_path
    if not file.is_file():
        raise HTTPException(404, f"The run {name} has no recipe.yaml.")
    return file


def _shipped(name: str) -> Path:
    for file in list_recipes():
        if file.stem == name:
            return file
    raise HTTPException(404, f"There is no recipe named {name} in configs/.")


def _form_page(request: Request, raw: dict[str, Any], source: str) -> Response:
    form = describe_form(change(raw, []).raw["stage"])
    first = look(change(raw, []))
    data = {"form": form, "raw": first["raw"], "first": first} | _offered(form)
    return page(request, "form.html", title=form["title"], form=form, source=source, data=data)


def _offered(form: Mapping[str, Any]) -> dict[str, Any]:
    """Return the models, datasets and tokenizers that the page offers."""
    runs = [{"path": str(run.path), "about": describe_run(run)} for run in generating_runs()]
    runs += [{"path": str(path), "about": about, "why_not": NO_CHECKPOINT} for path, about in _without_model()]
    judges = [{"path": str(run.path), "about": describe_run(run)} for run in reward_models()]
    return {
        "runs": runs,
        "reward_models": judges,
        "designs": [str(file.parent) for file in sorted(MODELS.glob("*/config.json"))],
        "library": library_rows(),
        "samples": _sample_sets(form["examples"]) if form["examples"] else [],
        "uploads": list_uploads(),
        "upload": {"largest": LARGEST_UPLOAD, "suffixes": SUFFIXES},
        "reward_options": {option: owners for option, (owners, _) in REWARD_OPTIONS.items()},
    }


def _without_model() -> list[tuple[Path, str]]:
    """Return (path, description) for runs that are training a model that generates text but have no checkpoint yet."""
    whole = [run for run in list_runs() if not run.stages() and run.status() == "running"]
    return [
        (run.path, describe_run(run))
        for run in whole
        if (stage := stage_of(run.facts())) is not None
        and stage.trains
        and stage.writes_text
        and not (run.model_path.is_dir() or run.checkpoints())
    ]


def _sample_sets(kind: str) -> list[dict[str, str]]:
    names = BUILTIN if kind == "text" else BUILTIN_EXAMPLES
    return [{"path": f"builtin:{name}", "about": text} for name, text in ABOUT_BUILTIN.items() if name in names]


def _pipeline_page(request: Request, file: Path) -> Response:
    job, problems = read_job(file)
    found = {"recipe": file.stem, **_stages_of(job, problems)}
    found |= {"command": command_text(_words(file)), "text": file.read_text(encoding="utf-8")}
    return page(request, "pipeline.html", title=job.name if job else file.stem, data=found, file=str(file))


def _stages_of(job: Job | None, problems: Sequence[Problem | str]) -> dict[str, Any]:
    """Return what each stage of a pipeline does, and its problems."""
    stages = [
        {
            "title": resolved.stage.title,
            "name": resolved.values["name"],
            "plan": plan_of(resolved, job.folder_of(resolved) if job else None),
            "why_not": cannot_start(resolved),
        }
        for resolved in (job.stages if job else ())
    ]
    return {"stages": stages, "problems": [str(problem) for problem in problems]}


async def check_pipeline(request: Request) -> Response:
    """Answer with the stages of a pipeline from its current text, or with its problems."""
    return answer(await run_in_threadpool(_checked_pipeline, str((await body_of(request)).get("text", ""))))


def _checked_pipeline(text: str) -> dict[str, Any]:
    raw = parse_yaml(text)
    if not isinstance(raw, dict) or not isinstance(raw.get("stages"), list):
        raise UserError(Problem("stages", "a pipeline has a list of stages"))
    return _stages_of(*read_job(raw))


async def save_pipeline(request: Request) -> Response:
    """Write the text of a pipeline to configs/NAME.yaml; replace an existing file only after a yes."""
    body = await body_of(request)
    text = str(body.get("text", ""))
    if problems := (await run_in_threadpool(_checked_pipeline, text))["problems"]:
        raise UserError(*problems)
    file = _config_file(str(body.get("name") or ""))
    if file.exists() and not body.get("replace"):
        return _exists(file)
    await run_in_threadpool(write_atomically, file, text)
    return answer({"file": str(file), "address": f"/new?recipe={quote(file.stem)}"})


# --- requests of the form


async def look_at_draft(request: Request) -> Response:
    """Answer changes of a draft with everything that follows from them."""
    body = await body_of(request)
    return answer(await run_in_threadpool(lambda: look(change(_recipe_in(body), part_of(body, "changes", list)))))


async def look_at_plan(request: Request) -> Response:
    """Answer with the plan after a look at the data and the models, or with their problems."""
    body = await body_of(request)
    return answer({"found": await lab_of(request).data.call("check_draft", raw=_recipe_in(body))})


async def look_at_data(request: Request) -> Response:
    """Answer with what is recognized in a dataset."""
    body = await body_of(request)
    source, kind = body.get("source"), body.get("kind")
    if not isinstance(source, dict) or not isinstance(source.get("path"), str) or not source["path"].strip():
        raise UserError(Problem("data", "name a dataset"))
    if kind not in KINDS:
        raise UserError(Problem("kind", "not a kind of data", value=kind, allowed=", ".join(KINDS)))
    arguments = {"source": source, "kind": kind, "download": bool(body.get("download"))}
    return answer(await lab_of(request).data.call("look_at_data", **arguments))


async def xray(request: Request) -> Response:
    """Send progress, then the data as tokens."""
    body = await body_of(request)
    workers = lab_of(request).workers
    worker = workers.get(XRAY, DATA_CALLS)

    async def pieces() -> Any:
        done = False
        try:
            async for piece in worker.stream("xray", recipe=_recipe_in(body)):
                done = "result" in piece
                yield piece
        finally:
            if not done:
                await workers.end(XRAY)

    return lines(pieces())


async def upload(request: Request) -> Response:
    """Store an uploaded file in uploads/."""
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > LARGEST_UPLOAD:
        fix = "Put the file into a folder on this machine and name its path instead."
        raise UserError(Problem("upload", f"the file is larger than {LARGEST_UPLOAD // 1024**3} GiB", fix=fix))
    path = await save_upload(request.query_params.get("name", ""), request.stream())
    return answer({"path": str(path), "bytes": path.stat().st_size})


# --- save and start


async def save(request: Request) -> Response:
    """Write a draft to configs/NAME.yaml; replace an existing file only after a yes."""
    body = await body_of(request)
    resolved, raw = await run_in_threadpool(_resolved, body)
    name = str(body.get("name") or raw.get("name") or "")
    file = _config_file(name)
    if file.exists() and not body.get("replace"):
        return _exists(file)
    write_atomically(file, recipe_text(raw, resolved, file))
    return answer({"file": str(file)})


def _config_file(name: str) -> Path:
    """Return configs/NAME.yaml. UserError for a name that leads out of this folder."""
    file = CONFIGS / f"{name.removesuffix('.yaml')}.yaml"
    if not name or file.parent != CONFIGS or name.startswith(".") or not name.isprintable():
        raise UserError(Problem("file", "this is not a file name", value=name, allowed="a name without folders"))
    return file


def _exists(path: Path) -> Response:
    """Answer that a file already exists, which the page may replace after a yes."""
    return answer({"problems": [{"key": None, "text": f"{path} exists. Choose another name, or replace it."}]}, 409)


async def start(request: Request) -> Response:
    """Check a draft with its data, write its recipe, and start the displayed command."""
    body = await body_of(request)
    resolved, raw = await run_in_threadpool(_resolved, body)
    file = recipe_file(raw, resolved)
    _require_startable(resolved, file, raw)
    await lab_of(request).data.call("check_recipe", recipe=raw)
    launch = await run_in_threadpool(_write_and_start, lab_of(request).launches, file, recipe_text(raw, resolved, file))
    return answer({"launch": launch.number, "command": command_text(launch.words)})


async def start_recipe(request: Request) -> Response:
    """Start an existing recipe file in configs/, such as a pipeline."""
    file = _shipped(str((await body_of(request)).get("recipe")))
    job, problems = await run_in_threadpool(read_job, file)
    if problems or job is None:
        raise UserError(*problems)
    for resolved in job.stages:
        _require_startable(resolved, file, None)
    await lab_of(request).data.call("check_recipe", recipe=str(file))
    launch = await run_in_threadpool(lab_of(request).launches.start, _words(file))
    return answer({"launch": launch.number, "command": command_text(launch.words)})


def _write_and_start(launches: Launches, file: Path, recipe: str) -> Launch:
    if not file.exists():
        write_atomically(file, recipe)
    return launches.start(["run", str(file)])


def _words(file: Path) -> list[str]:
    """Return the command that runs a recipe file; shipped ones are given by name."""
    return ["run", file.stem if file.is_absolute() else str(file)]


async def launched(request: Request) -> Response:
    """Answer with the state of a started command: its exit code, its run, its output."""
    launch = lab_of(request).launches.get(request.path_params["number"])
    return answer(await run_in_threadpool(launch.as_json))


def _require_startable(resolved: Resolved, file: Path, raw: Mapping[str, Any] | None) -> None:
    """Raise MachineError if this machine can't run it, and UserError if it runs code that was not allowed."""
    if why := cannot_start(resolved):
        raise MachineError(why)
    try:
        require_known(code_in(resolved.values), command_text(["run", str(file)]))
    except UserError:
        if raw is not None and not file.exists():
            write_atomically(file, recipe_text(raw, resolved, file))
        raise


def _recipe_in(body: Mapping[str, Any]) -> dict[str, Any]:
    recipe = body.get("recipe")
    if not isinstance(recipe, dict):
        raise UserError(Problem("recipe", "it is missing"))
    return recipe


def _resolved(body: Mapping[str, Any]) -> tuple[Resolved, dict[str, Any]]:
    """Return a resolved draft. Raises UserError with every problem."""
    draft = change(_recipe_in(body), ())
    resolved, problems = draft.look()
    if problems or resolved is None:
        raise UserError(*problems)
    return resolved, draft.raw


async def design(request: Request) -> Response:
    """Write the parts of a draft's model as a design in configs/models/NAME/."""
    body = await body_of(request)
    resolved, raw = await run_in_threadpool(_resolved, body)
    name = str(body.get("name") or "")
    wrong = change({**raw, "name": name}, ()).look()[1]
    if not name or any(getattr(problem, "key", "") == "name" for problem in wrong):
        raise UserError(Problem("name", "this is not a name for a design", name, IN_WORDS[NAME]))
    if (MODELS / name).exists() and not body.get("replace"):
        return _exists(MODELS / name)
    return answer(await lab_of(request).data.call("write_design", design=name, values=resolved.values))


ROUTES = [
    Route("/new", new_page),
    Route("/api/new/look", look_at_draft, methods=["POST"]),
    Route("/api/new/plan", look_at_plan, methods=["POST"]),
    Route("/api/new/save", save, methods=["POST"]),
    Route("/api/new/start", start, methods=["POST"]),
    Route("/api/new/start-recipe", start_recipe, methods=["POST"]),
    Route("/api/new/pipeline", check_pipeline, methods=["POST"]),
    Route("/api/new/save-pipeline", save_pipeline, methods=["POST"]),
    Route("/api/new/design", design, methods=["POST"]),
    Route("/api/data/look", look_at_data, methods=["POST"]),
    Route("/api/data/xray", xray, methods=["POST"]),
    Route("/api/uploads", upload, methods=["POST"]),
    Route("/api/launches/{number:int}", launched),
]
