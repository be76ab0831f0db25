"""What the commands over runs and models do: sweep, duel, look and study."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_lab.commands import DONE, STOPPED, show_progress
from llm_lab.errors import Problem, UserError
from llm_lab.terminal.console import print_text


def study(arguments: argparse.Namespace) -> int:
    """Run an experiment; without a name, list the experiments."""
    from llm_lab.studies.experiment_files import find_experiment, list_experiments, read_values
    from llm_lab.terminal.study_view import print_experiment, print_experiments

    if arguments.in_folder is not None:
        return _run_study(arguments.in_folder)
    if arguments.name is None:
        print_experiments(list_experiments())
        return DONE
    experiment = find_experiment(arguments.name)
    options = read_values(experiment, arguments.overrides)
    if arguments.dry_run:
        print_experiment(experiment, options)
        return DONE
    debug = getattr(arguments, "debug", False)
    return start_study(experiment.name, options, overwrite=arguments.overwrite, debug=debug)


def start_study(name: str, options: Mapping[str, Any], *, overwrite: bool = False, debug: bool = False) -> int:
    """Run an experiment in a process of its own, and say where its report is. options: all or some, as values."""
    from llm_lab.studies import study_process
    from llm_lab.studies.experiment_files import check_values, find_experiment
    from llm_lab.terminal.study_view import print_experiment, print_study_end

    experiment = find_experiment(name)
    options = check_values(experiment, options)
    folder, resumes = study_process.open_study(experiment, options, overwrite=overwrite)
    print_experiment(experiment, options)
    print_text(f"{'Resumes' if resumes else 'Runs in'} {folder.path}")
    code = study_process.start_study(folder, debug=debug)
    if code in (DONE, STOPPED) and folder.facts():
        print_study_end(folder)
    return code


def _run_study(folder: Path) -> int:
    """Run the study of a folder in this process."""
    from llm_lab.runs.folder import RunFolder
    from llm_lab.studies.study_process import run_study

    if not folder.is_dir():
        raise UserError(Problem(str(folder), "there is no such folder"))
    with show_progress() as listener:
        run_study(RunFolder(folder), listener)
    return DONE
