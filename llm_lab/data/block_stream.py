"""The blocks of a stream: tokenised ahead in a thread, read forwards, and gone on with at any block."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llm_lab.errors import Problem, UserError

from .encoding import Encoder, pieces_of
from .streams import Position, StreamSource

# A chunk is what is encoded at once, and what is read again at most when a run goes on.
CHUNK_CHARACTERS = 250_000
CHUNK_PIECES = 1_000
_AHEAD = 8  # chunks that wait, at most


@dataclass(frozen=True)
class Mark:
    """A place to go on from: `tokens` of the stream stand before it, `epoch_tokens` make an epoch (None: not known)."""

    position: Position | None
    tokens: int = 0
    epoch_tokens: int | None = None


@dataclass(frozen=True)
class _Chunk:
    tokens: np.ndarray
    mark: Mark  # where it begins
    ends_epoch: bool


@dataclass(frozen=True)
class StreamTokens:
    """A stream's validation tokens, and how its training blocks are had; stands beside TokenSet."""

    source: StreamSource
    validation: np.ndarray
    validation_bytes: int
    description: str


def prepare_stream(source: StreamSource, tokenizer: Any) -> StreamTokens:
    """Encode what a stream keeps for validation. UserError where the tokenizer has no EOS."""
    pieces = [(text, last and ends) for kept, ends in source.kept for text, last in pieces_of(kept)]
    validation = _joined(ids for ids, _, _ in Encoder(tokenizer)(pieces))
    description = source.stream.describe()
    if source.kept:
        what = f"its first {source.documents:,} documents" if source.documents > 1 else "its beginning"
        description += f"; {what} ({len(validation):,} tokens) are kept for validation"
    return StreamTokens(source, validation, sum(len(text.encode()) for text, _ in source.kept), description)


def _joined(lists: Iterable[list[int]]) -> np.ndarray:
    found = [np.asarray(ids, dtype=np.uint32) for ids in lists]
    return np.concatenate(found) if found else np.zeros(0, np.uint32)


class BlockStream:
    """The training part of a stream, again and again, in blocks: the k-th begins at token k * max_length.

    Blocks are asked for in rising order; those that are left out (another process has them) are passed over.
    state: what `state` returned, to go on from there.
    """

    def __init__(self, source: StreamSource, tokenizer: Any, *, max_length: int, state: dict[str, Any] | None = None):
        self.source, self.max_length = source, max_length
        self._encoder = Encoder(tokenizer)
        mark = Mark(**state) if state else Mark(source.start)
        self._epoch_tokens = mark.epoch_tokens
        self._marks = deque([mark])
        self._parts: deque[np.ndarray] = deque()
        self._from = self._until = mark.tokens  # the tokens that are at hand
        self._ready: queue.Queue[_Chunk | BaseException] = queue.Queue(_AHEAD)
        self._stopped = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(mark,), name=f"stream of {source.path}", daemon=True)

    def block(self, k: int) -> np.ndarray:
        """Return max_length + 1 tokens (int64), reading on as far as they take."""
        start, stop = k * self.max_length, (k + 1) * self.max_length + 1
        if start < self._from:
            raise IndexError(f"block {k}: a stream is read forwards, and is past it")
        while self._until < stop:
            self._take()
        while self._from + len(self._parts[0]) <= start:
            self._from += len(self._parts.popleft())
        found, at = [], self._from
        for part in self._parts:
            found.append(part[max(0, start - at) : stop - at])
            at += len(part)
            if at >= stop:
                break
        return np.concatenate(found).astype(np.int64)

    def consumed(self, blocks: int) -> None:
        """Take note that training has used so many blocks: places to go on from before these are forgotten."""
        while len(self._marks) > 1 and self._marks[1].tokens <= blocks * self.max_length:
            self._marks.popleft()

    def state(self, blocks: int) -> dict[str, Any]:
        """Return what a BlockStream that goes on behind so many blocks is made from; plain values."""
        return asdict([mark for mark in self._marks if mark.tokens <= blocks * self.max_length][-1])

    def epochs(self, blocks: int) -> float | None:
        """Return how often so many blocks read the stream through; None within the first epoch: its length is open."""
        tokens = blocks * self.max_length
        whole = self._epoch_tokens
        return tokens / whole if whole is not None and tokens > whole else None

    def first_epoch_holds(self, blocks: int) -> bool:
        """Tell whether the first epoch has so many blocks, reading on as far as that takes."""
        need = blocks * self.max_length + 1
        while self._epoch_tokens is None and self._until < need:
            self._take()
        return self._epoch_tokens is None or self._epoch_tokens >= need

    def close(self) -> None:
        """End the thread."""
        self._stopped.set()
        while self._reader.is_alive():
            try:
                self._ready.get_nowait()
            except queue.Empty:
                self._reader.join(0.05)

    def _take(self) -> None:
        if not self._reader.ident:
            self._reader.start()
        chunk = self._ready.get()
        if isinstance(chunk, BaseException):
            raise chunk
        if chunk.mark.tokens > self._marks[-1].tokens:
            self._marks.append(chunk.mark)
        self._parts.append(chunk.tokens)
        self._until += len(chunk.tokens)
        if chunk.ends_epoch and self._epoch_tokens is None:
            self._epoch_tokens = self._until

    # In the thread

    def _read(self, mark: Mark) -> None:
        try:
            for chunk in self._chunks(mark):
                while not self._stopped.is_set():
                    try:
                        self._ready.put(chunk, timeout=0.1)
                        break
                    except queue.Full:
                        continue
                if self._stopped.is_set():
                    return
        except BaseException as error:
            self._ready.put(error)

    def _chunks(self, mark: Mark) -> Iterator[_Chunk]:
        while True:
            batch: list[tuple[str, bool]] = []
            size = 0
            for piece in self.source.training_pieces(mark.position):
                batch += [(text, last and piece.ends) for text, last in pieces_of(piece.text)]
                size += len(piece.text)
                if size >= CHUNK_CHARACTERS or len(batch) >= CHUNK_PIECES:
                    tokens = self._encode(batch)
                    yield _Chunk(tokens, mark, False)
                    mark = Mark(piece.position(), mark.tokens + len(tokens), mark.epoch_tokens)
                    batch, size = [], 0
            tokens = self._encode(batch)
            ended = mark.tokens + len(tokens)
            if mark.epoch_tokens is None and ended < self.max_length + 1:
                raise UserError(self._too_short(ended))
            yield _Chunk(tokens, mark, True)
            mark = Mark(self.source.start, ended, mark.epoch_tokens or ended)

    def _encode(self, batch: list[tuple[str, bool]]) -> np.ndarray:
        return _joined(ids for ids, _, _ in self._encoder(batch))

    def _too_short(self, tokens: int) -> Problem:
        kept = self.source.documents
        behind = f" behind the {kept:,} documents for validation" if kept else ""
        return Problem(
            f"{self.source.key}.path",
            f"The stream is {tokens:,} tokens long{behind}, and one block of max_length = {self.max_length:,} takes "
            f"{self.max_length + 1:,}",
            value=self.source.path,
            fix="Give more text, keep fewer validation.stream_documents, or set a smaller train.max_length.",
        )
