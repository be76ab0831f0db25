"""Open the wizard."""

from __future__ import annotations

import argparse
import importlib
import sys
import threading
from collections.abc import Callable
from typing import Any

from llm_lab.errors import Problem, UserError


def open_wizard(arguments: argparse.Namespace) -> int:
    """Open the wizard. UserError without a terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        fix = "Without a terminal: llm-lab run RECIPE [key=value ...]."
        raise UserError(Problem("llm-lab", "the wizard requires a terminal", fix=fix))
    from llm_lab.estimate.machine import find_machine

    threading.Thread(target=find_machine, daemon=True).start()  # a GPU's driver can take longer than all else
    from llm_lab.terminal.driver import run_wizard

    return run_wizard(wizard_commands(), debug=arguments.debug)


def wizard_commands() -> Any:
    """Return the commands that the wizard runs; each is imported when it is used."""
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
    )


def _later(module: str, name: str) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        return getattr(importlib.import_module(f"llm_lab.commands.{module}"), name)(*arguments, **options)

    return call
