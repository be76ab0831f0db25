"""Read documents and rows from files: plain text, JSON Lines, CSV and Parquet, by suffix."""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from llm_lab.errors import Problem, UserError

Place = tuple[int, int]  # bytes (of the text in a .gz; rows of a Parquet file) and lines or rows read so far
_PIECE_BYTES = 500_000
_LONE_RETURN = re.compile(rb"(?<=\r)(?!\n)")


def text_pieces(reader: Reader, offset: int = 0) -> Iterator[tuple[int, str, bool, bool]]:
    """Yield (bytes read so far, text, whether it begins the file, whether it ends it); a blank file yields nothing.

    Cuts stand where pieces_of would cut too: where no token stands across.
    """
    with reader.open() as stream:
        reader.refuse_utf16_at(stream.read(2))
        stream.seek(offset)
        begins, left = offset == 0, b""
        while True:
            # Always so many bytes from where the piece begins: who goes on from here cuts at the same places.
            data = left + stream.read(_PIECE_BYTES - len(left))
            ends = len(data) < _PIECE_BYTES
            cut = len(data) if ends else _cut(data)
            piece, left = data[:cut], data[cut:]
            if (at := piece.find(b"\0")) >= 0:
                reader.refuse_binary(offset + at)
            try:
                text = piece.decode("utf-8" if offset else "utf-8-sig")
            except UnicodeDecodeError:
                reader.refuse_encoding()
            offset += cut
            if not begins or (text and not text.isspace()):
                yield offset, text, begins, ends
                begins = False
            if ends:
                return


def _cut(data: bytes) -> int:
    half = len(data) // 2
    at = data.rfind(b"\n", half, -1)
    while at > half:
        if not data[at - 1 : at].isspace() and not data[at + 1 : at + 2].isspace():
            return at + 1
        at = data.rfind(b"\n", half, at)
    at = data.rfind(b" ", half, -1)
    if at > half:
        return at
    at = len(data) - 1
    while data[at] & 0xC0 == 0x80:  # inside a character
        at -= 1
    return at


class Lines:
    """The lines of a CSV file, decoded, and how far they were read."""

    def __init__(self, reader: Reader, stream: BinaryIO):
        self.reader, self.stream = reader, stream
        self.offset, self.number = (0, 0)
        self._pending: list[bytes] = []

    def go_to(self, place: Place) -> None:
        """Go on from a place of before."""
        self.offset, self.number = place
        self._pending = []
        self.stream.seek(self.offset)

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        if not self._pending:
            # A carriage return alone ends a line too.
            self._pending = [part for part in _LONE_RETURN.split(next(self.stream)) if part]
        line = self._pending.pop(0)
        if b"\0" in line:
            self.reader.refuse(f"{self.reader.file} holds NUL bytes, so it is not text", fix="Is it the right file?")
        self.offset += len(line)
        self.number += 1
        return line.decode("utf-8-sig" if self.number == 1 else "utf-8")


SUFFIXES = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
START = (0, 0)
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def kind_of(name: str) -> str | None:
    """Return the kind of a file by its name ("text", "jsonl", "csv", "parquet"), or None if unknown."""
    suffixes = Path(name).suffixes
    last = suffixes[-1].lower() if suffixes else ""
    if last == ".gz":
        inner = SUFFIXES.get(suffixes[-2].lower()) if len(suffixes) > 1 else None
        return None if inner == "parquet" else inner
    return SUFFIXES.get(last)


@dataclass(frozen=True)
class Reader:
    """Reads one file. `key` and `path` are how the user named it, for messages."""

    file: Path
    kind: str
    key: str
    path: str

    def text(self) -> str:
        """Return a whole plain text file; newlines stay as they are, a byte order mark goes."""
        with self.open() as stream:
            data = stream.read()
        self.refuse_utf16_at(data)
        if (at := data.find(b"\0")) >= 0:
            self.refuse_binary(at)
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            self.refuse_encoding()

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (line or row number from 1, row) of a file that has columns."""
        return ((number, row) for (_, number), row in self.rows_from(START))

    def rows_from(self, start: Place, columns: list[str] | None = None) -> Iterator[tuple[Place, dict[str, Any]]]:
        """Yield (the place behind the row, row) from a place on; what stands before it is not read again.

        columns: of a Parquet file, those that are needed.
        """
        if self.kind == "parquet":
            return self._parquet_rows(start, columns)
        return (self._json_rows if self.kind == "jsonl" else self._csv_rows)(start)

    def place(self, number: int) -> str:
        """Return words for where a row stands."""
        return f"{'row' if self.kind == 'parquet' else 'line'} {number} of {self.file}"

    def parquet_columns(self) -> dict[str, bool]:
        """Return each column of a Parquet file and whether it holds text."""
        import pyarrow as pa

        with self._parquet() as parquet:
            schema = parquet.schema_arrow
        text = {}
        for field in schema:
            kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
            text[field.name] = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        return text

    def column(self, column: str) -> Iterator[str]:
        """Yield the text of one column, row by row; null and blank rows are passed over."""
        return (text for _, text in self.column_from(START, column))

    def column_from(self, start: Place, column: str) -> Iterator[tuple[Place, str]]:
        """Yield (the place behind the row, text) of one column from a place on; see column."""
        for place, row in self.rows_from(start, [column]):
            number = place[1]
            if column not in row:
                self.refuse(
                    f"{self.place(number)} has no column {column!r}, only {', '.join(row) or 'nothing'}",
                    fix="Give every row that column, or leave the row out.",
                )
            value = row[column]
            if value is None:
                continue
            if not isinstance(value, str):
                self.refuse(
                    f"{self.place(number)} holds {type(value).__name__}, not text, in column {column!r}",
                    fix="Make it a string, or set text_column to a column of strings.",
                )
            if value and not value.isspace():
                yield place, value

    def refuse(self, why: str, fix: str | None = None) -> NoReturn:
        """Raise a UserError about this file."""
        raise UserError(Problem(f"{self.key}.path", why, value=self.path, fix=fix))

    def is_json_list(self) -> bool:
        """Tell whether this is one JSON list, which can only be read whole."""
        with self.open() as stream:
            return self.kind == "jsonl" and stream.read(4096).removeprefix(_BOM).lstrip().startswith(b"[")

    def _json_rows(self, start: Place) -> Iterator[tuple[Place, dict[str, Any]]]:
        with self.open() as stream:
            head = stream.read(4096)
            self.refuse_utf16_at(head)
            if (at := head.find(b"\0")) >= 0:
                self.refuse_binary(at)
            offset, number = start
            stream.seek(offset)
            if head.removeprefix(_BOM).lstrip().startswith(b"["):
                yield from self._json_list(stream.read())
                return
            for line in stream:
                if (at := line.find(b"\0")) >= 0:
                    self.refuse_binary(offset + at)
                offset += len(line)
                number += 1
                body = line.removeprefix(_BOM) if number == 1 else line
                if body.strip():
                    yield (offset, number), self._json_row(number, body)

    def _json_row(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            # json takes bytes too, but would guess at UTF-16 and let broken UTF-8 by.
            row = json.loads(line.decode())
        except UnicodeDecodeError:
            self.refuse_encoding()
        except ValueError as error:
            self.refuse(
                f"{self.place(number)} is not JSON: {error}",
                fix="Give one object a line, or one list of objects in the file.",
            )
        return self._checked_row(row, self.place(number))

    def _json_list(self, data: bytes) -> Iterator[tuple[Place, dict[str, Any]]]:
        try:
            rows = json.loads(data.decode("utf-8-sig"))
        except UnicodeDecodeError:
            self.refuse_encoding()
        except ValueError as error:
            self.refuse(
                f"{self.file} begins as a list but is not JSON: {error}",
                fix="Fix that line, or give one object a line.",
            )
        for number, row in enumerate(rows, 1):
            yield (0, number), self._checked_row(row, f"item {number} of {self.file}")

    def _checked_row(self, row: Any, place: str) -> dict[str, Any]:
        if not isinstance(row, dict):
            self.refuse(
                f"{place} is a JSON {type(row).__name__}, not an object",
                fix='Write each document as {"text": "..."}.',
            )
        for name, value in row.items():
            if isinstance(value, str) and not _is_sound(value):
                self.refuse(
                    f"{place} has half of a surrogate pair (\\ud800 to \\udfff) in {name!r}: no text",
                    fix="Write the file again with whole characters; json.dumps does so for whole strings.",
                )
        return row

    def _csv_rows(self, start: Place) -> Iterator[tuple[Place, dict[str, Any]]]:
        # The module's own limit is 128 KiB a cell, and documents are often longer.
        csv.field_size_limit(max(csv.field_size_limit(), min(sys.maxsize, 2**31 - 1)))
        with self.open() as stream:
            self.refuse_utf16_at(stream.read(2))
            stream.seek(0)
            delimiter = "\t" if ".tsv" in [suffix.lower() for suffix in self.file.suffixes] else ","
            lines = Lines(self, stream)
            cells = csv.reader(lines, delimiter=delimiter, strict=True)
            try:
                names = next((row for row in cells if row), [])
                if start != START:
                    lines.go_to(start)
                for row in cells:
                    if len(row) > len(names):
                        self.refuse(
                            f"{self.place(lines.number)} has more cells than the first line has names",
                            fix="Put cells with commas, quotes or line breaks into double quotes.",
                        )
                    if row:
                        short = [None] * (len(names) - len(row))
                        yield (lines.offset, lines.number), dict(zip(names, [*row, *short], strict=True))
            except csv.Error as error:
                self.refuse(
                    f"{self.place(lines.number)} is not CSV: {error}",
                    fix="Double the quotes inside a quoted cell, and close every quote.",
                )
            except UnicodeDecodeError:
                self.refuse_encoding()

    def _parquet_rows(self, start: Place, columns: list[str] | None = None) -> Iterator[tuple[Place, dict[str, Any]]]:
        number = 0
        with self._parquet() as parquet:
            for group in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(group).num_rows
                if number + rows <= start[1]:
                    number += rows
                    continue
                for batch in parquet.iter_batches(batch_size=1024, row_groups=[group], columns=columns):
                    if number + batch.num_rows <= start[1]:
                        number += batch.num_rows
                        continue
                    try:
                        rows = batch.to_pylist()
                    except UnicodeDecodeError:
                        self.refuse(f"rows {number + 1} and on of {self.file} are not UTF-8 text")
                    for row in rows:
                        number += 1
                        if number > start[1]:
                            yield (number, number), row

    @contextmanager
    def _parquet(self) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.file) as parquet:
                yield parquet
        except pa.ArrowException as error:
            self.refuse(
                f"{self.file} can't be read as Parquet: {str(error).splitlines()[0]}",
                fix="Is the download whole?",
            )
        except OSError as error:
            self.refuse(f"{self.file} can't be read: {error.strerror or error}")

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the file for its bytes, unpacked where it is a .gz."""
        try:
            with gzip.open(self.file) if self.file.suffix.lower() == ".gz" else self.file.open("rb") as stream:
                yield stream
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            self.refuse(f"{self.file} is not a whole gzip file: {error}", fix="Is the download whole?")
        except OSError as error:
            self.refuse(f"{self.file} can't be read: {error.strerror or error}")

    def refuse_encoding(self) -> NoReturn:
        """Refuse a file that is not UTF-8, by the place where it is not."""
        offset = 0
        with self.open() as stream:
            for number, line in enumerate(stream, 1):
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    self.refuse(
                        f"{self.file} is not UTF-8 at byte {offset + error.start} (line {number}): "
                        f"0x{line[error.start]:02x} does not belong there",
                        fix=f"Convert it: iconv -f WINDOWS-1252 -t UTF-8 {self.file.name} > utf8-"
                        f"{self.file.name} (name the encoding it really has)",
                    )
                offset += len(line)
        self.refuse(f"{self.file} changed while it was read")

    def refuse_utf16_at(self, head: bytes) -> None:
        """Refuse a file that begins as UTF-16 does."""
        if not head.startswith(_UTF16):
            return
        self.refuse(
            f"{self.file} is UTF-16, not UTF-8",
            fix=f"Convert it: iconv -f UTF-16 -t UTF-8 {self.file.name} > utf8-{self.file.name}",
        )

    def refuse_binary(self, offset: int) -> NoReturn:
        """Refuse a file that is no text."""
        self.refuse(
            f"{self.file} holds a NUL byte at offset {offset}, so it is not text",
            fix="Is it the right file? Text, JSON lines, CSV and Parquet are read.",
        )


def _is_sound(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
