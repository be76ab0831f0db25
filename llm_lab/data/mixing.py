"""The order in which blocks and examples of several sources are read: a pure function of the seed.

Any sample can be looked up directly, so a resumed run continues in the same order.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from llm_lab.errors import Problem, UserError

# From this many blocks on, later epochs drop one block so that their first block can start at any offset.
_FREE_OFFSET_FROM = 100
_REMEMBERED_EPOCHS = 2


@dataclass(frozen=True)
class SourceBlocks:
    """The blocks of one source, epoch by epoch.

    A block is max_length inputs and their targets one token later, so blocks overlap by one token. The first
    epoch starts at token 0: every token except the first is a target exactly once, except for a remainder
    shorter than a block. Later epochs start at a random offset, so that block boundaries vary: no token is a
    target twice, and fewer than 2 * max_length tokens at the two ends are skipped in that epoch.
    """

    tokens: int
    max_length: int
    seed: int
    index: int
    _orders: OrderedDict[int, tuple[int, np.ndarray]] = field(default_factory=OrderedDict, repr=False, compare=False)

    @property
    def first(self) -> int:
        """Number of blocks of the first epoch."""
        return (self.tokens - 1) // self.max_length

    @property
    def later(self) -> int:
        """Number of blocks of every later epoch."""
        return self.first - 1 if self.first >= _FREE_OFFSET_FROM else self.first

    def epochs(self, samples: int) -> float:
        """Return the number of epochs in this many samples."""
        if samples <= self.first:
            return samples / self.first
        return 1 + (samples - self.first) / self.later

    def start(self, position: int) -> int:
        """Return the first token of the block that is this source's sample number `position`."""
        if position < self.first:
            epoch, block = 0, position
        else:
            epoch, block = divmod(position - self.first, self.later)
            epoch += 1
        offset, order = self._order(epoch)
        return offset + int(order[block]) * self.max_length

    def _order(self, epoch: int) -> tuple[int, np.ndarray]:
        if epoch not in self._orders:
            draw = np.random.Generator(np.random.PCG64([self.seed, self.index, epoch]))
            blocks = self.later if epoch else self.first
            room = self.tokens - 1 - blocks * self.max_length
            offset = int(draw.integers(min(self.max_length, room + 1))) if epoch else 0
            self._orders[epoch] = offset, draw.permutation(blocks)
            while len(self._orders) > _REMEMBERED_EPOCHS:
                self._orders.popitem(last=False)
        return self._orders[epoch]


@dataclass(frozen=True)
class BlockSchedule:
    """Sample i is the block of `source(i)` that starts at token `start(i)`.

    A streamed source has no blocks here (None): its samples are its blocks in order. After any number of samples,
    the count of every source is within 1 of its share. The pattern of sources repeats, so only one period is
    stored.
    """

    num_samples: int
    max_length: int
    blocks: tuple[SourceBlocks | None, ...]
    _pattern: np.ndarray = field(repr=False)  # source of each sample of a period
    _ranks: np.ndarray = field(repr=False)  # number of earlier samples of the same source in the period
    _per_period: tuple[int, ...] = field(repr=False)

    def __len__(self) -> int:
        return self.num_samples

    def source(self, i: int) -> int:
        """Return the index of the source of sample i."""
        return int(self._pattern[self._checked(i) % len(self._pattern)])

    def place(self, i: int) -> tuple[int, int]:
        """Return the source of sample i and the number of earlier samples of that source."""
        period, within = divmod(self._checked(i), len(self._pattern))
        source = int(self._pattern[within])
        return source, period * self._per_period[source] + int(self._ranks[within])

    def start(self, i: int) -> int:
        """Return the token offset of sample i in its source's training tokens."""
        source, position = self.place(i)
        blocks = self.blocks[source]
        assert blocks is not None, "a stream has no token offsets"
        return blocks.start(position)

    def counts(self, samples: int | None = None) -> list[int]:
        """Return how many of the first `samples` samples (default: all) come from each source."""
        samples = self.num_samples if samples is None else samples
        if not len(self._pattern):
            return [0] * len(self.blocks)
        periods, within = divmod(samples, len(self._pattern))
        rest = np.bincount(self._pattern[:within], minlength=len(self.blocks))
        return [periods * whole + int(part) for whole, part in zip(self._per_period, rest, strict=True)]

    def epochs(self, samples: int | None = None) -> list[float | None]:
        """Return the epochs of each source in the first `samples` samples; None for a stream."""
        counts = self.counts(samples)
        return [
            None if blocks is None else blocks.epochs(count) for blocks, count in zip(self.blocks, counts, strict=True)
        ]

    def first_repeat(self) -> int | None:
        """Return the first sample that starts a second epoch of a source; None if there is none. Ignores streams."""
        found = []
        for source, (blocks, each) in enumerate(zip(self.blocks, self._per_period, strict=True)):
            if blocks is not None and each:
                period, rank = divmod(blocks.first, each)
                found.append(period * len(self._pattern) + int(np.flatnonzero(self._pattern == source)[rank]))
        return min((i for i in found if i < self.num_samples), default=None)

    def _checked(self, i: int) -> int:
        if not 0 <= i < self.num_samples:
            raise IndexError(f"sample {i} of {self.num_samples}")
        return i


def build_schedule(
    token_counts: Sequence[int | None],
    weights: Sequence[float],
    *,
    max_length: int,
    num_samples: int,
    seed: int,
) -> BlockSchedule:
    """Return the order in which num_samples blocks are read from sources with these token counts (None: a stream).

    Weights are shares of samples (2.0 and 1.0: two of three). Raises UserError for weights that are not positive
    numbers and for sources shorter than one block, all problems at once.
    """
    if len(token_counts) != len(weights) or not weights:
        raise ValueError("need at least one source, and one weight per source")
    problems = []
    for index, (tokens, weight) in enumerate(zip(token_counts, weights, strict=True)):
        if not (math.isfinite(weight) and weight > 0):
            problems.append(
                Problem(
                    f"data.{index}.weight",
                    "Not a valid weight",
                    value=weight,
                    allowed="a number above 0",
                    fix="To skip a dataset, remove its entry.",
                )
            )
        if tokens is not None and tokens < max_length + 1:
            problems.append(
                Problem(
                    f"data.{index}",
                    f"It has {tokens:,} training tokens, but a sequence needs max_length + 1 = {max_length + 1:,}",
                    fix="Add text, or set a smaller train.max_length.",
                )
            )
    if problems:
        raise UserError(*problems)
    blocks = tuple(
        None if tokens is None else SourceBlocks(int(tokens), max_length, seed, i)
        for i, tokens in enumerate(token_counts)
    )
    return BlockSchedule(num_samples, max_length, blocks, *order_sources(weights, num_samples))


def order_sources(weights: Sequence[float], num_samples: int) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Return the order of the sources in one repeating period. Weights are positive and finite.

    Returns the source of each sample, the number of earlier samples of that source, and the number of samples of each
    source.
    """
    pattern = _pattern(_whole_numbers(weights), num_samples)
    ranks: np.ndarray = np.zeros(len(pattern), dtype=np.int32)
    per_period = []
    for source in range(len(weights)):
        of_source = np.flatnonzero(pattern == source)
        ranks[of_source] = np.arange(len(of_source), dtype=np.int32)
        per_period.append(len(of_source))
    return pattern, ranks, tuple(per_period)


def _whole_numbers(weights: Sequence[float]) -> list[int]:
    # Use the decimal digits as written: 0.1 is 1/10, not 3602879701896397/2**55.
    exact = [Fraction(repr(float(weight))) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    return [weight // math.gcd(*whole) for weight in whole]


def _pattern(weights: list[int], num_samples: int) -> np.ndarray:
    """Return the source of each sample, for one period or num_samples, whichever is shorter.

    The j-th sample of a source with share w must be in [floor(j/w), ceil((j+1)/w)). Choosing the earliest
    deadline among the sources whose next sample is due satisfies all of these windows, so every count stays
    within 1 of its share. (Choosing the largest deficit does not, with three or more sources.)
    """
    period = sum(weights)
    length = min(period, num_samples)
    pattern: np.ndarray = np.zeros(length, dtype=np.int16 if len(weights) < 2**15 else np.int32)
    if len(weights) == 1:
        return pattern
    counts = [0] * len(weights)
    waiting = [(0, source) for source in range(len(weights))]
    due: list[tuple[int, int]] = []
    for sample in range(length):
        while waiting and waiting[0][0] <= sample:
            _, source = heapq.heappop(waiting)
            heapq.heappush(due, (-(-(counts[source] + 1) * period // weights[source]), source))
        _, source = heapq.heappop(due)
        pattern[sample] = source
        counts[source] += 1
        heapq.heappush(waiting, (counts[source] * period // weights[source], source))
    return pattern


@dataclass(frozen=True)
class ExampleMix:
    """The examples of several datasets in reading order; sample i does not depend on what was read before.

    After any number of samples, the count of every dataset is within 1 of its share. Each epoch of a dataset has
    a new order.
    """

    sets: tuple[Sequence[Any], ...]
    num_samples: int
    seed: int
    _pattern: np.ndarray = field(repr=False)
    _ranks: np.ndarray = field(repr=False)
    _per_period: tuple[int, ...] = field(repr=False)

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> Any:
        source, index = self.locate(i)
        return self.sets[source][index]

    def locate(self, i: int) -> tuple[int, int]:
        """Return the example of sample i: (index of the dataset, index in it)."""
        if not 0 <= i < self.num_samples:
            raise IndexError(f"sample {i} of {self.num_samples}")
        period, within = divmod(i, len(self._pattern))
        source = int(self._pattern[within])
        epoch, at = divmod(period * self._per_period[source] + int(self._ranks[within]), len(self.sets[source]))
        return source, int(_order(self.seed, source, epoch, len(self.sets[source]))[at])

    def counts(self, samples: int | None = None) -> list[int]:
        """Return how many of the first `samples` samples (default: all) come from each dataset."""
        samples = self.num_samples if samples is None else samples
        periods, within = divmod(samples, max(1, len(self._pattern)))
        rest = np.bincount(self._pattern[:within], minlength=len(self.sets))
        return [periods * whole + int(part) for whole, part in zip(self._per_period, rest, strict=True)]

    def epochs(self, samples: int | None = None) -> list[float]:
        """Return the epochs of each dataset in the first `samples` samples."""
        return [count / len(rows) for count, rows in zip(self.counts(samples), self.sets, strict=True)]


@lru_cache(maxsize=64)
def _order(seed: int, source: int, epoch: int, size: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, source, epoch])).permutation(size)


def build_example_mix(
    sets: Sequence[Sequence[Any]], weights: Sequence[float], *, num_samples: int, seed: int
) -> ExampleMix:
    """Return num_samples examples of several datasets, mixed by weight (2.0 and 1.0: two of three) and shuffled.

    Weights are positive and no dataset is empty.
    """
    if len(sets) != len(weights) or not weights or not all(map(len, sets)):
        raise ValueError("need at least one dataset, none empty, and one weight per dataset")
    return ExampleMix(tuple(sets), num_samples, seed, *order_sources(weights, num_samples))
