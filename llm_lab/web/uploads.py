"""Uploaded data files: streamed to uploads/, with a limit, under a safe name."""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from collections.abc import AsyncIterator
from pathlib import Path

from llm_lab.errors import Problem, UserError

from .addresses import UPLOADS

LARGEST_UPLOAD = 2 * 1024**3  # bytes
MOST_UPLOADED = 20 * 1024**3  # bytes of all files in uploads/
LEFT_FREE = 1024**3  # bytes of free disk space that an upload leaves for runs
LOOK_EVERY = 64 * 1024**2  # bytes between two checks of the free disk space
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt", ".md")
LONGEST_STEM, MOST_BYTES = 80, 150  # characters, and bytes: the system allows 255 for a whole name


def safe_name(name: str) -> str:
    """Return a file name without folders or special characters. UserError for unsupported formats."""
    last = unicodedata.normalize("NFC", name).replace("\\", "/").rsplit("/", 1)[-1]
    suffix = next((one for one in SUFFIXES if last.lower().endswith(one)), None)
    if suffix is None:
        fix = "Save the data in one of these formats."
        raise UserError(Problem("upload", "the file has another format", name[:100], ", ".join(SUFFIXES), fix))
    words = re.sub(r"[^\w.-]+", "-", last[: -len(suffix)]).strip("-._")
    return (words[:LONGEST_STEM].encode()[:MOST_BYTES].decode(errors="ignore") or "data") + suffix


async def save_upload(name: str, pieces: AsyncIterator[bytes], *, largest: int | None = None) -> Path:
    """Write an upload as it arrives; return its path. A number is added to a name that is taken.

    UserError if it is larger than `largest` bytes (None: 2 GiB) or empty, and if uploads/ or the disk is full; then
    nothing is kept, as when the browser stops sending.
    """
    limit = LARGEST_UPLOAD if largest is None else largest
    target = UPLOADS / safe_name(name)
    UPLOADS.mkdir(exist_ok=True)
    known = sum(file.stat().st_size for file in UPLOADS.iterdir() if file.is_file())
    partial = UPLOADS / f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}.part"
    try:
        size = looked = 0
        _require_room(known)
        with open(partial, "xb") as file:
            async for piece in pieces:
                size += len(piece)
                if size > limit:
                    fix = "Put the file into a folder on this machine and name its path instead."
                    raise UserError(Problem(name[:100], f"the file is larger than {_size(limit)}", fix=fix))
                if size - looked >= LOOK_EVERY:
                    _require_room(known + size)
                    looked = size
                file.write(piece)
        _require_room(known + size)
        if not size:
            raise UserError(Problem(name[:100], "the file is empty"))
        return _publish(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _require_room(used: int) -> None:
    """Raise UserError if uploads/ holds too much, or the disk has too little space left."""
    if used > MOST_UPLOADED:
        why = f"it holds {_size(used)}, and at most {_size(MOST_UPLOADED)} are kept"
        raise UserError(Problem(f"{UPLOADS}/", why, fix="Delete files there that you no longer need."))
    free = shutil.disk_usage(UPLOADS).free
    if free < LEFT_FREE:
        why = f"the disk has only {free / 1024**2:,.0f} MiB left"
        raise UserError(Problem(f"{UPLOADS}/", why, fix="Free some space, or name a file that is there already."))


def _publish(partial: Path, target: Path) -> Path:
    """Give a finished file its name, or the name with the first free number."""
    number, path = 1, target
    while True:
        try:
            os.link(partial, path)  # unlike a rename, this never replaces a file
            return path
        except FileExistsError:
            number += 1
            path = target.with_stem(f"{target.stem}-{number}")


def list_uploads() -> list[dict[str, object]]:
    """Return the uploaded files, newest first."""
    files = [file for file in UPLOADS.glob("*") if file.suffix in SUFFIXES and file.is_file()]
    files.sort(key=lambda file: -file.stat().st_mtime)
    return [{"path": str(file), "bytes": file.stat().st_size} for file in files[:50]]


def _size(count: int) -> str:
    return f"{count / 1024**3:.0f} GiB" if count >= 1024**3 else f"{count:,} bytes"
