"""Files read in pieces: the lines of a CSV file, and plain text that is too long for memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from .readers import Reader

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
