"""What the commands do that make a model, look at it and talk to it; each is handed its words, read by cli.py."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError
from llm_lab.events import ignore
from llm_lab.recipe.merge import MERGE

DONE, OUR_FAULT, STOPPED = 0, 1, 130


def open_wizard(arguments: argparse.Namespace) -> int:
    """Open the wizard. UserError where there is no terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError(
            Problem(
                "llm-lab",
                "the wizard needs a terminal",
                fix="Without one: llm-lab run RECIPE [key=value ...].",
            )
        )
    from llm_lab.wizard.wizard import run_wizard
    from llm_lab.wizard_actions import wizard_actions

    return run_wizard(wizard_actions(), debug=arguments.debug)


def run_recipe(arguments: argparse.Namespace) -> int:
    """Replay a recipe: the plan, the run, and what came of it."""
    if arguments.nproc is not None and "WORLD_SIZE" not in os.environ:
        return _run_in_processes(arguments)
    if arguments.dry_run:
        return dry_run(arguments.recipe, arguments.overrides, resume=arguments.resume)
    return start_run(arguments.recipe, arguments.overrides, resume=arguments.resume, overwrite=arguments.overwrite)


def _run_in_processes(arguments: argparse.Namespace) -> int:
    from llm_lab.runner import check
    from llm_lab.runs.processes import start_processes

    if arguments.nproc < 1:
        raise UserError(Problem("--nproc", "the number of processes", value=arguments.nproc, allowed="1 or more"))
    check(arguments.recipe, arguments.overrides)  # say what is wrong once, not once a process
    words = [sys.executable, "-m", "llm_lab.cli", "run", arguments.recipe, *arguments.overrides]
    words += [flag for flag in ("--resume", "--overwrite") if getattr(arguments, flag[2:])]
    return start_processes(words, arguments.nproc)


def dry_run(recipe: Any, overrides: Sequence[str] = (), *, resume: bool = False) -> int:
    """Show the plan of a run, or of what is left of it, and stop. MachineError where this machine can't."""
    from llm_lab.recipe.resolve import require_device
    from llm_lab.runner import check, what_is_left
    from llm_lab.terminal.plan_panel import print_plan

    job, _ = check(recipe, overrides)
    if resume:
        job = what_is_left(job)
    for resolved in job.stages:
        print_plan(resolved, job.home)
    for resolved in job.stages:
        require_device(resolved)
    return DONE


def start_run(
    recipe: Any,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    ask: bool = False,
    show_plan: bool = True,
) -> int:
    """Show the plan, run, and say what came of it.

    ask: want a yes between plan and run, and raise Back without one. show_plan: False where it was seen already.
    """
    from llm_lab.runner import read_job, run, what_is_left
    from llm_lab.runs.processes import is_first_process
    from llm_lab.terminal.console import say_wait
    from llm_lab.terminal.plan_panel import print_plan
    from llm_lab.terminal.progress import make_display
    from llm_lab.terminal.prompts import Back, confirm
    from llm_lab.terminal.results_view import print_closing

    first = is_first_process()
    if first:
        job, problems = read_job(recipe, overrides) if show_plan else (None, [])
        if job is not None and not problems:
            if resume:
                job = what_is_left(job)
            for resolved in job.stages:
                print_plan(resolved, job.home, derived=not ask)
            if ask and not confirm("Start now?", yes="Yes, start", no="No", above=20):
                raise Back
        say_wait("Getting ready ...")
    facts = run(recipe, overrides, resume=resume, overwrite=overwrite, listener=make_display() if first else ignore)
    if first:
        print_closing(facts)
    return {"stopped": STOPPED, "failed": OUR_FAULT}.get(facts["status"], DONE)


def check_recipe(arguments: argparse.Namespace) -> int:
    """Say all that is wrong with a recipe."""
    from llm_lab.runner import check
    from llm_lab.terminal.plan_panel import print_checked

    job, remarks = check(arguments.recipe, arguments.overrides)
    print_checked(job.stages, remarks, job.home)
    return DONE


def xray_recipe(arguments: argparse.Namespace) -> int:
    """Show a recipe's data as tokens, and which are learnt."""
    from llm_lab.runner import check
    from llm_lab.terminal.console import say_wait
    from llm_lab.terminal.xray_view import print_xray

    job, _ = check(arguments.recipe, arguments.overrides)
    say_wait("Reading the data ...")
    from llm_lab.evaluation.xray import xray_stages
    from llm_lab.hf.load import quiet_libraries

    quiet_libraries()
    print_xray(xray_stages([resolved.recipe for resolved in job.stages], examples=arguments.examples))
    return DONE


def list_things(arguments: argparse.Namespace) -> int:
    """List recipes, data, parts, runs."""
    from llm_lab.runner import list_recipes
    from llm_lab.terminal.listing import print_listing

    print_listing(arguments.what, list_recipes())
    return DONE


def copy_recipe(arguments: argparse.Namespace) -> int:
    """Copy a recipe to a file of the user's."""
    from llm_lab.runner import find_recipe

    source, target = find_recipe(arguments.recipe), arguments.file
    if source.is_dir():
        source /= "recipe.yaml"
    if not source.is_file():
        raise UserError(Problem(str(source), "there is no such recipe", fix="`llm-lab list recipes`"))
    if target.is_dir():
        target /= source.name
    if target.exists():
        raise UserError(Problem(str(target), "this file exists, and is not overwritten", fix="Name another."))
    if not target.parent.is_dir():
        raise UserError(Problem(str(target.parent), "there is no such folder"))
    shutil.copyfile(source, target)
    print(f"{source} -> {target}\nEdit it, then: llm-lab run {target}")  # noqa: T201
    return DONE


def print_show(path: str) -> int:
    """Show what a checkpoint is, and the line it comes from."""
    from llm_lab.hf.adapter import weights_digest
    from llm_lab.runs.lineage import find_traced
    from llm_lab.terminal.listing import print_checkpoint

    print_checkpoint(path, find_traced(path), digest_of=weights_digest)
    return DONE


def print_doctor() -> int:
    """Show what this machine can do."""
    from llm_lab.estimate.doctor import examine
    from llm_lab.terminal import listing

    listing.print_doctor(examine())
    return DONE


def show_checkpoint(arguments: argparse.Namespace) -> int:
    """Show what a checkpoint is."""
    return print_show(arguments.path)


def chat(arguments: argparse.Namespace) -> int:
    """Talk to a model, or have one answer of it."""
    settings = {
        "max_new_tokens": arguments.max_new_tokens,
        "temperature": arguments.temperature,
        "seed": arguments.seed,
    }
    return start_chat(
        arguments.checkpoint,
        prompt=arguments.prompt,
        settings={key: value for key, value in settings.items() if value is not None},
        device=arguments.device,
        trust_remote_code=arguments.trust_remote_code,
    )


def start_chat(
    checkpoint: str,
    *,
    prompt: str | None = None,
    settings: dict[str, Any] | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> int:
    """Load a model and talk to it; with a prompt, answer once."""
    from llm_lab.terminal.console import say_wait

    say_wait(f"Loading {checkpoint} ...")
    from llm_lab.chat.session import ChatSession, ChatSettings
    from llm_lab.evaluation.side_by_side import SideBySide
    from llm_lab.runner import load
    from llm_lab.terminal.chat_screen import answer_once, run_chat

    chosen = ChatSettings(**(settings or {}))

    def open_session(name: str) -> ChatSession:
        model, tokenizer = load(name, device=device, trust_remote_code=trust_remote_code)
        return ChatSession(model, tokenizer, name=name, settings=chosen)

    session = open_session(checkpoint)
    if prompt is not None:
        answer_once(session, prompt)
    else:
        run_chat(session, load=open_session, beside=SideBySide(open_session, trust_remote_code=trust_remote_code))
    return DONE


def merge(arguments: argparse.Namespace) -> int:
    """Put an adapter into its base, as a run or into a folder of the user's."""
    if arguments.out is None:
        from llm_lab.runs.folder import find_model

        folder = find_model(arguments.adapter)
        recipe = {"stage": MERGE.name, "name": _merged_name(folder), "device": "auto"}
        recipe |= {"model": {"checkpoint": str(folder)}, "merge": {"tolerance": arguments.tolerance}}
        return start_run(recipe)
    from llm_lab.terminal.console import say_wait
    from llm_lab.terminal.progress import make_display

    say_wait(f"Loading {arguments.adapter} ...")
    from llm_lab.stages.merge import merge_into

    merge_into(
        arguments.adapter,
        arguments.out,
        make_display(),
        tolerance=arguments.tolerance,
    )
    print(f"The whole model: {arguments.out}/\nTalk to it: llm-lab chat {arguments.out}")  # noqa: T201
    return DONE


def _merged_name(folder: Path) -> str:
    """Return the name of the run that merges an adapter: that of the run that trained it, and what was done."""
    return f"{line_name(folder)}-merged"


def line_name(folder: Path) -> str:
    """Return a name for what is made of a model: that of the runs that it stands in, or its folder's."""
    import re

    from llm_lab.runs.folder import RunFolder

    parents = [folder, *folder.resolve().parents]
    runs = [parent.name for parent in parents[:4] if RunFolder(parent).facts()]
    name = "-".join(reversed(runs)) or folder.resolve().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:80]


def print_schema(arguments: argparse.Namespace) -> int:
    """Print the JSON Schema of recipes."""
    import json

    from llm_lab.recipe.registry import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))  # noqa: T201
    return DONE


def examine_machine(arguments: argparse.Namespace) -> int:
    """Show what this machine can do."""
    return print_doctor()
