"""From a recipe to a run: read it, resolve it, make the run folder, hand it to its stage."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from llm_lab.errors import LabError, Problem, UserError
from llm_lab.estimate.machine import Machine, find_machine
from llm_lab.events import Listener, ScoresReported, ignore
from llm_lab.job import error_within_stage, move, pipeline_values, pipeline_yaml, read_pipeline, within_stage
from llm_lab.recipe.eval import measures_itself
from llm_lab.recipe.export import ExportRecipe, unsupported_formats
from llm_lab.recipe.fields import flatten
from llm_lab.recipe.files import apply_overrides, read_recipe_file
from llm_lab.recipe.resolve import Resolved, diagnose, estimate_again, require_cuda, require_device
from llm_lab.record import facts_at_start, first_facts, how_it_ended, keep_speed, record_warnings
from llm_lab.runs.folder import ROOT, RunFolder, create_run, find_model, now, runs_named, this_process
from llm_lab.runs.processes import connected, from_first_process, is_first_process, wait_for_all
from llm_lab.runs.report import collect_scores, write_pipeline_report

SHIPPED_RECIPES = Path(__file__).resolve().parent.parent / "configs"


@dataclass(frozen=True)
class Job:
    """What a recipe amounts to: one stage, or several one after the other."""

    name: str
    stages: tuple[Resolved, ...]
    is_pipeline: bool
    own_run: RunFolder | None = None  # the run whose recipe.yaml this is, where it is one

    @property
    def home(self) -> Path:
        """The folder that the stages' own are made in."""
        return ROOT / self.name if self.is_pipeline else ROOT


def find_recipe(name: str | Path) -> Path:
    """Return the recipe file a user means: a path, a run folder, or the name of a shipped recipe."""
    path = Path(name).expanduser()
    if path.exists():
        return path
    for folder in (Path("configs"), SHIPPED_RECIPES):
        for candidate in (folder / path.name, folder / f"{path.name}.yaml"):
            if candidate.is_file() and path.parent in (Path(), Path("configs")):
                return candidate
    if (ROOT / path / "recipe.yaml").is_file():
        return ROOT / path
    if path.parent == Path() and not path.suffix:
        known = [file.stem for file in list_recipes()]
        from llm_lab.errors import did_you_mean

        raise UserError(
            Problem(
                str(name),
                "there is no such recipe",
                fix=did_you_mean(str(name), known) or "`llm-lab list recipes` shows what there is.",
            )
        )
    return path


def list_recipes() -> list[Path]:
    """Return the recipe files at hand: those in ./configs, then those that ship with LLM Lab."""
    found: dict[str, Path] = {}
    for folder in (Path("configs"), SHIPPED_RECIPES):
        for file in sorted(folder.glob("*.yaml")) if folder.is_dir() else []:
            found.setdefault(file.name, file)
    return list(found.values())


def read_job(
    recipe: str | Path | Mapping[str, Any], overrides: Iterable[str] = (), *, machine: Machine | None = None
) -> tuple[Job | None, list[Problem]]:
    """Read and resolve a recipe as far as possible; returns the job and every problem found."""
    machine = machine or find_machine()
    if isinstance(recipe, Mapping):
        raw, stem, home = dict(recipe), "run", None
    else:
        path = find_recipe(recipe)
        raw = read_recipe_file(path)
        home = path if path.is_dir() else path.parent
        stem = (path.name if path.is_dir() else path.parent.name if path.name == "recipe.yaml" else path.stem) or "run"
    raw, touched = apply_overrides(raw, overrides)
    if "stages" not in raw:
        resolved, problems = diagnose(raw, machine=machine, name=_safe_name(stem), overrides=touched)
        job = Job(resolved.values["name"], (resolved,), False) if resolved else None
    else:
        name, stages, problems = read_pipeline(raw, _safe_name(stem), ROOT, touched, machine)
        job = Job(name, tuple(stages), True) if stages else None
    if job is not None and home is not None and RunFolder(home).facts():
        job = replace(job, own_run=RunFolder(home))
    return job, problems


def _safe_name(stem: str) -> str:
    import re

    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "run"


def check(recipe: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> tuple[Job, list[str]]:
    """Return the resolved job and remarks. UserError with all that is wrong with recipe and data, at once."""
    job, problems = read_job(recipe, overrides)
    remarks: list[str] = []
    for index, resolved in enumerate(job.stages if job else ()):
        found, more = _look_at_data(resolved)
        found = [within_stage(index, problem) for problem in found] if job.is_pipeline else found
        problems = problems + [problem for problem in found if str(problem) not in map(str, problems)]
        remarks += more
    for index, problem in unsupported_formats([resolved.values for resolved in job.stages] if job else []):
        problems.append(within_stage(index, problem) if job.is_pipeline else problem)
    if problems or job is None:
        raise UserError(*problems)
    return job, remarks


def _look_at_data(resolved: Resolved) -> tuple[list[Problem | str], list[str]]:
    """Look whether data, prompts to score on and rewards are there; returns problems and remarks."""
    from llm_lab.data.examples import default_split, look_at_examples
    from llm_lab.data.sources import look_at_source
    from llm_lab.evaluation.self_eval import require_own_data
    from llm_lab.rewards.build import check_files

    recipe = resolved.recipe
    looks = []
    if resolved.stage.makes is None and measures_itself(resolved.values) and Path(recipe.model.checkpoint).exists():
        looks.append(lambda: require_own_data(str(find_model(recipe.model.checkpoint))))
    for index, source in enumerate(getattr(recipe, "data", None) or ()):
        options = source.model_dump(exclude={"path", "weight"}) | {"key": f"data.{index}"}
        if resolved.stage.examples == "text":
            looks.append(partial(look_at_source, source.path, **options))
        else:
            options["columns"] = source.columns.model_dump(exclude_none=True) if source.columns else None
            looks.append(partial(look_at_examples, source.path, kind=resolved.stage.examples, **options))
    score = getattr(recipe, "score", None)
    if score is not None and score.path:
        columns = score.columns.model_dump(exclude_none=True) if score.columns else None
        ask = partial(look_at_examples, score.path, kind="prompt", key="score", subset=score.subset, columns=columns)
        looks.append(lambda: ask(split=default_split(score.path, score.split)))
    problems: list[Problem | str] = []
    remarks = []
    for look in looks:
        try:
            remark = look()
        except UserError as error:
            problems += error.problems
        else:
            remarks += [remark] if isinstance(remark, str) else []
    for key, holder in (("rewards", recipe), ("score.rewards", score)):
        terms = getattr(holder, "rewards", None) or ()
        problems += check_files([term.model_dump() for term in terms], key=key)
    return problems, remarks


def run(
    recipe: str | Path | Mapping[str, Any],
    overrides: Iterable[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    listener: Listener = ignore,
    root: Path = ROOT,
) -> dict[str, Any]:
    """Run a recipe to its end; returns the facts of the run (its run.json, with "path").

    UserError or MachineError before anything is written where recipe, data or machine do not fit.
    """
    listener = listener
    job, _ = check(recipe, overrides)
    for resolved in job.stages:
        require_device(resolved)
    if job.is_pipeline:
        _require_destinations(job)
    with connected(job.stages[0].values["device"]):
        folder = _open_folder(job, resume=resume, overwrite=overwrite, root=root)
        if job.is_pipeline:
            return _run_pipeline(job, folder, listener, resume=resume)
        return _run_stage(job.stages[0], folder, listener, resume=resume)


def _require_destinations(job: Job) -> None:
    """Ask the Hub now, and not after the training, whether what shall be sent there may be."""
    exports = [resolved.recipe.export for resolved in job.stages if isinstance(resolved.recipe, ExportRecipe)]
    for export in exports:
        if export.push and is_first_process():
            from llm_lab.export.repository import find_destination

            find_destination(export.push, private=export.private)


def _run_pipeline(job: Job, outer: RunFolder, listener: Listener, *, resume: bool) -> dict[str, Any]:
    names = [resolved.values["name"] for resolved in job.stages]
    first = is_first_process()
    if first and not resume:
        outer.write_recipe(pipeline_yaml({**_recipe_values(job), "name": outer.path.name}))
        outer.update(name=outer.path.name, asked_name=job.name, created_at=now(), stages=names)
    if first:
        outer.update(status="running", process=this_process(), error=None)
    facts: dict[str, Any] = {}
    try:
        for index, resolved in enumerate(job.stages):
            folder = RunFolder(outer.path / resolved.values["name"])
            facts = folder.facts()
            if facts.get("status") == "done":
                continue
            folder.path.mkdir(exist_ok=True)
            moved = move(resolved, ROOT / job.name, outer.path)
            try:
                facts = _run_stage(moved, folder, listener, resume=resume and folder.recipe_path.exists())
            except LabError as error:
                raise error_within_stage(index, moved, error) from error
            if facts["status"] != "done":
                break
    except BaseException as error:
        if first and isinstance(error, LabError) and not any((outer.path / name).exists() for name in names):
            shutil.rmtree(outer.path)
        elif first:
            outer.update(ended_at=now(), **how_it_ended(error))
        raise
    if first:
        scores = collect_scores(outer)
        results = facts.get("results", {}) | ({"scores": scores} if scores else {})
        outer.update(status=facts["status"], results=results, ended_at=now())
        write_pipeline_report(outer)
        if scores:
            listener(ScoresReported(scores))
    wait_for_all()
    return {**outer.facts(), "path": str(outer.path)}


def _recipe_values(job: Job) -> dict[str, Any]:
    """Return the values that the job's recipe.yaml holds."""
    return pipeline_values(job.stages, ROOT / job.name) if job.is_pipeline else job.stages[0].values


def _open_folder(job: Job, *, resume: bool, overwrite: bool, root: Path) -> RunFolder:
    """Return a new run folder, or the one to go on in; all processes work in the first one's."""
    path = None
    if is_first_process():
        folder = _folder_to_resume(job, root) if resume else create_run(job.name, root=root, overwrite=overwrite)
        path = folder.path
    return RunFolder(from_first_process(path))


def _folder_to_resume(job: Job, root: Path) -> RunFolder:
    runs = [job.own_run] if job.own_run else runs_named(job.name, root=root)
    if not runs:
        raise UserError(Problem(str(root / job.name), "there is no run to resume", fix="Start it without --resume."))
    folder = runs[-1]
    if folder.status() == "running":
        pid = folder.facts().get("process", {}).get("pid")
        raise UserError(Problem(str(folder.path), f"this run is under way (process {pid})"))
    _require_same_recipe(folder, _recipe_values(job), _keys_of(job, "derived"), _keys_of(job, "default"))
    return folder


def what_is_left(job: Job, *, root: Path = ROOT) -> Job:
    """Return the job with plans that count only what a resumed run has still to do.

    UserError where there is nothing to go on with.
    """
    folder = _folder_to_resume(job, root)
    stages = []
    for resolved in job.stages:
        own = RunFolder(folder.path / resolved.values["name"]) if job.is_pipeline else folder
        checkpoints = own.checkpoints()
        stages.append(estimate_again(resolved, first_step=checkpoints[-1][0]) if checkpoints else resolved)
    return replace(job, stages=tuple(stages))


def _keys_of(job: Job, kind: str) -> set[str]:
    """Return the keys of the job's recipe.yaml whose values nobody wrote: those that are derived, or defaults."""
    return {
        f"stages.{index}.{path}" if job.is_pipeline else path
        for index, resolved in enumerate(job.stages)
        for path, origin in resolved.origins.items()
        if origin.kind == kind
    }


def _require_same_recipe(folder: RunFolder, values: Mapping[str, Any], derived: set[str], defaults: set[str]) -> None:
    """A run goes on as it began: another recipe would make a run that no recipe describes.

    derived: what was left open when it began may be known now, from the result of an earlier stage. defaults: a key
    that there was not yet when it began is at its default, which is what the run has done.
    """
    before = dict(flatten(read_recipe_file(folder.recipe_path)))
    after = dict(flatten(values))
    differing = [
        key
        for key in sorted(before.keys() | after.keys())
        if key != "name"
        and _plain(before.get(key)) != _plain(after.get(key))
        and not (key in derived and before.get(key) is None)
        and not (key in defaults and key not in before)
    ]
    if differing:
        problems = [
            Problem(
                key,
                f"the run in {folder.path} began with {_plain(before.get(key))}",
                value=_plain(after.get(key)),
                fix=f"Resume with `llm-lab run {folder.recipe_path} --resume`, or start a new run.",
            )
            for key in differing
        ]
        raise UserError(*problems)


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _run_stage(resolved: Resolved, folder: RunFolder, listener: Listener, *, resume: bool) -> dict[str, Any]:
    from llm_lab.runs.processes import forget_peak_memory, peak_memory_bytes
    from llm_lab.runs.report import write_report

    stage = importlib.import_module(resolved.stage.module_name)
    recipe, device = resolved.recipe, resolved.values["device"]
    first = is_first_process()
    if first and not resume:
        name = folder.path.name
        named = replace(resolved, values={**resolved.values, "name": name})
        folder.write_recipe(
            named.to_yaml((f"Everything that made {folder.path}; replay it with:", f"llm-lab run {folder.recipe_path}"))
        )
        folder.update(**first_facts(resolved, folder))
    elif first:
        folder.update(
            status="running", process=this_process(), resumed_at=[*folder.facts().get("resumed_at", []), now()]
        )
    try:
        if not resume:
            from llm_lab.training.calibrate import calibrate

            resolved = calibrate(resolved, listener)
            if first:
                folder.update(**facts_at_start(resolved))
        forget_peak_memory(device)
        with record_warnings(folder, listener) as heard:
            result = stage.run(recipe, folder, heard, resume=resume)
        before = folder.facts().get("results", {}).get("memory_bytes", 0)  # of the run before a resume
        results = {**result.results, "memory_bytes": max(before, peak_memory_bytes(device))}
    except BaseException as error:
        made = resume or folder.metrics() or folder.facts().get("export")
        if first and isinstance(error, LabError) and not made:
            shutil.rmtree(folder.path)  # nothing was trained or exported: leave nothing half made
        elif first:
            folder.update(ended_at=now(), **how_it_ended(error))
            with suppress(OSError):  # a full disk may be what ended it
                write_report(folder)
        raise
    if first:
        folder.update(status=result.status, ended_at=now(), results=results, error=None)
        if result.status == "done":
            keep_speed(resolved, folder, results)
        from llm_lab.runs.card import write_card

        write_report(folder)
        if folder.model_path.is_dir() and not folder.facts().get("proof"):  # an export writes a card with its proof
            write_card(folder.model_path)
    wait_for_all()
    return {**folder.facts(), "path": str(folder.path)}


def load(checkpoint: str, *, device: str | None = None, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Load a run, a Hugging Face folder or a Hub name; returns (model, tokenizer), the model in eval mode."""
    from llm_lab.hf.load import load_model, quiet_libraries
    from llm_lab.hf.tokenizers import load_tokenizer
    from llm_lab.runs.folder import find_checkpoint

    quiet_libraries()
    folder = find_checkpoint(checkpoint)
    machine = find_machine()
    device = device or machine.best_device
    if device == "cuda":
        require_cuda(machine, "Leave the device out to take what there is, or take cpu.")
    dtype = "bfloat16" if device == "cuda" else "float32"
    model = load_model(folder, device=device, dtype=dtype, trust_remote_code=trust_remote_code, key="checkpoint")
    return model, load_tokenizer(folder, trust_remote_code=trust_remote_code, key="checkpoint")
