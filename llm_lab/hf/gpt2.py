"""Convert models with GPT-2's parts to native GPT-2, where weights have other names and are stored transposed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from llm_lab.estimate.parameters import GPT2_NAMES

# {our module: (GPT-2's module, whether it is a matrix)}; GPT-2 stores matrices as (inputs, outputs)
_LAYER = {
    "input_layernorm": ("ln_1", False),
    "self_attn.o_proj": ("attn.c_proj", True),
    "post_attention_layernorm": ("ln_2", False),
    "mlp.up_proj": ("mlp.c_fc", True),
    "mlp.down_proj": ("mlp.c_proj", True),
}
_WHOLE = {"model.embed_tokens": "wte", "model.positions": "wpe", "model.norm": "ln_f"}
_QKV = [f"self_attn.{name}_proj" for name in "qkv"]


def gpt2_config(config: Any) -> Any:
    """Return the GPT2Config of a LabConfig with GPT-2's parts."""
    from transformers import GPT2Config

    same = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "use_cache")
    return GPT2Config(
        **{name: getattr(config, name) for name in same},
        **{theirs: getattr(config, ours) for ours, (theirs, _) in GPT2_NAMES.items()},
        n_inner=config.intermediate_size,
        activation_function="gelu",
        resid_pdrop=config.hidden_dropout,
        embd_pdrop=config.hidden_dropout,
        attn_pdrop=config.attention_dropout,
        layer_norm_epsilon=config.norm_eps,
    )


def to_gpt2_weights(weights: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """Return the weights of a model with GPT-2's parts in GPT2LMHeadModel's format. Missing biases become zeros."""
    import torch

    def both(module: str, is_matrix: bool) -> Iterator[tuple[str, Any]]:
        weight = weights[f"{module}.weight"]
        yield "weight", weight.T.contiguous() if is_matrix else weight
        yield "bias", weights.get(f"{module}.bias", torch.zeros(len(weight), dtype=weight.dtype, device=weight.device))

    found = {"lm_head.weight": weights["model.embed_tokens.weight"]}
    for module, name in _WHOLE.items():
        kinds = ("weight", "bias") if name == "ln_f" else ("weight",)
        found |= {f"transformer.{name}.{kind}": weights[f"{module}.{kind}"] for kind in kinds}
    for index in range(layers):
        ours, theirs = f"model.layers.{index}.", f"transformer.h.{index}."
        for module, (name, is_matrix) in _LAYER.items():
            found |= {f"{theirs}{name}.{kind}": value for kind, value in both(ours + module, is_matrix)}
        parts = [dict(both(ours + module, True)) for module in _QKV]
        for kind in ("weight", "bias"):
            found[f"{theirs}attn.c_attn.{kind}"] = torch.cat([part[kind] for part in parts], dim=-1)
    return found


def from_gpt2_weights(weights: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return GPT-2's weights in the format of a model with the weights `wanted`; biases that it lacks are left out."""
    found = {}
    for name in wanted:
        module, kind = name.rsplit(".", 1)
        layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
        if layer is None:
            found[name] = weights[f"transformer.{_WHOLE.get(module, 'wte')}.{kind}"]
            continue
        prefix = f"transformer.h.{layer[1]}."
        if layer[2] in _QKV:
            value, is_matrix = weights[f"{prefix}attn.c_attn.{kind}"].chunk(3, dim=-1)[_QKV.index(layer[2])], True
        else:
            theirs, is_matrix = _LAYER[layer[2]]
            value = weights[f"{prefix}{theirs}.{kind}"]
        found[name] = value.T if is_matrix and kind == "weight" else value
    return found
