"""Resolve a recipe's path to local files, or recognize it as a Hub dataset; look at their columns."""

from __future__ import annotations

import glob
from collections import Counter
from itertools import chain, islice
from pathlib import Path

from llm_lab.errors import Problem, UserError, did_you_mean, one_of

from .formats import pick_column, string_columns
from .readers import SUFFIXES, Reader, kind_of

# Names of files that usually describe a corpus: a dataset folder is often Parquet files and a README.md.
_ABOUT = ("readme", "license", "licence", "notice", "changelog")
SNIFFED_ROWS = 20
_HUB_HINT = "Hub datasets are named owner/name."


def find_files(path: str, key: str) -> tuple[Path, ...] | None:
    """Return the files of a path, sorted and all of one kind; None if it can only be a Hub dataset.

    Raises UserError if it looks like a local path and does not exist, or contains several kinds of files or none.
    """
    if not path.strip():
        raise UserError(Problem(f"{key}.path", "The path is empty", fix="Set it to a file, a folder, or a dataset."))
    local = Path(path).expanduser()
    if local.is_dir():
        return _in_folder(path, key, local)
    if local.is_file():
        return (local,)
    if local.exists():
        why = "This is a device or a pipe, but data is read more than once"
        raise UserError(Problem(f"{key}.path", why, value=path, fix="Save it to a file first."))
    if any(sign in path for sign in "*?["):
        return _in_glob(path, key, local)
    if _looks_local(path):
        raise UserError(_missing(path, key, local))
    return None


def hub_mark(path: str) -> dict[str, bool]:
    """Return {"hub": True} if a path names a Hub dataset, else {}: for the record of a run."""
    return {} if path.startswith("builtin:") or find_files(path, "data") is not None else {"hub": True}


def suggest_path(path: str) -> str | None:
    """Return 'Did you mean X?' for the existing path that is most similar to a missing one, or None."""
    missing = Path(path).expanduser()
    while not missing.parent.exists():
        missing = missing.parent
    try:
        names = [entry.name for entry in missing.parent.iterdir() if not entry.name.startswith(".")]
    except OSError:
        return None
    hint = did_you_mean(missing.name, names)
    if hint is None:
        return None
    name = hint.removeprefix("Did you mean ").removesuffix("?")
    return f"Did you mean {missing.parent / name}?"


def _looks_local(path: str) -> bool:
    return (
        path.startswith(("./", "../", "/", "~"))
        or "\\" in path
        or path.endswith("/")
        or kind_of(path) is not None
        or path.count("/") > 1
    )


def _missing(path: str, key: str, local: Path) -> Problem:
    first = local
    while not first.parent.exists():
        first = first.parent
    why = "There is no such file or folder"
    if first != local:
        why = f"There is no folder {first}"
    hint = suggest_path(path)
    return Problem(
        f"{key}.path", why, value=path, fix=f"{hint} {_HUB_HINT}" if hint else f"Check the path. {_HUB_HINT}"
    )


def _in_folder(path: str, key: str, folder: Path) -> tuple[Path, ...]:
    if (folder / "state.json").exists() and (folder / "dataset_info.json").exists():
        raise UserError(
            Problem(
                f"{key}.path",
                "This folder was written by save_to_disk, a format that only the datasets library reads",
                value=path,
                fix="Convert it to Parquet: datasets.load_from_disk(path).to_parquet('data.parquet')",
            )
        )
    files = [
        file
        for file in folder.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    known = [file for file in files if kind_of(file.name)]
    data = [file for file in known if not file.stem.lower().startswith(_ABOUT)] or known
    if not data:
        found = sorted({file.suffix or file.name for file in files})
        raise UserError(
            Problem(
                f"{key}.path",
                f"This folder has no files of a supported type, only {one_of(found[:10]) or 'none at all'}",
                value=path,
                allowed=one_of(list(SUFFIXES)),
                fix="To read other files as plain text, use a glob such as 'src/**/*.py'.",
            )
        )
    return _of_one_kind(path, key, sorted(data, key=lambda file: file.relative_to(folder).as_posix()))


def _in_glob(path: str, key: str, pattern: Path) -> tuple[Path, ...]:
    matches = sorted(glob.glob(str(pattern), recursive=True))
    files = [Path(match) for match in matches if Path(match).is_file()]
    if not files:
        raise UserError(
            Problem(
                f"{key}.path",
                "No file matches this pattern",
                value=path,
                fix=f"Check with: ls {path}. '**' matches folders at any depth. {_HUB_HINT}",
            )
        )
    return _of_one_kind(path, key, files)


def _of_one_kind(path: str, key: str, files: list[Path]) -> tuple[Path, ...]:
    kinds = Counter(kind_of(file.name) or "text" for file in files)
    if len(kinds) > 1:
        listing = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        kind = kinds.most_common(1)[0][0]
        suffix = next(file.suffix for file in files if (kind_of(file.name) or "text") == kind)
        folder = path.rstrip("/") if Path(path).expanduser().is_dir() else "folder"
        raise UserError(
            Problem(
                f"{key}.path",
                f"It contains files of several types ({listing})",
                value=path,
                allowed="one type of file per dataset",
                fix=f"Select one type with a glob such as {folder}/**/*{suffix}, and add an entry for each type.",
            )
        )
    return tuple(files)


def describe_files(kind: str, files: tuple[Path, ...]) -> str:
    """Return the number, type and size of files in words."""
    size = sum(file.stat().st_size for file in files)
    return f"{len(files)} {kind} file{'s' if len(files) > 1 else ''}, {_size(size)}"


def sniff(readers: list[Reader], key: str, path: str, text_column: str | None) -> tuple[tuple[str, ...], str]:
    """Return the columns of a table and the one that contains the text, from its first rows."""
    sample = [row for _, row in islice(chain.from_iterable(r.rows() for r in readers), SNIFFED_ROWS)]
    if not sample:
        raise UserError(Problem(f"{key}.path", "It has no rows", value=path, fix="Use a dataset that contains text."))
    if readers[0].kind == "parquet":
        text = readers[0].parquet_columns()
        names = tuple(text)
        strings = [name for name in names if text[name]]
    else:
        names = tuple(dict.fromkeys(name for row in sample for name in row))
        strings = string_columns(names, sample, typed=readers[0].kind != "csv")
    return names, pick_column(key, path, names, strings, sample, text_column)


def refuse_extras(
    key: str, what: str, subset: str | None = None, split: str = "train", text_column: str | None = None
) -> None:
    """Raise a UserError for all keys that would have no effect."""
    problems = []
    if subset is not None:
        problems.append(("subset", subset, "only Hub datasets have subsets"))
    if split != "train":
        problems.append(("split", split, "only Hub datasets have splits"))
    if text_column is not None:
        problems.append(("text_column", text_column, "it has no columns"))
    if problems:
        raise UserError(
            *(
                Problem(f"{key}.{name}", f"This is {what}: {why}", value=value, fix="Remove the key.")
                for name, value, why in problems
            )
        )


def refuse_local_extras(
    key: str, files: tuple[Path, ...], subset: str | None, split: str, text_column: str | None
) -> None:
    """Raise a UserError for keys that have no effect on local files; text_column is for tables only."""
    if (kind_of(files[0].name) or "text") == "text":
        refuse_extras(key, "plain text", subset, split, text_column)
    else:
        refuse_extras(key, "a local file", subset, split)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.1f} {unit}" if unit == "MB" else f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
