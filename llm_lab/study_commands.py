"""What the commands over runs and models do: sweep, duel, look and study."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from llm_lab.commands import DONE, STOPPED, show_progress
from llm_lab.errors import Problem, UserError
from llm_lab.terminal.console import print_text


def look(arguments: argparse.Namespace) -> int:
    """Look inside a model and write the report."""
    text = arguments.prompt
    if arguments.prompt_file is not None:
        text = _read_text(arguments.prompt_file)
    return start_look(
        arguments.checkpoint,
        text=text,
        against=arguments.against,
        steps=arguments.steps,
        out=arguments.out,
        device=arguments.device,
        trust_remote_code=arguments.trust_remote_code,
    )


def _read_text(file: Path) -> str:
    try:
        return file.expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(Problem("--prompt-file", "it is not UTF-8 text", value=file)) from None
    except OSError as error:
        raise UserError(Problem("--prompt-file", error.strerror or str(error), value=file)) from None


def start_look(checkpoint: str, *, device: str | None = None, **options: Any) -> int:
    """Look inside a model, show the summary and say where the report is. options: as for looking.look.look."""
    from llm_lab.terminal.console import print_waiting

    print_waiting("Preparing ...")
    from llm_lab.looking.look import look
    from llm_lab.runner import load
    from llm_lab.terminal.look_view import print_look

    with show_progress() as listener:
        found = look(checkpoint, load=partial(load, device=device), listener=listener, **options)
    print_look(found)
    return DONE


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
