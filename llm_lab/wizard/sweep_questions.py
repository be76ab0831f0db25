"""Sweep: choose a recipe, what to compare, and the number of seeds; start it."""

from __future__ import annotations

import shlex

from llm_lab.errors import LabError

from .questions import BackTo, Choice, Flow, Line, Pause, Question, Screen, StartSweep, yes_no
from .recipe_question import ask_recipe, recipe_name

TITLE = "Sweep"
OWN = "own"
WHY = (
    "A sweep runs a recipe once for each value and seed, and puts the results into one table with a picture. What is "
    "done is skipped when it is started again. One seed shows large differences; for small ones, use three or more."
)
SEEDS = (1, 3, 5, 8)


def sweep() -> Flow[None]:
    """Choose a recipe and what to compare, and start the sweep."""
    from llm_lab.studies.presets import PRESETS

    recipe = yield from ask_recipe(TITLE, WHY)
    where = recipe_name(recipe)
    choices = [Choice(name, f"{name:<20}{about}", _why_not_preset(recipe, name)) for name, about in PRESETS.items()]
    picked = yield Question("sweep.what", "What should be compared?", why=WHY, screen=Screen(TITLE, where),
                            choices=(*choices, Choice(OWN, "other keys          with values of your own")))  # fmt: skip
    preset = None if picked == OWN else picked
    words = yield Question(
        "sweep.words",
        "Which values?" if preset is None else "Anything to change for all runs?",
        "text",
        default="",
        why="Values are separated by commas: optimizer.learning_rate=0.001,0.003. Several keys make a grid. A key "
        "with one value changes the recipe for all runs: train.max_steps=200 data.0.path=my-text.txt.",
        allowed="key=v1,v2, separated by spaces" + ("." if preset is None else "; empty: no changes."),
        check=lambda text: _why_not(recipe, text, preset),
        wait="Checking all recipes ...",
        screen=Screen(TITLE, where),
    )
    least = 2 if preset == "seeds" else 1
    seeds = yield Question(
        "sweep.seeds",
        "How many seeds?",
        choices=tuple(Choice(n, str(n)) for n in SEEDS if n >= least),
        default=3,
        why=WHY,
        screen=Screen(TITLE, where),
    )
    start = yield yes_no("sweep.start", "Start the sweep?", default=True, yes="Yes, start", no="No, change it",
                         why=WHY, screen=Screen(TITLE, where, lines=_plan(recipe, words, seeds, preset)))  # fmt: skip
    if not start:
        yield BackTo("sweep.words")
    if not (yield StartSweep(recipe, tuple(shlex.split(words)), seeds, preset)):
        yield BackTo("sweep.words")
    yield Pause()


def _plan(recipe: str, words: str, seeds: int, preset: str | None) -> tuple[Line, ...]:
    """Return what the sweep will do, in lines."""
    from llm_lab.studies.cells import state_of
    from llm_lab.studies.sweep import plan_sweep
    from llm_lab.studies.sweep_report import plan_rows

    planned = plan_sweep(recipe, shlex.split(words), seeds=seeds, preset=preset)
    rows = plan_rows(planned, [state_of(cell, planned.measure) for cell in planned.cells_to_run()])
    return tuple(Line(f"{name:<10}{text}", "warn" if name == "note" else "") for name, text in rows)


def _why_not_preset(recipe: str, preset: str) -> str | None:
    """Return why a recipe has nothing for a preset, or None; other problems of the recipe are reported later."""
    from llm_lab.job import read_job
    from llm_lab.studies.presets import preset_grid

    if preset == "seeds":
        return None
    try:
        job, _ = read_job(recipe)
        if job is not None and not job.is_pipeline:
            preset_grid(preset, job.stages[0])
    except LabError as error:
        return str(error)
    return "a preset is for a recipe of one stage" if job is None or job.is_pipeline else None


def _why_not(recipe: str, text: str, preset: str | None) -> str | None:
    """Return why these values can't be compared, or None."""
    from llm_lab.studies.sweep import plan_sweep

    try:
        plan_sweep(recipe, shlex.split(text), preset=preset)
    except (LabError, ValueError) as error:
        return str(error)
    return None
