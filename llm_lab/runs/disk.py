"""Writes files and folders completely or not at all, and recognizes the errors of a full disk.

Everything is written under a hidden name that ends in .tmp and then moved into place. A killed process leaves only such
hidden files; the next start deletes them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llm_lab.errors import first_line

# Unfinished work of a killed process. Names without .tmp are from the trainer and from earlier versions.
TEMPORARY = re.compile(r"\..+\.tmp|\.saving|\.model|\..+\.(merging|exporting)")
# torch writes checkpoints in C++ and safetensors in Rust. Neither raises OSError, so the error's text decides. torch's
# zip writer reports "unexpected pos" for a file that is shorter than what it wrote.
_DISK_WORDS = ("unexpected pos", "failed writing", "file write failed", "no space left", "disk quota", "file too large")


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step: readers see the old text or the new text, never a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def append_line(path: Path, text: str) -> None:
    """Append a line to a file, or nothing (OSError) on a full disk. A last line that a crash cut off is terminated."""
    before = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "ab+") as file:
            if before:
                file.seek(-1, os.SEEK_END)
                text = text if file.read(1) == b"\n" else f"\n{text}"
            file.write(f"{text}\n".encode())
    except OSError:
        with suppress(OSError):
            os.truncate(path, before)
        raise


@contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """Yield a path to write a new folder at. It becomes `final` in one step, unless the block fails or deletes it."""
    staged = _hidden(final)
    shutil.rmtree(staged, ignore_errors=True)
    try:
        yield staged
        if staged.is_dir():
            publish(staged, final)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def publish(staged: Path, final: Path) -> None:
    """Sync a finished folder to disk and move it into place in one step."""
    for path in (*staged.rglob("*"), staged):
        _sync(path)
    old = _hidden(final).with_suffix(".old.tmp")
    shutil.rmtree(old, ignore_errors=True)
    with suppress(FileNotFoundError):
        os.replace(final, old)
    os.replace(staged, final)
    _sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Sync a file, or the names in a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # not every file system can sync a folder
            raise
    finally:
        os.close(handle)


def remove_folder(path: Path) -> None:
    """Delete a folder; if that is interrupted, no part of it is left under its name."""
    hidden = _hidden(path)
    shutil.rmtree(hidden, ignore_errors=True)
    with suppress(FileNotFoundError):
        os.replace(path, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def bytes_under(folder: Path) -> int:
    """Return the bytes of all files in a folder and its subfolders, without following links."""
    total, folders = 0, [str(folder)]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
    return total


def _hidden(path: Path) -> Path:
    path = path.resolve()
    return path.with_name(f".{path.name}.tmp")


def is_disk_error(error: BaseException) -> bool:
    """Return whether an error means that a file could not be written, as on a full disk."""
    from safetensors import SafetensorError

    if isinstance(error, OSError):
        return True
    text = str(error).lower()
    if isinstance(error, SafetensorError):
        return "i/o error" in text or "io error" in text or any(word in text for word in _DISK_WORDS)
    return isinstance(error, RuntimeError) and any(word in text for word in _DISK_WORDS)


def describe_disk_error(error: BaseException) -> str:
    """Describe in a few words why a file could not be written."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    known = any(word in text.lower() for word in ("space", "full", "quota", "too large", "permission", "read-only"))
    return text if known else f"the disk is probably full ({text})"
