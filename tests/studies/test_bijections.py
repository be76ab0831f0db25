"""The bijection task: the exact posterior, the closed form, and the comparison with a model."""

import itertools
import math

import pytest
import torch

from llm_lab.studies.bayes import compare_with_bayes, entropy_bits, kl_bits
from llm_lab.studies.bijections import Bijections


def by_enumeration(task: Bijections, row: list[int], pair: int) -> list[float]:
    """Return the posterior after the key of a pair by going through all one-to-one mappings."""
    keys, values = row[0::2], [token - task.values for token in row[1::2]]
    counts = [0] * task.values
    for mapping in itertools.permutations(range(task.values)):
        if all(mapping[key] == value for key, value in zip(keys[:pair], values[:pair], strict=True)):
            counts[mapping[keys[pair]]] += 1
    return [count / sum(counts) for count in counts]


@pytest.mark.parametrize("repeated", [False, True])
def test_the_posterior_equals_that_from_enumerating_all_mappings(repeated):
    task = Bijections(4, 4, repeated)
    tokens = task.draw(20, torch.Generator().manual_seed(0))
    found = task.posterior(tokens)
    for row, given in zip(tokens.tolist(), found, strict=True):
        for pair in range(task.pairs):
            assert given[pair].tolist() == pytest.approx(by_enumeration(task, row, pair), abs=1e-12)


def test_each_sequence_follows_one_mapping_and_uses_a_key_once():
    tokens = Bijections(6, 6).draw(50, torch.Generator().manual_seed(1))
    assert torch.equal(tokens[:, 0::2].sort(dim=1).values, torch.arange(6).expand(50, 6))
    assert torch.equal(tokens[:, 1::2].sort(dim=1).values, torch.arange(6, 12).expand(50, 6))
    assert len({tuple(row) for row in tokens.tolist()}) > 40  # drawn again for each sequence


def test_a_repeated_key_has_the_same_value_again():
    keys, values = (
        half.tolist() for half in Bijections(3, 9, repeated=True).draw(30, torch.Generator()).view(30, 9, 2).unbind(2)
    )
    for row_keys, row_values in zip(keys, values, strict=True):
        assert len(set(row_keys)) < 9
        assert len(set(zip(row_keys, row_values, strict=True))) == len(set(row_keys)) == len(set(row_values))


@pytest.mark.parametrize(("values", "pairs", "wanted"), [(10, 10, 1.14282), (20, 19, 1.10733)])
def test_a_model_that_gives_every_value_the_same_probability_has_the_closed_form_as_its_error(values, pairs, wanted):
    task = Bijections(values, pairs)
    tokens = task.draw(30, torch.Generator().manual_seed(2))
    logits = torch.full((30, pairs, task.vocab_size), -1e9)
    logits[..., values : 2 * values] = 0.0
    found = compare_with_bayes(task, tokens, logits)
    assert task.blind_error() == pytest.approx(wanted, abs=1e-5)
    assert float(found.errors.mean()) == pytest.approx(task.blind_error(), abs=1e-6)
    assert float(found.kl.mean()) == pytest.approx(task.blind_error(), abs=1e-6)


def test_bayes_itself_has_no_error():
    task = Bijections(5, 5)
    tokens = task.draw(10, torch.Generator().manual_seed(3))
    logits = torch.full((10, 5, task.vocab_size), -1e9, dtype=torch.float64)
    logits[..., 5:10] = task.posterior(tokens).clamp(min=1e-300).log()
    found = compare_with_bayes(task, tokens, logits)
    assert float(found.errors.max()) == pytest.approx(0, abs=1e-9)
    assert float(found.kl.abs().max()) == pytest.approx(0, abs=1e-9)
    assert found.bayes_entropy[0].tolist() == pytest.approx([math.log2(left) for left in (5, 4, 3, 2, 1)])


def test_kl_is_at_least_zero_and_equals_that_of_torch():
    generator = torch.Generator().manual_seed(4)
    wanted = torch.rand(200, 7, generator=generator, dtype=torch.float64).softmax(-1)
    log_model = torch.randn(200, 7, generator=generator, dtype=torch.float64).log_softmax(-1)
    found = kl_bits(wanted, log_model)
    other = torch.nn.functional.kl_div(log_model, wanted, reduction="none").sum(-1) / math.log(2)
    assert bool((found >= 0).all())
    assert torch.allclose(found, other)


def test_overconfidence_in_one_sequence_does_not_cancel_underconfidence_in_another():
    task = Bijections(4, 2)
    tokens = task.draw(2, torch.Generator().manual_seed(5))
    posterior = task.posterior(tokens)
    logits = torch.full((2, 2, task.vocab_size), -1e9, dtype=torch.float64)
    logits[..., 4:8] = posterior.clamp(min=1e-300).log()
    logits[0, 1, :] = -1e9  # certain of one value at the second key: log2(3) bits too few
    logits[0, 1, 4] = 0.0
    # Uniform over more than Bayes' three values in the other sequence, to be equally far above: 9 would be exact, 8 are
    # 0.17 bits short.
    logits[1, 1, :] = -1e9
    logits[1, 1, :8] = 0.0
    found = compare_with_bayes(task, tokens, logits)
    assert float(found.errors.mean()) == pytest.approx((math.log2(3) + math.log2(8 / 3)) / 4)
    assert found.figures["mae_of_means_bits"] == pytest.approx((math.log2(3) - math.log2(8 / 3)) / 4)


def test_the_entropy_of_a_uniform_distribution_is_the_logarithm_of_its_size():
    assert float(entropy_bits(torch.full((8,), 1 / 8))) == pytest.approx(3)


def test_the_tokenizer_writes_the_tokens_of_the_task():
    task = Bijections(3, 3)
    tokenizer = task.tokenizer()
    assert len(tokenizer) == task.vocab_size
    assert tokenizer("x2 y0 x1")["input_ids"] == [2, 3, 1]
