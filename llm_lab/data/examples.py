"""Sets of examples for the stages after pretraining: open, count, split, mix."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from llm_lab.errors import Problem, UserError, did_you_mean, one_of

from .builtin import BUILTIN_EXAMPLES
from .formats import KNOWN, Format, Unreadable, Unusable, recognise
from .paths import SNIFFED_ROWS, find_files, refuse_extras
from .readers import Reader, kind_of
from .rows import Example as Example
from .rows import read_example

_FORMAT = "1"  # part of every fingerprint: raise it when the same rows would give other examples
Rows = Iterator[tuple[str, Mapping[str, Any]]]  # (where it stands, row)


@dataclass(frozen=True)
class Counts:
    """What became of the rows: read = kept + those dropped, by reason. `shortened` are among the kept."""

    read: int
    kept: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    shortened: Mapping[str, int] = field(default_factory=dict)

    def describe(self) -> str:
        """Return one line for people, with all reasons."""
        text = f"{self.kept:,} of {self.read:,} rows"
        reasons = {**self.dropped, **self.shortened}
        return text + "".join(f"; {count:,}: {reason}" for reason, count in reasons.items())


@dataclass(frozen=True)
class ExampleSource:
    """A set of examples, all of them in memory, in the order of its rows."""

    key: str
    path: str
    kind: str
    fingerprint: str
    format: str
    description: str
    examples: Sequence[Example]
    counts: Counts


@dataclass(frozen=True)
class _Table:
    columns: tuple[str, ...]
    sample: list[Mapping[str, Any]]
    extent: str
    _read: Any

    def rows(self) -> Rows:
        return self._read()


def open_examples(
    path: str,
    *,
    key: str = "data.0",
    kind: str,
    subset: str | None = None,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
) -> ExampleSource:
    """Read the examples that a recipe's path names: local files, a built-in set, or one on the Hub.

    kind: conversation, preference or prompt. columns: {field: column} for what is not found by looking. Rows that
    teach nothing are dropped and counted. UserError, under `key`, where the form can't be told or a row has another.
    """
    table = _open_table(str(path), key, kind, subset, split)
    form = recognise(kind, table.columns, table.sample, key=key, path=str(path), by_hand=columns)
    dropped: Counter[str] = Counter()
    shortened: Counter[str] = Counter()
    examples = list(_read_examples(table.rows(), form, key, str(path), dropped, shortened))
    counts = Counts(len(examples) + dropped.total(), len(examples), dict(dropped), dict(shortened))
    if not examples:
        raise UserError(
            Problem(
                f"{key}.path",
                f"No example in it can be used: {counts.describe()}",
                value=path,
                fix="Look at its rows, or name its columns with columns.",
            )
        )
    return ExampleSource(
        key=key,
        path=str(path),
        kind=kind,
        fingerprint=_fingerprint(kind, examples),
        format=form.name,
        description=f"{table.extent}, {form.describe()}: {counts.describe()}",
        examples=examples,
        counts=counts,
    )


def default_split(path: str, split: str | None) -> str:
    """Return the split that held-out prompts are read from where none is named: test; local files have none."""
    if split is not None:
        return split
    return "test" if path.startswith("builtin:") or find_files(path, "score") is None else "train"


def look_at_examples(
    path: str,
    *,
    key: str = "data.0",
    kind: str,
    subset: str | None = None,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
) -> str | None:
    """Check what a recipe's path names by its first rows, without downloading anything; returns a remark, or None.

    Of a Hub dataset only its page is asked for. UserError as from open_examples.
    """
    path = str(path)
    if not path.startswith("builtin:") and find_files(path, key) is None:
        from .hub_datasets import look_at_hub

        return look_at_hub(path, subset=subset, split=split, key=key)
    table = _open_table(path, key, kind, subset, split)
    form = recognise(kind, table.columns, table.sample, key=key, path=path, by_hand=columns)
    for _ in _read_examples(islice(table.rows(), SNIFFED_ROWS), form, key, path, Counter(), Counter()):
        pass
    return None


def columns_of_set(
    path: str, *, key: str = "data.0", kind: str, subset: str | None = None, split: str = "train"
) -> tuple[str, ...]:
    """Return the columns of the set that a recipe's path names. UserError as from open_examples."""
    return _open_table(str(path), key, kind, subset, split).columns


def _read_examples(
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    form: Format,
    key: str,
    path: str,
    dropped: Counter[str],
    shortened: Counter[str],
) -> Iterator[Example]:
    for place, row in rows:
        try:
            example, remark = read_example(row, form)
        except Unusable as reason:
            dropped[str(reason)] += 1
            continue
        except Unreadable as error:
            fix = f"It was read as {form.describe()}. Fix the row or leave it out, or name the columns with columns."
            raise UserError(Problem(f"{key}.path", f"{place}: {error}", value=path, fix=fix)) from None
        if remark:
            shortened[remark] += 1
        yield example


def _open_table(path: str, key: str, kind: str, subset: str | None, split: str) -> _Table:
    if path.startswith("builtin:"):
        refuse_extras(key, "a built-in set", subset)
        return _open_builtin(path, key, kind, split)
    files = find_files(path, key)
    if files is None:
        return _open_hub(path, key, subset, split)
    refuse_extras(key, "a local file", subset, split)
    file_kind = kind_of(files[0].name)
    if file_kind in (None, "text"):
        if kind != "conversation":
            raise UserError(
                Problem(
                    f"{key}.path",
                    f"Plain text has no columns, and a set of {kind}s needs some",
                    value=path,
                    allowed=KNOWN[kind],
                    fix="Name jsonl, json, csv or parquet files.",
                )
            )
        file_kind = "text"
    read = partial(_file_rows, [Reader(file, file_kind, key, path) for file in files])
    names = f"{len(files)} {file_kind} file{'s' if len(files) > 1 else ''}"
    return _table(path, key, names, read)


def _table(path: str, key: str, extent: str, read: Any) -> _Table:
    def unfolded() -> Rows:
        return (one for place, row in read() for one in _unfold(place, row))

    sample = [row for _, row in islice(unfolded(), SNIFFED_ROWS)]
    if not sample:
        raise UserError(Problem(f"{key}.path", "It has no rows", value=path, fix="Name a set that has some."))
    found = tuple(dict.fromkeys(name for row in sample for name in row))
    return _Table(found, sample, extent, unfolded)


def _unfold(place: str, row: Mapping[str, Any]) -> Rows:
    """Yield a row for each input and output of an instruction: Self-Instruct's sets list them as `instances`."""
    instances = row.get("instances") if "instruction" in row else None
    if not isinstance(instances, list) or not all(isinstance(one, Mapping) for one in instances):
        yield place, row
        return
    rest = {name: value for name, value in row.items() if name != "instances"}
    for number, one in enumerate(instances, 1):
        yield (place if len(instances) == 1 else f"{place}, instance {number}"), {**rest, **one}


def _file_rows(readers: Sequence[Reader]) -> Rows:
    for reader in readers:
        if reader.kind == "text":
            yield str(reader.file), {"text": reader.text()}
        else:
            for number, row in reader.rows():
                yield reader.place(number), row


def _open_builtin(path: str, key: str, kind: str, split: str) -> _Table:
    name = path.removeprefix("builtin:")
    if name not in BUILTIN_EXAMPLES:
        raise UserError(
            Problem(
                f"{key}.path",
                f"There is no built-in set of examples {name!r}",
                value=path,
                allowed=one_of([f"builtin:{known}" for known in BUILTIN_EXAMPLES]) or "none",
                fix=did_you_mean(name, BUILTIN_EXAMPLES),
            )
        )
    rows = BUILTIN_EXAMPLES[name]
    try:
        next(iter(rows(kind, split)), None)
    except KeyError as error:
        raise UserError(
            Problem(f"{key}.split", f"The built-in set {name!r} has no such split of {kind}s: {error.args[0]}", split)
        ) from None

    def read() -> Rows:
        return ((f"row {number} of {path}", row) for number, row in enumerate(rows(kind, split), 1))

    return _table(path, key, f"built-in set {name!r} ({split})", read)


def _open_hub(path: str, key: str, subset: str | None, split: str) -> _Table:
    from .hub_datasets import load_hub

    loaded = load_hub(path, subset=subset, split=split, key=key)

    def read() -> Rows:
        return ((f"row {number} of {path}", row) for number, row in enumerate(loaded, 1))

    where = ", ".join(([f"subset {subset}"] if subset else []) + [f"split {split}"])
    return _table(path, key, f"Hub dataset {path} ({where})", read)


def _fingerprint(kind: str, examples: Sequence[Example]) -> str:
    digest = hashlib.sha256(f"{_FORMAT}\0{kind}".encode())
    for example in examples:
        parts = (
            *((said["role"], said["content"]) for said in example.prompt),
            *(example.completion, example.chosen, example.rejected, example.answer, example.text),
        )
        digest.update(json.dumps(parts).encode() + b"\n")
    return digest.hexdigest()
