"""The commands that open the wizard, at its menu, a stage or a design, or write what the wizard would write."""

from __future__ import annotations

import argparse
import gc
import importlib
import shlex
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llm_lab.errors import DONE, Problem, UserError
from llm_lab.runs.disk import write_atomically
from llm_lab.terminal.console import is_terminal, print_text


def open_wizard(arguments: argparse.Namespace) -> int:
    """Open the wizard. UserError without a terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        fix = "Without a terminal: llm-lab run RECIPE [key=value ...]."
        raise UserError(Problem("llm-lab", "the wizard requires a terminal", fix=fix))
    return _open(arguments)


def _open(arguments: argparse.Namespace, flow: str | None = None, answers: Mapping[str, Any] | None = None) -> int:
    """Open the wizard, at a flow with some answers or at its menu."""
    from llm_lab.estimate.machine import find_machine

    threading.Thread(target=find_machine, daemon=True).start()  # a GPU driver can take longer than everything else
    from llm_lab.terminal.driver import run_wizard
    from llm_lab.terminal.keyboard import finished_imports

    start = None
    if flow is not None:
        from llm_lab.wizard.questions import Next

        start = Next(flow, dict(answers or {}))
    with finished_imports():
        code = run_wizard(wizard_commands(), debug=arguments.debug, start=start)
    gc.freeze()  # nothing needs to be freed; without a last search for cycles, the process ends at once
    return code


def new_recipe(arguments: argparse.Namespace) -> int:
    """Open the wizard at a stage; with --out, or without a terminal, write its recipe."""
    from llm_lab.recipe.files import apply_overrides
    from llm_lab.recipe.validate import require_stage, with_groups_off

    require_stage({"stage": arguments.stage})
    values = with_groups_off({"stage": arguments.stage, **apply_overrides({}, arguments.overrides)[0]})
    del values["stage"]
    if arguments.out is None and is_terminal():
        return _open(arguments, arguments.stage, {"values": values})
    from llm_lab.job import check
    from llm_lab.runs.folder import slug
    from llm_lab.wizard.review import recipe_text

    name = slug(arguments.out.stem, arguments.stage) if arguments.out else arguments.stage
    raw = {"stage": arguments.stage, "name": name, "device": "auto", **values}
    job = check(raw)
    resolved = job.stages[0]
    for remark in job.remarks:
        print(f"Note: {remark}", file=sys.stderr)  # noqa: T201
    text = recipe_text(raw, resolved, arguments.out or Path("RECIPE.yaml"))
    if arguments.out is None:
        print(text, end="")  # noqa: T201
        return DONE
    _require_new(arguments.out)
    write_atomically(arguments.out, text)
    print_text(f"Written: {arguments.out}\nRun it: llm-lab run {shlex.quote(str(arguments.out))}")
    return DONE


def new_design(arguments: argparse.Namespace) -> int:
    """Open the wizard at the design of a model; with --out, write the design."""
    if arguments.out is None and is_terminal() and not arguments.overrides:
        return _open(arguments, "design")
    if arguments.out is None:
        raise UserError(
            Problem("--out", "is required to write a design", fix="For example: --out configs/models/mine.")
        )
    _require_new(arguments.out)
    from llm_lab.hf.load import write_design
    from llm_lab.job import read_job
    from llm_lab.recipe.files import apply_overrides
    from llm_lab.wizard.model_design import new_design as first_design

    raw, _ = apply_overrides(first_design().raw, [_of_model(word) for word in arguments.overrides])
    job, problems = read_job(raw)
    if problems or job is None:
        raise UserError(*problems)
    write_design(arguments.out, job.stages[0].values)
    command = f"llm-lab new pretrain model.config={arguments.out}"
    print_text(f"Written: {arguments.out}/config.json\nPretrain it: {command}")
    return DONE


def _of_model(word: str) -> str:
    """Return an override of a design; the keys of the model may be written without `model.`."""
    own = word.startswith(("model.", "tokenizer"))
    return word if own else f"model.{word}"


def _require_new(path: Path) -> None:
    if path.exists():
        raise UserError(Problem(str(path), "the file already exists", fix="Choose another name."))


def wizard_commands() -> Any:
    """Return the commands that the wizard calls; each is imported when it is used."""
    from llm_lab.terminal.driver import Commands

    return Commands(
        start=_later("recipe_commands", "start_run"),
        chat=_later("model_commands", "start_chat"),
        show=_later("model_commands", "print_show"),
        compare=_later("model_commands", "start_compare"),
        replay=_later("recipe_commands", "start_replay"),
        doctor=_later("machine_commands", "print_doctor"),
        study=_later("study_commands", "start_study"),
        look=_later("study_commands", "start_look"),
        sweep=_later("study_commands", "plan_and_start_sweep"),
        duel=_later("study_commands", "plan_and_start_duel"),
        resume_sweep=_later("study_commands", "resume_sweep"),
    )


def _later(module: str, name: str) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        return getattr(importlib.import_module(f"llm_lab.commands.{module}"), name)(*arguments, **options)

    return call
