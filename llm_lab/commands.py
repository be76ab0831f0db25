"""What each command does. cli.py parses the arguments; heavy modules are imported only where they are used."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from llm_lab.errors import DONE, INTERNAL_ERROR, STOPPED, Problem, UserError
from llm_lab.events import Notice
from llm_lab.recipe.trust import allow, trusting_recipes
from llm_lab.terminal.consent import with_consent
from llm_lab.terminal.console import print_text
from llm_lab.terminal.progress import show_progress


def open_wizard(arguments: argparse.Namespace) -> int:
    """Open the wizard. UserError without a terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        fix = "Without a terminal: llm-lab run RECIPE [key=value ...]."
        raise UserError(Problem("llm-lab", "the wizard requires a terminal", fix=fix))
    from llm_lab.terminal.driver import run_wizard

    return run_wizard(wizard_commands(), debug=arguments.debug)


def wizard_commands() -> Any:
    """Return the commands that the wizard runs."""
    from llm_lab.study_commands import plan_and_start_sweep, start_look, start_study
    from llm_lab.terminal.driver import Commands

    return Commands(
        start=start_run,
        chat=start_chat,
        show=print_show,
        compare=start_compare,
        replay=start_replay,
        doctor=print_doctor,
        study=start_study,
        look=start_look,
        sweep=plan_and_start_sweep,
    )


def serve_web(arguments: argparse.Namespace) -> int:
    """Serve the web page until Ctrl-C."""
    from llm_lab.web.server import serve

    return serve(arguments.port, say=print_text)


# --- recipes


def run_recipe(arguments: argparse.Namespace) -> int:
    """Run a recipe: show the plan, run it, show the results."""
    from llm_lab.job import check
    from llm_lab.runner import Start

    if arguments.nproc is not None and "WORLD_SIZE" not in os.environ:
        return _run_in_processes(arguments)
    job = check(arguments.recipe, arguments.overrides)
    start = Start(arguments.resume, arguments.resume_from, arguments.overwrite)
    if arguments.dry_run:
        return _dry_run(job, start)
    with trusting_recipes(arguments.trust_recipe):
        return _start(job, start)


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

    return _start(check(recipe, overrides), Start(resume, overwrite=overwrite), show_plan=show_plan)


def _start(job: Any, start: Any, *, show_plan: bool = True) -> int:
    from llm_lab.runner import require_trusted, run_job

    with_consent(lambda: require_trusted(job))
    job = _show_plan(job, start) if show_plan else job

    def run() -> dict[str, Any]:
        with show_progress() as listener:
            return run_job(job, start, listener=listener)

    return _show_results(with_consent(run))


def _show_plan(job: Any, start: Any) -> Any:
    """Show the plan of a job and return the job; of a resumed one, with estimates of what is left."""
    from llm_lab.runner import what_is_left
    from llm_lab.runs.processes import is_first_process
    from llm_lab.terminal.console import print_waiting
    from llm_lab.terminal.plan_panel import print_plan

    if not is_first_process():
        return job
    job = what_is_left(job, start.resume_from) if start.resumes else job
    for resolved in job.stages:
        print_plan(resolved, job.home, is_new=not (start.resumes or start.overwrite))
    print_waiting("Preparing ...")
    return job


def _show_results(facts: Mapping[str, Any]) -> int:
    """Show the results of a run; returns the exit code."""
    from llm_lab.runs.processes import is_first_process
    from llm_lab.terminal.results_view import print_closing

    if is_first_process():
        print_closing(facts)
    return {"stopped": STOPPED, "failed": INTERNAL_ERROR}.get(facts["status"], DONE)


def _run_in_processes(arguments: argparse.Namespace) -> int:
    from llm_lab.job import check
    from llm_lab.runner import require_trusted
    from llm_lab.runs.processes import start_processes

    if arguments.nproc < 1:
        raise UserError(Problem("--nproc", "the number of processes", value=arguments.nproc, allowed="1 or more"))
    job = check(arguments.recipe, arguments.overrides)  # report problems once, not once per process
    with trusting_recipes(arguments.trust_recipe):
        with_consent(lambda: require_trusted(job))
    words = [sys.executable, "-m", "llm_lab.cli", "run", arguments.recipe, *arguments.overrides]
    words += [flag for flag in ("--resume", "--overwrite") if getattr(arguments, flag[2:])]
    words += ["--trust-recipe"] if job.is_found else []  # what it names is allowed now
    words += ["--resume-from", str(arguments.resume_from)] if arguments.resume_from is not None else []
    return start_processes(words, arguments.nproc)


def _dry_run(job: Any, start: Any) -> int:
    """Show the plan of a job, or of the rest of a resumed one. MachineError where this machine can't run it."""
    from llm_lab.recipe.resolve import require_device
    from llm_lab.runner import what_is_left
    from llm_lab.terminal.plan_panel import print_plan

    job = what_is_left(job, start.resume_from) if start.resumes else job
    for resolved in job.stages:
        print_plan(resolved, job.home)
    for resolved in job.stages:
        require_device(resolved)
    return DONE


def check_recipe(arguments: argparse.Namespace) -> int:
    """Report every problem of a recipe."""
    from llm_lab.job import check
    from llm_lab.terminal.plan_panel import print_checked

    job = check(arguments.recipe, arguments.overrides)
    print_checked(job.stages, list(job.remarks), job.home)
    return DONE


def xray_recipe(arguments: argparse.Namespace) -> int:
    """Show a recipe's data as tokens, trained and masked."""
    from llm_lab.job import check
    from llm_lab.terminal.console import print_waiting
    from llm_lab.terminal.xray_view import print_xray

    job = check(arguments.recipe, arguments.overrides)
    print_waiting("Reading the data ...")
    from llm_lab.evaluation.xray import xray_stages
    from llm_lab.hf.load import quiet_libraries

    quiet_libraries()
    print_xray(xray_stages([resolved.recipe for resolved in job.stages], examples=arguments.examples))
    return DONE


def list_things(arguments: argparse.Namespace) -> int:
    """List recipes, data, models, parts and runs."""
    from llm_lab.job import list_recipes
    from llm_lab.terminal.listing import print_listing

    print_listing(arguments.what, list_recipes())
    return DONE


def copy_recipe(arguments: argparse.Namespace) -> int:
    """Copy a recipe to a new file."""
    from llm_lab.job import find_recipe

    source, target = find_recipe(arguments.recipe), arguments.file
    if source.is_dir():
        source /= "recipe.yaml"
    if not source.is_file():
        raise UserError(Problem(str(source), "there is no such recipe", fix="`llm-lab list recipes` lists them."))
    if target.is_dir():
        target /= source.name
    if target.exists():
        raise UserError(Problem(str(target), "the file already exists", fix="Choose another name."))
    if not target.parent.is_dir():
        raise UserError(Problem(str(target.parent), "there is no such folder"))
    shutil.copyfile(source, target)
    print_text(f"{source} -> {target}\nEdit it, then: llm-lab run {target}")
    return DONE


def print_schema(arguments: argparse.Namespace) -> int:
    """Print the JSON Schema of recipes."""
    from llm_lab.recipe.registry import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))  # noqa: T201
    return DONE


# --- models


def show_checkpoint(arguments: argparse.Namespace) -> int:
    """Show what a checkpoint is and where it comes from."""
    return print_show(arguments.path)


def print_show(path: str) -> int:
    """Show what a checkpoint is, and its lineage; of a study or a sweep, its results."""
    from llm_lab.estimate.cached_models import cached_folder
    from llm_lab.runs.folder import ROOT, RunFolder

    for run in map(RunFolder, (Path(path), ROOT / path)):
        if run.facts().get("study"):
            from llm_lab.terminal.study_view import print_study

            print_study(run)
            return DONE
        if (run.path / "sweep.json").is_file():
            from llm_lab.terminal.sweep_screen import print_sweep

            print_sweep(run.path)
            return DONE
    from llm_lab.hf.adapter import weights_digest
    from llm_lab.runs.lineage import find_traced
    from llm_lab.terminal.listing import print_checkpoint

    found = find_traced(path)
    folder = found if Path(found).exists() else str(cached_folder(found) or found)
    print_checkpoint(path, folder, digest_of=weights_digest)
    return DONE


def chat(arguments: argparse.Namespace) -> int:
    """Chat with a model, or print one answer."""
    return start_chat(
        arguments.checkpoint,
        prompt=arguments.prompt,
        settings=_sampling_settings(arguments),
        device=arguments.device,
        trust_remote_code=arguments.trust_remote_code,
    )


def _sampling_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("max_new_tokens", "temperature", "seed")
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def start_chat(
    checkpoint: str,
    *,
    prompt: str | None = None,
    settings: dict[str, Any] | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> int:
    """Load a model and chat with it; with a prompt, answer once."""
    from llm_lab.terminal.console import print_waiting

    print_waiting(f"Loading {checkpoint} ...")
    from llm_lab.chat.session import ChatSession, ChatSettings
    from llm_lab.evaluation.side_by_side import SideBySide
    from llm_lab.runner import load
    from llm_lab.terminal.chat_screen import answer_once, run_chat

    chosen = ChatSettings(**(settings or {}))

    def open_session(name: str) -> ChatSession:
        # The user's yes is for the model that they named, not for those that the chat opens later.
        trusted = trust_remote_code and name == checkpoint
        model, tokenizer = load(name, device=device, trust_remote_code=trusted)
        return ChatSession(model, tokenizer, name=name, settings=chosen)

    session = open_session(checkpoint)
    if prompt is not None:
        answer_once(session, prompt)
    else:
        run_chat(session, load=open_session, side_by_side=SideBySide(open_session))
    return DONE


def evaluate(arguments: argparse.Namespace) -> int:
    """Evaluate a checkpoint and keep the results with it."""
    from llm_lab.job import check
    from llm_lab.recipe.resolve import require_device
    from llm_lab.terminal.console import print_waiting
    from llm_lab.terminal.results_view import print_evaluation

    job = check(_evaluation_recipe(arguments), arguments.overrides)
    recipe: Any = job.stages[0].recipe
    require_device(job.stages[0])
    print_waiting(f"Loading {arguments.checkpoint} ...")
    from llm_lab.stages.eval import evaluate

    def measure() -> dict[str, Any]:
        with show_progress() as listener:
            for remark in job.remarks:
                listener(Notice(remark))
            return evaluate(recipe, listener, trust_remote_code=arguments.trust_remote_code)

    allow(job.code())  # the user named it on the command line
    with trusting_recipes(arguments.trust_recipe):
        print_evaluation(with_consent(measure))
    return DONE


def _evaluation_recipe(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe that the arguments of `eval` describe."""
    from llm_lab.recipe.eval import EVAL
    from llm_lab.runs.folder import find_checkpoint

    others = [word for word in arguments.overrides if "=" not in word]
    if others:
        fix = f"To compare models: llm-lab compare {' '.join([arguments.checkpoint, *others])}"
        raise UserError(Problem("eval", "it evaluates one model at a time", value=others[0], fix=fix))
    if arguments.limit is not None and arguments.tasks is None:
        raise UserError(Problem("--limit", "requires --tasks", fix="Name the tasks: --tasks NAMES."))
    checkpoint = find_checkpoint(arguments.checkpoint)
    model = {"checkpoint": checkpoint}
    recipe: dict[str, Any] = {"stage": EVAL.name, "device": arguments.device or "auto", "model": model}
    if arguments.data:
        recipe["data"] = [{"path": path} for path in arguments.data]
    if arguments.prompts:
        recipe["score"] = {"path": arguments.prompts}
    if arguments.tasks is not None:
        names = [name.strip() for name in arguments.tasks.split(",") if name.strip()]
        recipe["tasks"] = {"names": names, "limit": arguments.limit}
    return recipe


def compare_models(arguments: argparse.Namespace) -> int:
    """Compare models side by side."""
    return start_compare(
        arguments.checkpoints,
        prompts=arguments.prompt or (),
        prompt_set=arguments.prompts,
        data=arguments.data or (),
        steps=arguments.steps,
        adapter_off=arguments.adapter_off,
        settings=_sampling_settings(arguments),
        device=arguments.device,
        trust_remote_code=arguments.trust_remote_code,
        trust_code_of=arguments.trust_code_of,
        out=arguments.out,
    )


def start_compare(
    names: Sequence[str],
    *,
    settings: Mapping[str, Any] | None = None,
    device: str | None = None,
    out: Path | None = None,
    **options: Any,
) -> int:
    """Compare checkpoints, show the result, and write it to `out`. options: as for evaluation.compare.compare."""
    from llm_lab.runs.comparison import require_writable, write_comparison
    from llm_lab.terminal.console import print_waiting

    if out is not None:
        require_writable(out)
    print_waiting("Preparing ...")
    from llm_lab.evaluation.compare import SETTINGS, compare
    from llm_lab.runner import load
    from llm_lab.terminal.compare_screen import print_comparison

    with show_progress() as listener:
        found = compare(
            names,
            load=partial(load, device=device),
            settings=dataclasses.replace(SETTINGS, **(settings or {})),
            listener=listener,
            **options,
        )
    print_comparison(found)
    if out is not None:
        write_comparison(out, found)
        print_text(f"Saved: {out}")
    return DONE


def merge(arguments: argparse.Namespace) -> int:
    """Merge an adapter into its base, as a run or into a folder."""
    if arguments.out is None:
        from llm_lab.recipe.merge import MERGE
        from llm_lab.runs.folder import find_model

        folder = find_model(arguments.adapter)
        recipe = {
            "stage": MERGE.name,
            "name": f"{_name_from(folder)}-merged",
            "device": "auto",
            "model": {"checkpoint": str(folder)},
            MERGE.name: {"tolerance": arguments.tolerance},
        }
        return start_run(recipe)
    from llm_lab.terminal.console import print_waiting

    print_waiting(f"Loading {arguments.adapter} ...")
    from llm_lab.stages.merge import merge_into

    with show_progress() as listener:
        merge_into(arguments.adapter, arguments.out, listener, tolerance=arguments.tolerance)
    print_text(f"The merged model: {arguments.out}/\nChat with it: llm-lab chat {arguments.out}")
    return DONE


def _name_from(folder: Path) -> str:
    """Return a name for what is made from a model: the names of the runs that it is in, or of its folder."""
    from llm_lab.runs.folder import RunFolder, slug

    parents = [folder, *folder.resolve().parents]
    runs = [parent.name for parent in parents[:4] if RunFolder(parent).facts()]
    name = "-".join(reversed(runs)) or folder.resolve().name
    return slug(name)


def export(arguments: argparse.Namespace) -> int:
    """Export a checkpoint, verify it, and push it to the Hub if that is wanted."""
    from llm_lab.job import check
    from llm_lab.runner import Start

    if arguments.out is None and arguments.trust_remote_code and not arguments.dry_run:
        why = "a recipe can't allow code that comes with a model"
        raise UserError(Problem("--trust-remote-code", why, fix="Name a folder to write with --out."))
    job = check(_export_recipe(arguments), arguments.overrides)
    recipe: Any = job.stages[0].recipe
    if arguments.dry_run:
        return _preview_export(recipe, arguments)
    if arguments.out is None:
        return _start(job, Start(resume=_push_is_pending(job)))
    if recipe.export.push:
        why = "--push writes a run in checkpoints/, so that it can be resumed"
        raise UserError(Problem("--out", why, value=arguments.out, fix="Leave out --out or --push."))
    from llm_lab.terminal.console import print_waiting

    print_waiting(f"Loading {arguments.checkpoint} ...")
    from llm_lab.runs.describe import VERDICTS
    from llm_lab.stages.export import export_into, require_verified

    with show_progress() as listener:
        exported = export_into(
            recipe.model.checkpoint,
            arguments.out,
            listener,
            to=recipe.export.to,
            weights=recipe.export.weights,
            tolerance=recipe.export.tolerance,
            seed=recipe.seed,
            trust_remote_code=arguments.trust_remote_code,
        )
    require_verified(exported)
    print_text(f"Exported, {VERDICTS[exported.verification.verdict]}: {exported.record()['path']}")
    return DONE


def _export_recipe(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe that the arguments of `export` describe."""
    from llm_lab.recipe.export import EXPORT
    from llm_lab.runs.folder import find_checkpoint

    folder = find_checkpoint(arguments.checkpoint)
    given = {"to": arguments.to, "weights": arguments.weights, "push": arguments.push}
    options = {key: value for key, value in given.items() if value is not None}
    options |= {"private": False} if arguments.public else {}
    name = f"{_name_from(Path(folder))}-{arguments.to or 'hf'}"
    model = {"checkpoint": folder}
    return {"stage": EXPORT.name, "name": name, "device": "auto", "model": model, EXPORT.name: options}


def _push_is_pending(job: Any) -> bool:
    """Return whether the same export was made before and its push failed, so that only the push is left."""
    from llm_lab.runner import what_is_left
    from llm_lab.runs.folder import runs_named

    runs = runs_named(job.name)
    if not runs or not job.stages[0].recipe.export.push:
        return False
    from llm_lab.export.push import is_unsent

    if not is_unsent(runs[-1]):
        return False
    try:
        return what_is_left(job) is not None
    except UserError:  # another export with the same name
        return False


def _preview_export(recipe: Any, arguments: argparse.Namespace) -> int:
    """Show which programs will load an export and which files it has, without writing it."""
    from llm_lab.export.plan import plan_export
    from llm_lab.export.push import describe_push

    form = recipe.export
    plan = plan_export(
        recipe.model.checkpoint, to=form.to, weights=form.weights, trust_remote_code=arguments.trust_remote_code
    )
    lines = [f"{plan.folder} as {plan.to}, {plan.weights}: {plan.describe()}", *plan.remarks]
    if form.push:
        lines += describe_push(form.push, plan.files, private=form.private)
    else:
        lines += [f"  {name}" + (f"  {size:,} bytes" if size else "") for name, size in plan.files]
        lines += ["Nothing was written."]
    print_text("\n".join(lines))
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
    with_consent(lambda: require_trusted(job))  # before its recipe is written, which would be the user's own
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
    code = _start(job, Start(resume))
    if code == DONE:
        outer = runs_named(composed.recipe["name"])[-1]
        outcomes = compare(composed, outer, digest_of=weights_digest)
        write_outcome(composed, outer, outcomes)
        write_pipeline_report(outer)
        print_outcome(composed, outer.path, outcomes)
    return code


# --- the machine


def examine_machine(arguments: argparse.Namespace) -> int:
    """Show what this machine can do."""
    return print_doctor()


def print_doctor() -> int:
    """Show what this machine can do."""
    from llm_lab.estimate.machine import examine
    from llm_lab.terminal import listing

    listing.print_doctor(examine())
    return DONE
