"""A real file system that is small enough to be filled."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a file system of a size such as 64k; skip the test if this is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder.mkdir()
    if libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode()):
        pytest.skip("mounting a file system requires root")
    try:
        yield folder
    finally:
        libc.umount2(os.fsencode(folder), 2)


def fill(file: Path) -> None:
    """Write a file until nothing more fits on its disk."""
    with open(file, "wb", buffering=0) as handle:
        for size in (65536, 4096, 1):
            try:
                while handle.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
