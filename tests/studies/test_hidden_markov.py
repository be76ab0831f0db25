"""The hidden-Markov task: the posterior against all paths of hidden states, and the sequences that are drawn."""

import itertools
import math
from fractions import Fraction

import pytest
import torch

from llm_lab.studies.bayes import compare_with_bayes
from llm_lab.studies.hidden_markov import UNITS, HiddenMarkov

TASK = HiddenMarkov(3, 4)


def by_enumeration(task, row):
    """Return the posterior after each symbol by adding up every path of hidden states, as fractions."""
    units = [Fraction(value, UNITS) for value in row[: task.header]]
    rows = [units[at : at + task.states] for at in range(0, len(units), task.states)]
    first, moves, emits = rows[0], rows[1 : 1 + task.states], rows[1 + task.states :]
    symbols = [token - UNITS - 1 for token in row[task.header :]]
    found = []
    for seen in range(1, len(symbols) + 1):
        weight = [Fraction(0)] * task.states
        for path in itertools.product(range(task.states), repeat=seen):
            steps = (moves[a][b] for a, b in itertools.pairwise(path))
            shown = (emits[state][symbol] for state, symbol in zip(path, symbols[:seen], strict=True))
            weight[path[-1]] += first[path[0]] * math.prod(steps) * math.prod(shown)
        found.append([float(one / sum(weight)) for one in weight])
    return found


def test_the_posterior_is_the_sum_over_all_paths_of_hidden_states():
    tokens = TASK.draw(12, torch.Generator().manual_seed(0))
    for row, found in zip(tokens.tolist(), TASK.posterior(tokens).tolist(), strict=True):
        for mine, wanted in zip(found, by_enumeration(TASK, row), strict=True):
            assert mine == pytest.approx(wanted, abs=1e-12)


def test_each_sequence_begins_with_a_chain_of_its_own_whose_rows_are_probabilities():
    tokens = HiddenMarkov(3, 20).draw(400, torch.Generator().manual_seed(1))
    rows = tokens[:, :21].view(400, 7, 3)
    assert tokens.shape == (400, 41)
    assert bool((rows.sum(2) == UNITS).all())
    assert len({tuple(row) for row in rows.flatten(1).tolist()}) == 400
    # Dirichlet(1) on a grid of n units: mean n / 3, variance n (n + 3) / 18, all points equally likely
    units = rows.double().flatten()
    assert float(units.mean()) == pytest.approx(20 / 3, abs=1e-9)
    assert float(units.var()) == pytest.approx(20 * 23 / 18, rel=0.05)


def test_the_symbols_follow_the_chain_that_is_written_before_them():
    """Each state emits only one symbol and always moves to the next state, so the symbols are 0 1 2 0 1 2."""
    task = HiddenMarkov(3, 6)
    one = torch.eye(3, dtype=torch.long) * UNITS
    rows = torch.stack([one[0], one[1], one[2], one[0], *one])
    task_tokens = torch.cat([rows.flatten(), UNITS + 1 + torch.tensor([0, 1, 2, 0, 1, 2])])[None]
    assert task.posterior(task_tokens)[0].argmax(1).tolist() == [0, 1, 2, 0, 1, 2]
    drawn = task.draw(3000, torch.Generator().manual_seed(2))
    first, emits = drawn[:, :3] / UNITS, drawn[:, 12:21].view(-1, 3, 3) / UNITS
    expected = torch.einsum("bs,bso->bo", first, emits).mean(0)
    seen = torch.nn.functional.one_hot(drawn[:, 21] - UNITS - 1, 3).double().mean(0)
    assert seen.tolist() == pytest.approx(expected.tolist(), abs=0.03)


def test_a_model_that_learns_nothing_has_the_error_of_a_model_without_memory():
    task = HiddenMarkov(3, 20)
    tokens = task.draw(2000, torch.Generator().manual_seed(3))
    logits = torch.full((2000, 20, task.vocab_size), -1e9)
    logits[..., task.answers] = 0.0
    found = compare_with_bayes(task, tokens, logits)
    assert float(found.errors.mean()) == pytest.approx(task.blind_error(), abs=0.02)
    exact = torch.full_like(logits, -1e9, dtype=torch.float64)
    exact[..., task.answers] = task.posterior(tokens).clamp(min=1e-300).log()
    assert float(compare_with_bayes(task, tokens, exact).errors.max()) == pytest.approx(0, abs=1e-9)


def test_the_labels_are_the_posterior_on_the_tokens_of_the_states():
    tokens = TASK.draw(5, torch.Generator().manual_seed(4))
    labels = TASK.labels(tokens)
    names = TASK.tokenizer().convert_ids_to_tokens(range(TASK.vocab_size))
    assert [names[at] for at in TASK.answers] == ["s0", "s1", "s2"]
    assert labels[..., TASK.answers].tolist() == TASK.posterior(tokens).float().tolist()
    assert labels.sum(-1).flatten().tolist() == pytest.approx([1.0] * 20)
