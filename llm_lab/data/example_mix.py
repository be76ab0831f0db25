"""Split sets of examples into training and validation, and mix them into the order in which they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from llm_lab.errors import Problem, UserError, did_you_mean, one_of

from .mixing import order_sources
from .rows import Example
from .split import TAKES

if TYPE_CHECKING:
    from .examples import ExampleSource


@dataclass(frozen=True)
class ExampleSplit:
    """One set's two sides. `duplicates`: examples left out of validation because training holds their prompt."""

    train: Sequence[Example]
    validation: Sequence[Example]
    duplicates: int


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


def split_examples(
    sources: Sequence[ExampleSource], *, fraction: float, take: str, require_validation: bool = True
) -> list[ExampleSplit]:
    """Return each set's training and validation examples; a prompt stands on one side only, whatever its set.

    take "end": the last `fraction` of each set is for validation, less what training asks too. take "random": the
    hash of its prompt decides, so neither order nor additions move an example. Of a conversation the prompt is what
    stands before the first answer. UserError where a side of a set would be empty (with require_validation False:
    where its training would be).
    """
    if take not in TAKES:
        why = "There is no such way to split"
        raise UserError(
            Problem("validation.from", why, value=take, allowed=one_of(TAKES), fix=did_you_mean(take, TAKES))
        )
    hashes = [[_hash(example.opening) for example in source.examples] for source in sources]
    if take == "random":
        limit = int(fraction * 2**64)
        held_out = [[value < limit for value in values] for values in hashes]
    else:
        held_out = [_last(len(values), fraction) for values in hashes]
    trained = {
        value
        for values, held in zip(hashes, held_out, strict=True)
        for value, is_held in zip(values, held, strict=True)
        if not is_held
    }
    splits = []
    for source, values, held in zip(sources, hashes, held_out, strict=True):
        rows = list(zip(source.examples, values, held, strict=True))
        train = [example for example, _, is_held in rows if not is_held]
        validation = [example for example, value, is_held in rows if is_held and value not in trained]
        splits.append(ExampleSplit(train, validation, len(rows) - len(train) - len(validation)))
    _require_sides(sources, splits, fraction, require_validation)
    return splits


def _last(size: int, fraction: float) -> list[bool]:
    kept = size - max(1, round(size * fraction)) if fraction else size
    return [number >= kept for number in range(size)]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _require_sides(
    sources: Sequence[ExampleSource], splits: Sequence[ExampleSplit], fraction: float, require_validation: bool
) -> None:
    problems = []
    for source, split in zip(sources, splits, strict=True):
        size = f"{len(source.examples):,} example{'' if len(source.examples) == 1 else 's'}"
        if not split.train:
            why = f"Of the {size} in {source.path} none is left to train on"
            problems.append(Problem("validation.fraction", why, value=fraction, fix="Give more, or keep fewer."))
        elif fraction and require_validation and not split.validation:
            why = f"Of the {size} in {source.path} none is left for validation"
            if split.duplicates:
                why += f", after {split.duplicates:,} that training asks too"
            fix = "Set a larger fraction, give more examples, or set fraction: 0."
            problems.append(Problem("validation.fraction", why, value=fraction, fix=fix))
    if problems:
        raise UserError(*problems)
