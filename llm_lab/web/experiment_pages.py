"""The pages of experiments: those found in the folders, a form for the options of each, and earlier results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llm_lab.errors import LabError, UserError
from llm_lab.recipe.fields import Key
from llm_lab.studies import DUEL_ABOUT, SWEEP_ABOUT
from llm_lab.studies.experiment_files import (
    Experiment,
    command,
    defaults_of,
    find_experiment,
    list_experiments,
    model_options,
    read_value,
    read_values,
    written,
)

from .lab import lab_of
from .responses import answer, body_of, page, part_of, problems_of
from .study_pages import list_results

EARLIER = 20  # studies listed on the page of an experiment


def experiments_page(request: Request) -> Response:
    """Show the experiments, the sweep and the duel, and all results."""
    cards = [_card(one) for one in list_experiments()]
    about = {"sweep": f"{SWEEP_ABOUT.capitalize()}.", "duel": f"{DUEL_ABOUT.capitalize()}."}
    return page(
        request,
        "experiments.html",
        title="Experiments",
        data={"experiments": cards, "results": list_results(), "about": about},
    )


def experiment_page(request: Request) -> Response:
    """Show one experiment: what it does, its form, its earlier results."""
    experiment = _known(request.path_params["name"])
    models = model_options(experiment)
    options = [{**_option(key), "is_model": key.path in models} for key in experiment.option_keys()]
    earlier = [one for one in list_results() if one["experiment"] == experiment.name][:EARLIER]
    given = {option["name"]: value for option in options if (value := request.query_params.get(option["name"]))}
    data = {**_card(experiment), "about": experiment.about, "options": options, "given": given, "earlier": earlier}
    return page(request, "experiment.html", title=experiment.title or experiment.name, data=data)


def _known(name: str) -> Experiment:
    """Return the experiment of an address, also a broken one."""
    found = next((one for one in list_experiments() if one.name == name), None)
    if found is None:
        raise HTTPException(404, f"There is no study named {name}. The page Experiments lists them.")
    return found


def _card(experiment: Experiment) -> dict[str, Any]:
    return {
        "name": experiment.name,
        "title": experiment.title or experiment.name,
        "summary": experiment.summary,
        "takes": experiment.takes,
        "own": not experiment.is_shipped,
        "file": str(experiment.file),
        "error": experiment.error,
    }


def _option(key: Key) -> dict[str, Any]:
    """Return what a control for an option needs; its default is in the form in which it is typed."""
    low, high, exclusive = key.bounds
    return {
        "name": key.path,
        "help": key.help,
        "kind": key.kind,
        "allowed": key.allowed(),
        "choices": [str(one) for one in key.choices or ()],
        "default": "" if key.required else written(key.default),
        "required": key.required,
        "low": None if exclusive else low,
        "high": high,
    }


# --- checking and starting


async def check_options(request: Request) -> Response:
    """Return the command of an experiment with the options as typed, and the problems of these."""
    body = await body_of(request)
    return answer(await run_in_threadpool(_checked, str(body.get("name")), part_of(body, "options", dict)))


def _checked(name: str, typed: Mapping[str, Any]) -> dict[str, Any]:
    experiment = find_experiment(name)
    words = _words(experiment, typed)
    try:
        options = read_values(experiment, words)
    except LabError as error:
        shown = {name: value for name, value in typed.items() if f"{name}={value}" in words}
        return {"command": command(experiment.name, shown, {}), **problems_of(error)}
    return {"command": command(experiment.name, options, defaults_of(experiment)), "problems": []}


def _words(experiment: Experiment, typed: Mapping[str, Any]) -> list[str]:
    """Return the options that differ from their defaults, as on the command line; an empty one means its default."""
    words = []
    for key in experiment.option_keys():
        text = str(typed.get(key.path, "")).strip()
        if text and (key.required or not _is_default(experiment, key, text)):
            words.append(f"{key.path}={text}")
    return words


def _is_default(experiment: Experiment, key: Key, text: str) -> bool:
    try:
        value = read_value(experiment, key.path, text)
    except UserError:
        return False
    return (tuple(value) if isinstance(value, list) else value) == key.default


async def start_experiment(request: Request) -> Response:
    """Start an experiment as `llm-lab study` in a process of its own."""
    body = await body_of(request)
    words = await run_in_threadpool(_checked_words, str(body.get("name")), part_of(body, "options", dict))
    more = ["--overwrite"] if body.get("overwrite") else []
    launch = await run_in_threadpool(lab_of(request).launches.start, ["study", *words, *more])
    return answer({"launch": launch.number})


def _checked_words(name: str, typed: Mapping[str, Any]) -> list[str]:
    """Return the name of an experiment and its options. UserError if one is not allowed."""
    experiment = find_experiment(name)
    words = _words(experiment, typed)
    read_values(experiment, words)
    return [experiment.name, *words]


async def launch_state(request: Request) -> Response:
    """Return the state of a started command: its run, its exit code, its output."""
    launch = lab_of(request).launches.get(request.path_params["number"])
    return answer(await run_in_threadpool(launch.as_json))


def earlier_topic(argument: str, cursor: Any) -> tuple[Any, Any] | None:
    """Return the list of studies, sweeps and duels. argument: the experiment to list, or empty for all."""
    found = [one for one in list_results() if not argument or one["experiment"] == argument]
    seen = [[one["name"], one["status"]] for one in found]
    return None if seen == cursor else (seen, found)


ROUTES = [
    Route("/experiments", experiments_page),
    Route("/experiments/{name}", experiment_page),
    Route("/api/experiments/check", check_options, methods=["POST"]),
    Route("/api/experiments/start", start_experiment, methods=["POST"]),
    Route("/api/experiments/launch/{number:int}", launch_state),
]
TOPICS = {"results": earlier_topic}
