"""Runs in several processes, as torchrun starts them: forks of the test's process, which has imported everything."""

from __future__ import annotations

import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

SECONDS = 240


def run_in_processes(recipes: Sequence[dict], count: int = 2, *, resume: bool = False) -> None:
    """Run recipes one after the other in `count` processes."""
    from llm_lab.runner import run

    in_processes(lambda: [run(raw, resume=resume) for raw in recipes], count)


def in_processes(work: Callable[[], object], count: int = 2) -> None:
    """Call a function in `count` connected processes. Raise AssertionError with the first failure."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    reports = [Path(f"process-{rank}.txt") for rank in range(count)]
    children = [_fork(work, rank, count, port, report) for rank, report in enumerate(reports)]
    left, end = dict(enumerate(children)), time.monotonic() + SECONDS
    failed = False
    while left and not failed and time.monotonic() < end:
        for rank, child in list(left.items()):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                del left[rank]
                failed |= status != 0
        time.sleep(0.02)
    time.sleep(0.5 if failed else 0)  # the others may print more
    for child in left.values():
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    said = [report.read_text() for report in reports if report.exists()]
    assert not left, "\n".join(said) or "the processes wait for each other"
    assert not failed, "\n".join(said)


def _fork(work: Callable[[], object], rank: int, count: int, port: int, report: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        from accelerate.state import AcceleratorState

        from llm_lab.runs.processes import connected

        AcceleratorState._reset_state(reset_partial_state=True)
        here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        os.environ |= {key: str(value) for key, value in here.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        with connected("cpu"):
            work()
        code = 0
    except BaseException:
        report.write_text(f"process {rank}: {traceback.format_exc()}")
    finally:
        os._exit(code)
