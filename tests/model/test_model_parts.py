"""Norms, activations and position embeddings equal Hugging Face's, a direct computation, or the paper's code."""

import math

import pytest
import torch
from support.tiny_models import tiny_config, tiny_model, tokens
from transformers import DynamicCache, LlamaConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

from llm_lab.model.feed_forward import ACTIVATIONS, FeedForward
from llm_lab.model.masks import alibi_mask_and_bias
from llm_lab.model.norms import RMSNorm
from llm_lab.model.positions import Alibi, Rope, Sinusoidal, Yarn, apply_rotary

YARN_VARIANTS = [
    {"factor": 4.0, "original_max_position_embeddings": 64},
    {"factor": 16.0, "original_max_position_embeddings": 2048, "beta_fast": 24.0, "beta_slow": 2.0},
    {"factor": 8.0, "original_max_position_embeddings": 512, "truncate": False},
    {"factor": 8.0, "original_max_position_embeddings": 512, "attention_factor": 0.7},
    {"factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 0.707, "mscale_all_dim": 1.3},
    {"factor": 1.0, "original_max_position_embeddings": 128},
]


def llama_rotary(head_dim: int, **rope) -> LlamaRotaryEmbedding:
    factor = rope.get("factor", 1.0)
    context = int(rope.get("original_max_position_embeddings", 1024) * factor)
    config = LlamaConfig(
        hidden_size=head_dim, num_attention_heads=1, max_position_embeddings=context, rope_parameters=rope
    )
    return LlamaRotaryEmbedding(config)


def assert_same_rotation(lab: Rope, reference: LlamaRotaryEmbedding, head_dim: int) -> None:
    query, key = torch.randn(2, 3, 50, head_dim), torch.randn(2, 1, 50, head_dim)
    positions = torch.arange(50).repeat(2, 1) * 37
    expected = apply_rotary_pos_emb(query, key, *reference(query, positions))
    cos, sin = lab(positions, query.dtype)
    for x, wanted in zip((query, key), expected, strict=True):
        got = apply_rotary(x.transpose(1, 2), cos, sin).transpose(1, 2)
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("head_dim", [2, 6, 16, 128])
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_rope_equals_hugging_face(head_dim, theta):
    reference = llama_rotary(head_dim, rope_type="default", rope_theta=theta)
    lab = Rope(head_dim, theta)
    assert torch.equal(lab.inverse_frequencies(), reference.inv_freq)
    assert_same_rotation(lab, reference, head_dim)


@pytest.mark.parametrize("rope", YARN_VARIANTS)
@pytest.mark.parametrize("head_dim", [6, 64])
def test_yarn_equals_hugging_face(rope, head_dim):
    reference = llama_rotary(head_dim, rope_type="yarn", rope_theta=10000.0, **rope)
    frequencies, attention_factor = ROPE_INIT_FUNCTIONS["yarn"](reference.config)
    lab = Yarn(head_dim, 10000.0, **rope)
    assert torch.equal(lab.inverse_frequencies(), frequencies)
    assert lab.attention_factor == pytest.approx(attention_factor)
    assert_same_rotation(lab, reference, head_dim)


def test_yarn_slows_only_slow_channels_and_scales_attention():
    rope, yarn = Rope(64, 10000.0), Yarn(64, 10000.0, factor=4.0, original_max_position_embeddings=256)
    ratio = rope.inverse_frequencies() / yarn.inverse_frequencies()
    assert ratio[0] == 1
    assert ratio[-1] == 4
    assert (ratio.diff() >= -1e-6).all()
    assert yarn.attention_factor == pytest.approx(0.1 * math.log(4) + 1)


def test_yarn_with_factor_1_equals_rope():
    yarn = Yarn(64, 10000.0, factor=1.0, original_max_position_embeddings=256)
    rope = Rope(64, 10000.0)
    torch.testing.assert_close(yarn.inverse_frequencies(), rope.inverse_frequencies(), atol=0, rtol=1e-6)
    assert yarn.attention_factor == 1.0


def test_rotary_positions_are_exact_in_a_bf16_model():
    model = tiny_model("rope")
    exact = model.model.positions(torch.arange(5000)[None], torch.float32)
    cast = model.to(torch.bfloat16).model.positions(torch.arange(5000)[None], torch.float32)
    assert torch.equal(cast[0], exact[0])
    assert torch.equal(cast[1], exact[1])


@pytest.mark.parametrize("position", ["sinusoidal", "rope", "alibi", "yarn"])
def test_position_embeddings_have_no_buffers_or_parameters(position):
    positions = tiny_model(position).model.positions
    assert not list(positions.buffers())
    assert not list(positions.parameters())


def test_sinusoids_equal_the_paper():
    table = Sinusoidal(6)(torch.tensor([[0, 1, 7]]))
    for row, position in enumerate((0, 1, 7)):
        for pair in range(3):
            angle = position / 10000 ** (2 * pair / 6)
            assert table[0, row, 2 * pair].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[0, row, 2 * pair + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_sinusoids_are_added_to_scaled_embeddings():
    model = tiny_model("sinusoidal")
    ids = tokens(1, 9)
    captured = []
    model.model.layers[0].register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    model(ids)
    expected = model.model.embed_tokens(ids) * math.sqrt(32) + Sinusoidal(32)(torch.arange(9)[None])
    torch.testing.assert_close(captured[0], expected)


def reference_slopes(heads: int) -> list[float]:
    if math.log2(heads).is_integer():
        start = 2 ** (-(2 ** -(math.log2(heads) - 3)))
        return [start ** (index + 1) for index in range(heads)]
    power = 2 ** math.floor(math.log2(heads))
    between = reference_slopes(2 * power)[0::2][: heads - power]
    return reference_slopes(power) + between


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 8, 12, 16, 20, 25])
def test_alibi_slopes_equal_the_reference(heads):
    expected = torch.tensor(reference_slopes(heads))
    torch.testing.assert_close(Alibi(heads).slopes(), expected, atol=0, rtol=1e-6)


def test_alibi_slopes_of_8_heads_are_powers_of_2():
    assert Alibi(8).slopes().tolist() == [2.0**-power for power in range(1, 9)]


def test_alibi_bias_is_exact_in_a_bf16_model():
    model = tiny_model("alibi").to(torch.bfloat16)
    bias = model.model.positions(torch.arange(1024), torch.arange(1024))
    assert bias.dtype == torch.float32
    assert bias[0, 0, -1].unique().numel() == 1024
    assert bias[0, 0, 1023, 3].item() == -0.25 * 1020


def test_alibi_distances_are_correct_with_a_windowed_cache():
    model = tiny_model("alibi", sliding_window=5)
    cache = DynamicCache(config=model.config)
    model(tokens(1, 12), past_key_values=cache, use_cache=True)
    mask, _ = alibi_mask_and_bias(Alibi(8), "eager", None, torch.zeros(1, 1, 32), cache)
    assert mask[0, 0, 0].tolist() == [-2.0, -1.5, -1.0, -0.5, 0.0]


def test_the_alibi_mask_equals_the_bias_below_the_diagonal():
    mask, _ = alibi_mask_and_bias(Alibi(6), "sdpa", None, torch.zeros(1, 700, 32), None)
    distance = torch.arange(700.0)[:, None] - torch.arange(700.0)
    exact = -Alibi(6).slopes()[:, None, None] * distance
    below = distance >= 0
    assert torch.equal(mask[0][:, below], exact[:, below])
    assert (mask[0][:, ~below] <= -1e8).all()


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("window", [None, 5])
def test_alibi_attention_equals_brute_force(kernel, window):
    config = tiny_config("alibi", attn_implementation=kernel, sliding_window=window, num_key_value_heads=2)
    model = tiny_model("alibi", attn_implementation=kernel, sliding_window=window, num_key_value_heads=2)
    captured = {}
    attention = model.model.layers[0].self_attn
    attention.register_forward_hook(lambda _, inputs, output: captured.update(x=inputs[0], out=output[0]))
    with torch.no_grad():
        model(tokens(1, 11))
        x, heads, width = captured["x"][0], config.num_attention_heads, config.head_dim
        query = attention.q_proj(x).view(11, heads, width)
        key = attention.k_proj(x).view(11, 2, width)
        value = attention.v_proj(x).view(11, 2, width)
        result = torch.zeros(11, heads, width)
        for head in range(heads):
            slope = reference_slopes(heads)[head]
            for i in range(11):
                visible = range(max(0, i - window + 1) if window else 0, i + 1)
                scores = [query[i, head] @ key[j, head // 2] / width**0.5 - slope * (i - j) for j in visible]
                weights = torch.stack(scores).softmax(0)
                result[i, head] = sum(weight * value[j, head // 2] for weight, j in zip(weights, visible, strict=True))
        expected = attention.o_proj(result.flatten(1))
    torch.testing.assert_close(captured["out"][0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_equals_llama(dtype):
    lab, reference = RMSNorm(48, 1e-5), LlamaRMSNorm(48, 1e-5)
    gain = torch.randn(48)
    lab.weight.data, reference.weight.data = gain.to(dtype), gain.to(dtype)
    x = (torch.randn(3, 5, 48) * 7).to(dtype)
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(lab(x), reference(x), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_feed_forward_network_uses_its_activation(activation, bias):
    network, x = FeedForward(6, 10, activation, bias), torch.randn(4, 6)
    inner, gate = network.up_proj(x), {"swiglu": "silu", "geglu": "gelu", "reglu": "relu"}.get(activation)
    inner = ACT2FN[gate](network.gate_proj(x)) * inner if gate else ACT2FN[activation](inner)
    torch.testing.assert_close(network(x), network.down_proj(inner))
    assert len(list(network.parameters())) == (3 if gate else 2) * (2 if bias else 1)
