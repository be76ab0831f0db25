"""Which block of which source is read when: a pure function of the seed, open at any sample."""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

import numpy as np

from llm_lab.errors import Problem, UserError

from .rows import Example

# Giving up one block in so many is worth free choice of where the blocks of an epoch begin.
_FREE_OFFSET_FROM = 100
_REMEMBERED_EPOCHS = 2


@dataclass(frozen=True)
class SourceBlocks:
    """The blocks of one source, epoch by epoch.

    A block is max_length inputs and the targets one token later, so blocks overlap by one token. The
    first epoch begins at token 0: every token but the very first is a target exactly once, save a rest
    shorter than a block. Later epochs begin at a random offset, so that block borders vary: no token is
    a target twice, and fewer than 2 * max_length at the two ends are passed over in that epoch.
    """

    tokens: int
    max_length: int
    seed: int
    index: int
    _orders: OrderedDict[int, tuple[int, np.ndarray]] = field(default_factory=OrderedDict, repr=False, compare=False)

    @property
    def first(self) -> int:
        """Blocks of the first epoch."""
        return (self.tokens - 1) // self.max_length

    @property
    def later(self) -> int:
        """Blocks of every later epoch."""
        return self.first - 1 if self.first >= _FREE_OFFSET_FROM else self.first

    def epochs(self, samples: int) -> float:
        """Return how many epochs so many samples are."""
        if samples <= self.first:
            return samples / self.first
        return 1 + (samples - self.first) / self.later

    def start(self, position: int) -> int:
        """Return the first token of the block that is read at a position of this source's samples."""
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
    """Sample i is the block of `source(i)` that begins at token `start(i)`.

    A source that is streamed has no blocks here (None): its samples are its blocks one after the other. After
    any number of samples the count of every source is within 1 of its share. The pattern of sources repeats,
    so only one period of it is kept.
    """

    num_samples: int
    max_length: int
    blocks: tuple[SourceBlocks | None, ...]
    _pattern: np.ndarray = field(repr=False)  # source of each sample of a period
    _ranks: np.ndarray = field(repr=False)  # how many samples of that source come before it in the period
    _per_period: tuple[int, ...] = field(repr=False)

    def __len__(self) -> int:
        return self.num_samples

    def source(self, i: int) -> int:
        """Return the index of the source that sample i is read from."""
        return int(self._pattern[self._checked(i) % len(self._pattern)])

    def place(self, i: int) -> tuple[int, int]:
        """Return the source of sample i, and how many samples of that source come before it."""
        period, within = divmod(self._checked(i), len(self._pattern))
        source = int(self._pattern[within])
        return source, period * self._per_period[source] + int(self._ranks[within])

    def start(self, i: int) -> int:
        """Return the token offset of sample i in its source's training tokens."""
        source, position = self.place(i)
        return self.blocks[source].start(position)

    def counts(self, samples: int | None = None) -> list[int]:
        """Return how many of the first `samples` samples (all of them by default) each source gives."""
        samples = self.num_samples if samples is None else samples
        if not len(self._pattern):
            return [0] * len(self.blocks)
        periods, within = divmod(samples, len(self._pattern))
        rest = np.bincount(self._pattern[:within], minlength=len(self.blocks))
        return [periods * whole + int(part) for whole, part in zip(self._per_period, rest, strict=True)]

    def epochs(self, samples: int | None = None) -> list[float | None]:
        """Return how often each source is read through in the first `samples` samples; None for a stream."""
        counts = self.counts(samples)
        return [blocks and blocks.epochs(count) for blocks, count in zip(self.blocks, counts, strict=True)]

    def first_repeat(self) -> int | None:
        """Return the first sample that would read a source a second time; None where there is none, streams aside."""
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
    """Return the order in which num_samples blocks are read from sources of so many tokens (None: a stream).

    Weights are shares of samples (2.0 and 1.0: two of three). UserError for weights that are not
    positive numbers and for sources shorter than one block, all of them at once.
    """
    if len(token_counts) != len(weights) or not weights:
        raise ValueError("one weight for each of one or more sources")
    problems = []
    for index, (tokens, weight) in enumerate(zip(token_counts, weights, strict=True)):
        if not (math.isfinite(weight) and weight > 0):
            problems.append(
                Problem(
                    f"data.{index}.weight",
                    "A weight is a share of the samples",
                    value=weight,
                    allowed="a number above 0",
                    fix="To leave a source out, leave out its entry.",
                )
            )
        if tokens is not None and tokens < max_length + 1:
            problems.append(
                Problem(
                    f"data.{index}",
                    f"It has {tokens:,} training tokens, fewer than one block of {max_length:,} + 1",
                    fix="Give more text, or a smaller max_length.",
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
    """Return the source of each sample of a period that repeats, how many of the same source come before it
    in the period, and how many of each source a period has. Weights are positive and finite.
    """
    pattern = _pattern(_whole_numbers(weights), num_samples)
    ranks = np.zeros(len(pattern), dtype=np.int32)
    per_period = []
    for source in range(len(weights)):
        of_source = np.flatnonzero(pattern == source)
        ranks[of_source] = np.arange(len(of_source), dtype=np.int32)
        per_period.append(len(of_source))
    return pattern, ranks, tuple(per_period)


def _whole_numbers(weights: Sequence[float]) -> list[int]:
    # By their decimal digits, as the user wrote them: 0.1 is 1/10, not 3602879701896397/2**55.
    exact = [Fraction(repr(float(weight))) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    return [weight // math.gcd(*whole) for weight in whole]


def _pattern(weights: list[int], num_samples: int) -> np.ndarray:
    """Return the source of each sample, for one period or num_samples, whichever is shorter.

    The j-th sample of a source of share w must come within [floor(j/w), ceil((j+1)/w)): the earliest
    deadline among the sources whose next sample is due meets all of these windows, which keeps every
    count within 1 of its share. (To take the largest deficit does not, from three sources on.)
    """
    period = sum(weights)
    length = min(period, num_samples)
    pattern = np.zeros(length, dtype=np.int16 if len(weights) < 2**15 else np.int32)
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
class ExampleMix(Sequence[Example]):
    """The examples in the order in which they are read: sample i is the same however it is come to.

    After any number of samples the count of every set is within 1 of its share. A set is read in a new order each
    time through.
    """

    sets: tuple[Sequence[Example], ...]
    num_samples: int
    seed: int
    _pattern: np.ndarray = field(repr=False)
    _ranks: np.ndarray = field(repr=False)
    _per_period: tuple[int, ...] = field(repr=False)

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, i: int) -> Example:
        source, index = self.locate(i)
        return self.sets[source][index]

    def locate(self, i: int) -> tuple[int, int]:
        """Return which example sample i is: (number of the set, place in it)."""
        if not 0 <= i < self.num_samples:
            raise IndexError(f"sample {i} of {self.num_samples}")
        period, within = divmod(i, len(self._pattern))
        source = int(self._pattern[within])
        epoch, at = divmod(period * self._per_period[source] + int(self._ranks[within]), len(self.sets[source]))
        return source, int(_order(self.seed, source, epoch, len(self.sets[source]))[at])

    def counts(self, samples: int | None = None) -> list[int]:
        """Return how many of the first `samples` samples (all by default) each set gives."""
        samples = self.num_samples if samples is None else samples
        periods, within = divmod(samples, max(1, len(self._pattern)))
        rest = np.bincount(self._pattern[:within], minlength=len(self.sets))
        return [periods * whole + int(part) for whole, part in zip(self._per_period, rest, strict=True)]

    def epochs(self, samples: int | None = None) -> list[float]:
        """Return how often each set is read through in the first `samples` samples."""
        return [count / len(rows) for count, rows in zip(self.counts(samples), self.sets, strict=True)]


@lru_cache(maxsize=64)
def _order(seed: int, source: int, epoch: int, size: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, source, epoch])).permutation(size)


def build_example_mix(
    sets: Sequence[Sequence[Example]], weights: Sequence[float], *, num_samples: int, seed: int
) -> ExampleMix:
    """Return num_samples examples of several sets, mixed by weight (2.0 and 1.0: two of three), shuffled by seed.

    Weights are positive, and no set is empty.
    """
    if len(sets) != len(weights) or not weights or not all(map(len, sets)):
        raise ValueError("one weight for each of one or more sets with examples in them")
    return ExampleMix(tuple(sets), num_samples, seed, *order_sources(weights, num_samples))
