"""The processes of one run (torchrun starts them): who writes, and who waits for whom.

With one process nothing here does anything, and torch is not imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

# Others wait while the first makes tokens of a large text; torchrun ends them all where one fails.
PATIENCE = timedelta(days=1)


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
