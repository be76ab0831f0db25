"""Open the wizard."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from llm_lab.errors import Problem, UserError


def open_wizard(arguments: argparse.Namespace) -> int:
    """Open the wizard. UserError without a terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        fix = "Without a terminal: llm-lab run RECIPE [key=value ...]."
        raise UserError(Problem("llm-lab", "the wizard requires a terminal", fix=fix))
    from llm_lab.terminal.driver import run_wizard

    return run_wizard(wizard_commands(), debug=arguments.debug)


def wizard_commands() -> Any:
    """Return the commands that the wizard runs."""
    from llm_lab.terminal.driver import Commands

    from .machine_commands import print_doctor
    from .model_commands import print_show, start_chat, start_compare
    from .recipe_commands import start_replay, start_run
    from .study_commands import plan_and_start_sweep, start_look, start_study

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
