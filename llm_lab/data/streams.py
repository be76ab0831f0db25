"""Streamed text sources: read forward, resumed at a position, with a held-out head for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from llm_lab.errors import Problem, UserError

from .formats import pick_column, string_columns
from .paths import SNIFFED_ROWS, LocalFiles, find_files, refuse_local_extras, sniff
from .readers import START, Reader, text_pieces
from .tables import Place

_HEAD_CHARACTERS = 4_000_000


Position = dict[str, Any]  # where reading continues: plain values, for JSON


@dataclass(frozen=True)
class Piece:
    """A document or a part of one, in stream order. `position()`: where reading continues after it."""

    text: str
    begins: bool
    ends: bool
    position: Callable[[], Position]


@dataclass(frozen=True)
class TextStream:
    """A corpus that is read forward, from the start or an earlier position, by one reader at a time."""

    key: str
    path: str
    text_column: str | None
    columns: tuple[str, ...]
    _read: Callable[[Position | None], Iterator[Piece]] = field(repr=False, compare=False)
    _extent: str = field(repr=False, compare=False)
    _identity: str = field(repr=False, compare=False)

    def pieces(self, position: Position | None = None) -> Iterator[Piece]:
        """Yield documents in order, long ones in parts, without blank ones."""
        return self._read(position)

    def describe(self) -> str:
        """Return one line: what is streamed, and which column."""
        column = f", column {self.text_column!r}" if self.text_column else ""
        return f"streamed: {self._extent}{column}"


@dataclass(frozen=True)
class StreamSource:
    """A stream whose first documents are held out: `kept` as (text, whether it ends its document).

    Training starts after them and skips later documents that are equal to a held-out one. The fingerprint covers
    the held-out text and what is known of the rest (for files: their sizes).
    """

    stream: TextStream
    kept: tuple[tuple[str, bool], ...]
    documents: int
    start: Position | None
    fingerprint: str
    _digests: frozenset[bytes] = field(repr=False)

    @property
    def key(self) -> str:
        return self.stream.key

    @property
    def path(self) -> str:
        return self.stream.path

    def training_pieces(self, position: Position | None = None) -> Iterator[Piece]:
        """Yield the training documents from a position (None: the start) to the end of the stream."""
        for piece in self.stream.pieces(position or self.start):
            if not (piece.begins and piece.ends and _digest_of(piece.text) in self._digests):
                yield piece


def open_stream(
    path: str, *, key: str = "data.0", subset: str | None = None, split: str = "train", text_column: str | None = None
) -> TextStream:
    """Open the corpus of a recipe's path as a stream and check its first rows; nothing is downloaded as a whole.

    Raises UserError, under `key`, as open_source does, and for files that can't be streamed.
    """
    path = str(path)
    found = find_files(path, key, split)
    if found is None:
        stream = _open_hub(path, key, subset, split, text_column)
    else:
        refuse_local_extras(key, found, subset, split, text_column)
        stream = _open_files(path, key, found, text_column)
    if next(stream.pieces(), None) is None:
        raise UserError(
            Problem(f"{key}.path", "It contains no text", value=path, fix="Use a dataset that contains text.")
        )
    return stream


def hold_out(stream: TextStream, documents: int) -> StreamSource:
    """Hold out the head of a stream: this many documents, up to about 4 million characters; 0 holds out nothing.

    Raises UserError if the stream is not longer than that.
    """
    kept, digests, position = [], set(), None
    complete = characters = 0
    digest = hashlib.sha256(stream._identity.encode())
    for piece in stream.pieces() if documents else ():
        kept.append((piece.text, piece.ends))
        data = piece.text.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
        if piece.begins and piece.ends:
            digests.add(_digest_of(piece.text))
        complete += piece.ends
        characters += len(piece.text)
        if complete >= documents or characters >= _HEAD_CHARACTERS:
            position = piece.position()
            break
    else:
        if documents:
            raise UserError(_too_short(stream, complete))
    return StreamSource(stream, tuple(kept), complete, position, digest.hexdigest(), frozenset(digests))


def _digest_of(document: str) -> bytes:
    return hashlib.sha256(document.encode()).digest()[:16]


def _too_short(stream: TextStream, documents: int) -> Problem:
    return Problem(
        "validation.stream_documents",
        f"{stream.path} has only {documents:,} documents, and all of them would be held out for validation",
        fix="Set a smaller number, or remove streaming: this dataset is small.",
    )


def _open_files(path: str, key: str, found: LocalFiles, text_column: str | None) -> TextStream:
    readers = found.readers(key, path)
    column = None
    names: tuple[str, ...] = ()
    if found.kind != "text":
        if any(reader.is_read_whole() for reader in readers):
            fix = "Write one object per line, or remove streaming."
            why = "A JSON list, or an object that spans lines, can't be streamed"
            raise UserError(Problem(f"{key}.streaming", why, value=True, fix=fix))
        names, column = sniff(readers, key, path, text_column)
    return TextStream(
        key=key,
        path=path,
        text_column=column,
        columns=names,
        _read=partial(_read_files, readers, column),
        _extent=found.describe(size=True),
        _identity="\0".join([found.kind, column or "", *(str(file.stat().st_size) for file in found.files)]),
    )


def _read_files(readers: list[Reader], column: str | None, position: Position | None) -> Iterator[Piece]:
    file, start = (position["file"], tuple(position["place"])) if position else (0, START)
    for index in range(file, len(readers)):
        if column is None:
            for offset, text, begins, ends in text_pieces(readers[index], start[0]):
                # After the end of a file, continue with the next file, or the end of this one would be read twice.
                file, after = (index + 1, START) if ends else (index, (offset, 0))
                yield Piece(text, begins, ends, partial(_position, file, after))
        else:
            for place, text in readers[index].column_from(start, column):
                yield Piece(text, True, True, partial(_position, index, place))
        start = START


def _position(file: int, place: Place) -> Position:
    return {"file": file, "place": list(place)}


def _open_hub(path: str, key: str, subset: str | None, split: str, text_column: str | None) -> TextStream:
    from .hub_datasets import hub_errors, stream_hub

    rows = stream_hub(path, subset=subset, split=split, key=key)
    # Saved before the first row is read, so that reading can return to the start.
    start = rows.state_dict()
    with hub_errors(path, subset, split, key):
        sample = list(islice(rows, SNIFFED_ROWS))
    names = list(dict.fromkeys(name for row in sample for name in row))
    column = pick_column(key, path, names, string_columns(names, sample), sample, text_column)
    where = ", ".join(([f"subset {subset}"] if subset else []) + [f"split {split}"])
    return TextStream(
        key=key,
        path=path,
        text_column=column,
        columns=tuple(names),
        _read=partial(_read_hub, rows, start, column, partial(hub_errors, path, subset, split, key)),
        _extent=f"Hub dataset {path} ({where})",
        _identity="\0".join(["hub", path, subset or "", split, column]),
    )


def _read_hub(
    rows: Any, start: Position, column: str, errors: Callable[[], Any], position: Position | None
) -> Iterator[Piece]:
    rows.load_state_dict(position or start)
    with errors():
        for row in rows:
            text = row.get(column)
            if text is not None and not isinstance(text, str):
                raise ValueError(f"column {column!r} is {type(text).__name__}, not text")
            if text and not text.isspace():
                yield Piece(text, True, True, rows.state_dict)
