"""Read documents out of files: plain text, JSON lines, CSV, Parquet, each told apart by its suffix."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from llm_lab.recipe.errors import Problem, UserError

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
        with self._open() as stream:
            data = stream.read()
        if data.startswith(_UTF16):
            self._refuse_utf16()
        if (at := data.find(b"\0")) >= 0:
            self._refuse_binary(at)
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            self._refuse_encoding()

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (line or row number from 1, row) of a file that has columns."""
        return {"jsonl": self._json_rows, "csv": self._csv_rows, "parquet": self._parquet_rows}[self.kind]()

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
        rows = self._parquet_rows([column]) if self.kind == "parquet" else self.rows()
        for number, row in rows:
            if column not in row:
                self.refuse(
                    f"{self.place(number)} has no column {column!r}, only {', '.join(row) or 'nothing'}",
                    mend="Give every row that column, or leave the row out.",
                )
            value = row[column]
            if value is None:
                continue
            if not isinstance(value, str):
                self.refuse(
                    f"{self.place(number)} holds {type(value).__name__}, not text, in column {column!r}",
                    mend="Make it a string, or set text_column to a column of strings.",
                )
            if value and not value.isspace():
                yield value

    def refuse(self, why: str, mend: str | None = None) -> NoReturn:
        """Raise a UserError about this file."""
        raise UserError(Problem(f"{self.key}.path", why, value=self.path, mend=mend))

    def _json_rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with self._open() as stream:
            head = stream.read(4096)
            stream.seek(0)
            if head.startswith(_UTF16):
                self._refuse_utf16()
            if (at := head.find(b"\0")) >= 0:
                self._refuse_binary(at)
            if head.removeprefix(_BOM).lstrip().startswith(b"["):
                yield from self._json_list(stream.read())
                return
            offset = 0
            for number, line in enumerate(stream, 1):
                if (at := line.find(b"\0")) >= 0:
                    self._refuse_binary(offset + at)
                offset += len(line)
                body = line.removeprefix(_BOM) if number == 1 else line
                if body.strip():
                    yield number, self._json_row(number, body)

    def _json_row(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            # json takes bytes too, but would guess at UTF-16 and let broken UTF-8 by.
            row = json.loads(line.decode())
        except UnicodeDecodeError:
            self._refuse_encoding()
        except ValueError as error:
            self.refuse(
                f"{self.place(number)} is not JSON: {error}",
                mend="Give one object a line, or one list of objects in the file.",
            )
        return self._checked_row(row, self.place(number))

    def _json_list(self, data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
        try:
            rows = json.loads(data.decode("utf-8-sig"))
        except UnicodeDecodeError:
            self._refuse_encoding()
        except ValueError as error:
            self.refuse(
                f"{self.file} begins as a list but is not JSON: {error}",
                mend="Mend that line, or give one object a line.",
            )
        for number, row in enumerate(rows, 1):
            yield number, self._checked_row(row, f"item {number} of {self.file}")

    def _checked_row(self, row: Any, place: str) -> dict[str, Any]:
        if not isinstance(row, dict):
            self.refuse(
                f"{place} is a JSON {type(row).__name__}, not an object",
                mend='Write each document as {"text": "..."}.',
            )
        for name, value in row.items():
            if isinstance(value, str) and not _is_sound(value):
                self.refuse(
                    f"{place} has half of a surrogate pair (\\ud800 to \\udfff) in {name!r}: no text",
                    mend="Write the file again with whole characters; json.dumps does so for whole strings.",
                )
        return row

    def _csv_rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        # The module's own limit is 128 KiB a cell, and documents are often longer.
        csv.field_size_limit(max(csv.field_size_limit(), min(sys.maxsize, 2**31 - 1)))
        with self._open() as stream:
            if stream.read(2) in _UTF16:
                self._refuse_utf16()
            stream.seek(0)
            delimiter = "\t" if ".tsv" in [suffix.lower() for suffix in self.file.suffixes] else ","
            lines = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
            reader = csv.DictReader(self._without_nul(lines), delimiter=delimiter, strict=True)
            try:
                for row in reader:
                    if row.pop(None, None) is not None:
                        self.refuse(
                            f"{self.place(reader.line_num)} has more cells than the first line has names",
                            mend="Put cells with commas, quotes or line breaks into double quotes.",
                        )
                    yield reader.line_num, row
            except csv.Error as error:
                self.refuse(
                    f"{self.place(reader.line_num)} is not CSV: {error}",
                    mend="Double the quotes inside a quoted cell, and close every quote.",
                )
            except UnicodeDecodeError:
                self._refuse_encoding()

    def _without_nul(self, lines: Iterator[str]) -> Iterator[str]:
        for line in lines:
            if "\0" in line:
                self.refuse(f"{self.file} holds NUL bytes, so it is not text", mend="Is it the right file?")
            yield line

    def _parquet_rows(self, columns: list[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        number = 0
        with self._parquet() as parquet:
            for batch in parquet.iter_batches(batch_size=1024, columns=columns):
                try:
                    rows = batch.to_pylist()
                except UnicodeDecodeError:
                    self.refuse(f"rows {number + 1} and on of {self.file} are not UTF-8 text")
                for row in rows:
                    number += 1
                    yield number, row

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
                mend="Is the download whole?",
            )
        except OSError as error:
            self.refuse(f"{self.file} can't be read: {error.strerror or error}")

    @contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        try:
            with gzip.open(self.file) if self.file.suffix.lower() == ".gz" else self.file.open("rb") as stream:
                yield stream
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            self.refuse(f"{self.file} is not a whole gzip file: {error}", mend="Is the download whole?")
        except OSError as error:
            self.refuse(f"{self.file} can't be read: {error.strerror or error}")

    def _refuse_encoding(self) -> NoReturn:
        offset = 0
        with self._open() as stream:
            for number, line in enumerate(stream, 1):
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    self.refuse(
                        f"{self.file} is not UTF-8 at byte {offset + error.start} (line {number}): "
                        f"0x{line[error.start]:02x} does not belong there",
                        mend=f"Convert it: iconv -f WINDOWS-1252 -t UTF-8 {self.file.name} > utf8-"
                        f"{self.file.name} (name the encoding it really has)",
                    )
                offset += len(line)
        self.refuse(f"{self.file} changed while it was read")

    def _refuse_utf16(self) -> NoReturn:
        self.refuse(
            f"{self.file} is UTF-16, not UTF-8",
            mend=f"Convert it: iconv -f UTF-16 -t UTF-8 {self.file.name} > utf8-{self.file.name}",
        )

    def _refuse_binary(self, offset: int) -> NoReturn:
        self.refuse(
            f"{self.file} holds a NUL byte at offset {offset}, so it is not text",
            mend="Is it the right file? Text, JSON lines, CSV and Parquet are read.",
        )


def _is_sound(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
