"""The processes of one run: how they start, who writes, and who waits for whom.

They know each other by the variables that torchrun sets, so torchrun can start them too. With one process
nothing here does anything, and torch is not imported.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

# Others wait while the first makes tokens of a large text; where one fails, whoever started them ends all.
PATIENCE = timedelta(days=1)
STOPPED = 130
GRACE_SECONDS = 10.0


def start_processes(command: Sequence[str], count: int) -> int:
    """Run a command in `count` processes on this machine; returns the first exit code that is not 0.

    torchrun would do, but answers Ctrl-C by ending its processes: here they get the signal once, and the
    time that they need to save. Where one fails the others are ended.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    everyone = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    everyone |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    # As torchrun does: N processes of all cores each would stand in each other's way.
    everyone.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    processes: list[subprocess.Popen] = []

    def pass_on(signum: int, frame: Any) -> None:
        for process in processes:
            process.send_signal(signum)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for rank in range(count):
            # A session of their own: the terminal's Ctrl-C would reach them beside the one passed on.
            process = subprocess.Popen(
                list(command),
                env={**everyone, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.DEVNULL,
                stdout=None if rank == 0 else subprocess.DEVNULL,
                start_new_session=True,
            )
            processes.append(process)
        return _wait(processes)
    finally:
        for process in processes:
            process.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(processes: Sequence[subprocess.Popen]) -> int:
    ends = None
    while True:
        codes = [process.poll() for process in processes]
        failed = [code for code in codes if code]
        if None not in codes:
            return failed[0] if failed else 0
        if any(code != STOPPED for code in failed):
            # The others wait for the one that is gone.
            ends = ends or time.monotonic() + GRACE_SECONDS
            if time.monotonic() > ends:
                for process in processes:
                    process.kill()
        time.sleep(0.1)


def process_count() -> int:
    """How many processes work on this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Tell whether this process is the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def connected(device: str) -> Iterator[None]:
    """Connect the processes; Trainer finds the connection and uses it."""
    if process_count() == 1:
        yield
        return
    import torch

    backend = "gloo"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    torch.distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
    finally:
        # What still holds the connection in a cycle (DDP's wrapper does) would tear it down at exit, and abort.
        gc.collect()
        torch.distributed.destroy_process_group()


def from_first_process(value: Any) -> Any:
    """Return what the first process has."""
    if process_count() == 1:
        return value
    import torch

    box = [value]
    torch.distributed.broadcast_object_list(box, device=torch.device("cpu"))
    return box[0]


def wait_for_all() -> None:
    """Go on only when every process is here."""
    any_process(False)


def any_process(happened: bool) -> bool:
    """Tell every process whether something happened in one of them."""
    if process_count() == 1:
        return happened
    import torch

    flag = torch.tensor(int(happened))
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag)


@contextmanager
def first_process_first() -> Iterator[None]:
    """Let the first process do the work, and the others find it done (on disk, in a cache)."""
    if not is_first_process():
        wait_for_all()
    yield
    if is_first_process():
        wait_for_all()


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak_memory(device: str) -> None:
    """Begin to watch anew, so that an earlier stage's peak is not taken for this one's."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")  # Linux: sets the high-water mark to what is held now


def peak_memory_bytes(device: str) -> int:
    """Return the peak since the last forget_peak_memory (where the system can't forget: of the process)."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError, StopIteration):
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import psutil

    process = psutil.Process().memory_info()
    return getattr(process, "peak_wset", process.rss)
