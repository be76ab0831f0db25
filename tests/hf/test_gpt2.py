"""A model with GPT-2's parts is saved as GPT-2, and training can continue from it."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny_recipe, write_text
from support.pretrain_runs import losses, weights
from support.tiny_models import left_padded, tiny_model, tokens
from transformers import AutoModelForCausalLM

from llm_lab.hf.save import restore_weights, save_model
from llm_lab.hf.tokenizers import make_byte_tokenizer
from llm_lab.runner import run

PARTS = {"norm": "layernorm", "activation": "gelu", "tie_word_embeddings": True}


@pytest.mark.parametrize("biases", [True, False])
def test_the_saved_folder_is_a_gpt2_with_equal_logits(biases, tmp_path):
    model = tiny_model("learned", **PARTS, attention_bias=biases, mlp_bias=biases)
    save_model(model, tmp_path, make_byte_tokenizer())
    native = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(native).__name__ == "GPT2LMHeadModel"
    assert not list(tmp_path.glob("*.py"))
    ids, mask = left_padded((12, 7), 12)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)  # GPT2LMHeadModel does not derive them from the mask
    with torch.no_grad():
        expected = native(ids, attention_mask=mask, position_ids=positions).logits
        torch.testing.assert_close(model(ids, attention_mask=mask).logits, expected, atol=1e-5, rtol=1e-4)
    written = [m.generate(tokens(2, 7), max_new_tokens=8, do_sample=False) for m in (model, native)]
    assert torch.equal(*written)


def test_the_gradients_of_the_native_model_are_the_same(tmp_path):
    model, ids = tiny_model("learned", **PARTS, attention_bias=True, mlp_bias=True), tokens(2, 12)
    save_model(model, tmp_path, make_byte_tokenizer())
    native = AutoModelForCausalLM.from_pretrained(tmp_path)
    for each in (model, native):
        each(ids, labels=ids).loss.backward()
    ours, theirs = model.model.layers[1], native.transformer.h[1]
    expected = torch.cat([getattr(ours.self_attn, f"{name}_proj").weight.grad for name in "qkv"]).T
    torch.testing.assert_close(theirs.attn.c_attn.weight.grad, expected, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(theirs.mlp.c_fc.weight.grad, ours.mlp.up_proj.weight.grad.T, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(
        native.transformer.wpe.weight.grad, model.model.positions.weight.grad, atol=1e-5, rtol=1e-3
    )


@pytest.mark.parametrize("biases", [True, False])
def test_the_weights_are_restored_bit_for_bit(biases, tmp_path):
    model = tiny_model("learned", **PARTS, attention_bias=biases)
    save_model(model, tmp_path, make_byte_tokenizer())
    other = tiny_model("learned", **PARTS, attention_bias=biases)
    for parameter in other.parameters():
        parameter.data.zero_()
    assert restore_weights(other, tmp_path)
    assert other.lm_head.weight is other.model.embed_tokens.weight
    for name, weight in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], weight), name


def test_a_run_resumes_bit_for_bit_from_a_checkpoint_that_is_a_gpt2(in_tmp_path):
    write_text("text.txt", 60)
    raw = tiny_recipe(**{"model.position_embedding": "learned", "model.norm": "layernorm", "model.activation": "gelu"})
    raw["model"] |= {"attention": "mha", "num_key_value_heads": None, "tie_word_embeddings": True}
    whole = run(raw)
    before, kept = losses(whole), weights(whole)
    assert "transformer.wte.weight" in kept
    shutil.rmtree(Path(whole["path"], "steps", "checkpoint-20"))
    shutil.rmtree(Path(whole["path"], "model"))
    resumed = run(raw, resume=True)
    assert losses(resumed) == before
    assert all(torch.equal(weight, kept[name]) for name, weight in weights(resumed).items())


def test_more_tokens_than_learned_positions_are_refused():
    model = tiny_model("learned", max_position_embeddings=16)
    model(tokens(1, 16))
    with pytest.raises(ValueError, match="17 tokens, but learned positions only for 16"):
        model(tokens(1, 17))
