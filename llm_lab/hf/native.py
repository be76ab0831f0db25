"""Between our parts and the native architectures that have the same parts and the same weight names."""

from __future__ import annotations

from typing import Any

from llm_lab.recipe.native import native_architecture

_SHARED = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "attention_dropout",
    "tie_word_embeddings",
    "initializer_range",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
]


def native_config(config: Any) -> Any | None:
    """Return the Llama, Mistral or Qwen3 config that a LabConfig's parts amount to, or None."""
    kind, _ = native_architecture({key: getattr(config, key) for key in _PARTS})
    if kind is None:
        return None
    from transformers import LlamaConfig, MistralConfig, Qwen3Config

    values = {key: getattr(config, key) for key in _SHARED}
    values |= {"rms_norm_eps": config.norm_eps, "hidden_act": "silu", "rope_parameters": dict(config.rope_parameters)}
    if kind == "llama":
        return LlamaConfig(**values, attention_bias=config.attention_bias, mlp_bias=config.mlp_bias)
    if kind == "mistral":
        return MistralConfig(**values, sliding_window=config.sliding_window)
    window = config.sliding_window
    return Qwen3Config(
        **values,
        attention_bias=config.attention_bias,
        use_sliding_window=window is not None,
        sliding_window=window,
        # Qwen3 slides from layer max_window_layers on: 0 is every layer.
        max_window_layers=0 if window is not None else config.num_hidden_layers,
    )


_PARTS = ("position_embedding", "norm", "activation", "qk_norm", "sliding_window", "attention_bias", "mlp_bias")


def lab_config(config: Any) -> Any | None:
    """Return the LabConfig of a Llama, Mistral or Qwen3 config, or None where the parts are not ours."""
    from llm_lab.model.configuration_lab import ROPE_KEYS, YARN_KEYS, LabConfig

    kind = getattr(config, "model_type", None)
    rope = dict(getattr(config, "rope_parameters", None) or {})
    rope_type = rope.get("rope_type", "default")
    if kind not in ("llama", "mistral", "qwen3") or rope_type not in ("default", "yarn"):
        return None
    if getattr(config, "hidden_act", None) != "silu" or set(rope) - {*ROPE_KEYS, *YARN_KEYS}:
        return None
    window = getattr(config, "sliding_window", None)
    if kind == "qwen3":
        layers = set(getattr(config, "layer_types", None) or ["full_attention"])
        if len(layers) > 1:
            return None
        window = window if layers == {"sliding_attention"} else None
    values = {key: getattr(config, key) for key in _SHARED if hasattr(config, key)}
    return LabConfig(
        **values,
        position_embedding="yarn" if rope_type == "yarn" else "rope",
        rope_parameters=rope,
        norm="rmsnorm",
        norm_eps=config.rms_norm_eps,
        activation="swiglu",
        # Any key may stand in a config.json; these are read by the classes that have such biases alone.
        attention_bias=kind != "mistral" and bool(getattr(config, "attention_bias", False)),
        mlp_bias=kind == "llama" and bool(getattr(config, "mlp_bias", False)),
        qk_norm=kind == "qwen3",
        sliding_window=window if kind in ("mistral", "qwen3") else None,
        # Not a key of theirs, but kept in config.json so that training goes on as it began.
        hidden_dropout=float(getattr(config, "hidden_dropout", 0.0) or 0.0),
    )
