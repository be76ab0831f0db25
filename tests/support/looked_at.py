"""Tiny models of many architectures to look inside, with random weights large enough to show a mistake."""

import functools

import torch
import transformers
from support.adapters import lora, perturb
from support.tiny_models import tiny_model

from llm_lab.hf.lora_layers import attach_lora

VOCABULARY = 61
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 1,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
CONFIGS = {
    "Llama": GROUPED,
    "Qwen3": GROUPED | {"head_dim": 8},
    "Gemma2": GROUPED | {"head_dim": 8, "sliding_window": 8},
    "Gemma3Text": GROUPED | {"head_dim": 8, "sliding_window": 8},
    "Granite": GROUPED | {"residual_multiplier": 0.3, "logits_scaling": 2.0},
    "GPTNeoX": SIZES,
    "GPT2": {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "Bloom": {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "Mamba": {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}
OURS = {
    "ours": {},
    "ours, ALiBi and GELU": {"position": "alibi", "activation": "gelu", "norm": "layernorm", "attention_bias": True},
    "ours, grouped, windowed": {"num_key_value_heads": 2, "qk_norm": True, "sliding_window": 8, "position": "yarn"},
    "ours, sinusoidal": {"position": "sinusoidal", "num_key_value_heads": 1, "tie_word_embeddings": True},
}
WITH_LORA = "ours with LoRA"
ATTENTION = [name for name in CONFIGS if name != "Mamba"] + [*OURS, WITH_LORA]


@functools.cache
def model_named(name: str):
    """Return the model of an architecture, the same one each time."""
    if name in OURS:
        return tiny_model(**OURS[name])
    if name == WITH_LORA:
        return perturb(attach_lora(tiny_model(), lora(), seed=1))
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**CONFIGS[name])
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def text(length: int = 20) -> torch.Tensor:
    """Return random token ids (length,)."""
    return torch.randint(2, VOCABULARY, (length,), generator=torch.Generator().manual_seed(1))
