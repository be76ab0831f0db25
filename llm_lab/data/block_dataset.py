"""Training and validation items: blocks of tokens from memory-mapped files or from a stream. No torch."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llm_lab.errors import Problem, UserError
from llm_lab.estimate.batch_warmup import StepRows

from .encoding import Encoder, pieces_of
from .mixing import BlockSchedule
from .streams import Position, StreamSource

IGNORED = -100  # the label that losses ignore
Item = dict[str, np.ndarray]


class BlockDataset:
    """The samples of a schedule, in its order. They are already shuffled: read them sequentially.

    An item is {"input_ids", "shift_labels"}, each max_length int64 tokens; shift_labels[j] is the token that
    follows input_ids[j]. Samples of a streamed source must be read in increasing order.
    """

    def __init__(self, schedule: BlockSchedule, tokens: Sequence[np.ndarray | BlockStream]):
        if len(tokens) != len(schedule.blocks):
            raise ValueError("need one token array per source of the schedule")
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
        """The streamed sources, by index."""
        return {source: tokens for source, tokens in enumerate(self.tokens) if isinstance(tokens, BlockStream)}

    def epochs(self, samples: int | None = None) -> list[float | None]:
        """Return the epochs of each source in the first `samples` samples; None for a stream in its first epoch."""
        counts = self.schedule.counts(samples)
        found = self.schedule.epochs(samples)
        return [
            tokens.epochs(count) if isinstance(tokens, BlockStream) else epochs
            for tokens, count, epochs in zip(self.tokens, counts, found, strict=True)
        ]

    def consumed(self, samples: int) -> None:
        """Record that training has used this many samples."""
        counts = self.schedule.counts(samples)
        for source, stream in self.streams.items():
            stream.consumed(counts[source])

    def stream_states(self, samples: int) -> dict[str, dict[str, Any]]:
        """Return the states from which the streams resume after this many samples, by source index."""
        counts = self.schedule.counts(samples)
        return {str(source): stream.state(counts[source]) for source, stream in self.streams.items()}

    def exhausted_by(self, samples: int) -> int | None:
        """Return the index of a stream whose first epoch is too short for its share of the samples, or None."""
        counts = self.schedule.counts(samples)
        short = (source for source, stream in self.streams.items() if not stream.first_epoch_holds(counts[source]))
        return next(short, None)

    def close(self) -> None:
        """Stop reading the streams."""
        for stream in self.streams.values():
            stream.close()

    # A memory map is pickled with all of its contents; spawned workers should open the file instead.
    def __getstate__(self) -> dict[str, Any]:
        return {"schedule": self.schedule, "tokens": [_pickled(tokens) for tokens in self.tokens]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.schedule = state["schedule"]
        self.tokens = [_unpickled(tokens) for tokens in state["tokens"]]


class GrowingBatches:
    """The samples of a dataset, in batches that have fewer rows during the warm-up of the batch size.

    A missing row is None, so that every step has the same number of places, also after a resume.
    """

    def __init__(self, dataset: BlockDataset, rows: StepRows, steps: int):
        self.dataset, self.rows, self.steps = dataset, rows, steps

    def __len__(self) -> int:
        return self.rows.rows * self.steps

    def __getitem__(self, place: int) -> Item | None:
        row = self.rows.row_at(place)
        return None if row is None else self.dataset[row]


class ValidationBlocks:
    """Consecutive blocks from the start: every token except the first is a target exactly once.

    Items are as in BlockDataset. The last block is padded with token 0 and label -100, so the mean over all
    labels other than -100 is the exact mean over the text.
    """

    def __init__(self, tokens: np.ndarray, max_length: int):
        self.tokens = tokens
        self.max_length = max_length

    @property
    def targets(self) -> int:
        """Total number of predicted tokens."""
        return max(0, len(self.tokens) - 1)

    def __len__(self) -> int:
        return -(-self.targets // self.max_length)

    def __getitem__(self, i: int) -> Item:
        if not 0 <= i < len(self):
            raise IndexError(f"block {i} of {len(self)}")
        start = i * self.max_length
        block = np.asarray(self.tokens[start : start + self.max_length + 1], dtype=np.int64)
        input_ids: np.ndarray = np.zeros(self.max_length, dtype=np.int64)
        shift_labels: np.ndarray = np.full(self.max_length, IGNORED, dtype=np.int64)
        input_ids[: len(block) - 1] = block[:-1]
        shift_labels[: len(block) - 1] = block[1:]
        return {"input_ids": input_ids, "shift_labels": shift_labels}


def _pickled(tokens: np.ndarray | BlockStream) -> Any:
    if isinstance(tokens, np.memmap) and tokens.base is not None and not isinstance(tokens.base, np.ndarray):
        return (str(tokens.filename), tokens.dtype.str, int(tokens.offset), tokens.shape)
    return tokens


def _unpickled(tokens: Any) -> Any:
    if isinstance(tokens, tuple):
        filename, dtype, offset, shape = tokens
        return np.memmap(filename, dtype=dtype, mode="r", offset=offset, shape=shape)
    return tokens


# A chunk is encoded in one call. A resumed run reads at most one chunk again.
CHUNK_CHARACTERS = 250_000
CHUNK_PIECES = 1_000
_AHEAD = 8  # maximum number of chunks encoded in advance


@dataclass(frozen=True)
class Mark:
    """A point to resume from, after `tokens` tokens; `epoch_tokens`: tokens per epoch, None if not yet known."""

    position: Position | None
    tokens: int = 0
    epoch_tokens: int | None = None


@dataclass(frozen=True)
class _Chunk:
    tokens: np.ndarray
    mark: Mark  # where the chunk starts
    ends_epoch: bool


@dataclass(frozen=True)
class StreamTokens:
    """A stream with its validation tokens: what TokenSet is for a corpus on disk."""

    source: StreamSource
    validation: np.ndarray
    validation_sizes: np.ndarray  # bytes of each token, see Encoder.sizes
    description: str


def prepare_stream(source: StreamSource, tokenizer: Any) -> StreamTokens:
    """Encode the held-out part of a stream. Raises UserError if the tokenizer has no EOS."""
    pieces = [(text, last and ends) for kept, ends in source.kept for text, last in pieces_of(kept)]
    encoder = Encoder(tokenizer)
    validation = _joined(ids for ids, _, _ in encoder(pieces))
    sizes = _joined(encoder.sizes(text, ends) for text, ends in pieces)
    description = source.stream.describe()
    if source.kept:
        what = f"its first {source.documents:,} documents" if source.documents > 1 else "its start"
        description += f"; {what} ({len(validation):,} tokens) held out for validation"
    return StreamTokens(source, validation, sizes, description)


def _joined(lists: Iterable[list[int] | np.ndarray]) -> np.ndarray:
    found = [np.asarray(ids, dtype=np.uint32) for ids in lists]
    return np.concatenate(found) if found else np.zeros(0, np.uint32)


class BlockStream:
    """The training part of a stream, repeated, in blocks: block k starts at token k * max_length.

    Blocks must be requested in increasing order; blocks in between (read by another process) are skipped. A thread
    reads and encodes ahead. state: the result of `state()`, to resume from it. share: with several processes, takes
    this process's chunks and yields those that the first process reads, until the event is set.
    """

    def __init__(
        self,
        source: StreamSource,
        tokenizer: Any,
        *,
        max_length: int,
        state: dict[str, Any] | None = None,
        share: Callable[[Iterator[Any], threading.Event], Iterator[Any]] = lambda chunks, stopped: chunks,
    ):
        self.source, self.max_length, self._share = source, max_length, share
        self._encoder = Encoder(tokenizer)
        mark = Mark(**state) if state else Mark(source.start)
        self._epoch_tokens = mark.epoch_tokens
        self._marks = deque([mark])
        self._parts: deque[np.ndarray] = deque()
        self._from = self._until = mark.tokens  # the range of tokens in memory
        self._ready: queue.Queue[_Chunk | BaseException] = queue.Queue(_AHEAD)
        self._stopped = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(mark,), name=f"stream of {source.path}", daemon=True)

    def block(self, k: int) -> np.ndarray:
        """Return max_length + 1 tokens (int64), reading as far as needed."""
        start, stop = k * self.max_length, (k + 1) * self.max_length + 1
        if start < self._from:
            raise IndexError(f"block {k} is already past: a stream is read forward only")
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
        """Record that training has used this many blocks: earlier resume points are dropped."""
        while len(self._marks) > 1 and self._marks[1].tokens <= blocks * self.max_length:
            self._marks.popleft()

    def state(self, blocks: int) -> dict[str, Any]:
        """Return the state, as plain values, from which a BlockStream resumes after this many blocks."""
        return asdict([mark for mark in self._marks if mark.tokens <= blocks * self.max_length][-1])

    def epochs(self, blocks: int) -> float | None:
        """Return the number of epochs in this many blocks; None in the first epoch, whose length is not yet known."""
        tokens = blocks * self.max_length
        whole = self._epoch_tokens
        return tokens / whole if whole is not None and tokens > whole else None

    def first_epoch_holds(self, blocks: int) -> bool:
        """Return whether the first epoch has at least this many blocks, reading as far as needed."""
        need = blocks * self.max_length + 1
        while self._epoch_tokens is None and self._until < need:
            self._take()
        return self._epoch_tokens is None or self._epoch_tokens >= need

    def close(self) -> None:
        """Stop the reader thread."""
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

    # In the reader thread

    def _read(self, mark: Mark) -> None:
        try:
            for chunk in self._share(self._chunks(mark), self._stopped):
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
        rest = f" after the {kept:,} validation documents" if kept else ""
        return Problem(
            f"{self.source.key}.path",
            f"The stream has {tokens:,} tokens{rest}, but one sequence of max_length = {self.max_length:,} needs "
            f"{self.max_length + 1:,}",
            value=self.source.path,
            fix="Add text, or set fewer validation.stream_documents or a smaller train.max_length.",
        )
