"""A sweep: several configurations of a recipe, each run with the same seeds, in one folder that holds all of its state.

checkpoints/<sweep>/sweep.json says what is compared; each cell is a run folder in the same place.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError, did_you_mean, one_of
from llm_lab.estimate.adapter_base import read_object
from llm_lab.estimate.machine import find_machine
from llm_lab.job import Job, check, find_recipe, read_job
from llm_lab.recipe.fields import IN_WORDS, NAME, flatten, value_at
from llm_lab.recipe.files import format_value, read_recipe_file
from llm_lab.recipe.registry import PipelineRecipe
from llm_lab.recipe.stage import StageRecipe
from llm_lab.runs.disk import write_atomically
from llm_lab.runs.entries import sweep_folders
from llm_lab.runs.folder import ROOT, now, slug

from .grid import Configuration, Grid, configurations_of, read_grid, short_keys, split_values
from .measures import caveats, choose_measure
from .presets import preset_grid, require_preset

FILE = "sweep.json"
SEEDS_OF_PRESET = 5
MOST_CELLS = 10_000


@dataclass(frozen=True)
class Cell:
    """One run of a sweep. recipe: with its seed and its name."""

    configuration: Configuration
    seed: int
    folder: Path
    recipe: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def label(self) -> str:
        named = self.configuration.label if self.configuration.name else ""
        return ", ".join(filter(None, (named, f"seed={self.seed}")))


@dataclass(frozen=True)
class Sweep:
    """What a sweep compares, as sweep.json records it.

    keys: the swept keys. base: the recipe that the configurations change. wanted: the configurations and seeds that the
    current command requests; the folder may hold others, from earlier commands. jobs: the checked job of each
    configuration; empty for a sweep that was only read. changes: key=value for all runs, as given to the first command.
    """

    folder: Path
    keys: tuple[str, ...]
    base: dict[str, Any]
    configurations: tuple[Configuration, ...]
    seeds: tuple[int, ...]
    measure: str
    command: str = ""
    remarks: tuple[str, ...] = ()
    wanted: tuple[frozenset[str], frozenset[int]] = (frozenset(), frozenset())
    jobs: Mapping[str, Job] = field(default_factory=dict)
    kind: str = "sweep"
    changes: tuple[str, ...] = ()

    def cells(self) -> list[Cell]:
        """Return every cell: the first seed of all configurations, then the second, so that stopping early is fair."""
        return [_cell(self.folder, one, seed, self.base) for seed in self.seeds for one in self.configurations]

    def cells_to_run(self) -> list[Cell]:
        """Return the cells that the current command requests."""
        names, seeds = self.wanted
        return [cell for cell in self.cells() if cell.configuration.name in names and cell.seed in seeds]

    def write(self) -> None:
        """Write sweep.json."""
        known = read_object(self.folder / FILE) or {}
        record = {
            "kind": self.kind,
            "created_at": known.get("created_at", now()),
            "command": self.command,
            "keys": list(self.keys),
            "measure": self.measure,
            "seeds": list(self.seeds),
            "configurations": [vars(one) for one in self.configurations],
            "remarks": list(self.remarks),
            "changes": list(self.changes),
            "recipe": self.base,
        }
        write_atomically(self.folder / FILE, json.dumps({**known, **record}, indent=1, ensure_ascii=False) + "\n")


def _cell(folder: Path, configuration: Configuration, seed: int, base: Mapping[str, Any]) -> Cell:
    name = "-".join(filter(None, (configuration.name, f"seed={seed}")))
    return Cell(configuration, seed, folder / name, with_seed(configuration.recipe, seed, first_seed(base)))


def first_seed(raw: Mapping[str, Any]) -> int:
    """Return the seed of a recipe."""
    schema = PipelineRecipe if "stages" in raw else StageRecipe
    seed = raw.get("seed", schema.model_fields["seed"].default)
    return seed if isinstance(seed, int) else 0


def with_seed(raw: Mapping[str, Any], seed: int, first: int) -> dict[str, Any]:
    """Return a recipe with another seed. A seed of a pipeline's stage is shifted by the same amount."""
    changed = {**raw, "seed": seed}
    if "stages" in raw:
        changed["stages"] = [
            {**stage, "seed": stage["seed"] + seed - first} if isinstance(stage.get("seed"), int) else stage
            for stage in raw["stages"]
        ]
    return changed


def plan_sweep(
    recipe: str | Path | Mapping[str, Any],
    words: Iterable[str] = (),
    *,
    seeds: int | None = None,
    name: str | None = None,
    measure: str | None = None,
    preset: str | None = None,
    command: str = "",
    numbered: bool = False,
    root: Path = ROOT,
) -> Sweep:
    """Return a sweep whose every configuration has been checked; nothing is written yet.

    words: key=v1,v2 (compared) and key=value (for all). UserError with every problem of every configuration, and if the
    folder of that name holds another sweep; numbered: add a number to the name instead.
    """
    raw, stem = read_raw(recipe)
    grid = read_grid(words)
    raw, grid = _with_preset(recipe, raw, grid, preset)
    if not grid.values and preset != "seeds":
        _require_values(grid)
    seeds = seeds if seeds is not None else SEEDS_OF_PRESET if preset == "seeds" else 1
    require_seeds(seeds, preset)
    configurations, remarks = configurations_of(raw, grid)
    if len(configurations) * seeds > MOST_CELLS:
        why = f"this makes {len(configurations) * seeds:,} runs"
        raise UserError(Problem("sweep", why, allowed=f"at most {MOST_CELLS:,}", fix="List fewer values."))
    base = configurations_of(raw, Grid({}, grid.fixed))[0][0].recipe
    jobs = check_all(configurations, recipe)
    require_differences(configurations, jobs, list(grid.values))
    short = list(short_keys(grid.values).values())
    title = "-".join([str(raw.get("name") or stem), "sweep", *short])
    folder = root / folder_name(name, title, "sweep")
    first = first_seed(base)
    measure = choose_measure(measure, jobs, tuple(grid.values))
    sweep = Sweep(
        folder=folder,
        keys=tuple(grid.values),
        base=base,
        configurations=tuple(configurations),
        seeds=tuple(range(first, first + seeds)),
        measure=measure,
        command=command,
        remarks=tuple(remarks + _new_groups(base, jobs, grid.values) + caveats(grid.values, jobs, measure)),
        jobs=jobs,
        changes=grid.fixed,
    )
    return joined_with_folder(sweep, numbered=numbered)


def _new_groups(base: Mapping[str, Any], jobs: Mapping[str, Job], keys: Iterable[str]) -> list[str]:
    """Return what a compared key switches on that the recipe does not have, such as LoRA."""
    job = read_job(base)[0]
    found = []
    for key in keys:
        group = key.rpartition(".")[0]
        if not group or job is None or job.is_pipeline:
            continue
        after = next(iter(jobs.values())).stages[0].values
        if value_at(job.stages[0].values, group) is None and isinstance(value_at(after, group), Mapping):
            found.append(f"The recipe has no {group}. The runs have it, because {key} is compared.")
    return found


def read_raw(recipe: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return a recipe as it was written, and its file name."""
    if isinstance(recipe, Mapping):
        return dict(recipe), "run"
    path = find_recipe(recipe)
    raw = read_recipe_file(path)
    return raw, slug(path.name if path.is_dir() else path.parent.name if path.name == "recipe.yaml" else path.stem)


def _with_preset(
    recipe: str | Path | Mapping[str, Any], raw: dict[str, Any], grid: Grid, preset: str | None
) -> tuple[dict[str, Any], Grid]:
    if preset is None:
        return raw, grid
    require_preset(preset)
    if "stages" in raw and preset != "seeds":
        fix = "Name the key of the stage, for example stages.0.optimizer.learning_rate=0.001,0.01."
        raise UserError(Problem("--preset", "a preset is for a recipe of one stage", value=preset, fix=fix))
    if preset == "seeds":
        return raw, grid
    base = configurations_of(raw, Grid({}, grid.fixed))[0][0].recipe
    job, problems = read_job(base)
    if job is None or problems:
        raise UserError(*problems)
    found = preset_grid(preset, job.stages[0])
    if twice := found.keys() & grid.values.keys():
        why = f"its preset {preset} lists the values of this key"
        raise UserError(Problem(next(iter(twice)), why, fix="Leave out the preset, or the key."))
    return raw, Grid({**found, **grid.values}, grid.fixed)


def _require_values(grid: Grid) -> None:
    if grid.fixed:
        key, equals, value = grid.fixed[0].partition("=")
        if not equals:
            fix = f"Write key=value, several values separated by commas: {key}=VALUE,VALUE."
            raise UserError(Problem(key, "no value is given for this key", fix=fix))
        inside = value.strip()[1:-1] if value.strip()[:1] == "[" else ""
        fix = f"List them with commas: {key}={value},..."
        if len(split_values(inside)) > 1:
            fix = (
                f"Without brackets, each is a separate value: {key}={inside}. With lists as values: "
                f"{key}={value},[...]."
            )
        raise UserError(Problem(key, "a sweep compares at least two values, and this key has one", value, fix=fix))
    fix = "For example optimizer.learning_rate=0.001,0.003,0.01. `--preset seeds` measures only how much the "
    fix += "result varies with the seed."
    raise UserError(Problem("sweep", "no key with several values is given, so there is nothing to compare", fix=fix))


def require_seeds(seeds: int, preset: str | None) -> None:
    least = 2 if preset == "seeds" else 1
    if seeds < least:
        why = "the number of runs of each configuration, each with the next seed"
        raise UserError(Problem("--seeds", why, value=seeds, allowed=f"{least} or more"))


def check_all(configurations: Sequence[Configuration], recipe: Any) -> dict[str, Job]:
    """Return the checked job of every configuration. UserError with every problem; shared ones appear once."""
    machine = find_machine()
    is_found = not isinstance(recipe, Mapping) and read_job(recipe, machine=machine)[0]
    jobs: dict[str, Job] = {}
    problems: dict[str, list[tuple[str, Problem | str]]] = {}
    for one in configurations:
        try:
            jobs[one.name] = check({**one.recipe, "name": one.name or "run"}, machine=machine)
        except UserError as error:
            for problem in error.problems:
                problems.setdefault(str(problem), []).append((one.label, problem))
    if problems:
        raise UserError(
            *(
                found[0][1] if len(found) == len(configurations) else f"{_where(found)}: {text}"
                for text, found in problems.items()
            )
        )
    if is_found:  # code named in a run's folder is not the user's own
        jobs = {name: replace(job, is_found=is_found.is_found) for name, job in jobs.items()}
    return jobs


def _where(found: Sequence[tuple[str, Any]]) -> str:
    labels = [label for label, _ in found]
    return f"With {'; '.join(labels[:3])}" + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")


def signature(job: Job) -> str:
    """Return everything that decides what a job does, as text: two configurations with equal text are the same."""
    kept = [{key: value for key, value in resolved.values.items() if key != "name"} for resolved in job.stages]
    return json.dumps(kept, sort_keys=True, default=str)


def require_differences(configurations: Sequence[Configuration], jobs: Mapping[str, Job], keys: Sequence[str]) -> None:
    """Raise UserError if several values of a key make the same recipe: it has no effect, or they resolve to one."""
    first: dict[str, Configuration] = {}
    same: dict[str, list[tuple[Configuration, Configuration]]] = {}
    for one in configurations:
        other = first.setdefault(signature(jobs[one.name]), one)
        if other is not one and not keys:
            why = f"{one.label} makes the same runs, so there is nothing to compare"
            raise UserError(Problem(other.label, why, fix="Change one of the two recipes."))
        if other is not one:
            key = next((key for key in keys if one.values[key] != other.values[key]), keys[0])
            same.setdefault(key, []).append((other, one))
    problems = []
    for key, pairs in same.items():
        values = dict.fromkeys(one.values[key] for one in configurations)
        equal = dict.fromkeys(pair[side].values[key] for pair in pairs for side in (0, 1))
        stage = jobs[pairs[0][0].name].stages[0]
        becomes = value_at(stage.values, key)
        why = "this key has no effect on the recipe" if len(equal) == len(values) else "these make the same recipe"
        if becomes is not None:
            origin = stage.origins.get(key)
            reason = f" ({origin.reason})" if origin and origin.reason else ""
            why += f": all become {format_value(becomes)}{reason}"
        fix = "Compare another key." if len(equal) == len(values) else "Keep one of them."
        problems.append(Problem(key, why, value=", ".join(equal), fix=fix))
    if problems:
        raise UserError(*problems)


def folder_name(name: str | None, title: str, default: str) -> str:
    """Return the name of a sweep's folder: the given name, or one made from a title. UserError for a path."""
    if name and not re.fullmatch(NAME, name):
        raise UserError(Problem("--name", "this is not the name of a folder", value=name, allowed=IN_WORDS[NAME]))
    return name or slug(title, default)


def joined_with_folder(sweep: Sweep, *, numbered: bool = False) -> Sweep:
    """Return a sweep joined with what its folder already holds. UserError if that is something else.

    numbered: in that case, add a number to the name instead.
    """
    endings = itertools.chain([""], (f"-{number}" for number in itertools.count(2))) if numbered else [""]
    for ending in endings:
        folder = sweep.folder.with_name(f"{sweep.folder.name}{ending}")
        command = f"{sweep.command} --name {folder.name}" if ending else sweep.command
        try:
            return _joined(replace(sweep, folder=folder, command=command))
        except UserError:
            if not numbered:
                raise
    raise AssertionError("one of all numbers is free")


def _joined(sweep: Sweep) -> Sweep:
    names = frozenset(one.name for one in sweep.configurations)
    sweep = replace(sweep, wanted=(names, frozenset(sweep.seeds)))
    if not sweep.folder.exists():
        return sweep
    fix = "Choose another name with --name."
    if not (sweep.folder / FILE).is_file():
        why = "the folder exists and is not a sweep"
        raise UserError(Problem(str(sweep.folder), why, fix=fix))
    before = open_sweep(sweep.folder)
    if before.kind != sweep.kind or set(before.keys) != set(sweep.keys):
        why = f"this {before.kind} compares {one_of(before.keys) or 'seeds'}"
        raise UserError(Problem(str(sweep.folder), why, value=None or one_of(sweep.keys) or "seeds", fix=fix))
    if problems := _differences(before, sweep):
        raise UserError(*problems)
    known = {one.name: one for one in before.configurations} | {one.name: one for one in sweep.configurations}
    seeds = tuple(sorted({*before.seeds, *sweep.seeds}))
    return replace(sweep, configurations=tuple(known.values()), seeds=seeds)


def _differences(before: Sweep, sweep: Sweep) -> list[Problem]:
    """Return how recipes in a command differ from those of the same name in the folder, apart from seeds and names."""
    problems: dict[str, Problem] = {}
    fix = f"Start another {sweep.kind} with --name, or delete {sweep.folder}."
    for one in sweep.configurations:
        other = next((other for other in before.configurations if other.name == one.name), None)
        groups = {key.removesuffix(".name") for key in sweep.keys}
        old, new = dict(flatten(other.recipe if other else before.base)), dict(flatten(one.recipe))
        for key in sorted(old.keys() | new.keys()):
            swept = other is None and any(key == group or key.startswith(f"{group}.") for group in groups)
            if old.get(key) != new.get(key) and key not in ("seed", "name") and not swept:
                why = f"the {sweep.kind} in {sweep.folder} has {format_value(old.get(key))}"
                problems[key] = Problem(key, why, new.get(key), fix=fix)
    return list(problems.values())


def open_to_resume(folder: str | Path, *, root: Path = ROOT) -> Sweep:
    """Read a sweep or a duel to run what remains of it; its recipes are checked again. UserError as in check_all."""
    sweep = open_sweep(folder, root=root)
    # The folder may be someone else's, so code that it names is not the user's own.
    jobs = {name: replace(job, is_found=True) for name, job in check_all(sweep.configurations, sweep.base).items()}
    return replace(sweep, jobs=jobs, wanted=(frozenset(jobs), frozenset(sweep.seeds)))


def _require_types(record: Mapping[str, Any]) -> None:
    """Raise TypeError for a sweep.json that our commands can't have written: its folder may come from elsewhere."""
    expected = {"keys": list, "recipe": dict, "configurations": list, "seeds": list, "remarks": list}
    expected |= dict.fromkeys(("measure", "command", "kind"), str)
    wrong = [key for key, kind in expected.items() if not isinstance(record[key], kind)]
    wrong += [key for key in ("keys", "remarks") if not all(isinstance(one, str) for one in record[key])]
    wrong += [] if all(type(seed) is int for seed in record["seeds"]) else ["seeds"]
    changes = record.get("changes") or []  # older sweeps have none
    wrong += [] if isinstance(changes, list) and all(isinstance(one, str) for one in changes) else ["changes"]
    for one in record["configurations"]:
        texts = all(isinstance(one[key], str) for key in ("name", "label"))
        # These names become names of run folders.
        is_name = texts and one["name"] not in ("", ".", "..") and Path(one["name"]).name == one["name"]
        if not (is_name and isinstance(one["values"], dict) and isinstance(one["recipe"], dict)):
            wrong.append("configurations")
    if wrong or record["kind"] not in ("sweep", "duel"):
        raise TypeError(f"wrong type: {', '.join(wrong) or 'kind'}")
    if len(record["configurations"]) * len(record["seeds"]) > MOST_CELLS:
        raise TypeError(f"more than {MOST_CELLS:,} runs")


def open_sweep(folder: str | Path, *, root: Path = ROOT) -> Sweep:
    """Read a sweep from its folder. UserError if there is none."""
    path = Path(folder)
    path = path if path.exists() else root / path
    record = read_object(path / FILE)
    if record is None:
        fix = (
            did_you_mean(path.name, [one.name for one in sweep_folders(root)])
            or "Start one: llm-lab sweep RECIPE key=v1,v2."
        )
        raise UserError(Problem(str(folder), "there is no sweep here", fix=fix))
    try:
        _require_types(record)
        return Sweep(
            folder=path,
            keys=tuple(record["keys"]),
            base=record["recipe"],
            configurations=tuple(Configuration(**one) for one in record["configurations"]),
            seeds=tuple(record["seeds"]),
            measure=record["measure"],
            command=record["command"],
            remarks=tuple(record["remarks"]),
            kind=record["kind"],
            changes=tuple(record.get("changes") or ()),
        )
    except (KeyError, TypeError, AttributeError) as error:
        why = f"the file can't be read ({type(error).__name__}: {error})"
        raise UserError(Problem(str(path / FILE), why, fix="Delete it, and run the command again.")) from None
