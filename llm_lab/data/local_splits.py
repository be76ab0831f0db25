"""The splits of a local folder, found as the datasets library finds them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from llm_lab.errors import Problem, UserError

from .readers import kind_of

# As in datasets/data_files.py: a word between these characters names a split; folder names take precedence over file
# names.
_IN_TABLES = {
    split: re.compile(rf"(?:^|[-._ 0-9])(?:{words})(?:[-._ 0-9]|$)")
    for split, words in {
        "train": "train|training",
        "validation": "validation|valid|dev|val",
        "test": "test|testing|eval|evaluation",
    }.items()
}
# Text files have all kinds of names (dev-guide.md), so only names like train.txt and wiki.test.txt count as splits.
_IN_TEXTS = {
    split: re.compile(rf"(?:^|\.)(?:{words})(?:\.|$)")
    for split, words in {"train": "train", "validation": "validation|valid|dev|val", "test": "test"}.items()
}
_SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}.*\..+")
_STATE, _SPLITS = "state.json", "dataset_dict.json"


def find_splits(folder: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Return the files of each split; {} for a folder without splits: all of its files are for training.

    If no name says train, tables without a split in their name are for training; a folder of texts has no splits then.
    """
    names = {file: file.relative_to(folder) for file in files}
    shards = {file: match[1] for file, name in names.items() if (match := _SHARD.fullmatch(name.as_posix()))}
    if shards:
        return _group((split, file) for file, split in shards.items())
    is_text = all(kind_of(file.name) == "text" for file in files)
    words = _IN_TEXTS if is_text else _IN_TABLES
    in_folders = _group(
        (split, file)
        for split, word in words.items()
        for file, name in names.items()
        if any(word.search(part) for part in name.parts[:-1])
    )
    found = in_folders or _group(
        (split, file) for split, word in words.items() for file, name in names.items() if word.search(name.name)
    )
    if found and "train" not in found:
        rest = [file for file in files if not any(file in members for members in found.values())]
        found = {} if is_text else ({"train": rest} | found if rest else found)
    return found


def find_saved_splits(folder: Path, key: str, path: str) -> dict[str, list[Path]]:
    """Return the files of each split of a folder written by `save_to_disk` of the datasets library; {} for others."""
    try:
        if (folder / _SPLITS).is_file():
            names = json.loads((folder / _SPLITS).read_text(encoding="utf-8"))["splits"]
            return {name: _saved_files(folder / name) for name in names}
        if (folder / _STATE).is_file() and (folder / "dataset_info.json").is_file():
            return {"train": _saved_files(folder)}
    except (OSError, ValueError, LookupError, TypeError) as error:
        why = f"This folder was written by save_to_disk, but is not complete: {error}"
        raise UserError(Problem(f"{key}.path", why, value=path, fix="Save or copy the dataset again.")) from None
    return {}


def _saved_files(folder: Path) -> list[Path]:
    state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    files = [folder / Path(file["filename"]).name for file in state["_data_files"]]
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise LookupError(f"{missing[0]} is missing" if missing else "it names no files")
    return files


def _group(pairs: Iterable[tuple[str, Path]]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for split, file in pairs:
        found.setdefault(split, []).append(file)
    return found
