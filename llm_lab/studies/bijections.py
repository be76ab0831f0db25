"""The bijection task of arXiv 2512.22471: predict the next value of a random one-to-one mapping, compared with Bayes.

A sequence is x1 y1 x2 y2 ...: every key x has its own value y, drawn again from all one-to-one mappings for each
sequence. The only thing to predict is the value after each key. The best possible prediction is known exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from .bayes import word_tokenizer


@dataclass(frozen=True)
class Bijections:
    """Sequences of `pairs` pairs over `values` keys and as many values.

    Tokens 0 to values-1 are the keys; the values follow. repeated: keys may occur again, and then their value is known;
    otherwise each key occurs once, and the task never asks for a known value.
    """

    values: int
    pairs: int
    repeated: bool = False

    @property
    def position(self) -> str:
        return "pair"

    @property
    def answer(self) -> str:
        return "next value"

    @property
    def why_it_falls(self) -> str:
        return "Uncertainty about the value of each pair's key. Bayes' entropy falls as values are used up."

    @property
    def vocab_size(self) -> int:
        """The number of keys and values, plus the end-of-text token that every tokenizer has."""
        return 2 * self.values + 1

    @property
    def key_tokens(self) -> int:
        return self.values

    @property
    def answers(self) -> range:
        return range(self.values, 2 * self.values)

    @property
    def context(self) -> int:
        return 2 * self.pairs

    @property
    def asked(self) -> slice:
        return slice(0, None, 2)

    @property
    def length(self) -> int:
        return self.pairs

    @property
    def longer(self) -> tuple[Bijections, ...]:
        return ()

    def inputs(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the input of a model: all tokens but the last value."""
        return tokens[:, :-1]

    def labels(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the training targets, (count, pairs): the value after each key."""
        return tokens[:, 1::2]

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Return `count` random sequences, token ids (count, 2 * pairs)."""
        mapping = torch.rand(count, self.values, generator=generator).argsort(dim=1)
        if self.repeated:
            keys = torch.randint(self.values, (count, self.pairs), generator=generator)
        else:
            keys = torch.rand(count, self.values, generator=generator).argsort(dim=1)[:, : self.pairs]
        return torch.stack([keys, self.values + mapping.gather(1, keys)], dim=2).flatten(1)

    def posterior(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return Bayes' probability of each value after each key, (count, pairs, values), in float64.

        Given the pairs so far, all one-to-one mappings that agree with them are equally likely. So the value of a known
        key is certain, and a new key has each unused value with the same probability.
        """
        keys, values = tokens[:, 0::2], tokens[:, 1::2] - self.values
        count, pairs = keys.shape
        rows = torch.arange(count)
        value_of = torch.full((count, self.values), -1)
        free = torch.ones(count, self.values, dtype=torch.float64)
        found = torch.empty(count, pairs, self.values, dtype=torch.float64)
        for pair in range(pairs):
            known = value_of[rows, keys[:, pair]]
            sure = torch.nn.functional.one_hot(known.clamp(min=0), self.values).double()
            even = free / free.sum(1, keepdim=True).clamp(min=1)
            found[:, pair] = torch.where((known >= 0)[:, None], sure, even)
            value_of[rows, keys[:, pair]] = values[:, pair]
            free[rows, values[:, pair]] = 0
        return found

    def blind_error(self) -> float | None:
        """Return the error of a model without memory: log2 of the values minus the mean entropy of Bayes, in bits.

        It can only give each value the same probability, so both its mean absolute error of the entropy and its KL
        divergence from Bayes have this value. Bayes' entropy falls as log2(values - pairs so far). None if keys are
        repeated, because there is no such formula then.
        """
        if self.repeated:
            return None
        mean = sum(math.log2(self.values - seen) for seen in range(self.pairs)) / self.pairs
        return math.log2(self.values) - mean

    def tokenizer(self) -> Any:
        """Return a tokenizer for texts such as "x3 y7 x1 y0 x9", so that the models can be opened like any other."""
        return word_tokenizer([f"{kind}{number}" for kind in "xy" for number in range(self.values)])
