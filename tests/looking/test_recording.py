"""Activations recorded inside a model equal those that transformers returns, and parts sum to the whole."""

import pytest
import torch
from support.looked_at import ATTENTION, CONFIGS, OURS, WITH_LORA, model_named, text

from llm_lab.looking.anatomy import base_of
from llm_lab.looking.lens import Readout, attribute, logit_lens
from llm_lab.looking.recording import record, without_heads

ALL = [*CONFIGS, *OURS, WITH_LORA]
# These normalize or scale the outputs of attention and feed-forward before they are added, or add the residual
# themselves.
NORMS_INSIDE = ("Gemma2", "Gemma3Text", "Granite", "Bloom")


def transformers_own(model, ids, **options):
    """Return transformers' own outputs, computed with eager attention."""
    base = base_of(model)
    before = base.config._attn_implementation
    base.set_attn_implementation("eager")
    with torch.no_grad():
        output = base(input_ids=ids[None], use_cache=False, **options)
    base.set_attn_implementation(before)
    return output


@pytest.mark.parametrize("name", ATTENTION)
def test_the_attention_is_the_one_that_transformers_returns(name):
    model = model_named(name)
    found = record(model, text()).attention
    own = transformers_own(model, text(), output_attentions=True).attentions
    assert len(found) == len(own) == 2
    for ours, theirs in zip(found, own, strict=True):
        assert ours.shape == (4, 20, 20)
        torch.testing.assert_close(ours, theirs[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(ours.sum(-1), torch.ones(4, 20))


@pytest.mark.parametrize("name", ALL)
def test_the_residual_stream_is_the_one_that_transformers_returns(name):
    model = model_named(name)
    found = record(model, text())
    own = transformers_own(model, text(), output_hidden_states=True)
    # Mamba's list begins after the first layer.
    theirs = torch.cat(own.hidden_states[:2])
    torch.testing.assert_close(found.residual[1:] if name == "Mamba" else found.residual[:2], theirs)
    torch.testing.assert_close(found.logits, own.logits[0])
    readout = Readout(model, found)
    torch.testing.assert_close(readout.normed(found.residual[-1]), own.hidden_states[-1][0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_and_feed_forward_sum_to_what_each_layer_adds(name):
    found = record(model_named(name), text())
    assert found.why == ""
    assert found.error < 1e-5
    for index, part in enumerate(found.parts):
        assert part.how.startswith("what the residual" if name in NORMS_INSIDE else "the outputs")
        assert part.attention.norm() > 0.01
        assert part.feed_forward.norm() > 0.01
        whole = found.residual[index] + part.attention + part.feed_forward
        torch.testing.assert_close(whole, found.residual[index + 1], atol=1e-5, rtol=1e-5)


def test_a_model_without_attention_has_a_reason_and_the_other_measurements():
    found = record(model_named("Mamba"), text())
    assert found.attention == [None, None]
    assert found.why == "layer 0 has no attention module"
    assert found.residual.shape == (3, 20, 32)


def test_a_layer_whose_parts_do_not_add_up_has_no_parts():
    model = model_named("Llama")
    layer = model.model.layers[1]
    hook = layer.register_forward_hook(lambda module, args, output: output + 0.1)
    try:
        # The hook is outside the layer, so the parts no longer add up to what the layer adds.
        found = record(model, text())
    finally:
        hook.remove()
    assert found.parts[0] is not None
    assert found.parts[1] is None
    assert "layer 1" in found.why


@pytest.mark.parametrize("name", ["ours", "Llama", WITH_LORA])
def test_the_attention_kernel_and_the_mode_are_restored(name):
    model = model_named(name)
    before = base_of(model).config._attn_implementation
    assert before != "eager"
    model.train()
    record(model, text())
    assert base_of(model).config._attn_implementation == before
    assert model.training
    model.eval()


@pytest.mark.parametrize("name", ALL)
def test_the_last_row_of_the_lens_is_the_model_and_the_attribution_sums_to_the_logit(name):
    model = model_named(name)
    found = record(model, text())
    own = transformers_own(model, text()).logits[0]
    readout = Readout(model, found)
    assert readout.why == ""
    lens = logit_lens(readout, found)
    assert lens.error < 1e-5
    assert torch.equal(lens.tokens[-1], own.topk(5).indices)
    torch.testing.assert_close(lens.probabilities[-1], own.softmax(-1).topk(5).values)
    torch.testing.assert_close(lens.next_loss[-1], torch.nn.functional.cross_entropy(own[:-1], text()[1:]))
    parts = attribute(model, readout, found)
    assert parts.token == int(own[-1].argmax())
    cap = getattr(model.config, "final_logit_softcapping", None)
    logit = float(own[-1].max()) if cap is None else cap * float(torch.atanh(own[-1].max() / cap))
    assert parts.total == pytest.approx(logit, rel=1e-4)
    assert sum(row[1] for row in parts.rows) == pytest.approx(logit, rel=1e-4)
    if cap is None:
        assert parts.above_mean == pytest.approx(float(own[-1].max() - own[-1].mean()), rel=1e-3)
    by_head = name not in ("Gemma2", "Gemma3Text", "Mamba")
    assert (parts.heads is not None) == by_head
    assert bool(parts.why) != by_head


def test_an_earlier_row_of_the_lens_is_the_norm_and_the_head_of_that_layer():
    model = model_named("ours, ALiBi and GELU")
    found = record(model, text())
    states = transformers_own(model, text(), output_hidden_states=True).hidden_states[1]
    wanted = model.lm_head(model.model.norm(states))[0].softmax(-1).topk(5)
    lens = logit_lens(Readout(model, found), found)
    assert torch.equal(lens.tokens[1], wanted.indices)
    torch.testing.assert_close(lens.probabilities[1], wanted.values)


def test_the_heads_of_a_layer_sum_to_its_attention_without_the_bias():
    for name in ("Llama", "Granite", WITH_LORA):
        model = model_named(name)
        found = record(model, text())
        parts = attribute(model, Readout(model, found), found, position=7, token=3)
        torch.testing.assert_close(parts.heads.sum(1), parts.attention, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["ours", "ours, grouped, windowed", "GPT2", "Gemma2"])
def test_ablating_a_head_equals_a_model_without_its_columns_of_the_output_projection(name):
    import copy

    model = model_named(name)
    with without_heads(model, [(1, 2)], 4), torch.no_grad():
        ablated = model(text()[None]).logits
    changed = copy.deepcopy(model)
    with torch.no_grad():
        if name == "GPT2":
            changed.transformer.h[1].attn.c_proj.weight[16:24] = 0
        else:
            changed.model.layers[1].self_attn.o_proj.weight[:, 16:24] = 0
        torch.testing.assert_close(ablated, changed(text()[None]).logits)
        assert not torch.allclose(ablated, model(text()[None]).logits)
