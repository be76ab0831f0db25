"""A study in a process of its own: started from the terminal, the wizard or Python, and run from its folder."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import threading
import traceback
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llm_lab.errors import LabError, Problem, UserError, file_error
from llm_lab.events import Listener
from llm_lab.runs.disk import remove_folder, write_atomically
from llm_lab.runs.folder import ROOT, RunFolder, create_run, now, runs_named, slug
from llm_lab.runs.lock import this_process
from llm_lab.runs.processes import environment_of

from .child_run import stop_child
from .experiment_files import Experiment, command, defaults_of
from .study import Study

TRACEBACK = "traceback.txt"
IN_FOLDER = "--in-folder"  # the option of `llm-lab study` that gives the process its folder


class ExperimentRaised(LabError):
    """An experiment raised an exception: a mistake in its code. The exit code is 1."""

    exit_code = 1


def open_study(
    experiment: Experiment, options: Mapping[str, Any], *, overwrite: bool = False, root: Path = ROOT
) -> tuple[RunFolder, bool]:
    """Return the folder of a study, and whether it resumes one.

    The newest unfinished study of the same experiment is resumed if it has the same options. overwrite: replace the
    study with the same name.
    """
    name = slug(experiment.name, "study")
    described = {
        "experiment": experiment.name,
        "file": str(experiment.file),
        "title": experiment.title,
        "summary": experiment.summary,
        "about": experiment.about,
        "command": command(experiment.name, options, defaults_of(experiment)),
        "options": {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()},
    }
    for run in reversed(runs_named(name, root=root)) if not overwrite else ():
        before = run.facts().get("study")
        same = before and (before["file"], before["options"]) == (described["file"], described["options"])
        if same and run.status() in ("stopped", "failed", "interrupted"):
            run.update(study=described)
            return run, True
    folder = create_run(name, root=root, overwrite=overwrite)
    begin = {"name": folder.path.name, "asked_name": name, "created_at": now()}
    folder.update(**begin, status="stopped", study=described, children={})
    return folder, False


def start_study(folder: RunFolder, *, debug: bool = False) -> int:
    """Run the study of a folder in a process of its own, which stops with this one; return its exit code.

    Ctrl-C and a request to end are passed on as Ctrl-C, so that finished work is saved.
    """
    words = [sys.executable, "-m", "llm_lab.cli", "study", IN_FOLDER, str(folder.path)]
    words += ["--debug"] if debug else []
    # A session of its own: the terminal's Ctrl-C would reach it in addition to the signal passed on.
    # Not always descriptor 1: with --json, what the study prints goes to standard error.
    output = sys.stderr.fileno() if sys.stdout is sys.stderr else None
    process = subprocess.Popen(
        words, env=environment_of(1), stdin=subprocess.PIPE, stdout=output, start_new_session=True
    )
    with process, _signals_passed_on(process):
        code = process.wait()
    if code < 0:
        why = f"the process of the study was ended by signal {-code}"
        raise ExperimentRaised(Problem(str(folder.path), why, fix="Start it again with the same options: it resumes."))
    return code


@contextmanager
def _signals_passed_on(process: subprocess.Popen) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only that one can set signal handlers
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: stop_child(process)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_study(folder: RunFolder, listener: Listener) -> None:
    """Run the study of a folder in this process, and write its report.

    A UserError or MachineError of the experiment is raised as it is; any other exception as ExperimentRaised.
    """
    about = folder.facts().get("study")
    if not about:
        raise UserError(Problem(str(folder.path), "this folder holds no study"))
    with folder.hold():
        resumed = [*folder.facts().get("resumed_at", []), now()] if folder.report_path.exists() else []
        process = {**this_process(), "parent": os.getppid()}  # the parent is the command that started it
        folder.update(status="running", process=process, error=None, resumed_at=resumed)
        (folder.path / TRACEBACK).unlink(missing_ok=True)
        study = Study(folder, listener)
        try:
            _run(about, study)
            study.write_report()
        except BaseException as error:
            _record_end(folder, error)
            if isinstance(error, Exception | SystemExit) and not _is_explained(error):
                raise _explained(folder, Path(about["file"]), error) from error
            raise
        folder.update(status="done", ended_at=now())


def _run(about: Mapping[str, Any], study: Study) -> None:
    module = _load(Path(about["file"]))
    try:
        options = module.Options(**about["options"])
    except ValidationError as error:
        problems = [
            Problem(".".join(map(str, item["loc"])) or "options", item["msg"], value=item["input"])
            for item in error.errors(include_url=False)
        ]
        raise UserError(*problems) from None
    module.run(options, study)


def _load(file: Path) -> Any:
    """Import an experiment: a shipped one by its name, a user's from its file."""
    from . import experiments

    if file.parent == Path(experiments.__file__).parent:
        return importlib.import_module(f"{experiments.__name__}.{file.stem}")
    sys.path.append(str(file.parent.resolve()))  # last, so that a file there does not hide a library
    module = types.ModuleType(f"experiment_{file.stem}")
    module.__file__ = str(file.resolve())
    sys.modules[module.__name__] = module  # pydantic looks up the types of Options there
    # Without Python's cache of compiled files, which misses a change within the same second.
    exec(compile(file.read_bytes(), module.__file__, "exec"), module.__dict__)
    return module


def _is_explained(error: BaseException) -> bool:
    """Return whether an error by itself explains what the user can do: no space left, no permission, wrong input."""
    return isinstance(error, LabError) or (isinstance(error, Exception) and file_error(error) is not None)


def _record_end(folder: RunFolder, error: BaseException) -> None:
    """Record the exception that ended a study. If the study did nothing yet, its folder is removed."""
    if isinstance(error, KeyboardInterrupt):
        folder.update(status="stopped", ended_at=now())
    elif isinstance(error, LabError) and not folder.report_path.exists() and not folder.facts().get("children"):
        remove_folder(folder.path)
    else:
        if not isinstance(error, LabError):
            text = "".join(traceback.format_exception(error))
            write_atomically(folder.path / TRACEBACK, text)
        folder.update(status="failed", ended_at=now(), error=f"{type(error).__name__}: {str(error)[:500]}")


def _explained(folder: RunFolder, file: Path, error: BaseException) -> ExperimentRaised:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name == file.name]
    where = f"{file}, line {frames[-1].lineno}" if frames else str(file)
    fix = f"The traceback is in {folder.path / TRACEBACK}. To resume the study, start it again with the same options"
    return ExperimentRaised(Problem(where, f"the study raised {type(error).__name__}: {error}", fix=fix))
