"""The processes of one run: starting them, synchronizing them, and measuring their peak memory.

They find each other through the variables that torchrun sets, so torchrun can start them too. With one process the
functions do nothing, and torch is not imported.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import pickle
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from llm_lab.errors import STOPPED
from llm_lab.estimate.formatting import plural
from llm_lab.estimate.machine import find_machine
from llm_lab.events import Listener, Notice

T = TypeVar("T")
# Long, because the others wait while the first process tokenizes a large text; if one fails, the parent ends all.
PATIENCE = timedelta(days=1)
GRACE_SECONDS = 10.0
LOOK_SECONDS = 0.25
SMALL_LOAD = 0.35  # of a core: sharing this core costs less than using one thread fewer
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # how OpenMP's threads wait; values set by the user take precedence
_PACKAGE_HOME = str(Path(__file__).resolve().parents[2])  # where llm_lab is imported from, installed or not


def start_processes(command: Sequence[str], count: int) -> int:
    """Run a command in `count` processes on this machine; returns the first exit code that is not 0.

    Unlike torchrun, which kills its processes on Ctrl-C, this passes the signal on once and waits until they have
    saved. If one fails, the others are ended.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    everyone = {**environment_of(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    everyone |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    processes: list[subprocess.Popen] = []

    def pass_on(signum: int, frame: Any) -> None:
        for process in processes:
            process.send_signal(signum)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for rank in range(count):
            # In a session of their own; otherwise the terminal's Ctrl-C would reach them in addition to the signal
            # passed on.
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


@contextmanager
def planning_for(count: int) -> Iterator[None]:
    """Make plans for a run in `count` processes, none of which is this one."""
    names = ("WORLD_SIZE", "LOCAL_WORLD_SIZE")
    os.environ |= dict.fromkeys(names, str(count))
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]


def environment_of(count: int) -> dict[str, str]:
    """Return the environment of our Python processes, `count` of which run at the same time on this machine."""
    found = dict(os.environ)
    if _sleeps:  # each process checks the cores when it starts
        del found[WAITING[0]]
    # With `-m` and `-c`, Python puts the working folder first on the path, and would import files there by their names.
    found["PYTHONSAFEPATH"] = "1"
    found["PYTHONPATH"] = os.pathsep.join(filter(None, (_PACKAGE_HOME, found.get("PYTHONPATH"))))
    # As torchrun does: N processes with a thread per core each would slow each other down.
    found.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    return found


def _wait(processes: Sequence[subprocess.Popen]) -> int:
    ends = None
    while True:
        codes = [process.poll() for process in processes]
        failed = [code for code in codes if code]
        if None not in codes:
            return failed[0] if failed else 0
        if any(code != STOPPED for code in failed):
            # Otherwise the others would wait for the failed one forever.
            ends = ends or time.monotonic() + GRACE_SECONDS
            if time.monotonic() > ends:
                for process in processes:
                    process.kill()
        time.sleep(0.1)


def process_count() -> int:
    """Return the number of processes of this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this process is the one that writes files."""
    return int(os.environ.get("RANK", "0")) == 0


def forget_launcher_settings() -> None:
    """Remove what `accelerate launch` or an earlier stage has put into the environment: the recipe decides."""
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
        del os.environ[name]


def shares(count: int) -> Iterator[tuple[int, bool]]:
    """Yield (number, whether it counts) of this process's share of `count` pieces of work.

    Each process gets the same number of pieces, because the processes of a sharded model compute together; the last
    ones may repeat a piece that does not count.
    """
    world, rank = process_count(), int(os.environ.get("RANK", "0"))
    for first in range(0, count, world):
        yield min(first + rank, count - 1), first + rank < count


def sum_over_processes(totals: Any, device: str) -> Any:
    """Return a tensor summed over the processes of a run, each of which has the totals of its share."""
    if process_count() == 1:
        return totals
    import torch

    totals = totals.to(device)
    torch.distributed.all_reduce(totals)
    return totals


@contextmanager
def connected(device: str) -> Iterator[None]:
    """Connect the processes, if they are not connected yet; Trainer uses the connection."""
    forget_launcher_settings()
    if process_count() == 1:
        yield
        return
    import torch

    if torch.distributed.is_initialized():
        yield
        return
    backend = "gloo"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    torch.distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
    finally:
        # A reference cycle (in DDP's wrapper) would keep the connection open until exit, when closing it aborts.
        gc.collect()
        torch.distributed.destroy_process_group()


def from_first_process(value: Any) -> Any:
    """Return the first process's value in every process."""
    if process_count() == 1:
        return value
    import torch

    box = [value]
    torch.distributed.broadcast_object_list(box, device=torch.device("cpu"))
    return box[0]


def wait_for_all() -> None:
    """Wait until every process has reached this point."""
    any_process(False)


def any_process(happened: bool) -> bool:
    """Return, in every process, whether something happened in any of them."""
    if process_count() == 1:
        return happened
    import torch

    flag = torch.tensor(int(happened))
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag)


@contextmanager
def first_process_first() -> Iterator[None]:
    """Let the first process do the work; the others run afterwards and find the result (on disk, in a cache)."""
    if not is_first_process():
        wait_for_all()
    yield
    if is_first_process():
        wait_for_all()


def read_once() -> Callable[[Iterator[T], threading.Event], Iterator[T]]:
    """Return a function that yields, in every process, what the first one reads; the others do not read.

    All processes must call this. The function may run in a thread. Its arguments are what this process would read, and
    an event that ends the wait for more. An error in reading is raised in every process.
    """
    world = process_count()
    if world == 1:
        return lambda pieces, stopped: pieces
    from torch.distributed import TCPStore

    address, first = os.environ["MASTER_ADDR"], is_first_process()
    own = TCPStore(address, 0, is_master=True, wait_for_workers=False) if first else None
    port = from_first_process(own and own.port)
    store = own or TCPStore(address, port, is_master=False)

    def hand_out(pieces: Iterator[T], stopped: threading.Event) -> Iterator[T]:
        done = 0
        try:
            for piece in pieces:
                store.set(str(done), pickle.dumps(piece))
                done += 1
                yield piece
        except Exception as error:
            store.set(str(done), pickle.dumps(error))
            raise

    def receive(pieces: Iterator[T], stopped: threading.Event) -> Iterator[T]:
        for number in itertools.count():
            key = str(number)
            while not store.check([key]):
                if stopped.wait(0.02):
                    return
            piece = pickle.loads(store.get(key))
            if store.add(f"read {key}", 1) == world - 1:
                store.delete_key(key)
                store.delete_key(f"read {key}")
            if isinstance(piece, Exception):
                raise piece
            yield piece

    return hand_out if first else receive


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak_memory(device: str) -> None:
    """Reset the peak, so that earlier stages do not count."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")  # Linux: resets the high-water mark


def peak_memory_bytes(device: str) -> int:
    """Return the peak since reset_peak_memory, in bytes: that of GPU tensors, or that of the process.

    If the system can't reset it, it is the peak since the process started.
    """
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError, StopIteration):
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import psutil

    process = psutil.Process().memory_info()
    return getattr(process, "peak_wset", process.rss)


# --- threads of a run on a CPU


_sleeps = False  # whether this process has decided that its threads sleep


def sleep_where_busy() -> None:
    """Let PyTorch's threads sleep while they wait for each other, if cores are busy: called before PyTorch is imported.

    GNU's OpenMP, which PyTorch uses on Linux, reads this setting once, when it is loaded. By default its threads spin.
    That is faster on an idle machine, but with fewer free cores than threads, spinning takes time from the very threads
    that are waited for. Results do not depend on this setting, unlike on the number of threads.
    """
    global _sleeps
    decided = any(name in os.environ for name in WAITING) or os.environ.get("OMP_NUM_THREADS") == "1"
    # With several processes, each would count the others as load.
    if not decided and process_count() == 1 and busy_cores() > SMALL_LOAD:
        os.environ[WAITING[0]], _sleeps = "passive", True


@contextmanager
def using_threads(wanted: int | None, before: int | None, listener: Listener) -> Iterator[None]:
    """Train with a number of CPU threads: `wanted`; `before`, that of the run to resume; or the number of free cores.

    In a new run, OMP_NUM_THREADS decides if it is set. One thread more than there are free cores can cost most of the
    speed. The number is fixed for the run, because sums are rounded differently with another number.
    """
    name, threads = "OMP_NUM_THREADS", wanted or before
    if threads is None and name in os.environ:
        yield
        return
    import torch  # imported first: this decides how its threads wait, for the whole process and not just for one run

    sleep = os.environ.get(WAITING[0], "").lower() == "passive" and threads != 1
    said, others = "", ""
    if threads is None:
        cores = find_machine().cpu_cores
        threads = free_threads(cores, busy_cores())
        others = f": {cores - threads} of {cores} cores are busy" if threads < cores else ""
        said, sleep = "training with ", sleep and threads > 1
    if said or sleep:
        how = ", which sleep while they wait for each other" if sleep else ""
        listener(Notice(f"{said}{plural(threads, 'thread')}{how}{others} (train.threads sets the number)"))
    old = os.environ.get(name)
    os.environ[name] = str(threads)  # read by estimates and by the processes that a run starts
    old_threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        os.environ.pop(name)
        if old is not None:
            os.environ[name] = old
        torch.set_num_threads(old_threads)


def free_threads(cores: int, busy: float) -> int:
    """Return how many threads to train with on some cores, `busy` of which are in use; a small load does not count."""
    return max(1, min(cores, int(cores - busy + SMALL_LOAD)))


def busy_cores() -> float:
    """Return how many of this process's cores are in use, measured over a quarter of a second."""
    import psutil

    each = psutil.cpu_percent(interval=LOOK_SECONDS, percpu=True)
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(each))
    return sum(each[core] for core in own if core < len(each)) / 100
