"""Ctrl-C while a library is imported: the import is finished first.

A process in which the import of torch was cut short can't import torch again.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from types import FrameType

OWN = "llm_lab"
RETRY_SECONDS = 0.1
STOPPING = b"Stopping when the libraries are loaded ...\n"


@contextmanager
def finished_imports() -> Iterator[None]:
    """Let Ctrl-C wait until the import of another package has ended, for a process that continues after it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    retry_at = inf  # while an import is waited for

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal retry_at
        now = time.monotonic()
        if not _imports_a_library(frame):
            retry_at = inf
            signal.default_int_handler(signum, frame)
        if retry_at < inf and now < retry_at:
            return  # pressed again
        if retry_at == inf and sys.__stderr__:
            os.write(sys.__stderr__.fileno(), STOPPING)
        retry_at = now + RETRY_SECONDS
        again = threading.Timer(RETRY_SECONDS, os.kill, (os.getpid(), signum))
        again.daemon = True
        again.start()

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # Ctrl-C is ignored, or something else handles it
        yield
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _imports_a_library(frame: FrameType | None) -> bool:
    """Whether a frame is within the import of a package that is not ours."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename == "<frozen importlib._bootstrap>" and code.co_name == "_find_and_load":
            name = str(frame.f_locals.get("name", ""))
            if name.partition(".")[0] != OWN:
                return True
        frame = frame.f_back
    return False
