"""The cells of CSV files, and the rows of Parquet and Arrow files."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, NoReturn

# (decompressed bytes read so far, or rows for Parquet and Arrow; lines or rows read so far)
Place = tuple[int, int]
HEAD = 65_536  # bytes of a CSV file from which its separator is found
_SEPARATORS = (",", ";", "\t", "|")
_BATCH = 1024
_LONE_RETURN = re.compile(rb"(?<=\r)(?!\n)")


class Lines:
    """The decoded lines of a CSV file; tracks the position."""

    def __init__(self, stream: IO[bytes], refuse_binary: Callable[[int], NoReturn]):
        self.stream, self.refuse_binary = stream, refuse_binary
        self.offset, self.number = (0, 0)
        self._pending: list[bytes] = []

    def go_to(self, place: Place) -> None:
        """Continue from an earlier position."""
        self.offset, self.number = place
        self._pending = []
        self.stream.seek(self.offset)

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        if not self._pending:
            # A single carriage return also ends a line.
            self._pending = [part for part in _LONE_RETURN.split(next(self.stream)) if part]
        line = self._pending.pop(0)
        if (at := line.find(b"\0")) >= 0:
            self.refuse_binary(self.offset + at)
        self.offset += len(line)
        self.number += 1
        return line.decode("utf-8-sig" if self.number == 1 else "utf-8")


def csv_cells(lines: Lines, separator: str) -> Iterator[list[str]]:
    """Yield the cells of each row, the header first. Raises csv.Error and UnicodeDecodeError."""
    # The default limit is 128 KiB per cell; documents are often longer.
    csv.field_size_limit(max(csv.field_size_limit(), min(sys.maxsize, 2**31 - 1)))
    return csv.reader(lines, delimiter=separator, strict=True)


def find_separator(head: bytes, usual: str) -> str:
    """Return the separator of a CSV file, from its first bytes: `usual`, unless only another one fits.

    Another one fits if `usual` gives a single column, or column names that contain another separator.
    """
    text = head.decode("utf-8-sig", errors="replace")
    complete = text if len(head) < HEAD else text[: text.rfind("\n") + 1] or text
    widths = {sign: _widths(complete, sign) for sign in (usual, *_SEPARATORS)}
    header = complete.lstrip().partition("\n")[0]
    if widths[usual][:1] > [1] and not any(sign in header for sign in widths if sign != usual):
        return usual
    # With the right separator, every row has as many cells as the header.
    even = [sign for sign, found in widths.items() if found[:1] > [1] and len(set(found)) == 1]
    if not even and widths[usual][:1] <= [1]:
        even = [sign for sign, found in widths.items() if found[:1] > [1]]
    return max(even, key=lambda sign: widths[sign][0], default=usual)


def _widths(text: str, separator: str) -> list[int]:
    """Return the number of cells of the first rows."""
    widths: list[int] = []
    try:
        for row in csv.reader(text.splitlines(keepends=True), delimiter=separator):
            if row:
                widths.append(len(row))
            if len(widths) == 20:
                break
    except csv.Error:  # reported when the rows are read
        pass
    return widths


@dataclass(frozen=True)
class TypedTable:
    """An open Parquet or Arrow file. Its methods raise what pyarrow raises."""

    kind: str
    _table: Any

    @classmethod
    @contextmanager
    def open(cls, file: Path, kind: str) -> Iterator[TypedTable]:
        """Open a file of kind parquet or arrow (what the datasets library writes, or an Arrow IPC file)."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if kind == "parquet":
            with pq.ParquetFile(file) as table:
                yield cls(kind, table)
            return
        with pa.memory_map(str(file)) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            with (pa.ipc.open_file if is_file else pa.ipc.open_stream)(source) as table:
                yield cls(kind, table)

    @property
    def _schema(self) -> Any:
        return self._table.schema_arrow if self.kind == "parquet" else self._table.schema

    @property
    def names(self) -> list[str]:
        """The names of the columns, with duplicates."""
        return list(self._schema.names)

    def text_columns(self) -> dict[str, bool]:
        """Return the columns and whether each contains text."""
        import pyarrow as pa

        text = {}
        for column in self._schema:
            kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
            text[column.name] = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        return text

    def batches(
        self, start: int, columns: list[str] | None
    ) -> Iterator[tuple[int, Callable[[], list[dict[str, Any]]]]]:
        """Yield (number of rows before a batch, a function that returns its rows), without batches before `start`."""
        number = 0
        for size, parts in self._groups(columns):
            if number + size <= start:
                number += size
                continue
            for part in parts():
                if number + part.num_rows > start:
                    yield number, part.to_pylist
                number += part.num_rows

    def _groups(self, columns: list[str] | None) -> Iterator[tuple[int, Callable[[], Iterator[Any]]]]:
        """Yield (number of rows, a function that reads them in parts) for each part of the file."""
        if self.kind == "parquet":
            read = partial(self._table.iter_batches, batch_size=_BATCH, columns=columns)
            for group in range(self._table.num_row_groups):
                yield self._table.metadata.row_group(group).num_rows, partial(read, row_groups=[group])
            return
        count = getattr(self._table, "num_record_batches", None)  # a stream does not have this attribute
        for batch in self._table if count is None else map(self._table.get_batch, range(count)):
            # Arrow does not check what it reads: a damaged file would crash the process later.
            batch.validate(full=True)
            chosen = batch.select(columns) if columns else batch
            yield chosen.num_rows, partial(_slices, chosen)


def _slices(batch: Any) -> Iterator[Any]:
    return (batch.slice(at, _BATCH) for at in range(0, batch.num_rows, _BATCH))
