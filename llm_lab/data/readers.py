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
from typing import IO, Any, NoReturn, cast

from llm_lab.errors import Problem, UserError

Place = tuple[
    int, int
]  # (bytes read so far, of the uncompressed text; rows for Parquet), and lines or rows read so far
_PIECE_BYTES = 500_000
_LONE_RETURN = re.compile(rb"(?<=\r)(?!\n)")


def text_pieces(reader: Reader, offset: int = 0) -> Iterator[tuple[int, str, bool, bool]]:
    """Yield (bytes read so far, text, whether it starts the file, whether it ends it); a blank file yields nothing.

    Like pieces_of, cuts where no token crosses the cut.
    """
    with reader.open() as stream:
        reader.refuse_utf16_at(stream.read(2))
        stream.seek(offset)
        begins, left = offset == 0, b""
        while True:
            # Always the same number of bytes from the start of the piece, so a resumed read cuts at the same places.
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
    """The decoded lines of a CSV file; tracks the position."""

    def __init__(self, reader: Reader, stream: IO[bytes]):
        self.reader, self.stream = reader, stream
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
        if b"\0" in line:
            self.reader.refuse(
                f"{self.reader.file} contains NUL bytes, so it is not text", fix="Check that it is the right file."
            )
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
    """Return the type of a file by its name ("text", "jsonl", "csv", "parquet"), or None if unknown."""
    suffixes = Path(name).suffixes
    last = suffixes[-1].lower() if suffixes else ""
    if last == ".gz":
        inner = SUFFIXES.get(suffixes[-2].lower()) if len(suffixes) > 1 else None
        return None if inner == "parquet" else inner
    return SUFFIXES.get(last)


@dataclass(frozen=True)
class Reader:
    """Reads one file. `key` and `path`: the recipe key and the path as the user wrote it, for messages."""

    file: Path
    kind: str
    key: str
    path: str

    def text(self) -> str:
        """Return a plain text file as a string; newlines are kept, a byte order mark is removed."""
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
        """Yield (line or row number from 1, row) of a file with columns."""
        return ((number, row) for (_, number), row in self.rows_from(START))

    def rows_from(self, start: Place, columns: list[str] | None = None) -> Iterator[tuple[Place, dict[str, Any]]]:
        """Yield (position after the row, row), starting at a position; earlier rows are not parsed.

        columns: the columns to read (used for Parquet only).
        """
        if self.kind == "parquet":
            return self._parquet_rows(start, columns)
        return (self._json_rows if self.kind == "jsonl" else self._csv_rows)(start)

    def place(self, number: int) -> str:
        """Return the location of a row in words."""
        return f"{'row' if self.kind == 'parquet' else 'line'} {number} of {self.file}"

    def parquet_columns(self) -> dict[str, bool]:
        """Return the columns of a Parquet file and whether each contains text."""
        import pyarrow as pa

        with self._parquet() as parquet:
            schema = parquet.schema_arrow
        text = {}
        for field in schema:
            kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
            text[field.name] = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        return text

    def column(self, column: str) -> Iterator[str]:
        """Yield the text of one column, row by row; null and blank rows are skipped."""
        return (text for _, text in self.column_from(START, column))

    def column_from(self, start: Place, column: str) -> Iterator[tuple[Place, str]]:
        """Yield (position after the row, text) of one column, starting at a position; see column."""
        for place, row in self.rows_from(start, [column]):
            number = place[1]
            if column not in row:
                self.refuse(
                    f"{self.place(number)} has no column {column!r}, only {', '.join(row) or 'nothing'}",
                    fix="Add that column to every row, or remove the row.",
                )
            value = row[column]
            if value is None:
                continue
            if not isinstance(value, str):
                self.refuse(
                    f"{self.place(number)}: column {column!r} is {type(value).__name__}, not text",
                    fix="Convert it to a string, or set text_column to a column of strings.",
                )
            if value and not value.isspace():
                yield place, value

    def refuse(self, why: str, fix: str | None = None) -> NoReturn:
        """Raise a UserError about this file."""
        raise UserError(Problem(f"{self.key}.path", why, value=self.path, fix=fix))

    def is_json_list(self) -> bool:
        """Return whether the file is one JSON list, which can't be streamed."""
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
            # json accepts bytes too, but would guess UTF-16 and accept broken UTF-8.
            row = json.loads(line.decode())
        except UnicodeDecodeError:
            self.refuse_encoding()
        except ValueError as error:
            self.refuse(
                f"{self.place(number)} is not JSON: {error}",
                fix="Write one object per line, or one list of objects in the file.",
            )
        return self._checked_row(row, self.place(number))

    def _json_list(self, data: bytes) -> Iterator[tuple[Place, dict[str, Any]]]:
        try:
            rows = json.loads(data.decode("utf-8-sig"))
        except UnicodeDecodeError:
            self.refuse_encoding()
        except ValueError as error:
            self.refuse(
                f"{self.file} starts as a list but is not JSON: {error}",
                fix="Fix that line, or write one object per line.",
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
                    f"{place}: {name!r} contains an unpaired surrogate (\\ud800 to \\udfff), which is not valid text",
                    fix="Export the file again with complete characters, for example with json.dumps.",
                )
        return row

    def _csv_rows(self, start: Place) -> Iterator[tuple[Place, dict[str, Any]]]:
        # The default limit is 128 KiB per cell; documents are often longer.
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
                            f"{self.place(lines.number)} has more cells than the header",
                            fix="Quote cells that contain commas, quotes or line breaks.",
                        )
                    if row:
                        short = [None] * (len(names) - len(row))
                        yield (lines.offset, lines.number), dict(zip(names, [*row, *short], strict=True))
            except csv.Error as error:
                self.refuse(
                    f"{self.place(lines.number)} is not CSV: {error}",
                    fix="Double the quotes inside quoted cells, and close every quote.",
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
                        self.refuse(f"{self.file} is not UTF-8 text from row {number + 1} on")
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
                fix="Check that the download is complete.",
            )
        except OSError as error:
            self.refuse(f"{self.file} can't be read: {error.strerror or error}")

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open the file as bytes, decompressed if it is a .gz file."""
        try:
            packed = self.file.suffix.lower() == ".gz"
            with gzip.open(self.file) if packed else self.file.open("rb") as stream:
                yield cast(IO[bytes], stream)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            self.refuse(f"{self.file} is not a complete gzip file: {error}", fix="Check that the download is complete.")
        except OSError as error:
            self.refuse(f"{self.file} can't be read: {error.strerror or error}")

    def refuse_encoding(self) -> NoReturn:
        """Raise a UserError that names the first byte that is not UTF-8."""
        offset = 0
        with self.open() as stream:
            for number, line in enumerate(stream, 1):
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    self.refuse(
                        f"{self.file} is not UTF-8 at byte {offset + error.start} (line {number}): "
                        f"0x{line[error.start]:02x} is invalid",
                        fix=f"Convert it: iconv -f WINDOWS-1252 -t UTF-8 {self.file.name} > utf8-"
                        f"{self.file.name} (use its actual encoding)",
                    )
                offset += len(line)
        self.refuse(f"{self.file} changed while it was being read")

    def refuse_utf16_at(self, head: bytes) -> None:
        """Raise a UserError if a file starts with a UTF-16 byte order mark."""
        if not head.startswith(_UTF16):
            return
        self.refuse(
            f"{self.file} is UTF-16, not UTF-8",
            fix=f"Convert it: iconv -f UTF-16 -t UTF-8 {self.file.name} > utf8-{self.file.name}",
        )

    def refuse_binary(self, offset: int) -> NoReturn:
        """Raise a UserError for a binary file."""
        self.refuse(
            f"{self.file} contains a NUL byte at offset {offset}, so it is not text",
            fix="Check that it is the right file. Supported: text, JSON Lines, CSV and Parquet.",
        )


def _is_sound(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
