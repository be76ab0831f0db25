"""The forms of a sweep and of a duel: a recipe, what to compare, and seeds; checked as the user types, and started."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llm_lab.errors import LabError, Problem, UserError
from llm_lab.job import list_recipes
from llm_lab.recipe.fields import leaf_keys
from llm_lab.recipe.registry import stage_of
from llm_lab.runs.folder import list_runs
from llm_lab.studies import DUEL_ABOUT, SWEEP_ABOUT
from llm_lab.studies.presets import PRESETS
from llm_lab.studies.sweep import Sweep, read_raw
from llm_lab.studies.verdict import MIN_SEEDS
from llm_lab.wizard.recipe_question import recipe_summary

from .lab import lab_of
from .launches import command_text
from .responses import answer, body_of, page, part_of, problems_of

SEEDS_OF_SWEEP = 3
# The options of the two commands that the form contains, with their defaults.
OPTIONS = {
    "sweep": {"preset": "", "seeds": "", "measure": "", "name": "", "jobs": "1"},
    "duel": {"seeds": "", "by": "both", "measure": "", "name": "", "jobs": "1"},
}


def recipe_names() -> list[dict[str, str]]:
    """Return the recipes and runs that a sweep or a duel can start from."""

    recipes = [{"name": str(file), "group": "Recipes", "about": recipe_summary(file)} for file in list_recipes()]
    runs = [
        {"name": str(run.path), "group": "Runs", "about": "its recipe"}
        for run in list_runs()
        if run.recipe_path.is_file()
    ]
    return recipes + runs


def comparison_page(request: Request) -> Response:
    """Show the form of a sweep or of a duel."""

    kind = request.url.path.rpartition("/")[2]
    asked = request.query_params
    keys = [dict(zip(("key", "values"), text.partition("=")[::2], strict=True)) for text in asked.getlist("key")]
    data = {
        "kind": kind,
        "recipes": recipe_names(),
        "given": {
            "recipe": asked.get("recipe", ""),
            **{name: asked[name] for name in ("other", *OPTIONS[kind]) if name in asked},
            "keys": keys or [{"key": "", "values": ""}],
        },
        "presets": [{"name": name, "about": about} for name, about in PRESETS.items()],
        "seeds": MIN_SEEDS if kind == "duel" else SEEDS_OF_SWEEP,
    }
    title = "Sweep" if kind == "sweep" else "Duel"
    about = (SWEEP_ABOUT if kind == "sweep" else DUEL_ABOUT).capitalize()
    return page(request, "comparison.html", title=title, kind=kind, about=about, data=data)


async def recipe_keys(request: Request) -> Response:
    """Return the keys that a recipe may have, with their meanings, for suggestions."""
    return answer(await run_in_threadpool(_keys_of, str((await body_of(request)).get("recipe", ""))))


def _keys_of(recipe: str) -> dict[str, Any]:

    raw, _ = read_raw(recipe)
    found: dict[str, str] = {}
    for index, stage in enumerate(raw.get("stages") or [raw]):
        known = stage_of(stage)
        prefix = f"stages.{index}." if "stages" in raw else ""
        for key, _ in leaf_keys(known.recipe) if known else ():
            found.setdefault(prefix + key.path.replace(".N.", ".0."), key.help)
    return {"keys": [{"name": name, "help": help} for name, help in found.items() if name not in ("name", "seed")]}


async def check_comparison(request: Request) -> Response:
    """Return the command of a sweep or duel with the form's values, its plan, and its problems."""
    body = await body_of(request)
    words = _comparison_words(body)
    found: dict[str, Any] = {"command": command_text(words), "problems": []}
    try:
        found["plan"] = await _plan(request, body)
    except LabError as error:
        found |= problems_of(error)
    return answer(found)


async def start_comparison(request: Request) -> Response:
    """Check a sweep or duel again, and start it in a process of its own."""
    return answer(await start_again(request, await body_of(request)))


async def start_again(request: Request, form: Mapping[str, Any]) -> dict[str, Any]:
    """Check a sweep or duel with the form's values, and start it; return the launch and the name of the folder."""
    plan = await _plan(request, form)
    start = lab_of(request).launches.start
    launch = await run_in_threadpool(start, _comparison_words(form), run=plan["name"])
    return {"launch": launch.number, "run": plan["name"]}


def form_of(sweep: Sweep) -> dict[str, Any] | None:
    """Return the form's values of a sweep or duel that was started; None for a command that the form can't start.

    The folder may come from another machine: only parts of the recorded command that the form has fields for are used.
    """
    try:
        words = shlex.split(sweep.command)
    except ValueError:
        return None
    if len(words) < 3 or words[:2] != ["llm-lab", sweep.kind] or sweep.kind not in OPTIONS:
        return None
    form: dict[str, Any] = {"kind": sweep.kind, "recipe": words[2], "keys": [], "name": sweep.folder.name}
    rest = iter(words[3:])
    for word in rest:
        key, equals, values = word.partition("=")
        if word.startswith("-"):
            name = word.removeprefix("--")
            if name not in OPTIONS[sweep.kind]:
                return None
            form[name] = next(rest, "")
        elif equals:
            form["keys"].append({"key": key, "values": values})
        elif sweep.kind == "duel" and "other" not in form:
            form["other"] = word
        else:
            return None
    return form if form["name"] == sweep.folder.name and not form["recipe"].startswith("-") else None


async def _plan(request: Request, body: Mapping[str, Any]) -> dict[str, Any]:
    recipe, kind = _text(body, "recipe"), _kind(body)
    if not recipe:
        raise UserError(Problem("recipe", "no recipe is chosen", fix="Choose one, or type the path of a file."))
    given = {name: _text(body, name) for name in (*OPTIONS[kind], *(["other"] if kind == "duel" else []))}
    options = {
        name: _number(name, value) if name in ("seeds", "jobs") else value for name, value in given.items() if value
    }
    words, command = _key_words(body), command_text(_comparison_words(body))
    call = lab_of(request).data.call
    return dict(await call("plan_comparison", kind=kind, recipe=recipe, words=words, command=command, **options))


def _kind(body: Mapping[str, Any]) -> str:
    return "duel" if body.get("kind") == "duel" else "sweep"


def _text(body: Mapping[str, Any], name: str) -> str:
    return str(body.get(name) or "").strip()


def _number(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise UserError(Problem(f"--{name}", "this is not a whole number", value=value)) from None


def _key_words(body: Mapping[str, Any]) -> list[str]:
    """Return key=values as on the command line. UserError for a text that would be read as an option there."""
    words = []
    for row in part_of(body, "keys", list):
        if not isinstance(row, dict):
            raise UserError(Problem("keys", "a row is not an object"))
        key, values = str(row.get("key", "")).strip(), str(row.get("values", "")).strip()
        if not key and not values:
            continue
        if not key or key.startswith("-"):
            raise UserError(Problem("keys", "a row has values and no key", value=values or key))
        words.append(f"{key}={values}")
    return words


def _comparison_words(body: Mapping[str, Any]) -> list[str]:
    """Return the words of the command, leaving out defaults."""
    kind, words = _kind(body), [_text(body, "recipe") or "RECIPE"]
    words += [_text(body, "other")] if kind == "duel" and _text(body, "other") else []
    if any(word.startswith("-") for word in words):
        raise UserError(Problem("recipe", "the name of a recipe does not begin with -", value=words[-1]))
    words += _key_words(body)
    for name, default in OPTIONS[kind].items():
        value = _text(body, name)
        words += [f"--{name}", value] if value not in ("", default) else []
    return [kind, *words]


ROUTES = [
    Route("/experiments/sweep", comparison_page),
    Route("/experiments/duel", comparison_page),
    Route("/api/experiments/keys", recipe_keys, methods=["POST"]),
    Route("/api/experiments/compare/check", check_comparison, methods=["POST"]),
    Route("/api/experiments/compare/start", start_comparison, methods=["POST"]),
]
