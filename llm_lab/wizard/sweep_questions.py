"""Sweep and duel: choose a recipe, what to compare, and the number of seeds; start it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from llm_lab.errors import LabError, Problem
from llm_lab.estimate.formatting import about, plural, size
from llm_lab.recipe.fields import LARGEST_INT
from llm_lab.recipe.validate import find_key, stage_schema
from llm_lab.studies.verdict import MIN_SEEDS

from .home import RESUME_SWEEP_WHY
from .questions import (
    BackTo,
    Choice,
    Flow,
    Line,
    Next,
    Pause,
    Question,
    ResumeSweep,
    Screen,
    StartDuel,
    StartSweep,
    Wait,
    yes_no,
)
from .recipe_question import ask_recipe, recipe_name
from .review import NO, START, YES

if TYPE_CHECKING:
    from llm_lab.job import Job
    from llm_lab.studies.sweep import Sweep

TITLE = "Sweep"
OWN = "own"
NAMES = 10  # columns
CHECKING = "Checking all recipes ..."
SWEEP_WHY = (
    "A sweep runs a recipe once for each value and seed, for example for five learning rates or for all optimizers. "
    "The result is a table with the spread over the seeds, and a picture. To be sure about two values, use a duel. "
    "When you start a sweep again, it skips the runs that are done. One seed shows large differences; for small "
    "ones, use three or more."
)
STEPS_WHY = (
    "train.max_steps: the optimizer steps of every run of the sweep. Short runs show which values are far off; "
    "values that are close need runs as long as you want to train."
)
WHAT_WHY = (
    "Each line is a key with the values that are usually compared; in the next question you choose among them. "
    "'other keys' takes one or more keys of the recipe; with several, every combination is a run."
)
VALUES_WHY = (
    "Values are separated by commas: {within}optimizer.learning_rate=0.001,0.003. Several keys make a grid. A key "
    "with one value changes the recipe for all runs: {within}train.max_steps=200 {within}data.0.path=my.txt."
)
CHANGES_WHY = "These changes are the same in every run: {within}train.max_steps=200 {within}data.0.path=my.txt."
SEEDS_WHY = (
    "There is one run for each value and seed. A seed sets the initial weights and the order of the data. "
    "One seed shows large differences; for small ones, use three or more. To be sure about two values, use a duel."
)
START_WHY = (
    "Ctrl-C stops it at any time and saves the run in progress; the home screen and Runs then offer to resume it. "
    "Runs that are done are not repeated."
)
SEEDS = (1, 3, 5, 8)
DUEL = "Duel"
RECIPE, VALUES = "recipe", "values"
DUEL_WHY = (
    "A duel runs two recipes, or two values of a key, with the same seeds, at equal tokens and at equal time, and "
    "says whether the difference is more than chance. For more than two, use a sweep. When you start a duel again, "
    "it skips the runs that are done."
)
DUEL_SEEDS_WHY = (
    f"With fewer than {MIN_SEEDS} pairs of runs, a difference can't be distinguished from chance. Small differences "
    "need more pairs: at its end, a duel says how many."
)
TWO_VALUES_WHY = (
    "One key gets two values, separated by a comma: {within}optimizer.name=adamw,muon. A key with one value "
    "changes both: {within}train.max_steps=200."
)
BOTH_WHY = "These changes are the same in both recipes: {within}train.max_steps=200 {within}data.0.path=my.txt."
DUEL_SEEDS = (MIN_SEEDS, 8, 12, 20)
EXAMPLE, RATES_EXAMPLE = "optimizer.name=adamw,muon", "optimizer.learning_rate=0.001,0.003"


def sweep() -> Flow[Next | None]:
    """Choose a recipe and what to compare, and start the sweep."""
    from llm_lab.studies.presets import PRESETS

    recipe = yield from ask_recipe(TITLE, SWEEP_WHY, compares=True)
    where, within = recipe_name(recipe), _prefix(recipe)
    rates = within + RATES_EXAMPLE
    choices = [Choice(name, f"{name:<20}{about}", _why_not_preset(recipe, name)) for name, about in PRESETS.items()]
    picked = yield Question("sweep.what", "What should be compared?", why=WHAT_WHY, screen=Screen(TITLE, where),
                            choices=(*choices, Choice(OWN, "other keys          with values of your own")))  # fmt: skip
    preset, known, more = None if picked == OWN else picked, "", ""
    if preset is not None:
        compared = yield from _ask_values(recipe, preset, where)
        steps, more = yield from _ask_steps(recipe, where)
        known, preset = " ".join([*compared, *steps]), None if compared else preset
    words = yield Question(
        "sweep.words",
        "Which values?" if picked == OWN else "Anything to change for all runs?",
        "text",
        default=more,
        why=(VALUES_WHY if picked == OWN else CHANGES_WHY).format(within=within),
        allowed=f"key=v1,v2; several, separated by spaces. For example {rates}."
        if picked == OWN
        else f"key=value, separated by spaces: {within}train.max_length=64 {within}data.0.path=my.txt; "
        "empty: no changes.",
        check=lambda text: (
            f"Name a key and its values: {rates}."
            if picked == OWN and not text.strip()
            else _problem_of(partial(_planned_sweep, recipe, preset), f"{known} {text}")
        ),
        wait=CHECKING,
        screen=Screen(TITLE, where),
    )
    least, words = 2 if preset == "seeds" else 1, f"{known} {words}"
    planned = _planned_sweep(recipe, preset, words)
    seeds = yield Question(
        "sweep.seeds",
        "How many seeds?",
        choices=_seed_choices(planned, [n for n in SEEDS if n >= least]),
        default=3,
        why=SEEDS_WHY,
        screen=Screen(TITLE, where),
    )
    planned = _planned_sweep(recipe, preset, words, seeds)
    lines = _plan(planned)
    start = yield yes_no("sweep.start", START, default=not _takes_too_long(planned), yes=YES, no="No, change it",
                         why=START_WHY, screen=Screen(TITLE, where, lines=lines))  # fmt: skip
    if not start or not (yield StartSweep(recipe, words_in(words), seeds, preset)):
        yield BackTo("sweep.words")
    return (yield from _end(planned))


def _prefix(recipe: str) -> str:
    """Return what precedes the keys of the first stage that trains: "stages.0." in a pipeline, else nothing."""
    from llm_lab.job import read_job

    job, _ = read_job(recipe)
    if job is None or not job.is_pipeline:
        return ""
    return f"stages.{next((at for at, stage in enumerate(job.stages) if stage.values.get('train')), 0)}."


def _ask_values(recipe: str, preset: str, where: str) -> Flow[list[str]]:
    """Ask which values of a preset to compare; return ["key=v1,v2"], or [] for all of them."""
    from llm_lab.job import read_job
    from llm_lab.recipe.optimizers import OPTIMIZERS
    from llm_lab.studies.presets import preset_grid

    job, _ = read_job(recipe)
    grid = preset_grid(preset, job.stages[0]) if job is not None and preset != "seeds" else {}
    found = []
    for key, values in grid.items():
        picked = yield Question(
            f"sweep.{key}",
            f"Which values of {key}?",
            "several",
            choices=tuple(Choice(value, value, effect=OPTIMIZERS.get(value, "")) for value in values),
            default=list(values),
            why=_why_these(job, key),
            check=lambda picked: None if len(picked) > 1 else "Select at least two.",
            screen=Screen(TITLE, where),
        )
        found += [f"{key}={','.join(picked)}"] if list(picked) != list(values) else []
    return found


def _why_these(job: Job | None, key: str) -> str:
    """Return the explanation of the key whose values are compared, from its own question."""
    known = job and find_key(stage_schema(job.stages[0].given), key, job.stages[0].values)
    about = f"{key}: {known.shown_help}. {known.why or ''}" if known else ""
    return f"{about} Every value that is selected becomes a run for each seed.".strip()


def _ask_steps(recipe: str, where: str) -> Flow[tuple[list[str], str]]:
    """Ask for the steps of each run.

    Return (["train.max_steps=N"], or [] for the recipe's own steps; a shorter warm-up if the recipe's is too long for
    them, or "").
    """
    from llm_lab.job import read_job

    job, _ = read_job(recipe)
    values = job.stages[0].values if job is not None and not job.is_pipeline else {}
    if not values.get("train"):
        return [], ""
    own = values["train"]["max_steps"]
    now = "" if own is None else str(own)
    steps = yield Question(
        "sweep.steps",
        "How many steps for each run?",
        "text",
        default=now,
        why=STEPS_WHY,
        allowed=f"A whole number above 0. Empty: as in the recipe{f', {now}' if now else ''}.",
        check=_why_not_steps,
        screen=Screen(TITLE, where),
    )
    if steps.strip() in ("", now):
        return [], ""
    warmup = (values.get("scheduler") or {}).get("warmup_steps") or 0
    fits = warmup < int(steps) or not own
    return [f"train.max_steps={int(steps)}"], "" if fits else f"scheduler.warmup_steps={warmup * int(steps) // own}"


def _why_not_steps(text: str) -> str | None:
    is_number = text.strip().isdecimal() and int(text) > 0
    if is_number and int(text) > LARGEST_INT:
        return f"{text.strip()} is too large. Allowed: at most {LARGEST_INT:,}."
    return None if not text.strip() or is_number else f'"{text}" is not a whole number above 0.'


def duel() -> Flow[Next | None]:
    """Choose two recipes, or one and a key with two values, and start the duel."""
    from llm_lab.studies.sweep_report import at_equal_time

    recipe = yield from ask_recipe(DUEL, DUEL_WHY, compares=True)
    where, other, within = recipe_name(recipe), None, _prefix(recipe)
    example = within + EXAMPLE
    choices = (
        Choice(VALUES, "itself with one key changed", effect=f"For example {example}."),
        Choice(RECIPE, "another recipe", effect="Both train on the same number of tokens: that of the shorter recipe."),
    )
    against = yield Question("duel.against", f"Compare {where} with what?", choices=choices, why=DUEL_WHY,
                             screen=Screen(DUEL, where))  # fmt: skip
    if against == RECIPE:
        text = f"Compare {where} with which recipe?"
        other = yield from ask_recipe(DUEL, DUEL_WHY, key="duel.other", text=text, compares=True)
        where = f"{where} against {recipe_name(other)}"
    words = yield Question(
        "duel.words",
        "Anything to change for both?" if other else "Which key, and which two values?",
        "text",
        default="",
        why=(BOTH_WHY if other else TWO_VALUES_WHY).format(within=within),
        allowed="key=value, separated by spaces; empty: no changes."
        if other
        else f"key=v1,v2, then changes for both. For example {example} {within}train.max_steps=100.",
        check=lambda text: (
            f"Name one key and two values: {example}. To compare with another recipe, go back."
            if not (other or text.strip())
            else _problem_of(partial(_planned_duel, recipe, other), text)
        ),
        wait="Checking both recipes ...",
        screen=Screen(DUEL, where),
    )
    costs = _seed_choices(_planned_duel(recipe, other, words), DUEL_SEEDS)
    seeds = yield Question("duel.seeds", "How many seeds?", choices=costs, why=DUEL_SEEDS_WHY,
                           screen=Screen(DUEL, where))  # fmt: skip
    planned = _planned_duel(recipe, other, words, seeds=seeds)
    lines = _plan(planned, then=at_equal_time(seeds))
    start = yield yes_no("duel.start", START, default=not _takes_too_long(planned), yes=YES, no="No, change it",
                         why=START_WHY, screen=Screen(DUEL, where, lines=lines))  # fmt: skip
    if not start or not (yield StartDuel(recipe, words_in(words), seeds, other)):
        yield BackTo("duel.words")
    return (yield from _end(planned))


def _seed_choices(planned: Sweep, numbers: Iterable[int]) -> tuple[Choice, ...]:
    """Return numbers of seeds to choose from, with the runs, the time and the disk space of each."""
    from llm_lab.studies.sweep_report import at_equal_time, cost_of_a_seed

    seconds, disk_bytes = cost_of_a_seed(planned)
    found = []
    for number in numbers:
        runs = plural(number * len(planned.configurations), "run")
        time = f"  {about(number * seconds)}" if seconds else ""
        more = f" Then, {at_equal_time(number)}." if planned.kind == "duel" else ""
        effect = f"{size(number * disk_bytes)} on the disk.{more}"
        found.append(Choice(number, f"{number:<4}{runs:>8}{time}", effect=effect))
    return tuple(found)


def _end(planned: Sweep) -> Flow[Next | None]:
    """Continue after a sweep or a duel has run: if it was stopped or a run failed, with the runs that remain."""
    from llm_lab.studies.cells import state_of

    if any(state_of(cell, planned.measure).status != "done" for cell in planned.cells_to_run()):
        return Next("resume sweep", {"path": str(planned.folder), "is_stopped": True})
    yield Pause()
    return None


def resume_sweep(path: str, is_stopped: bool = False) -> Flow[Next | None]:
    """Show what remains of a sweep or a duel, and run it after a yes. is_stopped: keep the printed output above."""
    from llm_lab.studies.sweep import open_to_resume

    yield Wait(CHECKING)
    planned = open_to_resume(path)
    title = DUEL if planned.kind == "duel" else TITLE
    start = yield yes_no("sweep.resume", f"Resume the {planned.kind}?", default=True, yes="Yes, resume",
                         no=NO, why=RESUME_SWEEP_WHY, below_output=is_stopped,
                         screen=Screen(title, path, lines=_plan(planned, retry_failed=True)))  # fmt: skip
    return (yield from _end(planned)) if start and (yield ResumeSweep(path)) else None


def _takes_too_long(planned: Sweep) -> bool:
    from llm_lab.studies.sweep_report import cost_of_a_seed, takes_too_long

    return takes_too_long(len(planned.seeds) * cost_of_a_seed(planned)[0])


def _without_spaces(found: re.Match[str]) -> str:
    return found[1] or ("=" if "=" in found[0] else "")


def words_in(text: str) -> tuple[str, ...]:
    """Return the words of a typed text.

    A space around = or before a comma does not end a word, nor does one after a comma, unless a key follows.
    """
    text = re.sub(r"""("[^"]*"|'[^']*')|\s*=\s+(?!\S*=)|\s+(?=[=,])""", _without_spaces, text)
    return tuple(shlex.split(re.sub(r"""("[^"]*"|'[^']*')|(?<=,)\s+(?!\S*=)""", lambda found: found[1] or "", text)))


def _planned_sweep(recipe: str, preset: str | None, words: str, seeds: int | None = None) -> Sweep:
    from llm_lab.studies.sweep import plan_sweep

    return plan_sweep(recipe, words_in(words), seeds=seeds, preset=preset, numbered=True)


def _planned_duel(recipe: str, other: str | None, words: str, seeds: int | None = None) -> Sweep:
    from llm_lab.studies.duel import plan_duel

    return plan_duel(recipe, words_in(words), seeds=seeds, other=other, numbered=True)


def _plan(planned: Sweep, **more: Any) -> tuple[Line, ...]:
    """Return what a sweep or a duel will do, in lines. more: as for plan_rows."""
    from llm_lab.studies.cells import state_of
    from llm_lab.studies.sweep_report import plan_rows

    rows = plan_rows(planned, [state_of(cell, planned.measure) for cell in planned.cells_to_run()], **more)
    return tuple(Line(f"{name:<{NAMES}}{text}", "warn" if name == "note" else "", NAMES) for name, text in rows)


def _why_not_preset(recipe: str, preset: str) -> str | None:
    """Return why a preset does not apply to a recipe, or None; other problems of the recipe are reported later."""
    from llm_lab.job import read_job
    from llm_lab.studies.presets import preset_grid

    if preset == "seeds":
        return None
    try:
        job, _ = read_job(recipe)
        if job is not None and not job.is_pipeline:
            preset_grid(preset, job.stages[0])
    except LabError as error:
        problem = error.problems[0]
        return problem.why if isinstance(problem, Problem) else problem
    return "for a recipe of one stage" if job is None or job.is_pipeline else None


def _problem_of(plan: Callable[[str], Any], words: str) -> str | None:
    """Return why these words can't be planned, or None."""
    try:
        plan(words)
    except (LabError, ValueError) as error:
        return str(error)
    return None
