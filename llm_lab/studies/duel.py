"""A duel: two recipes with the same seeds, compared at equal tokens and at equal time, with a statistical verdict.

It is a sweep of two configurations. At equal tokens, both train on the same number of tokens. At equal time, the faster
one keeps its run and the slower one is trained again with as many steps as fit into the same time, with its
learning-rate schedule fitted to them; on the curve of the longer run, the learning rate would still be high at that
point.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError
from llm_lab.estimate.formatting import percent
from llm_lab.job import Job
from llm_lab.recipe.fields import value_at
from llm_lab.recipe.registry import stage_of
from llm_lab.runs.folder import ROOT, RunFolder, slug

from .grid import Configuration, Grid, configurations_of, read_grid, short_keys
from .measures import caveats, choose_measure, value_of
from .sweep import (
    Sweep,
    check_all,
    first_seed,
    folder_name,
    joined_with_folder,
    open_sweep,
    read_raw,
    require_differences,
    require_seeds,
)
from .verdict import MIN_SEEDS, Verdict, decide

TOKENS, TIME, BOTH = "tokens", "time", "both"
SAME_TOKENS, SAME_SPEED = 0.005, 0.03  # relative differences up to these count as equal
EQUAL_TIME = "-equal-time"


@dataclass(frozen=True)
class Side:
    """One side of a comparison: its configuration, and its value for every seed that both sides have."""

    configuration: Configuration
    values: dict[int, float]


@dataclass(frozen=True)
class Comparison:
    """Two configurations at equal tokens or at equal time. verdict: on the second minus the first; None without pairs.

    how: what was the same for both, in words.
    """

    by: str
    first: Side
    second: Side
    how: str
    verdict: Verdict | None


def plan_duel(
    recipe: str | Path | Mapping[str, Any],
    words: Iterable[str] = (),
    *,
    other: str | Path | Mapping[str, Any] | None = None,
    seeds: int | None = None,
    name: str | None = None,
    measure: str | None = None,
    by: str = BOTH,
    command: str = "",
    numbered: bool = False,
    root: Path = ROOT,
) -> Sweep:
    """Return a duel whose two recipes have been checked; nothing is written yet.

    other: the second recipe; without it, words contains one key with two values. numbered: as in plan_sweep. UserError
    with every problem of both.
    """
    if by not in (TOKENS, TIME, BOTH):
        raise UserError(Problem("--by", "a duel can't hold this equal", value=by, allowed=f"{TOKENS}, {TIME}, {BOTH}"))
    seeds = MIN_SEEDS if seeds is None else seeds
    require_seeds(seeds, "duel")
    grid = read_grid(words)
    raw, stem = read_raw(recipe)
    remarks: list[str] = []
    if other is None:
        _require_two_values(grid, "stages.0." if "stages" in raw else "")
        pair, remarks = configurations_of(raw, grid)
        title = "-".join([str(raw.get("name") or stem), "duel", *short_keys(grid.values).values()])
    else:
        pair = _two_recipes((raw, stem), read_raw(other), grid)
        title = f"{pair[0].name}-against-{pair[1].name}"
    if any(key.endswith("train.max_steps") or key.endswith("train.num_train_epochs") for key in grid.values):
        why = "a duel trains both on the same number of tokens, so their length can't be compared"
        raise UserError(Problem(next(iter(grid.values)), why, fix="Use a sweep."))
    _require_one_stage(pair)
    jobs = check_all(pair, recipe)
    pair, jobs, changed = _with_equal_tokens(pair, jobs, recipe)
    require_differences(pair, jobs, list(grid.values))
    first = first_seed(pair[0].recipe)
    measure = choose_measure(measure, jobs, tuple(grid.values))
    duel = Sweep(
        folder=root / folder_name(name, title, "duel"),
        keys=tuple(grid.values),
        base=pair[0].recipe,
        configurations=tuple(pair),
        seeds=tuple(range(first, first + seeds)),
        measure=measure,
        command=command,
        remarks=tuple([*remarks, *changed, *caveats(grid.values, jobs, measure)]),
        jobs=jobs,
        kind="duel",
        changes=grid.fixed,
    )
    return joined_with_folder(duel, numbered=numbered)


def _require_two_values(grid: Grid, within: str) -> None:
    count = math.prod(len(values) for values in grid.values.values())
    if not grid.values:
        fix = f"Name a second recipe, or one key with two values: {within}optimizer.name=adamw,muon."
        raise UserError(Problem("duel", "there is only one recipe", fix=fix))
    if count != 2:
        words = " ".join(f"{key}={','.join(values)}" for key, values in grid.values.items())
        fix = f"A sweep compares more than two, with the same arguments: {words}."
        raise UserError(
            Problem(
                ", ".join(grid.values), f"a duel compares two configurations, and these values make {count}", fix=fix
            )
        )


def _require_one_stage(pair: Sequence[Configuration]) -> None:
    stages = [one.recipe.get("stage") for one in pair]
    if None not in stages and stages[0] != stages[1] and all(stage_of(one.recipe) for one in pair):
        why = f"a duel compares two recipes of the same stage; these are {stages[0]} and {stages[1]}"
        raise UserError(Problem("duel", why, fix="To compare two trained models: llm-lab compare MODEL MODEL"))


def _two_recipes(one: tuple[dict[str, Any], str], two: tuple[dict[str, Any], str], grid: Grid) -> list[Configuration]:
    """Return the configurations of two recipe files, named after them; overrides apply to both."""
    if grid.values:
        fix = "Give one value, which holds for both recipes, or leave out the second recipe."
        raise UserError(Problem(next(iter(grid.values)), "two recipes are compared, not values of a key", fix=fix))
    stems = [slug(str(raw.get("name") or stem), "recipe")[:40] for raw, stem in (one, two)]
    if stems[0] == stems[1]:
        stems = [slug(stem, "recipe")[:40] for _, stem in (one, two)]
    if stems[0] == stems[1]:
        stems = [f"A-{stems[0]}", f"B-{stems[1]}"]
    recipes = [configurations_of(raw, grid)[0][0].recipe for raw, _ in (one, two)]
    recipes[1] = {**recipes[1], "seed": first_seed(recipes[0])}
    return [Configuration(stem, stem, {}, recipe) for stem, recipe in zip(stems, recipes, strict=True)]


def _tokens(job: Job) -> int:
    return sum(resolved.estimate.tokens for resolved in job.stages)


def _with_equal_tokens(
    pair: Sequence[Configuration], jobs: Mapping[str, Job], recipe: Any
) -> tuple[list[Configuration], dict[str, Job], list[str]]:
    """Return the two configurations, the longer one shortened so that both train on the same number of tokens."""
    less, more = sorted(pair, key=lambda one: _tokens(jobs[one.name]))
    fewer, tokens = _tokens(jobs[less.name]), _tokens(jobs[more.name])
    job = jobs[more.name]
    steps = value_at(job.stages[0].values, "train.max_steps")
    if not fewer or tokens - fewer <= SAME_TOKENS * tokens:
        return list(pair), dict(jobs), []
    if job.is_pipeline or not steps:
        words = f"{less.label} trains on {fewer:,} tokens and {more.label} on {tokens:,}: they are not equal."
        return list(pair), dict(jobs), [words]
    wanted = max(1, round(steps * fewer / tokens))
    changed = _with_steps(more, wanted)
    words = f"{more.label} trains {wanted:,} steps instead of {steps:,}, so that both train on {fewer:,} tokens."
    found = [changed if one is more else one for one in pair]
    return found, {**jobs, **check_all([changed], recipe)}, [words]


def _with_steps(configuration: Configuration, steps: int) -> Configuration:
    train = {**(configuration.recipe.get("train") or {}), "max_steps": steps}
    return replace(configuration, recipe={**configuration.recipe, "train": train})


# --- equal time


def equal_time(duel: Sweep) -> tuple[Sweep, str] | None:
    """Return a duel with the slower configuration shortened to the time of the faster one, and a description of this.

    The third configuration is stored in the folder, so that a resumed duel does not measure again. None while runs at
    equal tokens are missing, and if the recipe has no number of steps. The unchanged duel if both are equally fast.
    """
    one, two = duel.configurations[:2]
    seconds = {side.name: _seconds(duel, side) for side in (one, two)}
    if any(value is None for value in seconds.values()):
        return None
    fast, slow = sorted((one, two), key=lambda side: seconds[side.name] or 0.0)
    times = [seconds[side.name] or 0.0 for side in (fast, slow)]
    took = f"{fast.label} {times[0]:.1f} s, {slow.label} {times[1]:.1f} s of training per run (median, on this machine)"
    kept = next((c for c in duel.configurations[2:] if c.name.endswith(EQUAL_TIME)), None)
    if kept is None and times[1] - times[0] <= SAME_SPEED * times[1]:
        return duel, f"Both take the same time, within {percent(SAME_SPEED, 0)}: {took}."
    if kept is not None:  # keep the side and the steps that were chosen first
        slow = next((side for side in (one, two) if kept.name == f"{side.name}{EQUAL_TIME}"), slow)
    steps = _steps(duel, slow)
    if steps is None:
        return None
    chosen = value_at(kept.recipe, "train.max_steps") if kept is not None else None
    new = chosen if isinstance(chosen, int) else max(1, round(steps * times[0] / times[1]))
    shorter = _with_steps(slow, new)
    third = replace(shorter, label=f"{slow.label}, equal time", name=f"{slow.name}{EQUAL_TIME}", values={})
    wanted = (duel.wanted[0] | {third.name}, duel.wanted[1])
    words = f"{took}. So {slow.label} was trained again, with {new:,} of {steps:,} steps and a schedule of that length."
    return replace(duel, configurations=(one, two, third), wanted=wanted), words


def with_checked_jobs(duel: Sweep) -> Sweep:
    """Return a duel with the jobs of all its configurations. UserError if the shortened recipe is not valid."""
    unchecked = [one for one in duel.configurations if one.name not in duel.jobs]
    return replace(duel, jobs={**duel.jobs, **check_all(unchecked, duel.base)})


def _seconds(duel: Sweep, side: Configuration) -> float | None:
    """Return the median training time of a configuration's runs; None unless all of them are done."""
    found = []
    for cell in duel.cells():
        if cell.configuration.name == side.name:
            facts = RunFolder(cell.folder).facts()
            if facts.get("status") != "done":
                return None
            found.append(_training_seconds(facts))
    known = [value for value in found if value is not None and value > 0]
    return statistics.median(known) if known else None


def _training_seconds(facts: Mapping[str, Any]) -> float | None:
    """Return the time of a run's steps, from its median speed: without start-up, evaluations and samples.

    Stages that learn from rewards spend most of their time on generation, which their speed does not include; for
    these, return the whole time.
    """
    results, stage = facts.get("results") or {}, stage_of(facts)
    tokens, speed = results.get("train_tokens"), results.get("tokens_per_second")
    if stage is not None and stage.measures_loss and tokens and speed:
        return float(tokens) / float(speed)
    return results.get("wall_seconds")


def _steps(duel: Sweep, side: Configuration) -> int | None:
    for cell in duel.cells():
        if cell.configuration.name == side.name:
            steps = value_at(RunFolder(cell.folder).facts(), "recipe.train.max_steps")
            if isinstance(steps, int):
                return steps
    return None


# --- verdicts


def compare(duel: Sweep, by: str = BOTH) -> list[Comparison]:
    """Return the comparisons of a duel at equal tokens and at equal time, as far as its folder has results."""
    one, two = duel.configurations[:2]
    found = []
    if by in (TOKENS, BOTH):
        found.append(_compared(duel, TOKENS, one, two, "Both train on the same number of tokens."))
    if by in (TIME, BOTH) and (timed := equal_time(duel)) is not None:
        with_third, how = timed
        third = with_third.configurations[2:]
        sides = [next((c for c in third if c.name == f"{side.name}{EQUAL_TIME}"), side) for side in (one, two)]
        found.append(_compared(with_third, TIME, sides[0], sides[1], how))
    return found


def _compared(duel: Sweep, by: str, one: Configuration, two: Configuration, how: str) -> Comparison:
    values: dict[str, dict[int, float]] = {one.name: {}, two.name: {}}
    for cell in duel.cells():
        if cell.configuration.name in values:
            value = value_of(RunFolder(cell.folder), duel.measure)
            if value is not None:
                values[cell.configuration.name][cell.seed] = value
    both = [seed for seed in duel.seeds if all(seed in found for found in values.values())]
    pairs = [(values[one.name][seed], values[two.name][seed]) for seed in both]
    verdict = decide([second - first for first, second in pairs]) if pairs else None
    sides = [Side(side, {seed: values[side.name][seed] for seed in both}) for side in (one, two)]
    return Comparison(by, sides[0], sides[1], how, verdict)


def open_duel(folder: str | Path, *, root: Path = ROOT) -> Sweep:
    """Read a duel from its folder. UserError if there is none."""
    duel = open_sweep(folder, root=root)
    if duel.kind != "duel":
        raise UserError(Problem(str(folder), "this is a sweep, not a duel"))
    return duel
