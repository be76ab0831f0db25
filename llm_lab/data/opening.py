"""Open a data file, compressed or not, and explain the errors that libraries raise for a broken one."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from llm_lab.hf.hub import LFS_POINTER

PACKED = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd", ".zip": "zip"}
# First bytes of files that are not what their name says.
_BEGINNINGS = {
    LFS_POINTER: (
        "is a Git LFS pointer: the data itself was not downloaded",
        "Download it: git lfs pull",
    ),
    b"\x1f\x8b": ("is packed with gzip", "Add .gz to its name."),
    b"BZh91AY&SY": ("is packed with bzip2", "Add .bz2 to its name."),
    b"\xfd7zXZ\0": ("is packed with xz", "Add .xz to its name."),
    b"\x28\xb5\x2f\xfd": ("is packed with zstd", "Add .zst to its name."),
    b"PK\x03\x04": ("is a zip file", "Unpack it, or change the ending of its name to .zip."),
    b"PAR1": ("is a Parquet file", "Change the ending of its name to .parquet."),
    b"ARROW1\0\0": ("is an Arrow file", "Change the ending of its name to .arrow."),
    b"<!doctype html": ("is a web page, not data", "Download the file itself, not the page that shows it."),
    b"<html": ("is a web page, not data", "Download the file itself, not the page that shows it."),
}
_OWN = {"parquet": (b"PAR1",), "arrow": (b"ARROW1\0\0",), "text": (b"PAR1", b"<!doctype html", b"<html")}
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_COMPLETE = "Check that the download is complete."


def compression_of(file: Path) -> str | None:
    """Return how a file is compressed, by its suffix, or None."""
    return PACKED.get(file.suffix.lower())


def unexpected_start(head: bytes, name: str, kind: str) -> tuple[str, str] | None:
    """Return (what a file is, how to fix it) if its first bytes are not those of its kind, else None."""
    for beginning, (what, fix) in _BEGINNINGS.items():
        if beginning not in _OWN.get(kind, ()) and head.lower().startswith(beginning.lower()):
            return what, fix.format(name=name)
    return None


def zip_member(file: Path) -> tuple[str, str | None]:
    """Return the name of the single file in a zip file, and why it can't be read (None if it can)."""
    with zipfile.ZipFile(file) as archive:
        members = [
            member
            for member in archive.infolist()
            if not member.is_dir()
            and not any(part.startswith((".", "__MACOSX")) for part in Path(member.filename).parts)
        ]
    if len(members) != 1:
        return "", f"contains {len(members):,} files, not one"
    return members[0].filename, "is protected by a password" if members[0].flag_bits & 1 else None


@contextmanager
def open_unpacked(file: Path) -> Iterator[IO[bytes]]:
    """Open a file as decompressed, seekable bytes; text with the byte order mark of UTF-16 is converted to UTF-8.

    Raises what the decompression library raises.
    """
    with _open_packed(file) as stream:
        begins = stream.read(2)
        stream.seek(0)
        if begins not in _UTF16:
            yield stream
            return
        with io.BufferedReader(_AsUtf8(stream)) as recoded:
            yield cast(IO[bytes], recoded)


@contextmanager
def _open_packed(file: Path) -> Iterator[IO[bytes]]:
    packing = compression_of(file)
    if packing == "zip":
        with zipfile.ZipFile(file) as archive, archive.open(zip_member(file)[0]) as stream:
            yield stream
    elif packing == "zstd":
        with io.BufferedReader(_Zstd(file)) as stream:
            yield cast(IO[bytes], stream)
    else:
        opener: Any = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open, None: open}[packing]
        with opener(file, "rb") as stream:
            yield stream


class _Forward(io.RawIOBase):
    """Bytes that can only be read forward: to go back, the source is opened again."""

    def __init__(self) -> None:
        self._at = 0
        self._stream = self._open()

    def _open(self) -> Any:
        """Return an object with `read(size)`, positioned at the start."""
        raise NotImplementedError

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position from the start, by reading up to it."""
        if whence == io.SEEK_CUR:
            offset += self._at
        if offset < self._at:
            self._stream.close()
            self._stream, self._at = self._open(), 0
        while self._at < offset and (data := self._stream.read(min(offset - self._at, 1 << 20))):
            self._at += len(data)
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Zstd(_Forward):
    """A zstd file, decompressed by pyarrow, whose own streams can't seek."""

    def __init__(self, file: Path):
        self._file = file
        super().__init__()

    def _open(self) -> Any:
        import pyarrow as pa

        return pa.CompressedInputStream(pa.OSFile(str(self._file)), "zstd")


class _AsUtf8(_Forward):
    """A UTF-16 stream, converted to UTF-8 without a byte order mark."""

    def __init__(self, stream: IO[bytes]):
        self._inner = stream
        super().__init__()

    def _open(self) -> Any:
        self._inner.seek(0)
        return _Recoder(self._inner)


class _Recoder:
    def __init__(self, stream: IO[bytes]):
        self._stream, self._left = stream, b""
        self._decoder = codecs.getincrementaldecoder("utf-16")()

    def read(self, size: int) -> bytes:
        while len(self._left) < size and (data := self._stream.read(1 << 16)):
            self._left += self._decode(data)
        if len(self._left) < size:
            self._left += self._decode(b"", final=True)
        found, self._left = self._left[:size], self._left[size:]
        return found

    def _decode(self, data: bytes, *, final: bool = False) -> bytes:
        try:
            return self._decoder.decode(data, final).encode()
        except UnicodeError as error:
            raise ValueError(f"it begins like UTF-16 text, but is not valid UTF-16: {error}") from None

    def close(self) -> None:
        """Do nothing: the caller that opened the stream closes it."""


def reading_errors() -> tuple[type[BaseException], ...]:
    """Return the exceptions that json, csv, pyarrow and the decompression libraries raise for a broken file."""
    arrow = getattr(sys.modules.get("pyarrow"), "ArrowException", ValueError)
    unpacking = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError)
    return (ValueError, OSError, OverflowError, MemoryError, RecursionError, csv.Error, arrow, *unpacking)


def explain(error: BaseException, file: Path, kind: str, place: str) -> tuple[str, str]:
    """Return (what is wrong and where, how to fix it) for an error of reading_errors. place: the line or row."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    packing = compression_of(file)
    if isinstance(error, OSError) and error.strerror:
        return f"{file} can't be read: {error.strerror}", "Check the file, its permissions and its disk."
    if isinstance(error, MemoryError):
        return f"{file} does not fit into memory", "Split it into smaller files, or convert it to Parquet."
    if isinstance(error, RecursionError):
        return f"{place} is nested too deeply", "Fix or remove it."
    if isinstance(error, csv.Error):
        return f"{place} is not CSV: {said}", "Double the quotes inside quoted cells, and close every quote."
    if packing and not isinstance(error, json.JSONDecodeError):
        return f"{file} is not a complete {packing} file: {said}", _COMPLETE
    if kind == "jsonl":
        if isinstance(error, json.JSONDecodeError):  # json's line number counts within one row
            said = f"{error.msg.removesuffix(' at')} (column {min(error.pos, len(error.doc.rstrip())) + 1})"
        fix = "Write one object per line, or one list of objects in the file."
        return f"{place} is not JSON: {said}", fix
    return f"{file} can't be read as {kind.capitalize()}: {said}", _COMPLETE
