"""The bijection task of arXiv 2512.22471: guess the next value of a random one-to-one mapping, as well as Bayes can.

A sequence is x1 y1 x2 y2 ...: every key x has its own value y, drawn again from all one-to-one mappings for each
sequence. The only thing to predict is the value after each key. The best possible prediction is known exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Bijections:
    """Sequences of `pairs` pairs over `values` keys and as many values.

    Tokens 0 to values-1 are the keys, the next ones the values. repeated: keys may occur again, and then their value
    has been seen; otherwise each key occurs once, and the task never asks for a value that was seen.
    """

    values: int
    pairs: int
    repeated: bool = False

    @property
    def vocab_size(self) -> int:
        """Keys, values, and the end-of-text token that every tokenizer has."""
        return 2 * self.values + 1

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

        Given the pairs so far, all one-to-one mappings that agree with them are equally likely. So a known key has its
        value for sure, and a new key has each value that is not taken yet with the same probability.
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

    def blind_error(self) -> float:
        """Return the error of a model without memory: log2 of the values minus the mean entropy of Bayes, in bits.

        It can only give each value the same probability, and both its mean absolute error of the entropy and its
        KL divergence from Bayes have this value. For keys that occur once. The entropy of Bayes falls as
        log2(values - pairs so far).
        """
        mean = sum(math.log2(self.values - seen) for seen in range(self.pairs)) / self.pairs
        return math.log2(self.values) - mean

    def tokenizer(self) -> Any:
        """Return a tokenizer for texts such as "x3 y7 x1 y0 x9", so that the models open like any other."""
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        words = [f"{kind}{number}" for kind in "xy" for number in range(self.values)] + ["<|endoftext|>"]
        backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=words[-1]))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=words[-1], unk_token=words[-1])


def entropy_bits(probabilities: torch.Tensor) -> torch.Tensor:
    """Return the entropy over the last axis in bits."""
    return torch.special.entr(probabilities).sum(-1) / math.log(2)


def kl_bits(wanted: torch.Tensor, log_probabilities: torch.Tensor) -> torch.Tensor:
    """Return KL(wanted || model) over the last axis in bits. log_probabilities: the model's, natural logarithm."""
    cross = -(wanted * log_probabilities.masked_fill(wanted == 0, 0.0)).sum(-1) / math.log(2)
    return cross - entropy_bits(wanted)


@dataclass(frozen=True)
class Comparison:
    """A model against Bayes on the same sequences. Entropies and KL: (sequences, pairs), in bits."""

    entropy: torch.Tensor
    bayes_entropy: torch.Tensor
    kl: torch.Tensor

    @property
    def errors(self) -> torch.Tensor:
        """The absolute error of the entropy, averaged over the positions of each sequence: (sequences,).

        Not the error of the mean curve: there, too sure in one sequence and too unsure in another would cancel.
        """
        return (self.entropy - self.bayes_entropy).abs().mean(1)

    @property
    def figures(self) -> dict[str, Any]:
        """The figures of a report: means over sequences, and the curves over positions."""
        return {
            "mae_bits": float(self.errors.mean()),
            "kl_bits": float(self.kl.mean()),
            "mae_of_means_bits": float((self.entropy.mean(0) - self.bayes_entropy.mean(0)).abs().mean()),
            "entropy_by_position": self.entropy.mean(0).tolist(),
            "bayes_by_position": self.bayes_entropy.mean(0).tolist(),
            "kl_by_position": self.kl.mean(0).tolist(),
        }


def compare_with_bayes(task: Bijections, tokens: torch.Tensor, logits: torch.Tensor) -> Comparison:
    """Compare a model's logits at the keys, (count, pairs, vocab_size), with the exact posterior.

    The model's entropy is over its whole vocabulary: probability on keys or on values that are taken counts against it.
    """
    posterior = task.posterior(tokens)
    log_probabilities = logits.double().log_softmax(-1)
    wanted = torch.zeros_like(log_probabilities)
    wanted[..., task.values : 2 * task.values] = posterior
    return Comparison(
        entropy_bits(log_probabilities.exp()), entropy_bits(posterior), kl_bits(wanted, log_probabilities)
    )
