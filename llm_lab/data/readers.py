"""Read documents and rows from files: plain text, JSON Lines, CSV, Parquet and Arrow, by suffix."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

from llm_lab.errors import Problem, UserError, one_of
from llm_lab.hf.hub import LFS_POINTER

from .opening import PACKED, compression_of, explain, open_unpacked, reading_errors, unexpected_start, zip_member
from .tables import HEAD, Lines, Place, TypedTable, csv_cells, find_separator

MOST_COLUMNS = 10_000  # limit for a table: each row becomes a mapping with all columns

_PIECE_BYTES = 500_000


def text_pieces(reader: Reader, offset: int = 0) -> Iterator[tuple[int, str, bool, bool]]:
    """Yield (bytes read so far, text, whether it starts the file, whether it ends it); a blank file yields nothing.

    Like pieces_of, it cuts only where no token crosses the cut.
    """
    with reader.open() as stream:
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
            text = piece.decode("utf-8" if offset else "utf-8-sig")
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
    while data[at] & 0xC0 == 0x80:  # a byte inside a character
        at -= 1
    return at


SUFFIXES = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
TYPED = ("parquet", "arrow")  # kinds whose columns have types
START = (0, 0)
_BOM = b"\xef\xbb\xbf"


def kind_of(name: str) -> str | None:
    """Return the type of a file by its name (a value of SUFFIXES), or None if unknown."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    packed = bool(suffixes) and suffixes[-1] in PACKED
    if packed:
        suffixes.pop()
    kind = SUFFIXES.get(suffixes[-1]) if suffixes else None
    return None if packed and kind in TYPED else kind


def without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with None in its NaN cells: pandas writes an empty cell as NaN."""
    return {name: None if isinstance(cell, float) and cell != cell else cell for name, cell in row.items()}


def _constant(name: str) -> float | None:
    return None if name == "NaN" else float(name)


def _with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} appears twice")
    return row


_JSON = json.JSONDecoder(object_pairs_hook=_with_unique_keys, parse_constant=_constant)


@dataclass
class At:
    """The position of a reader: the number of the line, row or item that it reads next."""

    number: int = 1
    noun: str = "line"


@dataclass(frozen=True)
class Reader:
    """Reads one file. `key` and `path`: the recipe key and the path as the user wrote it, for messages.

    Everything that a library raises while it reads the file becomes a UserError with the file, the line and a fix.
    """

    file: Path
    kind: str
    key: str
    path: str
    at: At = field(default_factory=At, repr=False, compare=False)

    def text(self) -> str:
        """Return a plain text file as a string; newlines are kept, a byte order mark is removed."""
        with self.open() as stream:
            data = stream.read()
            if (at := data.find(b"\0")) >= 0:
                self.refuse_binary(at)
            return data.decode("utf-8-sig")

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (line or row number from 1, row) of a file with columns."""
        return ((number, row) for (_, number), row in self.rows_from(START))

    def rows_from(self, start: Place, columns: list[str] | None = None) -> Iterator[tuple[Place, dict[str, Any]]]:
        """Yield (position after the row, row), starting at a position; earlier rows are not parsed.

        columns: the columns to read (used for Parquet and Arrow only). Cells that are NaN are None.
        """
        if self.kind in TYPED:
            return self._typed_rows(start, columns)
        return (self._json_rows if self.kind == "jsonl" else self._csv_rows)(start)

    def place(self, number: int) -> str:
        """Return the location of a row in words."""
        return f"{'row' if self.kind in TYPED else 'line'} {number} of {self.file}"

    def typed_columns(self) -> dict[str, bool]:
        """Return the columns of a Parquet or Arrow file and whether each contains text."""
        with self._table() as table:
            return table.text_columns()

    def column(self, column: str) -> Iterator[str]:
        """Yield the text of one column, row by row; null and blank rows are skipped."""
        return (text for _, text in self.column_from(START, column))

    def column_from(self, start: Place, column: str) -> Iterator[tuple[Place, str]]:
        """Yield (position after the row, text) of one column, starting at a position; see column."""
        for place, row in self.rows_from(start, [column]):
            number = place[1]
            if column not in row:
                self.refuse(
                    f"{self.place(number)} has no column {column!r}; it has {', '.join(row) or 'no columns'}",
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

    def is_read_whole(self) -> bool:
        """Return whether the file is one JSON list or has objects that span lines, so that it can't be streamed."""
        with self.open() as stream:
            head = stream.read(4096)
        return self.kind == "jsonl" and (_starts_list(head) or _spans_lines(head))

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn everything that libraries raise while they read this file into a UserError."""
        try:
            yield
        except UserError:
            raise
        except UnicodeDecodeError:
            self._refuse_encoding()
        except reading_errors() as error:
            place = f"{self.at.noun} {self.at.number} of {self.file}"
            self.refuse(*explain(error, self.file, self.kind, place))

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open the file as decompressed bytes. Raises UserError if it begins like another type of file."""
        with self.errors():
            self._check_beginning()
            with open_unpacked(self.file) as stream:
                if compression_of(self.file):
                    self._refuse_beginning(stream.read(64))
                    stream.seek(0)
                yield stream

    def _check_beginning(self) -> None:
        with self.file.open("rb") as stream:
            head = stream.read(64)
        if not compression_of(self.file) or head.startswith(LFS_POINTER):
            self._refuse_beginning(head)
        elif compression_of(self.file) == "zip" and (why := zip_member(self.file)[1]):
            self.refuse(f"{self.file} {why}", fix="Unpack it, and use the folder or one of its files.")

    def _refuse_beginning(self, head: bytes) -> None:
        if found := unexpected_start(head, self.file.name, self.kind):
            self.refuse(f"{self.file} {found[0]}", fix=found[1])

    def _json_rows(self, start: Place) -> Iterator[tuple[Place, dict[str, Any]]]:
        with self.open() as stream:
            head = stream.read(4096)
            if (at := head.find(b"\0")) >= 0:
                self.refuse_binary(at)
            offset, number = start
            stream.seek(offset)
            if _starts_list(head):
                yield from self._json_list(stream.read())
                return
            if _spans_lines(head):
                yield from self._json_objects(stream.read())
                return
            for line in stream:
                if (at := line.find(b"\0")) >= 0:
                    self.refuse_binary(offset + at)
                offset += len(line)
                number += 1
                self.at.number = number
                body = line.removeprefix(_BOM) if number == 1 else line
                if body.strip():
                    # json accepts bytes too, but would guess UTF-16 and accept broken UTF-8.
                    yield (offset, number), self._checked_row(_JSON.decode(body.decode()), self.place(number))

    def _json_list(self, data: bytes) -> Iterator[tuple[Place, dict[str, Any]]]:
        text = data.decode("utf-8-sig")
        try:
            rows = _JSON.decode(text)
        except ValueError as error:
            self.refuse(
                f"{self.file} starts as a list but is not JSON: {error}",
                fix="Fix that line, or write one object per line.",
            )
        for number, row in enumerate(rows, 1):
            yield (0, number), self._checked_row(row, f"item {number} of {self.file}")

    def _json_objects(self, data: bytes) -> Iterator[tuple[Place, dict[str, Any]]]:
        """Yield the objects of a file in which an object spans lines, as in a saved conversation."""
        text = data.decode("utf-8-sig").rstrip()
        at, number = 0, 1
        while at < len(text):
            if text[at].isspace():
                at += 1
                continue
            try:
                row, at = _JSON.raw_decode(text, at)
            except ValueError as error:
                fix = "Fix that line, or write one object per line."
                self.refuse(f"object {number} of {self.file} is not JSON: {error}", fix=fix)
            yield (0, number), self._checked_row(row, f"object {number} of {self.file}")
            number += 1

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
        with self.open() as stream:
            is_tsv = ".tsv" in [suffix.lower() for suffix in self.file.suffixes]
            separator = find_separator(stream.read(HEAD), "\t" if is_tsv else ",")
            stream.seek(0)
            lines = Lines(stream, self.refuse_binary)
            cells = csv_cells(lines, separator)
            names = next((row for row in cells if row), [])
            self._check_names(names)
            if start != START:
                lines.go_to(start)
            for row in cells:
                self.at.number = lines.number
                if len(row) > len(names):
                    self.refuse(
                        f"{self.place(lines.number)} has more cells than the header",
                        fix=f"Quote cells that contain {separator!r}, quotes or line breaks.",
                    )
                if row:
                    short = [None] * (len(names) - len(row))
                    yield (lines.offset, lines.number), dict(zip(names, [*row, *short], strict=True))

    def _check_names(self, names: list[str]) -> None:
        if len(names) > MOST_COLUMNS:
            why = f"{self.file} has {len(names):,} columns"
            self.refuse(f"{why}; at most {MOST_COLUMNS:,} are supported", fix="Keep those that contain text.")
        if double := sorted(name for name, count in Counter(names).items() if count > 1):
            self.refuse(f"{self.file} has two columns of the same name: {one_of(double)}", fix="Rename one of them.")

    def _typed_rows(self, start: Place, columns: list[str] | None = None) -> Iterator[tuple[Place, dict[str, Any]]]:
        with self._table() as table:
            self._check_names(table.names)
            for before, rows in table.batches(start[1], columns):
                self.at.number = before + 1
                for number, row in enumerate(rows(), before + 1):
                    if number > start[1]:
                        yield (number, number), without_nan(row)

    @contextmanager
    def _table(self) -> Iterator[TypedTable]:
        self.at.noun = "row"
        with self.errors():
            self._check_beginning()
            with TypedTable.open(self.file, self.kind) as table:
                yield table

    def _refuse_encoding(self) -> NoReturn:
        """Raise a UserError that names the first byte that is not UTF-8."""
        if self.kind in TYPED:
            self.refuse(f"{self.file} is not UTF-8 text from row {self.at.number} on")
        offset = 0
        with open_unpacked(self.file) as stream:
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

    def refuse_binary(self, offset: int) -> NoReturn:
        """Raise a UserError for a binary file."""
        self.refuse(
            f"{self.file} contains a NUL byte at offset {offset}, so it is not text",
            fix="Check that it is the right file. Supported: text, JSON Lines, CSV, Parquet and Arrow.",
        )


def _starts_list(head: bytes) -> bool:
    return head.removeprefix(_BOM).lstrip().startswith(b"[")


def _spans_lines(head: bytes) -> bool:
    """Whether a JSON file begins with an object that has more than one line."""
    first, newline, _ = head.removeprefix(_BOM).lstrip().partition(b"\n")
    return bool(newline) and first.startswith(b"{") and first.rstrip().endswith((b"{", b"[", b","))


def _is_sound(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
