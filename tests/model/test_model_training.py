"""Initialization, dropout, activation checkpointing, compilation, autocast and adapters."""

import pytest
import torch
from support.adapters import check_adapter
from support.tiny_models import EXTRAS, left_padded, tiny_config, tiny_model, tokens

from llm_lab.model.modeling_lab import LabForCausalLM, LabForSequenceClassification

POSITIONS = ["sinusoidal", "rope", "alibi", "yarn", "learned"]


@pytest.fixture(autouse=True)
def no_compiled_graphs_of_other_tests():
    torch._dynamo.reset()


def gradients(model, ids):
    model.train().zero_grad()
    model(ids, labels=ids).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_weights_are_initialized_as_in_gpt2():
    torch.manual_seed(0)
    config = tiny_config(
        hidden_size=256, intermediate_size=512, num_hidden_layers=8, attention_bias=True, mlp_bias=True
    )
    for name, parameter in LabForCausalLM(config).named_parameters():
        if "norm" in name:
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            onto_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            expected = 0.02 / 4 if onto_residual else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name


def test_the_padding_token_is_trained_if_it_is_also_the_end_token():
    model = LabForCausalLM(tiny_config(pad_token_id=1, eos_token_id=1))
    ids = torch.tensor([[5, 6, 1, 7]])
    gradient = gradients(model, ids)["model.embed_tokens.weight"]
    assert gradient[1].abs().max() > 0


@pytest.fixture
def sdpa_calls(monkeypatch):
    """Record the arguments of each call of scaled_dot_product_attention."""
    calls, original = [], torch.nn.functional.scaled_dot_product_attention

    def spy(*args, **kwargs):
        calls.append({"dtypes": [tensor.dtype for tensor in args], **kwargs})
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    return calls


@pytest.mark.parametrize("position", ["sinusoidal", "rope", "yarn"])
def test_pretraining_uses_the_causal_kernel_without_a_mask(position, sdpa_calls):
    gradients(tiny_model(position), tokens(2, 12))
    assert len(sdpa_calls) == 2
    for call in sdpa_calls:
        assert call["is_causal"]
        assert call["attn_mask"] is None


def test_alibi_shares_one_mask_between_layers_and_rows(sdpa_calls):
    gradients(tiny_model("alibi"), tokens(3, 12))
    assert sdpa_calls[0]["attn_mask"].shape == (1, 4, 12, 12)
    assert sdpa_calls[0]["attn_mask"] is sdpa_calls[1]["attn_mask"]


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_gives_the_same_gradients(position, reentrant):
    model, ids = tiny_model(position, qk_norm=True, sliding_window="SL", **EXTRAS), tokens(2, 12)
    expected = gradients(model, ids)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for name, gradient in gradients(model, ids).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


def test_dropout_is_applied_in_training_only():
    ids = tokens(2, 12)
    for name in ("hidden_dropout", "attention_dropout"):
        model = tiny_model(**{name: 0.5})
        assert torch.equal(model(ids).logits, model(ids).logits)
        assert not torch.equal(model.train()(ids).logits, model(ids).logits)
    assert not torch.equal(model.train()(ids).logits, tiny_model()(ids).logits)


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "position",
    [pytest.param(name, marks=[pytest.mark.slow] if name in ("yarn", "sinusoidal") else []) for name in POSITIONS],
)
def test_the_whole_forward_is_one_graph(position, backend):
    model, ids = tiny_model(position, num_key_value_heads=2, sliding_window=5), tokens(2, 12)
    mask = left_padded((12, 7), 12)[1]
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for arguments in ({"attention_mask": mask}, {"labels": ids}):
        expected, got = model(ids, **arguments), compiled(ids, **arguments)
        torch.testing.assert_close(got.logits, expected.logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("position", "changes"),
    [
        ("rope", {"num_key_value_heads": 2, "sliding_window": "SL", **EXTRAS}),
        ("alibi", {"norm": "layernorm", "activation": "relu2"}),
    ],
    ids=["rope", "alibi"],
)
def test_compiled_gradients_equal_eager_gradients(position, changes, backend):
    model, ids = tiny_model(position, **changes), tokens(2, 12)
    expected = gradients(model, ids)
    model.compile(fullgraph=True, backend=backend)
    for name, gradient in gradients(model, ids).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_autocast_and_bf16_weights_are_close_to_float32(position, kernel):
    model = tiny_model(position, qk_norm=True, num_key_value_heads=2, attn_implementation=kernel, **EXTRAS)
    ids, mask = left_padded((12, 7), 12)
    real = mask.bool()
    with torch.no_grad():
        exact = model(ids, attention_mask=mask).logits[real]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            autocast = model(ids, attention_mask=mask).logits[real]
        cast = model.to(torch.bfloat16)(ids, attention_mask=mask).logits[real]
    assert (autocast.float() - exact).norm() / exact.norm() < 0.03
    assert (cast.float() - exact).norm() / exact.norm() < 0.03


@pytest.mark.parametrize("position", POSITIONS)
def test_attention_gets_a_single_dtype_under_autocast(position, sdpa_calls):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tiny_model(position, qk_norm=True)(tokens(2, 12))
    assert sdpa_calls[0]["dtypes"] == [torch.bfloat16] * 3


@pytest.mark.slow
@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_flex_attention_equals_sdpa(position):
    model = tiny_model(position, hidden_size=64, num_key_value_heads=2)
    ids, mask = left_padded((20, 7), 20)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
        model.set_attn_implementation("flex_attention")
        got = model(ids, attention_mask=mask).logits
    real = mask.bool()
    torch.testing.assert_close(got[real], expected[real], atol=1e-4, rtol=1e-4)


def test_training_with_autocast_gives_no_warning(recwarn):
    model, ids = tiny_model(qk_norm=True).train(), tokens(2, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids, labels=ids).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert not [str(warning.message) for warning in recwarn]


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_a_lora_adapter_trains_and_merges(position):
    check_adapter(tiny_model(position, num_key_value_heads=2, **EXTRAS))


def test_a_reward_model_scores_the_last_token_that_is_not_padding():
    torch.manual_seed(0)
    model = LabForSequenceClassification(tiny_config("alibi", num_labels=1)).eval()
    ids, mask = left_padded((9, 5), 9)
    scores = model(ids, attention_mask=mask).logits
    assert scores.shape == (2, 1)
    right_padded = torch.cat((ids[1:, 4:], torch.zeros(1, 4, dtype=torch.long)), dim=1)
    right_mask = torch.cat((mask[1:, 4:], torch.zeros(1, 4, dtype=torch.long)), dim=1)
    torch.testing.assert_close(model(right_padded, attention_mask=right_mask).logits, scores[1:])


def test_tied_and_untied_embeddings_can_be_resized():
    for tied in (True, False):
        model = tiny_model(tie_word_embeddings=tied)
        model.resize_token_embeddings(70)
        assert model(tokens(1, 4)).logits.shape[-1] == 70
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
