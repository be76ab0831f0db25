"""Tasks whose optimal prediction is known exactly, and the distance of a model from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class Task(Protocol):
    """Random sequences with something to predict at some positions, and the exact (Bayes') posterior there."""

    @property
    def position(self) -> str:
        """The unit that a sequence consists of, such as "pair"."""

    @property
    def answer(self) -> str:
        """What is to be predicted, such as "value"."""

    @property
    def why_it_falls(self) -> str:
        """A sentence on why Bayes' entropy changes over the positions."""

    @property
    def vocab_size(self) -> int:
        """The number of tokens, including the end-of-text token that every tokenizer has."""

    @property
    def key_tokens(self) -> int:
        """How many tokens, from 0 on, are keys whose vectors the report compares; 0 if the task has none."""

    @property
    def answers(self) -> range:
        """The tokens that can be an answer, in the order of the posterior."""

    @property
    def context(self) -> int:
        """The number of tokens in a sequence."""

    @property
    def asked(self) -> slice:
        """The positions of the input at which something is to be predicted."""

    @property
    def length(self) -> int:
        """The number of such positions in a sequence."""

    @property
    def longer(self) -> Sequence[Task]:
        """The same task with longer sequences, on which a trained model is also measured."""

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Return random sequences, token ids (count, context)."""

    def inputs(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the part of the sequences that a model reads."""

    def labels(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the training targets: tokens (count, length), or probabilities (count, length, vocab_size)."""

    def posterior(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return Bayes' probability of each answer, (count, length, answers), in float64."""

    def blind_error(self) -> float | None:
        """Return the error of a model without memory, in bits, or None if it is unknown."""

    def tokenizer(self) -> Any:
        """Return a tokenizer of the task's tokens, so that the models can be opened like any other."""


def word_tokenizer(words: Sequence[str]) -> Any:
    """Return a tokenizer for these words, separated by spaces, in this order, and the end-of-text token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    end = "<|endoftext|>"
    backend = Tokenizer(models.WordLevel({word: at for at, word in enumerate([*words, end])}, unk_token=end))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, unk_token=end)


def entropy_bits(probabilities: torch.Tensor) -> torch.Tensor:
    """Return the entropy over the last axis in bits."""
    return torch.special.entr(probabilities).sum(-1) / math.log(2)


def kl_bits(wanted: torch.Tensor, log_probabilities: torch.Tensor) -> torch.Tensor:
    """Return KL(wanted || model) over the last axis in bits. log_probabilities: those of the model, in nats."""
    cross = -(wanted * log_probabilities.masked_fill(wanted == 0, 0.0)).sum(-1) / math.log(2)
    return cross - entropy_bits(wanted)


@dataclass(frozen=True)
class Comparison:
    """A model against Bayes on the same sequences. Entropies and KL: (sequences, length), in bits."""

    entropy: torch.Tensor
    bayes_entropy: torch.Tensor
    kl: torch.Tensor

    @property
    def errors(self) -> torch.Tensor:
        """The absolute error of the entropy, averaged over the positions of each sequence: (sequences,).

        Not the error of the mean curve, in which overconfidence in one sequence and underconfidence in another would
        cancel.
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


def compare_with_bayes(task: Task, tokens: torch.Tensor, logits: torch.Tensor) -> Comparison:
    """Compare a model's logits at the asked positions, (count, length, vocab_size), with the exact posterior.

    The model's entropy is over its whole vocabulary, so probability on tokens that can't be the answer counts against
    it.
    """
    posterior = task.posterior(tokens)
    log_probabilities = logits.double().log_softmax(-1)
    wanted = torch.zeros_like(log_probabilities)
    wanted[..., task.answers] = posterior
    return Comparison(
        entropy_bits(log_probabilities.exp()), entropy_bits(posterior), kl_bits(wanted, log_probabilities)
    )
