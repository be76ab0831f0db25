"""Blocks of tokens as training and validation items, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .block_stream import BlockStream
from .mixing import BlockSchedule

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
