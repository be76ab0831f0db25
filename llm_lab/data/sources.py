"""Where text comes from: files, folders, globs, built-in corpora and datasets on the Hub."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError, did_you_mean, one_of

from .builtin import BUILTIN, BUILTIN_VERSION, builtin_documents
from .formats import pick_column
from .paths import SNIFFED_ROWS, describe_files, find_files, refuse_extras, refuse_local_extras, sniff
from .readers import Reader, kind_of

_FORMAT = "1"  # part of every fingerprint: raise it when the same files would give other documents


@dataclass(frozen=True)
class TextSource:
    """A corpus that can be read again and again: the same documents in the same order each time."""

    key: str
    path: str
    kind: str
    files: tuple[Path, ...]
    subset: str | None
    split: str
    text_column: str | None
    columns: tuple[str, ...]
    fingerprint: str
    _read: Callable[[], Iterator[str]] = field(repr=False, compare=False)
    _extent: str = field(repr=False, compare=False)

    def documents(self) -> Iterator[str]:
        """Yield the documents in order; blank ones are passed over. UserError where one can't be read."""
        return self._read()

    def describe(self) -> str:
        """Return one line for people: what it is, how much, and which column is read."""
        if self.text_column is None:
            return self._extent
        return f"{self._extent}, column {self.text_column!r} (of: {', '.join(self.columns)})"


def open_source(
    path: str,
    *,
    key: str = "data.0",
    subset: str | None = None,
    split: str = "train",
    text_column: str | None = None,
) -> TextSource:
    """Find the corpus that a recipe's path names and look at its first rows; no text is kept in memory.

    Local files win over the Hub. UserError, under `key`, for all that is wrong with the path, its
    subset, split or column, or its first document.
    """
    path = str(path)
    if path.startswith("builtin:"):
        refuse_extras(key, "a built-in corpus", subset, split, text_column)
        source = _open_builtin(path, key)
    elif (files := find_files(path, key)) is not None:
        refuse_local_extras(key, files, subset, split, text_column)
        source = _open_files(path, key, files, text_column)
    else:
        source = _open_hub(path, key, subset, split, text_column)
    if next(source.documents(), None) is None:
        raise UserError(
            Problem(f"{key}.path", "There is no text in it", value=path, fix="Name a source that holds text.")
        )
    return source


def _open_builtin(path: str, key: str) -> TextSource:
    name = path.removeprefix("builtin:")
    if name not in BUILTIN:
        raise UserError(
            Problem(
                f"{key}.path",
                f"There is no built-in corpus {name!r}",
                value=path,
                allowed=one_of([f"builtin:{known}" for known in BUILTIN]),
                fix=did_you_mean(name, BUILTIN),
            )
        )
    return TextSource(
        key=key,
        path=path,
        kind="builtin",
        files=(),
        subset=None,
        split="train",
        text_column=None,
        columns=(),
        fingerprint=_digest("builtin", name, BUILTIN_VERSION[name]),
        _read=partial(builtin_documents, name),
        _extent=f"built-in corpus {name!r}: {BUILTIN[name].size}",
    )


def _open_files(path: str, key: str, files: tuple[Path, ...], text_column: str | None) -> TextSource:
    # A file of an unknown suffix that the user named is read as plain text: .py, .tex, no suffix at all.
    kind = kind_of(files[0].name) or "text"
    readers = [Reader(file, kind, key, path) for file in files]
    columns: tuple[str, ...] = ()
    column = None
    if kind == "text":
        read = partial(_texts, readers)
    else:
        columns, column = sniff(readers, key, path, text_column)
        read = partial(_cells, readers, column)
    return TextSource(
        key=key,
        path=path,
        kind=kind,
        files=files,
        subset=None,
        split="train",
        text_column=column,
        columns=columns,
        # Contents only, no names: a folder that moves keeps its tokens.
        fingerprint=_digest(kind, column or "", *map(_file_digest, files)),
        _read=read,
        _extent=describe_files(kind, files),
    )


def look_at_source(
    path: str,
    *,
    key: str = "data.0",
    subset: str | None = None,
    split: str = "train",
    text_column: str | None = None,
    streaming: bool = False,
) -> str | None:
    """Check what a recipe's path names without downloading anything; returns a remark, or None.

    Local and built-in text is opened as open_source, or open_stream, does. Of a Hub dataset only its page is asked for;
    where the Hub can't be reached that is a remark, not an error: the recipe may be meant for elsewhere.
    """
    path = str(path)
    if path.startswith("builtin:") or find_files(path, key) is not None:
        if streaming:
            from .streams import open_stream

            open_stream(path, key=key, subset=subset, split=split, text_column=text_column)
        else:
            open_source(path, key=key, subset=subset, split=split, text_column=text_column)
        return None
    from .hub_datasets import look_at_hub

    return look_at_hub(path, subset=subset, split=split, key=key)


def _open_hub(path: str, key: str, subset: str | None, split: str, text_column: str | None) -> TextSource:
    from .hub_datasets import hub_texts, load_hub

    rows = load_hub(path, subset=subset, split=split, key=key)
    sample = list(islice(rows, SNIFFED_ROWS))
    names = tuple(rows.column_names)
    strings = [name for name in names if str(getattr(rows.features[name], "dtype", "")).endswith("string")]
    column = pick_column(key, path, names, strings, sample, text_column)
    read = partial(hub_texts, rows, column)
    digest = hashlib.sha256()
    for text in read():
        # Lengths between the documents, so that no two lists of documents hash alike.
        data = text.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    where = ", ".join(([f"subset {subset}"] if subset else []) + [f"split {split}"])
    return TextSource(
        key=key,
        path=path,
        kind="hub",
        files=(),
        subset=subset,
        split=split,
        text_column=column,
        columns=names,
        fingerprint=_digest("hub", digest.hexdigest()),
        _read=read,
        _extent=f"Hub dataset {path} ({where}), {len(rows):,} rows",
    )


def _texts(readers: list[Reader]) -> Iterator[str]:
    for reader in readers:
        text = reader.text()
        if text and not text.isspace():
            yield text


def _cells(readers: list[Reader], column: str) -> Iterator[str]:
    return chain.from_iterable(reader.column(column) for reader in readers)


def _file_digest(file: Path) -> str:
    status = file.stat()
    return _digest_of(file.resolve(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _digest_of(file: Path, size: int, changed_ns: int) -> str:
    """Hash a file's content, once a process while its size and time stay: a check and a run both ask."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(*parts: Any) -> str:
    return hashlib.sha256("\0".join((_FORMAT, *parts)).encode()).hexdigest()
