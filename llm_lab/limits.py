"""Time and memory limits for code and patterns from others, such as chat templates and adapters' patterns."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import Problem, UserError

MAX_DEPTH = 100  # levels of JSON: code that reads it is recursive


class _TimeIsUp(BaseException):
    """Raised inside a computation that takes too long. Not an Exception, because libraries catch those."""


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON text. Raises ValueError if it is not JSON, or nested more than MAX_DEPTH levels deep."""
    too_deep = f"nested more than {MAX_DEPTH} levels deep"
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError(too_deep) from None
    level = [found]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return found
    raise ValueError(too_deep)


@contextlib.contextmanager
def time_limit(seconds: float, problem: Problem) -> Iterator[None]:
    """Raise UserError with the problem if the block takes more seconds of processor time.

    Without effect outside the main thread and on Windows, where Python can't interrupt a computation.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(signum: int, frame: Any) -> None:
        raise _TimeIsUp

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    except _TimeIsUp:
        raise UserError(problem) from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextlib.contextmanager
def memory_limit(more_bytes: int) -> Iterator[None]:
    """Let the block raise MemoryError if it allocates more memory than this. Linux only."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_bytes().split()[0])
        before = resource.getrlimit(resource.RLIMIT_AS)
        wanted = pages * resource.getpagesize() + more_bytes
        if before[0] != resource.RLIM_INFINITY and before[0] <= wanted:
            raise OSError
        resource.setrlimit(resource.RLIMIT_AS, (wanted, before[1]))
    except (ImportError, OSError, ValueError):
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
