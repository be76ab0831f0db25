"""Combinations of parts can be built, trained, decoded with a cache, saved and loaded."""

import itertools

import pytest
import torch
from support.sampling import covering
from support.tiny_models import (
    FACTORS,
    combinations,
    decode_in_chunks,
    every_combination,
    left_padded,
    named,
    tiny_config,
    tiny_model,
    tokens,
)

from llm_lab.estimate.parameters import shape_of_config
from llm_lab.model.modeling_lab import LabForCausalLM

TRIPLES, PAIRS = combinations(3), combinations(2)


def check_training(model) -> None:
    ids = tokens(2, 12)
    loss = model.train()(ids, labels=ids).loss
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, name


@torch.no_grad()
def check_decoding(model) -> None:
    ids, mask = left_padded((12, 7), 12)
    full = model.eval()(ids, attention_mask=mask).logits
    chunked = decode_in_chunks(model, ids, mask, ends=[7, 8, 12])
    real = mask.bool()
    torch.testing.assert_close(chunked[real], full[real], atol=2e-5, rtol=1e-4)


def check(parts) -> None:
    model = tiny_model(**parts)
    assert shape_of_config(model.config.to_dict()).parameters == sum(p.numel() for p in model.parameters())
    check_training(model)
    check_decoding(model)


@pytest.mark.parametrize("parts", TRIPLES, ids=named)
def test_every_triple_of_parts_is_counted_trains_and_decodes(parts):
    check(parts)


@pytest.mark.slow
@pytest.mark.parametrize("parts", every_combination(), ids=named)
def test_every_combination_is_counted_trains_and_decodes(parts):
    check(parts)


@pytest.mark.parametrize("parts", PAIRS, ids=named)
def test_every_pair_of_parts_is_the_same_after_saving_and_loading(parts, tmp_path):
    model, ids = tiny_model(**parts), tokens(2, 9)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(LabForCausalLM.from_pretrained(tmp_path).eval()(ids).logits, model(ids).logits)


@pytest.mark.parametrize("strength", [2, 3])
def test_the_combinations_contain_every_combination_of_any_few_parts(strength):
    rows = combinations(strength)
    for names in itertools.combinations(FACTORS, strength):
        found = {tuple(row[name] for name in names) for row in rows}
        assert found == set(itertools.product(*(FACTORS[name] for name in names)))
    largest = sorted((len(values) for values in FACTORS.values()), reverse=True)[:strength]
    least = torch.tensor(largest).prod().item()
    assert len(rows) <= 1.3 * least, "few rows: not many more than the largest factors require"


def test_a_sample_of_three_switches_is_smaller_than_their_product():
    assert len(covering([(0, 1)] * 8, 3)) < 24
    assert sorted(covering([(0, 1), "ab"], 2)) == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]


@pytest.mark.parametrize(
    "change",
    [
        {"norm": "layernorm"},
        {"num_key_value_heads": 1},
        {"activation": "relu"},
        {"qk_norm": True},
        {"sliding_window": 5},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"tie_word_embeddings": True},
        {"final_logit_softcapping": 3.0},
        {"zero_init": True},
        {"residual_scalars": True},
        {"value_embeddings": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_changing_a_part_changes_nothing_else(change):
    plain, changed = tiny_config().to_dict(), tiny_config(**change).to_dict()
    if "sliding_window" in change:
        assert changed.pop("layer_types") == ["sliding_attention"] * 2
    assert {name for name in changed if changed[name] != plain.get(name)} == set(change)
