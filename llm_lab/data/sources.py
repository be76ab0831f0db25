"""Text sources for pretraining: files, folders, globs, built-in corpora and Hub datasets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError, did_you_mean, one_of

from .builtin import BUILTIN, BUILTIN_EXAMPLES, builtin_documents
from .formats import list_columns, pick_column
from .paths import SNIFFED_ROWS, LocalFiles, find_files, is_on_hub, refuse_extras, refuse_local_extras, sniff
from .readers import Reader

_FORMAT = "1"  # part of every fingerprint: increase it when the same files would produce different documents


@dataclass(frozen=True)
class TextSource:
    """A corpus that can be read repeatedly, with the same documents in the same order each time."""

    key: str
    path: str
    text_column: str | None
    columns: tuple[str, ...]
    fingerprint: str
    _read: Callable[[], Iterator[str]] = field(repr=False, compare=False)
    _extent: str = field(repr=False, compare=False)

    def documents(self) -> Iterator[str]:
        """Yield the documents in order, without blank ones. Raises UserError if one can't be read."""
        return self._read()

    def describe(self) -> str:
        """Return one line: what the source is, its size, and which column is read."""
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
    """Open the corpus of a recipe's path and check its first rows; no text is kept in memory.

    Local files take precedence over the Hub. Raises UserError, under `key`, for any problem with the path, its
    subset, split or column, or its first document.
    """
    path = str(path)
    if path.startswith("builtin:"):
        refuse_extras(key, "a built-in dataset", subset, split, text_column)
        source = _open_builtin(path, key)
    elif (found := find_files(path, key, split)) is not None:
        refuse_local_extras(key, found, subset, split, text_column)
        source = _open_files(path, key, found, text_column)
    else:
        source = _open_hub(path, key, subset, split, text_column)
    if next(source.documents(), None) is None:
        raise UserError(
            Problem(f"{key}.path", "It contains no text", value=path, fix="Use a dataset that contains text.")
        )
    return source


def _open_builtin(path: str, key: str) -> TextSource:
    name = path.removeprefix("builtin:")
    if name in BUILTIN_EXAMPLES and name not in BUILTIN:
        why = "This built-in dataset has conversations, preferences or prompts, not plain text"
        fix = "For an evaluation, name it in score.path (`eval --prompts`); to train on it, use SFT or a later stage."
        allowed = one_of([f"builtin:{known}" for known in BUILTIN])
        raise UserError(Problem(f"{key}.path", why, value=path, allowed=allowed, fix=fix))
    if name not in BUILTIN:
        raise UserError(
            Problem(
                f"{key}.path",
                f"No built-in dataset is named {name!r}",
                value=path,
                allowed=one_of([f"builtin:{known}" for known in BUILTIN]),
                fix=did_you_mean(name, BUILTIN),
            )
        )
    return TextSource(
        key=key,
        path=path,
        text_column=None,
        columns=(),
        fingerprint=_digest("builtin", name, BUILTIN[name].version),
        _read=partial(builtin_documents, name),
        _extent=f"built-in dataset {name!r}: {BUILTIN[name].size}",
    )


def _open_files(path: str, key: str, found: LocalFiles, text_column: str | None) -> TextSource:
    readers = found.readers(key, path)
    columns: tuple[str, ...] = ()
    column = None
    if found.kind == "text":
        read = partial(_texts, readers)
    else:
        columns, column = sniff(readers, key, path, text_column)
        read = partial(_cells, readers, column)
    return TextSource(
        key=key,
        path=path,
        text_column=column,
        columns=columns,
        # Only contents, no names: after a folder is moved, its cached tokens are still valid.
        fingerprint=_digest(found.kind, column or "", *map(_file_digest, found.files)),
        _read=read,
        _extent=found.describe(size=True),
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
    """Check a recipe's path without downloading anything; return a warning, or None.

    Local and built-in text is opened as by open_source or open_stream; the warning names the columns that are not read.
    For a Hub dataset, only check that it exists; an unreachable Hub is a warning, not an error, because the recipe may
    be for another machine.
    """
    path = str(path)
    if not is_on_hub(path):
        opener: Any = open_source
        if streaming:
            from .streams import open_stream as opener
        opened = opener(path, key=key, subset=subset, split=split, text_column=text_column)
        unread = [name for name in opened.columns if name and name != opened.text_column]
        return f"{key}: columns of {path} that are not read: {list_columns(unread)}" if unread else None
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
        # Lengths between the documents, so that different lists of documents have different hashes.
        data = text.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    where = ", ".join(([f"subset {subset}"] if subset else []) + [f"split {split}"])
    return TextSource(
        key=key,
        path=path,
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
    """Hash a file's content, cached while its size and modification time are unchanged."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(*parts: Any) -> str:
    return hashlib.sha256("\0".join((_FORMAT, *parts)).encode()).hexdigest()
