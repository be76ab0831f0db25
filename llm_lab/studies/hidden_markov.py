"""The hidden-Markov task of arXiv 2512.22471: predict which hidden state a chain is in, compared with Bayes.

Each sequence draws its own chain and begins with it, written out: the probabilities of the first state, of the next
state from each state, and of each symbol in each state. Then come the symbols that the chain emits. After each symbol,
the forward algorithm gives the exact probability of each hidden state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F

from .bayes import entropy_bits, word_tokenizer

UNITS = 20  # probabilities are multiples of 1/20, so that one token is enough for each
LONGER = (1.5, 2.5)  # the paper trains on 20 symbols and tests on 20, 30 and 50
SAMPLE = 4000  # sequences from which the error of a model without memory is estimated


@dataclass(frozen=True)
class HiddenMarkov:
    """Sequences that write out a chain of `states` states and as many symbols, followed by `observations` symbols.

    Tokens: p0 to p20 are probabilities in twentieths, followed by the symbols and the states. The states are never in
    the input; at each symbol, the current state is to be predicted.
    """

    states: int
    observations: int

    @property
    def position(self) -> str:
        return "symbol"

    @property
    def answer(self) -> str:
        return "hidden state"

    @property
    def why_it_falls(self) -> str:
        return "Uncertainty about the hidden state after each symbol. Bayes' entropy settles after a few symbols."

    @property
    def vocab_size(self) -> int:
        return UNITS + 1 + 2 * self.states + 1

    @property
    def key_tokens(self) -> int:
        return 0

    @property
    def answers(self) -> range:
        first = UNITS + 1 + self.states
        return range(first, first + self.states)

    @property
    def header(self) -> int:
        """The number of tokens that write out the chain: one row of probabilities, and two for each state."""
        return self.states * (1 + 2 * self.states)

    @property
    def context(self) -> int:
        return self.header + self.observations

    @property
    def asked(self) -> slice:
        return slice(self.header, None)

    @property
    def length(self) -> int:
        return self.observations

    @property
    def longer(self) -> tuple[HiddenMarkov, ...]:
        return tuple(replace(self, observations=round(self.observations * times)) for times in LONGER)

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Return `count` random sequences, token ids (count, context)."""
        rows = _draw_rows(count, 1 + 2 * self.states, self.states, generator)
        first, moves, emits = self._parts(rows / UNITS)
        pick = torch.arange(count)
        state = torch.multinomial(first, 1, generator=generator)[:, 0]
        symbols = torch.empty(count, self.observations, dtype=torch.long)
        for step in range(self.observations):
            if step:
                state = torch.multinomial(moves[pick, state], 1, generator=generator)[:, 0]
            symbols[:, step] = torch.multinomial(emits[pick, state], 1, generator=generator)[:, 0]
        return torch.cat([rows.flatten(1), UNITS + 1 + symbols], dim=1)

    def _parts(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Split the rows of a header, (count, 1 + 2 * states, states), into first state, next state and symbol."""
        return rows[:, 0], rows[:, 1 : 1 + self.states], rows[:, 1 + self.states :]

    def inputs(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens

    def labels(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the training targets, which are the posterior itself, as in the paper: (count, length, vocab_size)."""
        wanted = torch.zeros(len(tokens), self.length, self.vocab_size)
        wanted[..., self.answers] = self.posterior(tokens).float()
        return wanted

    def posterior(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the probability of each state given the symbols so far, (count, length, states), in float64.

        The forward algorithm, with the chain that the sequence begins with: predict the next state, weight each state
        by the probability of the symbol there, and normalize to a sum of 1 (Rabiner 1989, section III A).
        """
        rows = tokens[:, : self.header].view(len(tokens), -1, self.states).double() / UNITS
        first, moves, emits = self._parts(rows)
        symbols = tokens[:, self.header :] - UNITS - 1
        pick = torch.arange(len(tokens))
        found = torch.empty(len(tokens), symbols.shape[1], self.states, dtype=torch.float64)
        before = first
        for step in range(symbols.shape[1]):
            weighed = before * emits[pick, :, symbols[:, step]]
            found[:, step] = weighed / weighed.sum(1, keepdim=True)
            before = torch.einsum("bs,bst->bt", found[:, step], moves)
        return found

    def blind_error(self) -> float | None:
        """Return the error in bits of a model that sees one symbol: log2 of the states minus Bayes' mean entropy.

        Without the chain, all states are equally likely whatever the symbol. Bayes' mean entropy has no closed form
        here; it is estimated from 4,000 sequences.
        """
        tokens = self.draw(SAMPLE, torch.Generator().manual_seed(0))
        even = torch.full((self.states,), 1 / self.states, dtype=torch.float64)
        return float(entropy_bits(even) - entropy_bits(self.posterior(tokens)).mean())

    def tokenizer(self) -> Any:
        """Return a tokenizer for texts such as "p20 p0 p5 ... o1 o0"."""
        words = [f"p{units}" for units in range(UNITS + 1)]
        return word_tokenizer([*words, *(f"{kind}{number}" for kind in "os" for number in range(self.states))])


def _draw_rows(count: int, rows: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Return probabilities in units of 1/UNITS, (count, rows, size): all rows that sum to 1 are equally likely.

    This is Dirichlet(1) on a grid: UNITS units in a line and size - 1 bars between them, each order equally likely.
    """
    places = UNITS + size - 1
    bars = torch.rand(count, rows, places, generator=generator).argsort(dim=2)[..., : size - 1].sort(dim=2).values
    edges = F.pad(F.pad(bars, (1, 0), value=-1), (0, 1), value=places)
    return edges.diff(dim=2) - 1
