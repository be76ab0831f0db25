"""Tiny models with any combination of parts, and inputs for them."""

import itertools
from typing import Any

import torch

from llm_lab.estimate.parameters import layer_types_of
from llm_lab.hf.configs import config_of_parts
from llm_lab.hf.load import build_from_config
from llm_lab.model.configuration_lab import LabConfig
from llm_lab.model.feed_forward import ACTIVATIONS
from llm_lab.model.modeling_lab import LabForCausalLM
from llm_lab.model.norms import NORMS
from llm_lab.model.positions import POSITION_EMBEDDINGS
from llm_lab.recipe.resolve import resolve

from .sampling import covering

VOCABULARY = 61
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
KEY_VALUE_HEADS = {"mha": 4, "gqa": 2, "mqa": 1}
# The arguments of `tiny_config` that select parts, and their values.
FACTORS: dict[str, tuple[Any, ...]] = {
    "position": POSITION_EMBEDDINGS,
    "norm": NORMS,
    "num_key_value_heads": tuple(KEY_VALUE_HEADS.values()),
    "activation": tuple(ACTIVATIONS),
    "qk_norm": (False, True),
    "attention_bias": (False, True),
    "mlp_bias": (False, True),
    "tie_word_embeddings": (True, False),
    "sliding_window": (None, 5, "SL"),  # or a pattern for windows of 5
    "final_logit_softcapping": (None, 3.0),
    "residual_scalars": (False, True),
    "value_embeddings": (False, True),
    "zero_init": (False, True),
}
# The same for a mixture of experts, as `model` keys of a recipe.
EXPERT_FACTORS: dict[str, tuple[Any, ...]] = {
    "position_embedding": ("rope", "yarn"),
    "attention": tuple(KEY_VALUE_HEADS),
    "activation": ("swiglu", "geglu", "reglu"),
    "qk_norm": (False, True),
    "tie_word_embeddings": (True, False),
    "sliding_window": (None, 5),
    "num_experts": (4, 6),
    "num_experts_per_tok": (2, 1),
}


EXTRAS: dict[str, Any] = {"final_logit_softcapping": 3.0, "residual_scalars": True, "value_embeddings": True}


def combinations(strength: int) -> list[dict[str, Any]]:
    """Return few combinations of parts that contain every pair (2) or triple (3) of them."""
    return [dict(zip(FACTORS, row, strict=True)) for row in covering(list(FACTORS.values()), strength)]


def expert_combinations(strength: int) -> list[dict[str, Any]]:
    """Return the same for a mixture of experts. Attention has biases if and only if it has QK-norm."""
    rows = (dict(zip(EXPERT_FACTORS, row, strict=True)) for row in covering(list(EXPERT_FACTORS.values()), strength))
    return [row | {"attention_bias": row["qk_norm"]} for row in rows]


def every_combination() -> list[dict[str, Any]]:
    """Return the full product of the parts with several choices; switches have their defaults."""
    several = {name: FACTORS[name] for name in ("position", "norm", "num_key_value_heads", "activation")}
    return [dict(zip(several, row, strict=True)) for row in itertools.product(*several.values())]


def recipe_keys(parts: dict[str, Any]) -> dict[str, Any]:
    """Return a combination as `model` keys of a recipe."""
    keys = {"position_embedding" if name == "position" else name: value for name, value in parts.items()}
    if isinstance(pattern := keys.get("sliding_window"), str):
        keys |= {"sliding_window": 5, "sliding_window_pattern": pattern}
    return keys


def named(parts: dict[str, Any]) -> str:
    """Return a combination as the id of a test."""
    return "-".join(
        value if isinstance(value, str) else f"{name}={value}"
        for name, value in parts.items()
        if value not in (False, None)
    )


def tiny_config(position: str = "rope", **changes) -> LabConfig:
    """Return the configuration of a two-layer model with changes."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "position_embedding": position,
        "rope_parameters": YARN if position == "yarn" else None,
    }
    if isinstance(pattern := changes.get("sliding_window"), str):
        changes |= {"sliding_window": 5, "layer_types": layer_types_of({**sizes, "sliding_window_pattern": pattern})}
    return LabConfig(**(sizes | changes))


def tiny_model(position: str = "rope", **changes) -> LabForCausalLM:
    """Return a model whose weights are large enough that a mistake in any part changes the logits."""
    torch.manual_seed(0)
    return with_large_weights(LabForCausalLM(tiny_config(position, **changes)).eval())


def tiny_experts(vocab_size: int = VOCABULARY, **parts) -> torch.nn.Module:
    """Return the native model of a recipe with experts, with equally large weights."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
    design = resolve({"stage": "pretrain", "model": sizes | parts, "data": [{"path": "builtin:stories"}]})
    torch.manual_seed(0)
    return with_large_weights(build_from_config(config_of_parts(design.values["model"], vocab_size)).eval())


def with_large_weights(model: torch.nn.Module) -> torch.nn.Module:
    """Make all weights large enough that a mistake in any part changes the logits."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    """Return random ids without the padding and end tokens."""
    return torch.randint(2, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def left_padded(lengths: tuple[int, ...], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask, both (rows, width), with padding on the left."""
    mask = torch.stack([torch.arange(width) >= width - length for length in lengths]).long()
    return tokens(len(lengths), width) * mask, mask


def decode_in_chunks(model: LabForCausalLM, ids: torch.Tensor, mask: torch.Tensor, ends: list[int], cache=None):
    """Return the logits of a forward pass in chunks that end at `ends`, continued with the cache."""
    logits = []
    for start, end in itertools.pairwise([0, *ends]):
        output = model(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


# Loads and saves folders (arguments) in a process that cannot import llm_lab.
LOAD_WITHOUT_LLM_LAB = """
import sys
import torch
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    ids = torch.load(folder + "/ids.pt", weights_only=True)
    torch.save(model(ids).logits, folder + "/logits.pt")
    torch.save(model.generate(ids, max_new_tokens=5, do_sample=False), folder + "/generated.pt")
    model.save_pretrained(folder + "/again")
assert not [name for name in sys.modules if name.split(".")[0] == "llm_lab"]
"""
