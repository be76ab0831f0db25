"""Combinations of parts can be built, trained, decoded with a cache, saved and loaded."""

import itertools

import pytest
import torch
from support.adapters import check_adapter
from support.sampling import covering
from support.tiny_models import (
    EXPERT_FACTORS,
    FACTORS,
    combinations,
    decode_in_chunks,
    every_combination,
    expert_combinations,
    left_padded,
    named,
    recipe_keys,
    tiny_config,
    tiny_experts,
    tiny_model,
    tokens,
)

from llm_lab.estimate.parameters import shape_of_config
from llm_lab.model.modeling_lab import LabForCausalLM
from llm_lab.recipe.parts import ModelParts

TRIPLES, PAIRS = combinations(3), combinations(2)
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
# Keys that set numbers rather than parts; training with them has separate tests.
NUMBERS = {"size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "intermediate_size"}
NUMBERS |= {"max_position_embeddings", "rope_theta", "yarn_factor", "original_max_position_embeddings", "norm_eps"}
NUMBERS |= {"initializer_range", "router_aux_loss_coef", "dropout", "attention_dropout"}


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
    torch.testing.assert_close(chunked[real], full[real], **CLOSE)


@torch.no_grad()
def check_packing(model) -> None:
    documents = [tokens(2, 7, seed=3), tokens(2, 9, seed=4)]
    positions = torch.cat((torch.arange(7), torch.arange(9))).repeat(2, 1)
    packed = model.eval()(torch.cat(documents, dim=1), position_ids=positions, use_cache=False).logits
    apart = torch.cat([model(document).logits for document in documents], dim=1)
    torch.testing.assert_close(packed, apart, **CLOSE)


def gradients(model) -> dict[str, torch.Tensor]:
    model.train().zero_grad()
    model(tokens(2, 12), labels=tokens(2, 12)).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def check_checkpointing(model) -> None:
    expected = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


def check_compiled(model) -> None:
    torch._dynamo.reset()
    expected = gradients(model)
    model.compile(fullgraph=True, backend="aot_eager")
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-3, msg=name)


def check_generation(model) -> None:
    ids, mask = left_padded((9, 4), 9)
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = model.eval().generate(ids, attention_mask=mask, **settings)
    for options in ({"use_cache": False}, {"cache_implementation": "static"}, {"prefill_chunk_size": 4}):
        assert torch.equal(model.generate(ids, attention_mask=mask, **settings, **options), expected), options
    assert torch.equal(model.generate(ids[1:, 5:], **settings), expected[1:, 5:]), "without padding"


def check(model) -> None:
    assert shape_of_config(model.config.to_dict()).parameters == sum(p.numel() for p in model.parameters())
    check_training(model)
    check_decoding(model)


def check_use(make, **parts) -> None:
    """Check a model with every cache, an adapter and the compiler. make: returns a new model."""
    check_generation(make(**parts))
    check_adapter(make(**parts))
    check_compiled(make(**parts))


def test_every_part_of_a_recipe_is_in_the_combinations():
    covered = {key for parts in PAIRS for key in recipe_keys(parts)} | set(EXPERT_FACTORS)
    covered |= {"attention"}  # covered by num_key_value_heads
    assert set(ModelParts.model_fields) == covered | NUMBERS, "a new part belongs into FACTORS or EXPERT_FACTORS"
    assert not covered & NUMBERS


@pytest.mark.parametrize("parts", TRIPLES, ids=named)
def test_every_triple_of_parts_is_counted_trains_and_decodes(parts):
    check(tiny_model(**parts))


CHECKPOINTING = pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")


@CHECKPOINTING
@pytest.mark.parametrize("parts", PAIRS, ids=named)
def test_every_pair_of_parts_keeps_packed_documents_apart_and_its_gradients_when_checkpointed(parts):
    check_packing(tiny_model(**parts))
    check_checkpointing(tiny_model(**parts))


@CHECKPOINTING
@pytest.mark.parametrize("parts", expert_combinations(1), ids=named)
def test_experts_keep_the_promises_of_the_other_parts(parts):
    model = tiny_experts(**parts)
    check(model)
    check_packing(model)
    check_checkpointing(model)


@CHECKPOINTING
@pytest.mark.slow
@pytest.mark.parametrize("parts", expert_combinations(2), ids=named)
def test_every_pair_of_parts_with_experts_keeps_every_promise(parts):
    model = tiny_experts(**parts)
    check(model)
    check_packing(model)
    check_checkpointing(model)
    check_use(tiny_experts, **parts)


@pytest.mark.slow
@pytest.mark.parametrize("parts", PAIRS, ids=named)
def test_every_pair_of_parts_generates_the_same_with_every_cache_compiles_and_takes_an_adapter(parts):
    check_use(tiny_model, **parts)


@pytest.mark.slow
@pytest.mark.parametrize("parts", every_combination(), ids=named)
def test_every_combination_is_counted_trains_and_decodes(parts):
    check(tiny_model(**parts))


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
