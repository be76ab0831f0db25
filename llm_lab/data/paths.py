"""Resolve a recipe's path to local files or a Hub dataset, and find the columns."""

from __future__ import annotations

import glob
import os
from collections import Counter
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

from llm_lab.errors import Problem, UserError, did_you_mean, one_of, similar_path

from .formats import pick_column, string_columns
from .local_splits import find_saved_splits, find_splits
from .opening import PACKED, zip_member
from .readers import SUFFIXES, TYPED, Reader, kind_of

# Names of files that usually describe a corpus: a dataset folder is often Parquet files and a README.md.
_ABOUT = ("readme", "license", "licence", "notice", "changelog")
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")
# Read as plain text if a path or a glob names them. Other suffixes are refused: their content may be anything.
_PLAIN = frozenset(
    """.adoc .asm .awk .bash .bat .bib .c .cc .cfg .clj .cmake .conf .cpp .cs .css .cu .cxx .dart .diff .el
    .erl .ex .exs .f .f90 .go .gradle .graphql .groovy .h .hh .hpp .hs .htm .html .ini .java .jl .js
    .jsx .kt .lisp .log .lua .m .mk .ml .nim .org .pas .patch .php .pl .pm .properties .proto .ps1 .py
    .pyi .r .raw .rb .rs .rst .s .sass .scala .scm .scss .sh .sol .sql .srt .sty .sv .svelte .swift .tcl
    .tex .tokens .toml .ts .tsx .v .vb .vhd .vim .vtt .vue .wiki .xml .yaml .yml .zig .zsh""".split()
)
SNIFFED_ROWS = 20
MOST_FILES = 1_000_000  # maximum number in a folder
_HUB_HINT = "Hub datasets are named owner/name."


@dataclass(frozen=True)
class LocalFiles:
    """The files of a path, sorted and all of one kind.

    split: the chosen one, if the folder has `splits`. left_out: the other files of the folder, in words.
    """

    files: tuple[Path, ...]
    kind: str
    split: str | None = None
    splits: tuple[str, ...] = ()
    left_out: str = ""

    def readers(self, key: str, path: str) -> list[Reader]:
        """Return a reader for each file."""
        return [Reader(file, self.kind, key, path) for file in self.files]

    def describe(self, *, size: bool = False) -> str:
        """Describe the files in words: number, type, split, what is not read, and with `size` their size."""
        text = f"{len(self.files)} {self.kind} file{'s' if len(self.files) > 1 else ''}"
        if size:
            text += f", {_size(sum(file.stat().st_size for file in self.files))}"
        notes = [f"not read: {self.left_out}"] if self.left_out else []
        if self.split:
            notes.insert(0, f"split {self.split} of {', '.join(self.splits)}")
        return text + (f" ({'; '.join(notes)})" if notes else "")


def find_files(path: str, key: str, split: str = "train") -> LocalFiles | None:
    """Return the files of a path, or of one split of a folder; None if it can only be a Hub dataset.

    A folder's splits follow from its file names, as in the datasets library; the default is train, as there. Raises
    UserError if the path looks local and does not exist, has no such split, or has several kinds of files or none.
    """
    if not path.strip():
        raise UserError(Problem(f"{key}.path", "The path is empty", fix="Set it to a file, a folder, or a dataset."))
    local = Path(path).expanduser()
    if local.is_dir():
        return _in_folder(path, key, local, split)
    if local.exists() and not local.is_file():
        why = "This is a device or a pipe, but data is read more than once"
        raise UserError(Problem(f"{key}.path", why, value=path, fix="Save it to a file first."))
    if local.is_file():
        return _of_one_kind(path, key, [local])
    if any(sign in path for sign in "*?["):
        return _in_glob(path, key, local)
    if _looks_local(path):
        raise UserError(_missing(path, key, local))
    return None


def is_on_hub(path: str) -> bool:
    """Return whether a path can only be the name of a Hub dataset: it is not built in and does not look local."""
    local = Path(path).expanduser()
    looks_local = local.exists() or any(sign in path for sign in "*?[") or _looks_local(path)
    return not path.startswith("builtin:") and not looks_local


def hub_mark(path: str) -> dict[str, bool]:
    """Return {"hub": True} if a path names a Hub dataset, else {}: for the record of a run."""
    return {"hub": True} if is_on_hub(path) else {}


def default_split(path: str, split: str | None) -> str:
    """Return the default split for held-out prompts: test, if the dataset has one."""
    if split is not None:
        return split
    if path.startswith("builtin:") or is_on_hub(path):
        return "test"
    local = Path(path).expanduser()
    return "test" if local.is_dir() and "test" in find_splits(local, _data_in(local, path, "score")[0]) else "train"


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
    hint = similar_path(path)
    return Problem(
        f"{key}.path", why, value=path, fix=f"{hint} {_HUB_HINT}" if hint else f"Check the path. {_HUB_HINT}"
    )


def _in_folder(path: str, key: str, folder: Path, split: str) -> LocalFiles:
    saved = find_saved_splits(folder, key, path)
    data, others = ([], []) if saved else _data_in(folder, path, key)
    if not data and not saved:
        found = sorted({file.suffix or file.name for file in others})
        raise UserError(
            Problem(
                f"{key}.path",
                "This folder has no files of a supported type" + (f", only {one_of(found[:10])}" if found else ""),
                value=path,
                allowed=one_of(list(SUFFIXES)),
                fix="To read source code as plain text, use a glob such as 'src/**/*.py'.",
            )
        )
    splits = saved or find_splits(folder, data)
    if splits and split not in splits:
        hint = did_you_mean(split, splits) or f"Set split, for example split: {next(iter(splits))}"
        raise UserError(
            Problem(f"{key}.split", f"{path} has no such split", value=split, allowed=one_of(list(splits)), fix=hint)
        )
    chosen = _of_one_kind(path, key, splits[split] if splits else data)
    in_splits = {file for files in splits.values() for file in files}
    unread = [file.name for file in data if file not in in_splits] if splits else []
    unread += [
        f"{count:,} {suffix}" for suffix, count in Counter(file.suffix for file in others if file.suffix).most_common()
    ]
    left_out = ", ".join(unread[:5]) + (" ..." if len(unread) > 5 else "")
    return replace(chosen, split=split if len(splits) > 1 else None, splits=tuple(splits), left_out=left_out)


def _data_in(folder: Path, path: str, key: str) -> tuple[list[Path], list[Path]]:
    """Return (the data files of a folder, its other files), without hidden files and descriptions such as a README.

    Raises UserError for a folder with too many files, such as /, which would take hours to scan.
    """
    found = []
    for place, folders, names in os.walk(folder):  # unlike rglob, it skips folders that disappear or can't be read
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in names if not name.startswith(".")]
        if len(found) > MOST_FILES:
            fix = "Name the folder with the data, or files by a glob such as 'data/**/*.txt'."
            raise UserError(Problem(f"{key}.path", f"This folder has more than {MOST_FILES:,} files", path, fix=fix))
    # os.path.isfile, because Path.is_file raises for links to files that can't be accessed.
    files = [file for file in sorted(found, key=lambda one: one.relative_to(folder).as_posix()) if os.path.isfile(file)]
    known = [file for file in files if kind_of(file.name)]
    about = {file for file in files if file.stem.lower().startswith(_ABOUT) or file.name in _DESCRIPTIONS}
    data = [file for file in known if file not in about] or known
    read = about.union(known)
    return data, [file for file in files if file not in read]


def _in_glob(path: str, key: str, pattern: Path) -> LocalFiles:
    matches = sorted(glob.glob(str(pattern), recursive=True))
    files = [Path(match) for match in matches if os.path.isfile(match)]
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


def _of_one_kind(path: str, key: str, files: list[Path]) -> LocalFiles:
    kinds = {file: _kind_of_file(file, key, path) for file in files}
    count = Counter(kinds.values())
    if len(count) > 1:
        listing = ", ".join(f"{number} {kind}" for kind, number in count.most_common())
        most_common = count.most_common(1)[0][0]
        suffix = Counter(file.suffix for file, kind in kinds.items() if kind == most_common).most_common(1)[0][0]
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
    return LocalFiles(tuple(files), next(iter(count)))


def _kind_of_file(file: Path, key: str, path: str) -> str:
    """Return the kind of an existing file, by its suffix. Raises UserError for an unknown suffix."""
    name = file.name
    if file.suffix.lower() == ".zip" and kind_of(name) is None:
        reader = Reader(file, "text", key, path)
        with reader.open():  # raises if it does not contain exactly one file
            name = zip_member(file)[0]
    kind = kind_of(name)
    if kind is not None:
        return kind
    ending = "".join(Path(name).suffixes[-2:]) if Path(name).suffix.lower() in PACKED else Path(name).suffix
    if ending.lower() not in _PLAIN | {""}:
        raise UserError(
            Problem(
                f"{key}.path",
                f"Files that end in {ending} are not supported, so {file} is not read",
                value=path,
                allowed=f"{one_of(list(SUFFIXES))}, packed as {one_of(list(PACKED))}; the usual endings of source code",
                fix="Unpack or convert the file. If it is plain text, rename it to .txt.",
            )
        )
    with Reader(file, "text", key, path).open() as stream:
        if stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith((b'{"', b'[{"')):
            why = f"{file} looks like JSON, but its name does not end like that"
            raise UserError(
                Problem(f"{key}.path", why, value=path, fix="Rename it to .jsonl, or to .txt to train on it.")
            )
    return "text"


def sniff(readers: list[Reader], key: str, path: str, text_column: str | None) -> tuple[tuple[str, ...], str]:
    """Return the columns of a table and the one that contains the text, from its first rows."""
    sample = [row for _, row in islice(chain.from_iterable(r.rows() for r in readers), SNIFFED_ROWS)]
    if not sample:
        raise UserError(Problem(f"{key}.path", "It has no rows", value=path, fix="Use a dataset that contains text."))
    if readers[0].kind in TYPED:
        text = readers[0].typed_columns()
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
        problems.append(("split", split, "it has no splits"))
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
    key: str, found: LocalFiles, subset: str | None, split: str, text_column: str | None = None
) -> None:
    """Raise a UserError for keys that have no effect on local files; text_column is for tables only."""
    is_text = found.kind == "text"
    refuse_extras(
        key,
        "plain text" if is_text else "a local path",
        subset,
        "train" if found.splits else split,
        text_column if is_text else None,
    )


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.1f} {unit}" if unit == "MB" else f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
