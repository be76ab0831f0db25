"""Soft-cap, zero-initialized projections, residual scalars, value embeddings and windows by layer work as described."""

import pytest
import torch
from support.tiny_models import EXTRAS, tiny_config, tiny_model, tokens
from transformers import Qwen3ForCausalLM

from llm_lab.estimate.parameters import layer_types_of, shape_of_config
from llm_lab.hf.save import native_config
from llm_lab.looking.recording import record
from llm_lab.model.modeling_lab import LabForCausalLM

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


@torch.no_grad()
def test_soft_capped_logits_stay_below_the_cap_and_keep_their_order():
    model, ids = tiny_model(), tokens(2, 9)
    plain = model(ids).logits
    model.config.final_logit_softcapping = 2.0
    capped = model(ids).logits
    torch.testing.assert_close(capped, 2 * torch.tanh(plain / 2))
    assert plain.abs().max() > 2 > capped.abs().max()


def test_the_loss_of_a_soft_capped_model_is_that_of_its_capped_logits(monkeypatch):
    from llm_lab.training import loss

    monkeypatch.setattr(loss, "PIECE_OF_LOGITS_BYTES", 64)
    model, ids = tiny_model(final_logit_softcapping=2.0), tokens(2, 9)
    expected = torch.nn.functional.cross_entropy(model(ids).logits.flatten(0, 1), ids.flatten())
    torch.testing.assert_close(loss.next_token_loss(model, ids, ids, "cpu", "float32"), expected)
    with loss.detach_large_head(model, ids.numel()) as head:
        assert head is None, "in pieces, the cap would be left out"


def test_with_zero_init_each_block_starts_as_the_identity():
    torch.manual_seed(0)
    model, ids = LabForCausalLM(tiny_config(zero_init=True)).eval(), tokens(2, 9)
    states = model(ids, output_hidden_states=True).hidden_states
    assert torch.equal(states[0], states[1])
    assert model.model.layers[0].self_attn.q_proj.weight.std() > 0.01


@torch.no_grad()
def test_residual_scalars_start_without_effect_and_mix_in_the_embeddings():
    torch.manual_seed(0)
    plain = LabForCausalLM(tiny_config()).eval()
    torch.manual_seed(0)
    scaled, ids = LabForCausalLM(tiny_config(residual_scalars=True)).eval(), tokens(2, 9)
    assert torch.equal(scaled(ids).logits, plain(ids).logits)
    scaled.model.residual_scalars.copy_(torch.tensor([1.0, 0.5]))
    scaled.model.x0_scalars.copy_(torch.tensor([0.0, 2.0]))
    x0 = plain.model.embed_tokens(ids)
    first = plain(ids, output_hidden_states=True).hidden_states[1]
    into_second = []
    scaled.model.layers[1].register_forward_pre_hook(lambda module, args: into_second.append(args[0]))
    scaled(ids)
    torch.testing.assert_close(into_second[0], 0.5 * first + 2.0 * x0)


@torch.no_grad()
def test_value_embeddings_are_added_to_the_values_of_every_second_layer():
    model, ids = tiny_model(value_embeddings=True, num_hidden_layers=5, num_key_value_heads=2), tokens(2, 9)
    assert sorted(model.model.value_embeddings) == ["0", "2", "4"]
    before = model(ids).logits
    for index, table in model.model.value_embeddings.items():
        added = table.weight[ids].clone()
        table.weight.zero_()
        values = model.model.layers[int(index)].self_attn.v_proj
        values.register_forward_hook(lambda module, args, output, added=added: output + added)
    torch.testing.assert_close(model(ids).logits, before, **CLOSE)
    with pytest.raises(ValueError, match="require input_ids"):
        model(inputs_embeds=model.model.embed_tokens(ids))


@torch.no_grad()
def test_new_tokens_get_value_embeddings_of_zero():
    model, ids = tiny_model(value_embeddings=True), tokens(2, 9)
    before = model(ids).logits
    model.resize_token_embeddings(70)
    torch.testing.assert_close(model(ids).logits[..., :61], before)
    for table in model.model.value_embeddings.values():
        assert table.num_embeddings == 70
        assert not table.weight[61:].any()
    model.resize_token_embeddings(61)
    assert torch.equal(model(ids).logits, before)


def test_windows_by_layer_equal_those_of_qwen3():
    model, ids = tiny_model(qk_norm=True, sliding_window="SL", num_key_value_heads=2), tokens(2, 16)
    config = native_config(model.config)
    assert config.layer_types == ["sliding_attention", "full_attention"]
    native = Qwen3ForCausalLM(config).eval()
    native.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, native(ids).logits, **CLOSE)
        cache = model(ids, use_cache=True).past_key_values
    assert [layer.keys.shape[-2] for layer in cache.layers] == [4, 16], "short layers keep fewer keys"


def test_the_parts_of_a_layer_sum_up_when_looked_at_from_inside():
    model = tiny_model("learned", **EXTRAS)
    assert record(model, tokens(1, 9)[0]).error < 1e-4


def test_a_pattern_is_repeated_and_ends_with_a_layer_of_full_attention():
    short, long = "sliding_attention", "full_attention"
    found = layer_types_of({"sliding_window_pattern": "SSL", "num_hidden_layers": 5})
    assert found == [short, short, long, short, long]
    assert layer_types_of({"num_hidden_layers": 5}) is None


def test_the_flops_of_attention_count_only_the_tokens_in_a_window():
    config = tiny_config(sliding_window="SL").to_dict()
    full = shape_of_config({**config, "sliding_window": None, "layer_types": None}).training_flops_per_token(64)
    windows = shape_of_config(config).training_flops_per_token(64)
    assert full - windows == 12 * 4 * 8 * (64 - 5), "one of the two layers sees 5 tokens instead of 64"
    assert shape_of_config(config).training_flops_per_token(4) == shape_of_config(
        {**config, "sliding_window": None, "layer_types": None}
    ).training_flops_per_token(4)
