"""Tiny base models on disk and LoRA adapters for them."""

import warnings
from pathlib import Path

import torch
from peft import LoraConfig
from support.tiny_models import tiny_model, tokens

from llm_lab.hf.adapter import make_peft_model
from llm_lab.hf.load import load_model
from llm_lab.hf.save import save_model, set_special_tokens
from llm_lab.hf.tokenizers import make_byte_tokenizer
from llm_lab.recipe.post_training import LORA_PRESETS, Lora

PRESETS = [preset for preset in LORA_PRESETS if preset != "custom"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}<|im_start|>"
CHAT_TOKENS = ["<|im_start|>", "<|im_end|>"]
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40}


def lora(**changes) -> Lora:
    """Return the lora group of a recipe."""
    return Lora(**({"preset": "all", "r": 4, "alpha": 8, "dropout": 0.0} | changes))


def save_base(folder: Path, **parts):
    """Save a byte-level model and load it as a stage would."""
    tokenizer = make_byte_tokenizer()
    model = tiny_model(**{"vocab_size": 257} | parts)
    set_special_tokens(model, tokenizer)
    save_model(model, folder, tokenizer)
    return load_model(folder)


def chat_tokenizer():
    tokenizer = make_byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": CHAT_TOKENS, "eos_token": CHAT_TOKENS[1]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def with_chat_tokens(base):
    """Return the base with rows for a chat template's tokens, and its tokenizer."""
    tokenizer = chat_tokenizer()
    torch.manual_seed(9)
    base.resize_token_embeddings(len(tokenizer))
    set_special_tokens(base, tokenizer)
    return base, tokenizer


def perturb(model):
    """Add noise to all trained parameters, as training would."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def ids(model, length: int = 12):
    rows = model.get_input_embeddings().weight.shape[0]
    return torch.randint(rows, (2, length), generator=torch.Generator().manual_seed(3))


def check_adapter(model) -> None:
    """Check that an adapter of every matrix trains, and gives the same logits when it is merged."""
    ids = tokens(2, 12)
    before = model(ids).logits.detach()
    settings = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        # PEFT gives the fused weights of experts a rank of their own, and then looks for modules with their names.
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys")
        adapted = make_peft_model(model, settings).train()
    assert adapted.get_base_model() is model
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        adapted(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    attached = adapted.eval()(input_ids=ids).logits
    assert not torch.allclose(attached, before)
    torch.testing.assert_close(adapted.merge_and_unload()(ids).logits, attached, atol=3e-5, rtol=1e-4)
