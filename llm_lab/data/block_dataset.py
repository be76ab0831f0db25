"""Training and validation items from blocks of tokens, in memory-mapped files or a stream. Without torch."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llm_lab.errors import Problem, UserError

from .encoding import Encoder, pieces_of
from .mixing import BlockSchedule
from .streams import Position, StreamSource

IGNORED = -100  # the label that losses leave out
Item = dict[str, np.ndarray]


class BlockDataset:
    """The samples of a schedule, in its order: read them one after another, never shuffled again.

    An item is {"input_ids", "shift_labels"}, each max_length tokens of int64; shift_labels[j] is the
    token that follows input_ids[j]. Of a source that is streamed, samples are asked for in rising order.
    """

    def __init__(self, schedule: BlockSchedule, tokens: Sequence[np.ndarray | BlockStream]):
        if len(tokens) != len(schedule.blocks):
            raise ValueError("one token array for each source of the schedule")
        self.schedule = schedule
        self.tokens = list(tokens)

    def __len__(self) -> int:
        return len(self.schedule)

    def __getitem__(self, i: int) -> Item:
        source, position = self.schedule.place(i)
        tokens = self.tokens[source]
        if isinstance(tokens, BlockStream):
            block = tokens.block(position)
        else:
            start = self.schedule.start(i)
            block = np.asarray(tokens[start : start + self.schedule.max_length + 1], dtype=np.int64)
        return {"input_ids": block[:-1], "shift_labels": block[1:]}

    @property
    def streams(self) -> dict[int, BlockStream]:
        """The sources that are streamed, by their number."""
        return {source: tokens for source, tokens in enumerate(self.tokens) if isinstance(tokens, BlockStream)}

    def epochs(self, samples: int | None = None) -> list[float | None]:
        """Return how often each source is read through in the first samples; None: a stream's first epoch goes on."""
        counts = self.schedule.counts(samples)
        found = self.schedule.epochs(samples)
        return [
            self.tokens[source].epochs(counts[source]) if source in self.streams else times
            for source, times in enumerate(found)
        ]

    def consumed(self, samples: int) -> None:
        """Take note that training has used so many samples."""
        counts = self.schedule.counts(samples)
        for source, stream in self.streams.items():
            stream.consumed(counts[source])

    def stream_states(self, samples: int) -> dict[str, dict[str, Any]]:
        """Return what the streams go on from behind so many samples, by the number of their source."""
        counts = self.schedule.counts(samples)
        return {str(source): stream.state(counts[source]) for source, stream in self.streams.items()}

    def exhausted_by(self, samples: int) -> int | None:
        """Return a stream whose first epoch does not hold its share of so many samples, or None."""
        counts = self.schedule.counts(samples)
        short = (source for source, stream in self.streams.items() if not stream.first_epoch_holds(counts[source]))
        return next(short, None)

    def close(self) -> None:
        """End the reading of streams."""
        for stream in self.streams.values():
            stream.close()

    # A memory map pickles as all of its contents; workers started by spawn should open the file instead.
    def __getstate__(self) -> dict[str, Any]:
        return {"schedule": self.schedule, "tokens": [_shelve(tokens) for tokens in self.tokens]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.schedule = state["schedule"]
        self.tokens = [_open(tokens) for tokens in state["tokens"]]


class ValidationBlocks:
    """Consecutive blocks from the start: every token but the first is a target exactly once.

    Items are those of BlockDataset. The last block is filled up with `padding` and its labels with -100,
    so a mean over the labels that are not -100 is the exact mean over the text.
    """

    def __init__(self, tokens: np.ndarray, max_length: int, padding: int = 0):
        self.tokens = tokens
        self.max_length = max_length
        self.padding = padding

    @property
    def targets(self) -> int:
        """How many tokens are predicted in all."""
        return max(0, len(self.tokens) - 1)

    def __len__(self) -> int:
        return -(-self.targets // self.max_length)

    def __getitem__(self, i: int) -> Item:
        if not 0 <= i < len(self):
            raise IndexError(f"block {i} of {len(self)}")
        start = i * self.max_length
        block = np.asarray(self.tokens[start : start + self.max_length + 1], dtype=np.int64)
        input_ids = np.full(self.max_length, self.padding, dtype=np.int64)
        shift_labels = np.full(self.max_length, IGNORED, dtype=np.int64)
        input_ids[: len(block) - 1] = block[:-1]
        shift_labels[: len(block) - 1] = block[1:]
        return {"input_ids": input_ids, "shift_labels": shift_labels}


def validation_blocks(tokens: np.ndarray, max_length: int, padding: int = 0) -> ValidationBlocks:
    """Return validation items over all tokens of a corpus; see ValidationBlocks."""
    return ValidationBlocks(tokens, max_length, padding)


def _shelve(tokens: np.ndarray) -> Any:
    if isinstance(tokens, np.memmap) and tokens.base is not None and not isinstance(tokens.base, np.ndarray):
        return (str(tokens.filename), tokens.dtype.str, int(tokens.offset), tokens.shape)
    return tokens


def _open(tokens: Any) -> np.ndarray:
    if isinstance(tokens, tuple):
        filename, dtype, offset, shape = tokens
        return np.memmap(filename, dtype=dtype, mode="r", offset=offset, shape=shape)
    return tokens


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
