"""The manifest of a checkpoint: the size and SHA-256 of each of its files, compared before a run resumes from it."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAME = "manifest.json"
# Files of every checkpoint that was written before there were manifests.
_ALWAYS = ("trainer_state.json", "optimizer.pt", "scheduler.pt")


def write_manifest(folder: Path) -> None:
    """Write the manifest of a complete folder."""
    files = {
        file.relative_to(folder).as_posix(): {"size": file.stat().st_size, "sha256": file_digest(file)}
        for file in _files(folder)
    }
    (folder / NAME).write_text(as_text(files), encoding="utf-8")


def as_text(files: dict[str, Any]) -> str:
    """Return the text of a manifest. files: the size and SHA-256 of each file."""
    return json.dumps({"files": files, "sha256": _digest_of(files)}, indent=1) + "\n"


def find_damage(folder: Path, *, has_manifest: bool = True) -> str | None:
    """Describe the damage of a checkpoint, starting with the file's name; None if every file is as it was written.

    has_manifest: whether one was written. Without one, only missing and truncated files are found.
    """
    manifest = folder / NAME
    if not manifest.is_file():
        return f"{manifest} is missing" if has_manifest else _damage_without_manifest(folder)
    try:
        recorded = json.loads(manifest.read_bytes())
        if recorded["sha256"] != _digest_of(recorded["files"]):
            return f"{manifest} has changed since it was written (another SHA-256)"
        expected = {name: (int(entry["size"]), entry["sha256"]) for name, entry in recorded["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{manifest} can't be read"
    for name, (size, digest) in expected.items():
        file = folder / name
        try:
            now = file.stat().st_size
            if now != size:
                return f"{file} has {now:,} bytes, but {size:,} were written"
            if file_digest(file) != digest:
                return f"{file} has changed since it was written (another SHA-256)"
        except FileNotFoundError:
            return f"{file} is missing"
        except OSError as error:
            return f"{file} can't be read ({error.strerror or error})"
    return None


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file, which is read in chunks."""
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _digest_of(files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != NAME)


def _damage_without_manifest(folder: Path) -> str | None:
    missing = [name for name in _ALWAYS if not (folder / name).is_file()]
    if missing:
        return f"{folder / missing[0]} is missing"
    cut_off = [file for file in (*folder.glob("*.pt"), *folder.glob("*.pth")) if not zipfile.is_zipfile(file)]
    return f"{min(cut_off)} was cut off" if cut_off else None
