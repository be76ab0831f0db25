"""Run a job: create or resume its run folder, run its stages, and write run.json, the report and the model card."""

from __future__ import annotations

import importlib
import platform
import statistics
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from llm_lab.errors import FULL_DISK, LabError, MachineError, Problem, UserError
from llm_lab.estimate.machine import find_machine
from llm_lab.estimate.measurements import Measurement, keep_measurement
from llm_lab.events import Event, Listener, Notice, RunWarning, ScoresReported, ignore
from llm_lab.job import Job, as_started, check, different_keys, error_within_stage, move
from llm_lab.recipe.export import ExportRecipe
from llm_lab.recipe.files import read_recipe_file
from llm_lab.recipe.registry import named_in
from llm_lab.recipe.resolve import Resolved, estimate_again, require_cuda, require_device
from llm_lab.recipe.trust import allow, require_allowed
from llm_lab.runs.describe import installed
from llm_lab.runs.disk import remove_folder
from llm_lab.runs.folder import ROOT, RunFolder, create_run, now, require_no_links, runs_named, unstarted_runs
from llm_lab.runs.lock import in_progress, this_process
from llm_lab.runs.processes import (
    any_process,
    connected,
    from_first_process,
    is_first_process,
    process_count,
    using_threads,
    wait_for_all,
)
from llm_lab.runs.recipe_paths import with_paths_of
from llm_lab.runs.report import collect_scores, write_pipeline_report
from llm_lab.runs.resume import (
    MANIFESTS_FROM,
    after_a_full_disk,
    batch_of,
    batch_to_resume,
    require_checkpoint,
    require_resume_point,
    require_same_beginning,
    set_aside_after,
    what_is_saved,
    with_batch,
)

STOP_REQUESTED = "stop_requested"  # in the facts that a run returns, not in run.json: see Result
MIN_STEPS_TO_MEASURE = 100  # in shorter runs the speed is not reliable
PACKAGES = ("llm-lab", "torch", "transformers", "trl", "peft", "datasets", "accelerate", "tokenizers")


@dataclass(frozen=True)
class Start:
    """How a run starts: new, resumed, or replacing the run with its name.

    resume_from: resume from the checkpoint of this step instead of the newest one; 0 is the start.
    """

    resume: bool = False
    resume_from: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.resumes and self.overwrite:
            raise UserError(Problem("overwrite", "a run is either resumed or replaced", fix="Leave out one of them."))

    @property
    def resumes(self) -> bool:
        """Whether a run is resumed."""
        return self.resume or self.resume_from is not None


NEW = Start()


def run(
    recipe: str | Path | Mapping[str, Any],
    overrides: Iterable[str] = (),
    *,
    resume: bool = False,
    resume_from: int | None = None,
    overwrite: bool = False,
    listener: Listener = ignore,
    root: Path = ROOT,
) -> dict[str, Any]:
    """Run a recipe to its end; returns the facts of the run (its run.json, with "path").

    resume_from: resume from the checkpoint of this step instead of the newest one; 0 is the start. root: the folder in
    which the run folder is created. Raises UserError or MachineError, before anything is written, if the recipe, the
    data or the machine is unsuitable.
    """
    job = check(recipe, overrides)
    return run_job(job, Start(resume, resume_from, overwrite), listener=listener, root=root)


def run_job(job: Job, start: Start = NEW, *, listener: Listener = ignore, root: Path = ROOT) -> dict[str, Any]:
    """Run a checked job to its end; returns the facts of the run, as `run` does.

    Raises UntrustedCode if the recipe was found in a run's folder and names code that the user has not allowed.
    """
    for resolved in job.stages:
        require_device(resolved)
    require_trusted(job)
    for text in job.dropped:
        listener(Notice(text))
    if job.is_pipeline:
        _require_repositories(job)
    with connected(job.stages[0].values["device"]):
        folder = _open_folder(job, start, root)
        with _held(folder), _naming_a_full_disk(folder):
            resume = from_first_process(folder.has_started()) if start.resumes else False
            try:
                return _run_held(job, folder, listener, resume=resume, resume_from=start.resume_from)
            except KeyboardInterrupt:
                if is_first_process() and not start.resumes and not folder.has_started():
                    remove_folder(folder.path)  # so that its name is free again
                raise


def run_job_in(job: Job, path: Path, *, listener: Listener = ignore) -> dict[str, Any]:
    """Run a checked job in a given folder: start it there, resume it, or do nothing if it is done.

    A failure is recorded in the folder. Raises UserError if the run in the folder has another recipe, or another
    process works in it. Not for several processes.
    """
    for resolved in job.stages:
        require_device(resolved)
    require_trusted(job)
    folder = RunFolder(path)
    path.mkdir(parents=True, exist_ok=True)
    with folder.hold(), _naming_a_full_disk(folder):
        resume = folder.has_started()
        if resume:
            _require_same_recipe(job, folder, "Choose another name, or delete the folder.")
        if folder.facts().get("status") == "done":
            return {**folder.facts(), "path": str(path)}
        try:
            return _run_held(job, folder, listener, resume=resume)
        except Exception as error:
            if not folder.has_started():  # nothing was trained, so the run's files were removed
                first = {"name": path.name, "asked_name": job.name, "created_at": now()}
                folder.update(**first, ended_at=now(), **_how_it_ended(error))
            raise


def _run_held(
    job: Job, folder: RunFolder, listener: Listener, *, resume: bool, resume_from: int | None = None
) -> dict[str, Any]:
    """Run a job in a folder that this process has locked."""
    if resume and is_first_process():
        _find_resume_point(job, folder, resume_from, listener)
    if job.is_pipeline:
        job = as_started(job, folder.recipe_path) if resume else job
        return _run_pipeline(job, folder, listener, resume=resume)
    return _run_stage(job.stages[0], folder, listener, resume=resume)


def _held(folder: RunFolder) -> AbstractContextManager[None]:
    return folder.hold() if is_first_process() else nullcontext()


@contextmanager
def _naming_a_full_disk(folder: RunFolder) -> Iterator[None]:
    """Turn the system's report of a full disk into an error that says how to continue."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        fix = after_a_full_disk(folder)
        raise MachineError(Problem(str(error.filename or folder.path), "the disk is full", fix=fix)) from error


def require_trusted(job: Job) -> None:
    """Allow the code of a recipe that the user gave; raise UntrustedCode for one from a run's folder."""
    if not job.is_found:
        allow(job.code())
    require_allowed(job.code())


def _require_repositories(job: Job) -> None:
    """Check Hub write access before training."""
    for resolved in job.stages:
        if isinstance(resolved.recipe, ExportRecipe) and resolved.recipe.export.push and is_first_process():
            from llm_lab.export.push import find_destination

            find_destination(resolved.recipe.export.push, private=resolved.recipe.export.private)


def _open_folder(job: Job, start: Start, root: Path) -> RunFolder:
    """Return a new run folder, or the one to resume; all processes use the first process's folder."""
    path = None
    if is_first_process():
        new = not start.resumes
        folder = create_run(job.name, root=root, overwrite=start.overwrite) if new else _folder_to_resume(job, root)
        path = folder.path
    return RunFolder(from_first_process(path))


def _folder_to_resume(job: Job, root: Path) -> RunFolder:
    """Return the run that a job resumes. Raises UserError if there is none, or its recipe is different."""
    if job.own_run:
        runs = [job.own_run]
    else:
        runs = [*runs_named(job.name, root=root), *unstarted_runs(job.name, root=root)]
        runs.sort(key=lambda run: run.facts().get("created_at") or run.path.stat().st_mtime)
    if not runs:
        raise UserError(Problem(str(root / job.name), "there is no run to resume", fix="Start it without --resume."))
    folder = runs[-1]
    require_no_links(folder.path)
    if not folder.has_started():
        return folder
    if folder.status() == "running":
        raise in_progress(folder.path, folder.facts().get("process", {}))
    if job.own_run:
        kept = read_recipe_file(folder.recipe_path).get("name")
        if kept is not None and job.name != kept:
            how = f"Leave name out. To rename the run: llm-lab mv {folder.path.name} {job.name}"
            raise UserError(Problem("name", "a resumed run keeps its name", value=job.name, allowed=kept, fix=how))
        fix = f"Restore it in {folder.recipe_path}, or start a new run without --resume."
    else:
        fix = f"Resume with `llm-lab run {folder.recipe_path} --resume`, or start a new run."
    _require_same_recipe(job, folder, fix)
    return folder


def _require_same_recipe(job: Job, folder: RunFolder, fix: str) -> None:
    """Raise UserError with every key that has another value in the recipe of a run."""
    before = with_paths_of(folder.facts().get("recipe") or read_recipe_file(folder.recipe_path), folder.path)
    different = different_keys(job, before)
    problems = [
        Problem(key, f"the run in {folder.path} started with {then}", value=wanted) for key, then, wanted in different
    ]
    if job.own_run and {key for key, _, _ in different} <= job.keys("override"):
        fix = "Leave it out, or start a new run without --resume."
    if problems:
        raise UserError(*problems[:-1], replace(problems[-1], fix=fix))


def _interrupted_stage(job: Job, folder: RunFolder) -> RunFolder | None:
    """Return the folder of the stage that a resumed run continues; None if every stage of a pipeline is done."""
    if not job.is_pipeline:
        return folder
    stages = (RunFolder(folder.path / resolved.values["name"]) for resolved in job.stages)
    return next((stage for stage in stages if stage.facts().get("status") != "done"), None)


def _find_resume_point(job: Job, folder: RunFolder, resume_from: int | None, listener: Listener) -> None:
    """Check the checkpoint to resume from, and set aside what was saved after it. Raises UserError if it is damaged."""
    stage = _interrupted_stage(job, folder)
    if stage is None:
        return
    step, remarks = _check_resume_point(stage, resume_from)
    if damage := stage.damage():
        remarks.append(
            f"{stage.run_json} can't be read ({damage}). It is kept as run.json.broken; whether data or models have "
            "changed since the run began can't be checked"
        )
    if broken := stage.broken_metrics():
        remarks.append(f"{stage.metrics_path}: dropped the lines that can't be read: {', '.join(map(str, broken))}")
    aside = set_aside_after(stage, step)
    if aside:
        remarks.append(f"set aside, and not needed by the run any more: {', '.join(map(str, aside))}")
    for remark in remarks:
        listener(Notice(remark))


def _check_resume_point(stage: RunFolder, resume_from: int | None) -> tuple[int, list[str]]:
    from llm_lab.hf.hub import current_files

    require_same_beginning(stage, files_of=current_files)
    return require_resume_point(stage, resume_from)


def what_is_left(job: Job, resume_from: int | None = None, *, with_files: bool = False) -> Job:
    """Return the job with the folder of a resumed run, and estimates for the rest of it.

    with_files: also check every file of the checkpoint, and that the inputs are the same, as the run itself does.
    Raises UserError if the run can't be resumed.
    """
    folder = _folder_to_resume(job, ROOT)
    interrupted = _interrupted_stage(job, folder)
    if interrupted and folder.has_started():
        if with_files:
            _check_resume_point(interrupted, resume_from)
        require_checkpoint(interrupted, resume_from)
    stages = []
    for resolved in job.stages:
        own = RunFolder(folder.path / resolved.values["name"]) if job.is_pipeline else folder
        step = max((step for step, _ in own.checkpoints()), default=0)
        if resume_from is not None and own == interrupted:
            step = resume_from
        if step and resolved.stage.trains:
            batch, _ = batch_to_resume(own, batch_of(resolved.recipe))
            shared = replace(resolved, recipe=with_batch(resolved.recipe, batch)) if batch else resolved
            again = estimate_again(shared, first_step=step, own=_measured_before(shared, own))
            resolved = replace(resolved, estimate=again.estimate)
        elif step:
            resolved = estimate_again(resolved, first_step=step)
        stages.append(resolved)
    return replace(job, stages=tuple(stages), resumed=folder.path)


def _run_pipeline(job: Job, outer: RunFolder, listener: Listener, *, resume: bool) -> dict[str, Any]:
    names = [resolved.values["name"] for resolved in job.stages]
    first = is_first_process()
    if first:
        outer.delete_temporary()
    if first and not resume:
        outer.write_recipe(job.to_yaml(outer.path.name))
    if first:
        begin = {"name": outer.path.name, "asked_name": job.name, "created_at": now(), "stages": names}
        begin |= {"recipe": job.values(outer.path.name)} | outer.facts()
        outer.update(**{**begin, "status": "running", "process": this_process(), "error": None})
    facts: dict[str, Any] = {}
    try:
        for index, resolved in enumerate(job.stages):
            folder = RunFolder(outer.path / resolved.values["name"])
            facts = folder.facts()
            if facts.get("status") == "done":
                if first and resume:
                    folder.delete_temporary()
                    _write_report_and_card(folder)
                continue
            folder.path.mkdir(exist_ok=True)
            moved = move(resolved, job.home, outer.path)
            try:
                with _held(folder):
                    facts = _run_stage(moved, folder, listener, resume=resume)
            except LabError as error:
                raise error_within_stage(index, moved, error) from error
            if facts[STOP_REQUESTED] and index + 1 < len(names):
                facts["status"] = "stopped"  # Ctrl-C came in the last step of a stage
            if facts["status"] != "done":
                break
    except BaseException as error:
        if first and isinstance(error, LabError) and not any((outer.path / name).exists() for name in names):
            remove_folder(outer.path)
        elif first:
            with suppress(OSError):  # a full disk may have ended the run
                outer.update(ended_at=now(), **_how_it_ended(error))
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


def _run_stage(resolved: Resolved, folder: RunFolder, listener: Listener, *, resume: bool) -> dict[str, Any]:
    if resolved.values["device"] != "cpu" or not resolved.stage.trains:
        return _run_stage_here(resolved, folder, listener, resume=resume)
    before = folder.facts().get("threads") if resume else None
    with using_threads(resolved.values["train"].get("threads"), before, listener):
        return _run_stage_here(resolved, folder, listener, resume=resume)


def _run_stage_here(resolved: Resolved, folder: RunFolder, listener: Listener, *, resume: bool) -> dict[str, Any]:
    from llm_lab.runs.processes import peak_memory_bytes, reset_peak_memory
    from llm_lab.runs.report import write_report

    module = importlib.import_module(resolved.stage.module_name)
    device = resolved.values["device"]
    first = is_first_process()
    was_there = resume
    if first:
        folder.delete_temporary()
    # A run that was killed before it saved anything starts from the beginning.
    resume = from_first_process(resume and folder.has_started() and folder.has_progress())
    if first and not resume:
        header = (f"The full recipe of {folder.path}; run it again with:", f"llm-lab run {folder.recipe_path}")
        folder.write_recipe(_named(resolved, folder).to_yaml(header))
        folder.update(**_first_facts(resolved, folder))
    elif first:
        known, step = folder.facts(), max((step for step, _ in folder.checkpoints()), default=0)
        again = {"status": "running", "process": this_process(), "resumed_at": [*known.get("resumed_at", []), now()]}
        # Older versions recorded fewer facts, and a damaged run.json starts empty.
        first_facts = _first_facts(resolved, folder)
        again["peak_flops"] = first_facts["peak_flops"]  # over all processes: hardware and number may have changed
        folder.update(**{**first_facts, MANIFESTS_FROM: step + 1, **known, **again})
        if resolved.stage.trains:
            folder.forget_after(step)
            folder.keep_results(step)
            with suppress(OSError):
                write_report(folder)
    try:
        if not resume:
            from llm_lab.training.calibrate import calibrate

            resolved = calibrate(resolved, listener)
        if first:
            folder.update(**{**_facts_at_start(resolved), **(folder.facts() if resume else {})})
        reset_peak_memory(device)
        with _record_warnings(folder, listener) as recorder:
            result = _run_or_roll_back(module, resolved, folder, recorder, resume=resume)
        before = folder.facts().get("results", {}).get("memory_bytes", 0)  # from before the run was resumed
        results = {**result.results, "memory_bytes": max(before, peak_memory_bytes(device))}
    except BaseException as error:
        if first and isinstance(error, LabError) and not (was_there or folder.has_progress()):
            remove_folder(folder.path)  # nothing was trained or exported: leave nothing half-finished behind
        elif first:
            with suppress(OSError):  # a full disk may have ended the run
                folder.update(ended_at=now(), **_how_it_ended(error))
                write_report(folder)
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(what_is_saved(folder)) from None
        raise
    if first:
        folder.update(status=result.status, ended_at=now(), results=results, error=None)
        if result.status == "done":
            _keep_speed(resolved, folder, results)
        _write_report_and_card(folder)
    wait_for_all()
    return {**folder.facts(), "path": str(folder.path), STOP_REQUESTED: any_process(result.stop_requested)}


def _run_or_roll_back(module: Any, resolved: Resolved, folder: RunFolder, listener: Listener, *, resume: bool) -> Any:
    """Run a stage; resume it with a smaller learning rate if it diverges, or smaller batches if memory runs out."""
    if not resolved.stage.trains:
        return module.run(resolved.recipe, folder, listener, resume=resume)
    from llm_lab.training.out_of_memory import OutOfMemory, halve_batch, with_remembered_batch
    from llm_lab.training.seat_belts import ROLL_BACK, Diverged, roll_back

    recipe = with_remembered_batch(resolved.recipe, folder, listener) if resume else resolved.recipe
    while True:
        full = None
        try:
            return module.run(recipe, folder, listener, resume=resume)
        except Diverged as error:
            allowed = resolved.values["train"].get("on_divergence") == ROLL_BACK
            if not (allowed and roll_back(folder, error, listener)):
                raise
        except OutOfMemory as error:
            full = OutOfMemory(error.step, in_update=error.in_update)  # without frames: they hold the model
        if full:
            recipe = halve_batch(recipe, resolved, folder, full, listener)
        resume = True


def _write_report_and_card(folder: RunFolder) -> None:
    """Write report.md and the model's card, unless they are newer than the facts in them."""
    from llm_lab.runs.card import write_card
    from llm_lab.runs.card_answers import read_answers
    from llm_lab.runs.report import write_report

    with suppress(FileNotFoundError):
        if folder.report_path.stat().st_mtime_ns > folder.run_json.stat().st_mtime_ns:
            return
    if folder.model_path.is_dir() and not folder.facts().get("proof"):  # an export writes its own card
        try:
            answers = read_answers(folder)
        except UserError as error:  # the run is done, and an error in its card must not make it fail
            answers = {}
            warning = f"The model card has no author and no license: {error}"
            folder.update(warnings=list(dict.fromkeys([*folder.facts().get("warnings", ()), warning])))
        write_card(folder.model_path, answers=answers)
    write_report(folder)


def load(
    checkpoint: str, *, device: str | None = None, dtype: str | None = None, trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """Load a run, a Hugging Face folder or a Hub name; returns (model, tokenizer), the model in eval mode.

    dtype: by default bfloat16 on CUDA, and float32 elsewhere.
    """
    from llm_lab.hf.load import load_model, quiet_libraries
    from llm_lab.hf.tokenizers import load_tokenizer
    from llm_lab.runs.folder import find_checkpoint

    quiet_libraries()
    folder = find_checkpoint(checkpoint)
    machine = find_machine()
    device = device or machine.best_device
    if device == "cuda":
        require_cuda(machine, "Leave the device out to use what is available, or use cpu.")
    dtype = dtype or ("bfloat16" if device == "cuda" else "float32")
    model = load_model(folder, device=device, dtype=dtype, trust_remote_code=trust_remote_code, key="checkpoint")
    return model, load_tokenizer(folder, trust_remote_code=trust_remote_code, key="checkpoint")


# --- run.json


@contextmanager
def _record_warnings(folder: RunFolder, listener: Listener) -> Iterator[Listener]:
    """Yield a listener that also writes each warning of a stage into run.json, after those from before a resume."""
    unwritten: list[str] = []

    def record() -> None:
        before = folder.facts().get("warnings", [])
        if first := [text for text in dict.fromkeys(unwritten) if text not in before]:
            folder.update(warnings=[*before, *first])
        unwritten.clear()

    def listen(event: Event) -> None:
        if isinstance(event, RunWarning) and is_first_process():
            unwritten.append(event.text)
            with suppress(OSError):  # a full disk; retried with the next warning, and at the end
                record()
        listener(event)

    try:
        yield listen
    finally:
        with suppress(OSError):
            record()


def _how_it_ended(error: BaseException) -> dict[str, str | None]:
    """Return status and error of a run that an exception has ended."""
    if isinstance(error, KeyboardInterrupt):
        return {"status": "stopped", "error": None}
    return {"status": "failed", "error": f"{type(error).__name__}: {str(error)[:500]}"}


def _named(resolved: Resolved, folder: RunFolder) -> Resolved:
    """Return a stage with the name of its folder."""
    return replace(resolved, values={**resolved.values, "name": folder.path.name})


def _first_facts(resolved: Resolved, folder: RunFolder) -> dict[str, Any]:
    """Return the contents of run.json before the run starts."""
    estimate, machine = resolved.estimate, resolved.machine
    device = resolved.values["device"]
    gpu = machine.gpus[0] if device == "cuda" and machine.gpus else None
    return {
        "name": folder.path.name,
        "asked_name": resolved.values["name"],
        "stage": resolved.stage.name,
        "status": "running",
        "created_at": now(),
        "process": this_process(),
        "recipe": dict(_named(resolved, folder).values),
        "seed": resolved.recipe.seed,
        "processes": process_count(),
        MANIFESTS_FROM: 0,
        "device": device,
        "machine": machine.describe(),
        "model": _describe_model(resolved.values.get("model")),
        "peak_flops": gpu.bf16_peak_flops * process_count() if gpu and gpu.bf16_peak_flops else None,
        "parameters": estimate.parameters,
        "flops_per_token": estimate.flops_per_token,
        "predicted": _predicted(resolved),
        "versions": {"python": platform.python_version(), **installed(PACKAGES)},
    }


def _facts_at_start(resolved: Resolved) -> dict[str, Any]:
    """Return the facts known when a stage starts: its estimate, and the other models and files that it uses."""
    import torch

    facts: dict[str, Any] = {"predicted": _predicted(resolved)}
    if references := _references(resolved.values):
        facts["references"] = references
    if resolved.values["device"] == "cpu":
        facts["threads"] = torch.get_num_threads()  # sums are rounded differently with a different number of threads
    return facts


def _references(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the models and files that a stage uses in addition to its data and its model, with their digests."""
    from llm_lab.hf.hub import current_files
    from llm_lab.runs.lineage import file_digest, files_of, references_of
    from llm_lab.training.loop import describe_parent, find_local

    found = {key: describe_parent(find_local(name)) for key, name in references_of(values)}
    for facts in found.values():
        if not Path(facts["path"]).exists():  # the newest revision is downloaded later
            facts.pop("revision", None)
            facts["files"] = current_files(facts["path"])
    found |= {key: describe_parent(name) for key, name in named_in(values, "tokenizer") if Path(name).is_dir()}
    return found | {key: {"path": path, "digest": file_digest(path)} for key, path in files_of(values)}


def _predicted(resolved: Resolved) -> dict[str, Any]:
    """Return the estimate of a run, to compare with the actual cost."""
    cost = resolved.estimate
    return {
        "wall_seconds": cost.wall_seconds,
        "memory_bytes": cost.memory_bytes,
        "seconds_by_part": cost.seconds_by_part,
        "basis": cost.basis,
    }


def _keep_speed(resolved: Resolved, folder: RunFolder, results: Mapping[str, Any]) -> None:
    """Keep the speed of this run for estimates with the same settings."""
    seconds = _step_seconds(resolved, folder)
    if not resolved.estimate.seconds_by_part or seconds is None or results["step"] < MIN_STEPS_TO_MEASURE:
        return
    measurement = Measurement("run", seconds, memory_bytes=results["memory_bytes"])
    keep_measurement(measurement, resolved.recipe.model_dump(by_alias=True), resolved.shape, resolved.machine)


def _measured_before(resolved: Resolved, folder: RunFolder) -> Measurement | None:
    """Return what a run measured before it was resumed on the same machine, or None."""
    facts, machine = folder.facts(), resolved.machine
    here = (resolved.values["device"], machine.describe(), machine.processes)
    if (facts.get("device"), facts.get("machine"), facts.get("processes")) != here:
        return None
    seconds = _step_seconds(resolved, folder)
    return None if seconds is None else Measurement("this run", seconds)


def _step_seconds(resolved: Resolved, folder: RunFolder) -> float | None:
    """Return how long a step of a run took, without the first one, in which a model compiles; None without others."""
    rows = folder.metrics()
    if resolved.stage.examples == "text":
        speeds = [row["tokens_per_second"] for row in rows if row.get("tokens_per_second", 0) > 0 and row["step"] > 1]
        return resolved.estimate.tokens_per_step / statistics.harmonic_mean(speeds) if speeds else None
    # The mean over all steps: rows differ in length, and some steps generate no new outputs.
    trained = [(one, row) for one, row in pairwise(rows) if "loss" in one and "loss" in row and "wall_seconds" in row]
    steps = sum(row["step"] - one["step"] for one, row in trained)
    return sum(row["wall_seconds"] - one["wall_seconds"] for one, row in trained) / steps if steps else None


def _describe_model(model: Any) -> str:
    """Return the model in a few words: its parts, or where it comes from."""
    if not isinstance(model, Mapping):
        return ""
    parts = [model.get(key) for key in ("position_embedding", "norm", "attention", "activation")]
    return str(model.get("config") or model.get("checkpoint") or " · ".join(map(str, parts)))
