"""Change a run's name in everything that has it: runs made from it, adapters, recipes, its own reports.

A file in checkpoints/ records what is being renamed. It is written before anything is changed and deleted at the end,
and every step can be repeated: after a kill, the next look-up of runs (`folder.settle`) completes the rename. The
process holds the lock of checkpoints/, so that no other process completes a rename in progress.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llm_lab.estimate.adapter_base import BASE_RECORD, CONFIG, read_object

from . import lock, manifest
from .disk import write_atomically
from .lock import hold, is_at_work
from .record import WEIGHTS, read_facts

RENAMING = ".renaming.json"  # in checkpoints/: the rename that is in progress
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]*")
IN_A_RUN = ("run.json", "recipe.yaml", "sweep.json", "results.json", "cells.csv", "evaluations.jsonl", "report.md")
IN_A_MODEL = (CONFIG, BASE_RECORD, "README.md")  # not config.json: its digest shows whether a parent has changed
MODEL_KEYS = "checkpoint|reference|model|tokenizer"  # of recipes, in which a run may be named without its folder


@dataclass(frozen=True)
class Renamed:
    """A run that got another name. files: those outside the run in which its name was changed."""

    old: Path
    new: Path
    files: tuple[Path, ...]


def complete_rename(root: Path) -> Renamed | None:
    """Complete a rename that was killed; return it, or None if there is none or another process works on it."""
    known = read_object(root / RENAMING)
    if not known or ((root / lock.NAME).exists() and is_at_work(root, known.get("process") or {})):
        return None
    old, new = str(known.get("old")), str(known.get("new"))
    if not (NAME.fullmatch(old) and NAME.fullmatch(new)):
        return None  # not written by `rename_run`
    with hold(root):
        if not (root / RENAMING).exists():
            return None  # another process has completed it
        if (root / old).is_dir() and not (root / new).exists():
            (root / old).rename(root / new)
        with suppress(OSError):
            (root / new / lock.NAME).unlink()
        return Renamed(root / old, root / new, change_name(root, old, new))


def change_name(root: Path, old: str, new: str) -> tuple[Path, ...]:
    """Change the name in all files, then delete the record of the rename. May be repeated."""
    changed = []
    for file in files_that_name_runs(root):
        if _change(file, root, old, new) and not file.is_relative_to(root / new):
            changed.append(file)
    _change_own_name(root / new, old, new)
    (root / RENAMING).unlink(missing_ok=True)
    return tuple(changed)


def files_that_name_runs(root: Path) -> Iterator[Path]:
    """Yield the files that may name a run: in all runs and sweeps, and the user's recipes."""
    for place in sorted(_homes(root)):
        yield from _existing(place, IN_A_RUN)
        models = [place / "model", place / "space" / "model", *sorted(place.glob("steps/checkpoint-*"))]
        for folder in models:
            yield from _existing(folder, IN_A_MODEL)
    home = root.parent
    for folder in (home, home / "configs"):
        yield from (file for file in sorted(folder.glob("*.y*ml")) if file.is_file() and not file.is_symlink())


def _homes(folder: Path) -> Iterator[Path]:
    """Yield the folders of runs and sweeps inside a folder, at any depth."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink() and path.name[0] != "." and path.name not in WEIGHTS:
            if any((path / name).is_file() for name in ("run.json", "sweep.json")):
                yield path
            yield from _homes(path)


def _existing(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    return (folder / name for name in names if (folder / name).is_file() and not (folder / name).is_symlink())


def _change(file: Path, root: Path, old: str, new: str) -> bool:
    """Change a run's name in a file, and the file's entry in the manifest of its checkpoint; return whether it did."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    after = renamed(text, root, old, new, bare=file.suffix in (".yaml", ".yml", ".json"))
    if after != text:
        write_atomically(file, after)
    if f"{root.name}/{new}" in after:
        _record(file)
    return after != text


def renamed(text: str, root: Path, old: str, new: str, *, bare: bool = False) -> str:
    """Return a text with the paths of a run under its new name.

    A path that leads to another checkpoints/ is not changed unless it no longer exists: then this folder was moved.
    bare: also change recipe keys that name the run without its folder.
    """
    here = str(root.resolve().parent)
    end = r"(?![\w=-])(?!\.[\w=-])"  # a dot without a letter after it ends a sentence

    def change(found: re.Match[str]) -> str:
        before = found["before"]
        place = os.path.expanduser(before)
        if place.startswith("/") and os.path.realpath(place) != here and Path(place, root.name).exists():
            return found[0]
        return f"{before}{root.name}/{new}"

    text = re.sub(
        rf"{re.escape(here)}/{re.escape(root.name)}/{re.escape(old)}{end}", rf"{here}/{root.name}/{new}", text
    )
    path = rf"(?<![\w.=~/-])(?P<before>(?:[/~][^\s\"'`:]*?/|/|\./)?){re.escape(root.name)}/{re.escape(old)}{end}"
    text = re.sub(path, change, text)
    if bare:
        key = rf"(?P<key>(?<![\w.])\"?(?:{MODEL_KEYS})\"?:[ ]*[\"']?){re.escape(old)}"
        text = re.sub(rf"{key}(?=(?:/[^\s\"',}}\]]*)?[\"']?[ ]*(?:[,}}\]\n#]|$))", rf"\g<key>{new}", text)
    return text


def _record(file: Path) -> None:
    """Write the size and digest of a file into the manifest of its checkpoint, if there is one."""
    path = file.parent / manifest.NAME
    try:
        files = json.loads(path.read_bytes())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    now = {"size": file.stat().st_size, "sha256": manifest.file_digest(file)}
    if file.name in files and files[file.name] != now:
        files[file.name] = now
        write_atomically(path, manifest.as_text(files))


def _change_own_name(folder: Path, old: str, new: str) -> None:
    """Change the name in a run's own record, and in the command of a sweep."""
    run_json, recipe_yaml = folder / "run.json", folder / "recipe.yaml"
    facts = read_facts(run_json)[0]
    if facts.get("name") == old:
        recipe = facts.get("recipe")
        if isinstance(recipe, dict) and recipe.get("name"):
            facts["recipe"] = {**recipe, "name": new}
        write_atomically(run_json, json.dumps({**facts, "name": new}, indent=2, ensure_ascii=False) + "\n")
    if recipe_yaml.is_file():
        text = recipe_yaml.read_text(encoding="utf-8")
        after = re.sub(rf"(?m)^name:([ ]*)([\"']?){re.escape(old)}\2(?=\s|$)", rf"name:\g<1>{new}", text, count=1)
        if after != text:
            write_atomically(recipe_yaml, after)
    sweep = folder / "sweep.json"
    known = read_object(sweep)
    if known and str(known.get("command")).startswith("llm-lab "):
        words = shlex.split(known["command"])
        if "--name" in words:
            at = words.index("--name")
            del words[at : at + 2]
        known["command"] = shlex.join([*words, "--name", new])
        write_atomically(sweep, json.dumps(known, indent=1, ensure_ascii=False) + "\n")
