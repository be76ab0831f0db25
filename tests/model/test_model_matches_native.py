"""The same weights give the same results as Llama, Mistral and Qwen3 in transformers."""

import pytest
import torch
from support.tiny_models import YARN, left_padded, tiny_config, tiny_model, tokens
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SHARED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rope_parameters",
    "pad_token_id",
    "eos_token_id",
    "tie_word_embeddings",
)
BIASES = {"attention_bias": True, "mlp_bias": True}


def same_weights_in(model_class, config_class, lab, **extra) -> PreTrainedModel:
    """Return a native model that loads the lab model's state dict unchanged."""
    shared = {name: getattr(lab.config, name) for name in SHARED}
    config = config_class(
        **shared,
        rms_norm_eps=lab.config.norm_eps,
        attn_implementation=lab.config._attn_implementation,
        **extra,
    )
    native = model_class(config).eval()
    native.load_state_dict(lab.state_dict(), strict=True)
    return native


def llama_like(position="rope", **changes):
    lab = tiny_model(position, **changes)
    biases = {name: getattr(lab.config, name) for name in BIASES}
    return lab, same_weights_in(LlamaForCausalLM, LlamaConfig, lab, **biases)


def mistral_like():
    lab = tiny_model(sliding_window=5, num_key_value_heads=2)
    return lab, same_weights_in(MistralForCausalLM, MistralConfig, lab, sliding_window=5)


def qwen3_like():
    lab = tiny_model(qk_norm=True, num_key_value_heads=2, head_dim=12)
    return lab, same_weights_in(Qwen3ForCausalLM, Qwen3Config, lab)


PAIRS = {
    "llama": llama_like,
    "llama-eager": lambda: llama_like(attn_implementation="eager", num_key_value_heads=2),
    "llama-gqa-biases": lambda: llama_like(num_key_value_heads=2, **BIASES),
    "llama-mqa-tied": lambda: llama_like(num_key_value_heads=1, tie_word_embeddings=True),
    "llama-yarn": lambda: llama_like("yarn", rope_parameters={**YARN, "beta_fast": 8.0, "rope_theta": 5000.0}),
    "mistral-window": mistral_like,
    "qwen3-qk-norm": qwen3_like,
}


@pytest.fixture(params=PAIRS)
def pair(request):
    return PAIRS[request.param]()


def test_logits_loss_and_gradients_equal_the_native_model(pair):
    lab, native = pair
    ids = tokens(2, 16)
    results = [model(ids, labels=ids) for model in pair]
    for result in results:
        result.loss.backward()
    torch.testing.assert_close(results[0].logits, results[1].logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(results[0].loss, results[1].loss, atol=1e-6, rtol=1e-6)
    gradients = {name: parameter.grad for name, parameter in native.named_parameters()}
    for name, parameter in lab.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-3, msg=name)


def test_left_padded_logits_equal_the_native_model(pair):
    ids, mask = left_padded((12, 7), 12)
    with torch.no_grad():
        lab, native = (model(ids, attention_mask=mask).logits[mask.bool()] for model in pair)
    torch.testing.assert_close(lab, native, atol=1e-5, rtol=1e-4)


def test_packed_documents_equal_the_native_model(pair):
    positions = torch.cat((torch.arange(7), torch.arange(9))).repeat(2, 1)
    with torch.no_grad():
        lab, native = (model(tokens(2, 16), position_ids=positions, use_cache=False).logits for model in pair)
    torch.testing.assert_close(lab, native, atol=1e-5, rtol=1e-4)


def test_greedy_generation_equals_the_native_model(pair):
    ids, mask = left_padded((9, 4), 9)
    lab, native = (model.generate(ids, attention_mask=mask, max_new_tokens=10, do_sample=False) for model in pair)
    assert torch.equal(lab, native)


def test_hidden_states_and_attentions_equal_the_native_model():
    lab, native = (
        model(tokens(2, 9), output_hidden_states=True, output_attentions=True) for model in PAIRS["llama-eager"]()
    )
    for name in ("hidden_states", "attentions"):
        assert len(getattr(lab, name)) == len(getattr(native, name))
        for got, expected in zip(getattr(lab, name), getattr(native, name), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_the_loss_uses_num_items_in_batch_and_shift_labels(pair):
    ids = tokens(2, 16)
    arguments = {"labels": ids, "num_items_in_batch": torch.tensor(77)}
    shifted = {"labels": ids, "shift_labels": tokens(2, 16, seed=2)}
    for extra in (arguments, shifted):
        lab, native = (model(ids, **extra).loss for model in pair)
        torch.testing.assert_close(lab, native, atol=1e-6, rtol=1e-6)


def test_logits_to_keep_returns_the_last_logits():
    model, ids = tiny_model(), tokens(2, 9)
    full = model(ids).logits
    torch.testing.assert_close(model(ids, logits_to_keep=3).logits, full[:, -3:])
    torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([0, 4])).logits, full[:, [0, 4]])


def test_bf16_logits_are_close_to_the_native_model():
    lab, native = (model.to(torch.bfloat16) for model in llama_like(num_key_value_heads=2))
    ids = tokens(2, 16)
    with torch.no_grad():
        got, expected = lab(ids).logits.float(), native(ids).logits.float()
    assert got.dtype == torch.float32
    assert (got - expected).norm() / expected.norm() < 0.02


def test_only_layer_norm_models_have_biases_by_default():
    assert "model.norm.bias" in tiny_model(norm="layernorm").state_dict()
    assert tiny_config().attention_bias is False
    assert not [name for name in tiny_model().state_dict() if name.endswith("bias")]
