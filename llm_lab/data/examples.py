"""Datasets of examples for the stages after pretraining: open, check and count them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from llm_lab.errors import Problem, UserError, did_you_mean, one_of

from .builtin import BUILTIN_EXAMPLES
from .formats import KNOWN, Format, list_columns, recognize
from .messages import Unreadable, Unusable
from .paths import SNIFFED_ROWS, find_files, is_on_hub, refuse_extras, refuse_local_extras
from .readers import Reader, without_nan
from .rows import Example as Example
from .rows import read_example

_FORMAT = "1"  # part of every fingerprint: increase it when the same rows would produce different examples
LOOKED_AT_ROWS = 2_000  # maximum number of rows that a check of a recipe reads
Rows = Iterator[tuple[str, Mapping[str, Any]]]  # (location for messages, row)


@dataclass(frozen=True)
class Counts:
    """Number of rows: read = kept + dropped (by reason). `shortened` rows (by reason) are among the kept.

    unread: for each column that is not read, the number of rows in which it has a value.
    """

    read: int
    kept: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    shortened: Mapping[str, int] = field(default_factory=dict)
    unread: Mapping[str, int] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return the counts for the record of a run."""
        unread = {"unread": dict(self.unread)} if self.unread else {}
        return {"read": self.read, "kept": self.kept, "dropped": dict(self.dropped), **unread}

    def describe(self) -> str:
        """Return one line with all reasons."""
        text = f"{self.kept:,} of {self.read:,} rows"
        reasons = {**self.dropped, **self.shortened}
        return text + "".join(f"; {count:,}: {reason}" for reason, count in reasons.items())


@dataclass(frozen=True)
class ExampleSource:
    """A dataset of examples, all in memory, in the order of its rows."""

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
    """Read the examples of a recipe's path: local files, a built-in dataset, or one on the Hub.

    kind: conversation, preference or prompt. columns: {field: column} for columns that are not recognized by name.
    Unusable rows are dropped and counted. Raises UserError, under `key`, if the format is not recognized or a row
    does not match it.
    """
    table = _open_table(str(path), key, kind, subset, split)
    form, examples, counts = _read_table(table, kind, key, str(path), columns)
    if not examples:
        raise UserError(
            Problem(
                f"{key}.path",
                f"It has no usable example: {counts.describe()}",
                value=path,
                fix="Check its rows, or set `columns`.",
            )
        )
    return ExampleSource(
        key=key,
        path=str(path),
        kind=kind,
        fingerprint=_fingerprint(kind, examples),
        format=form.name,
        description=f"{table.extent}, {form.describe([*counts.unread])}: {counts.describe()}",
        examples=examples,
        counts=counts,
    )


def look_at_examples(
    path: str,
    *,
    key: str = "data.0",
    kind: str,
    subset: str | None = None,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
) -> str | None:
    """Check the first rows of a recipe's path without downloading anything; return a warning, or None.

    The warning is about columns that are not read and rows that are dropped. For a Hub dataset, only check that it
    exists. Raises UserError as open_examples does.
    """
    path = str(path)
    if is_on_hub(path):
        from .hub_datasets import look_at_hub

        return look_at_hub(path, subset=subset, split=split, key=key)
    table = _open_table(path, key, kind, subset, split)
    counts = _read_table(table, kind, key, path, columns, limit=LOOKED_AT_ROWS)[2]
    rows = "rows" if counts.read < LOOKED_AT_ROWS else "first rows"
    remarks = [f"columns of {path} that are not read: {list_columns([*counts.unread])}"] if counts.unread else []
    remarks += [f"{count:,} of the {counts.read:,} {rows} are dropped: {why}" for why, count in counts.dropped.items()]
    return f"{key}: {'; '.join(remarks)}" if remarks else None


def columns_of_set(
    path: str, *, key: str = "data.0", kind: str, subset: str | None = None, split: str = "train"
) -> tuple[str, ...]:
    """Return the column names of a recipe's path. Raises UserError as open_examples does."""
    return _open_table(str(path), key, kind, subset, split).columns


def first_rows_of_set(
    path: str, *, key: str = "data.0", kind: str, subset: str | None = None, split: str = "train"
) -> list[Mapping[str, Any]]:
    """Return the first rows of a recipe's path, at most 20. Raises UserError as open_examples does."""
    return _open_table(str(path), key, kind, subset, split).sample


def _read_table(
    table: _Table, kind: str, key: str, path: str, named: Mapping[str, str] | None, limit: int | None = None
) -> tuple[Format, list[Example], Counts]:
    """Return the format of a table, its examples, and the counts of its first `limit` rows (None: all rows).

    A column whose first value comes after the sampled rows may change the format; then the table is read again.
    """
    late: list[str] = []
    if any(column not in table.columns for column in (named or {}).values()):
        late = [name for name in dict.fromkeys(n for _, row in table.rows() for n in row) if name not in table.columns]
    recognized = partial(recognize, kind, table.columns, table.sample, key=key, path=path, named=named)
    form = recognized(late=late)
    while True:
        dropped: Counter[str] = Counter()
        shortened: Counter[str] = Counter()
        values: Counter[str] = Counter()
        rows = _counting(islice(table.rows(), limit), values)
        examples = list(_read_examples(rows, form, key, path, dropped, shortened))
        late = [*dict.fromkeys([*late, *(name for name in values if name not in table.columns)])]
        again = recognized(late=late)
        if again == form:
            break
        form = again
    unread = {name: count for name, count in values.items() if form.ignores(name)}
    read = len(examples) + dropped.total()
    return form, examples, Counts(read, len(examples), dict(dropped), dict(shortened), unread)


def _counting(rows: Rows, values: Counter[str]) -> Rows:
    """Yield rows and count the columns that have a value."""
    for place, row in rows:
        # pandas writes its index as a column without a name.
        values.update(name for name, value in row.items() if name and value is not None and value not in ("", [], {}))
        yield place, row


def _read_examples(
    rows: Rows, form: Format, key: str, path: str, dropped: Counter[str], shortened: Counter[str]
) -> Iterator[Example]:
    for place, row in rows:
        try:
            example, remark = read_example(row, form)
        except Unusable as reason:
            dropped[str(reason)] += 1
            continue
        except Unreadable as error:
            fix = f"Recognized format: {form.describe()}. Fix or remove the row, or set `columns`."
            raise UserError(Problem(f"{key}.path", f"{place}: {error}", value=path, fix=fix)) from None
        if remark:
            shortened[remark] += 1
        yield example


def _open_table(path: str, key: str, kind: str, subset: str | None, split: str) -> _Table:
    if path.startswith("builtin:"):
        refuse_extras(key, "a built-in dataset", subset)
        return _open_builtin(path, key, kind, split)
    found = find_files(path, key, split)
    if found is None:
        return _open_hub(path, key, subset, split)
    refuse_local_extras(key, found, subset, split)
    if found.kind == "text" and kind != "conversation":
        raise UserError(
            Problem(
                f"{key}.path",
                f"Plain text has no columns, but {kind} examples need them",
                value=path,
                allowed=KNOWN[kind],
                fix="Use jsonl, json, csv or parquet files.",
            )
        )
    return _table(path, key, found.describe(), partial(_file_rows, found.readers(key, path)))


def _table(path: str, key: str, extent: str, read: Any) -> _Table:
    def unfolded() -> Rows:
        return (one for place, row in read() for one in _unfold(place, row))

    sample = [row for _, row in islice(unfolded(), SNIFFED_ROWS)]
    if not sample:
        raise UserError(
            Problem(f"{key}.path", "It has no rows", value=path, fix="Use a dataset with at least one row.")
        )
    found = tuple(dict.fromkeys(name for row in sample for name in row))
    return _Table(found, sample, extent, unfolded)


def _unfold(place: str, row: Mapping[str, Any]) -> Rows:
    """Yield one row per input and output: Self-Instruct datasets list those of an instruction as `instances`."""
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
                f"No built-in dataset of examples is named {name!r}",
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
            Problem(
                f"{key}.split",
                f"The built-in dataset {name!r} has no such split for {kind} examples",
                split,
                allowed=error.args[0],
            )
        ) from None

    def read() -> Rows:
        return ((f"row {number} of {path}", row) for number, row in enumerate(rows(kind, split), 1))

    return _table(path, key, f"built-in dataset {name!r} ({split})", read)


def _open_hub(path: str, key: str, subset: str | None, split: str) -> _Table:
    from .hub_datasets import hub_errors, load_hub

    loaded = load_hub(path, subset=subset, split=split, key=key)

    def read() -> Rows:
        with hub_errors(path, subset, split, key):
            for number, row in enumerate(loaded, 1):
                yield f"row {number} of {path}", without_nan(row)

    where = ", ".join(([f"subset {subset}"] if subset else []) + [f"split {split}"])
    return _table(path, key, f"Hub dataset {path} ({where})", read)


def _fingerprint(kind: str, examples: Sequence[Example]) -> str:
    digest = hashlib.sha256(f"{_FORMAT}\0{kind}".encode())
    for example in examples:
        parts = (
            *(tuple(said.values()) for said in example.prompt),
            *(example.completion, example.chosen, example.rejected, example.answer, example.text),
            *([example.about] if example.about else []),
        )
        digest.update(json.dumps(parts).encode() + b"\n")
    return digest.hexdigest()
