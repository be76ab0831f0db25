"""A run inside a study's folder: started, resumed or skipped there, in this process or in a separate one.

`python -m llm_lab.studies.child_run` is the separate one. It reads the recipe and the folder from standard input, and
stops with its work saved when the other end is closed: it never outlives the command that started it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from llm_lab.errors import STOPPED, LabError
from llm_lab.events import Listener, ignore
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.lock import is_at_work, this_process
from llm_lab.runs.processes import environment_of

BUSY = 75  # exit code of a child if another process works in its folder


def run_child(recipe: Mapping[str, Any], folder: Path, *, listener: Listener = ignore) -> RunFolder:
    """Run a recipe in a folder, or what remains of it there; return the run, which has the name of the folder.

    The status of the run is done, or stopped after Ctrl-C. KeyboardInterrupt if Ctrl-C came too late to stop the run:
    it is done, and whatever comes after it must not start. UserError or MachineError if the recipe, its data or the
    machine doesn't fit, if the run in the folder has another recipe, or if another process works in it.
    """
    from llm_lab.job import check
    from llm_lab.runner import STOP_REQUESTED, run_job_in

    facts = run_job_in(check({**recipe, "name": folder.name}), folder, listener=listener)
    if facts["status"] == "done" and facts.get(STOP_REQUESTED):
        raise KeyboardInterrupt
    return RunFolder(folder)


def start_child(
    recipe: Mapping[str, Any], folder: Path, output: IO[str], *, jobs: int = 1, gpu: str | None = None
) -> subprocess.Popen[str]:
    """Start `run_child` in a process of its own; see `stop_child`.

    output: the file for its output. jobs: how many such processes run at the same time on this machine, sharing its
    cores. gpu: the one to use, as in CUDA_VISIBLE_DEVICES.
    """
    environment = environment_of(jobs)
    if jobs == 1 and "OMP_NUM_THREADS" not in os.environ:  # as many threads as `llm-lab run` uses
        del environment["OMP_NUM_THREADS"]
    threads = RunFolder(folder).facts().get("threads")
    if threads:  # a different number of threads rounds sums differently
        environment["OMP_NUM_THREADS"] = str(threads)
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    process = subprocess.Popen(
        [sys.executable, "-m", "llm_lab.studies.child_run"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # the terminal's Ctrl-C reaches the parent only, which passes it on once
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps({"recipe": dict(recipe), "folder": str(folder)}) + "\n")
    process.stdin.flush()
    return process


def stop_child(process: subprocess.Popen[str]) -> None:
    """Ask a child to save its work and end; the caller must still wait for it."""
    process.send_signal(signal.SIGINT)


def _main() -> int:
    work = json.loads(sys.stdin.readline())
    stop_with_parent()
    try:
        run = run_child(work["recipe"], Path(work["folder"]))
    except KeyboardInterrupt:
        return STOPPED
    except LabError as error:
        print(error, file=sys.stderr)  # noqa: T201
        is_busy = is_at_work(Path(work["folder"]), {**this_process(), "pid": None})  # in any process except this one
        return BUSY if is_busy else error.exit_code
    return STOPPED if run.status() == "stopped" else 0


def stop_with_parent() -> None:
    """Make this process stop, as after Ctrl-C, when the process at the other end of its input is gone."""

    def wait() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGINT)

    # In a shell's background job, SIGINT is ignored; here it is needed to stop the process.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    sys.exit(_main())
