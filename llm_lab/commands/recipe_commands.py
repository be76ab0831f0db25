"""The commands for recipes: run, check, xray, copy, replay."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from llm_lab.errors import DONE, INTERNAL_ERROR, STOPPED, Problem, UserError
from llm_lab.recipe.trust import trusting_recipes
from llm_lab.terminal.consent import with_consent
from llm_lab.terminal.console import print_text
from llm_lab.terminal.progress import show_progress

from .documents import Document, plan_document, xray_document


def run_recipe(arguments: argparse.Namespace) -> int | Document:
    """Run a recipe: show the plan, run it, show the results."""
    from llm_lab.runs.processes import planning_for

    if arguments.nproc is not None and "WORLD_SIZE" not in os.environ:
        if arguments.nproc < 1:
            raise UserError(Problem("--nproc", "there must be at least one process", value=arguments.nproc))
        with planning_for(arguments.nproc):
            return _run_in_processes(arguments) if not arguments.dry_run else _run(arguments)
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> int | Document:
    from llm_lab.job import check
    from llm_lab.runner import Start

    job = check(arguments.recipe, arguments.overrides)
    start = Start(arguments.resume, arguments.resume_from, arguments.overwrite)
    if arguments.dry_run and arguments.json:
        return plan_document(_what_is_planned(job, start), overwrite=start.overwrite)
    if arguments.dry_run:
        return _dry_run(job, start)
    with trusting_recipes(arguments.trust_recipe):
        if arguments.json:
            facts = _run_to_end(job, start)
            return Document(facts, _exit_code(facts))
        return start_job(job, start)


def start_run(
    recipe: Any,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    show_plan: bool = True,
) -> int:
    """Run a recipe as `llm-lab run` does. show_plan: False if it was shown before."""
    from llm_lab.job import check
    from llm_lab.runner import Start

    return start_job(check(recipe, overrides), Start(resume, overwrite=overwrite), show_plan=show_plan)


def start_job(job: Any, start: Any, *, show_plan: bool = True) -> int:
    """Show the plan of a job, run it, show the results; returns the exit code."""
    return _show_results(_run_to_end(job, start, show_plan=show_plan), in_wizard=not show_plan)


def _run_to_end(job: Any, start: Any, *, show_plan: bool = True) -> dict[str, Any]:
    from llm_lab.runner import require_trusted, run_job

    with_consent(lambda: require_trusted(job))
    job = _show_plan(job, start) if show_plan else job

    def run() -> dict[str, Any]:
        with show_progress() as listener:
            return run_job(job, start, listener=listener)

    return with_consent(run)


def _show_plan(job: Any, start: Any) -> Any:
    """Show the plan of a job and return the job; for a resumed one, with estimates for the remaining steps."""
    from llm_lab.runner import what_is_left
    from llm_lab.runs.processes import is_first_process
    from llm_lab.terminal.console import print_waiting
    from llm_lab.terminal.plan_panel import print_plan

    if not is_first_process():
        return job
    job = what_is_left(job, start.resume_from) if start.resumes else job
    for resolved in job.stages:
        print_plan(resolved, job.folder_of(resolved, overwrite=start.overwrite))
    print_waiting("Preparing ...")
    return job


def _show_results(facts: Mapping[str, Any], *, in_wizard: bool = False) -> int:
    """Show the results of a run; returns the exit code."""
    from llm_lab.runs.processes import is_first_process
    from llm_lab.terminal.results_view import print_closing

    if is_first_process():
        print_closing(facts, in_wizard=in_wizard)
    return _exit_code(facts)


def _exit_code(facts: Mapping[str, Any]) -> int:
    return {"stopped": STOPPED, "failed": INTERNAL_ERROR}.get(facts["status"], DONE)


def _run_in_processes(arguments: argparse.Namespace) -> int:
    from llm_lab.job import check
    from llm_lab.recipe.resolve import require_device
    from llm_lab.runner import require_trusted
    from llm_lab.runs.processes import start_processes

    job = check(arguments.recipe, arguments.overrides)  # report problems once, not once per process
    for resolved in job.stages:
        require_device(resolved)
    with trusting_recipes(arguments.trust_recipe):
        with_consent(lambda: require_trusted(job))
    words = [sys.executable, "-m", "llm_lab.cli", "run", arguments.recipe, *arguments.overrides]
    words += [flag for flag in ("--resume", "--overwrite") if getattr(arguments, flag[2:])]
    words += ["--json"] if arguments.json else []
    words += ["--trust-recipe"] if job.is_found else []  # the code that it names has been allowed
    words += ["--resume-from", str(arguments.resume_from)] if arguments.resume_from is not None else []
    return start_processes(words, arguments.nproc)


def _dry_run(job: Any, start: Any) -> int:
    """Show the plan of a job, or of the rest of a resumed one. MachineError if this machine can't run it."""
    from llm_lab.recipe.resolve import require_device
    from llm_lab.terminal.plan_panel import print_plan

    job = _what_is_planned(job, start)
    for text in job.dropped:
        print_text(f"{text}.")
    for resolved in job.stages:
        print_plan(resolved, job.folder_of(resolved, overwrite=start.overwrite))
    for resolved in job.stages:
        require_device(resolved)
    return DONE


def _what_is_planned(job: Any, start: Any) -> Any:
    from llm_lab.runner import what_is_left

    return what_is_left(job, start.resume_from, with_files=True) if start.resumes else job


def check_recipe(arguments: argparse.Namespace) -> int | Document:
    """Report every problem of a recipe."""
    from llm_lab.job import check
    from llm_lab.terminal.plan_panel import print_checked

    job = check(arguments.recipe, arguments.overrides)
    if arguments.json:
        return plan_document(job)
    print_checked([(resolved, job.folder_of(resolved)) for resolved in job.stages], list(job.remarks))
    return DONE


def xray_recipe(arguments: argparse.Namespace) -> int | Document:
    """Show a recipe's data as tokens, trained and masked."""
    from llm_lab.job import check
    from llm_lab.terminal.console import print_waiting
    from llm_lab.terminal.xray_view import print_xray

    job = check(arguments.recipe, arguments.overrides)
    print_waiting("Reading the data ...")
    from llm_lab.evaluation.xray import xray_stages
    from llm_lab.hf.load import quiet_libraries

    quiet_libraries()
    found = xray_stages([resolved.recipe for resolved in job.stages], examples=arguments.examples)
    if arguments.json:
        return xray_document(found)
    print_xray(found)
    return DONE


def copy_recipe(arguments: argparse.Namespace) -> int:
    """Copy a recipe to a new file."""
    from llm_lab.job import find_recipe

    source, target = find_recipe(arguments.recipe), arguments.file
    if source.is_dir():
        source /= "recipe.yaml"
    if not source.is_file():
        raise UserError(Problem(str(source), "there is no such recipe", fix="llm-lab list recipes lists them."))
    if target.is_dir():
        target /= source.name
    if target.exists():
        raise UserError(Problem(str(target), "the file already exists", fix="Choose another name."))
    if not target.parent.is_dir():
        raise UserError(Problem(str(target.parent), "there is no such folder"))
    shutil.copyfile(source, target)
    print_text(f"{source} -> {target}\nEdit it, then: llm-lab run {shlex.quote(str(target))}")
    return DONE


def replay(arguments: argparse.Namespace) -> int:
    """Retrain a checkpoint along its lineage."""
    with trusting_recipes(arguments.trust_recipe):
        return start_replay(
            arguments.checkpoint, name=arguments.name, stop_after_plan=arguments.dry_run, resume=arguments.resume
        )


def start_replay(
    checkpoint: str, *, name: str | None = None, stop_after_plan: bool = False, resume: bool = False
) -> int:
    """Write the recipe of a checkpoint's lineage, run it, and compare the results with the original."""
    from llm_lab.hf.adapter import weights_digest
    from llm_lab.hf.hub import current_files
    from llm_lab.job import check
    from llm_lab.runner import Start, require_trusted
    from llm_lab.runs.folder import runs_named
    from llm_lab.runs.replay import compare, compose, write_outcome, write_recipe
    from llm_lab.runs.report import write_pipeline_report
    from llm_lab.terminal.console import print_waiting
    from llm_lab.terminal.replay_view import print_outcome, print_replay

    print_waiting(f"Reading the lineage of {checkpoint} ...")
    composed = compose(checkpoint, name=name, digest_of=weights_digest, files_of=current_files)
    job = dataclasses.replace(check(composed.recipe), is_found=True)
    with_consent(lambda: require_trusted(job))  # before the recipe is written, which would then count as the user's own
    from llm_lab.evaluation.self_eval import changed_data

    changed = [
        f"{run.path}: {change}"
        for resolved, run in zip(job.stages, composed.runs.values(), strict=True)
        for change in changed_data(resolved.recipe, run.facts())
    ]
    recipe = write_recipe(composed)
    print_replay(composed, recipe, changed)
    if stop_after_plan:
        return _dry_run(job, Start(resume))
    code = start_job(job, Start(resume))
    if code == DONE:
        outer = runs_named(composed.recipe["name"])[-1]
        outcomes = compare(composed, outer, digest_of=weights_digest)
        write_outcome(composed, outer, outcomes)
        write_pipeline_report(outer)
        print_outcome(composed, outer.path, outcomes)
    return code
