"""Save models as plain Hugging Face folders, as a native architecture if the parts allow it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError
from llm_lab.estimate.adapter_base import read_object
from llm_lab.estimate.compatibility import HIDDEN_ACTS, native_architecture

from .adapter import save_adapter
from .gpt2 import from_gpt2_weights, gpt2_config, to_gpt2_weights
from .tokenizers import save_tokenizer, write_older_names

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
    """Return the Llama, Mistral, Qwen3 or GPT-2 config equivalent to a LabConfig, or None."""
    kind, _ = native_architecture({key: getattr(config, key) for key in _PARTS})
    if kind is None:
        return None
    if kind == "gpt2":
        return gpt2_config(config)
    from transformers import LlamaConfig, MistralConfig, Qwen3Config

    values = {key: getattr(config, key) for key in _SHARED}
    values |= {"rms_norm_eps": config.norm_eps, "hidden_act": HIDDEN_ACTS[config.activation]}
    values["rope_parameters"] = dict(config.rope_parameters)
    # These classes don't have these keys, but training a design and resuming a run need them.
    values |= {key: getattr(config, key) for key in ("zero_init", "hidden_dropout") if getattr(config, key)}
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
        layer_types=config.layer_types,
        # Qwen3 uses the window from layer max_window_layers on: 0 means every layer.
        max_window_layers=0 if window is not None else config.num_hidden_layers,
    )


_PARTS = (
    "position_embedding",
    "norm",
    "activation",
    "qk_norm",
    "sliding_window",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "layer_types",
    "final_logit_softcapping",
    "residual_scalars",
    "value_embeddings",
)


def with_experts(config: Any, parts: Mapping[str, Any]) -> Any:
    """Return the MixtralConfig (Qwen3MoeConfig with QK-norm) of a LabConfig, with the experts of a recipe's parts."""
    from transformers import MixtralConfig, Qwen3MoeConfig

    values = {key: getattr(config, key) for key in _SHARED}
    values |= {"rms_norm_eps": config.norm_eps, "hidden_act": HIDDEN_ACTS[config.activation]}
    values |= {"rope_parameters": dict(config.rope_parameters), "sliding_window": config.sliding_window}
    values |= {key: parts[key] for key in ("num_experts_per_tok", "router_aux_loss_coef")}
    if not config.qk_norm:
        return MixtralConfig(**values, num_local_experts=parts["num_experts"])
    return Qwen3MoeConfig(
        **values,
        num_experts=parts["num_experts"],
        moe_intermediate_size=config.intermediate_size,
        norm_topk_prob=True,
        attention_bias=config.attention_bias,
        use_sliding_window=config.sliding_window is not None,
    )


def lab_config(config: Any) -> Any | None:
    """Return the LabConfig equivalent to a Llama, Mistral or Qwen3 config, or None if a part is not supported."""
    from llm_lab.model.configuration_lab import FULL, ROPE_KEYS, SLIDING, YARN_KEYS, LabConfig

    kind = getattr(config, "model_type", None)
    rope = dict(getattr(config, "rope_parameters", None) or {})
    rope_type = rope.get("rope_type", "default")
    if kind not in ("llama", "mistral", "qwen3") or rope_type not in ("default", "yarn"):
        return None
    activation = next((ours for ours, name in HIDDEN_ACTS.items() if name == getattr(config, "hidden_act", None)), None)
    if activation is None or set(rope) - {*ROPE_KEYS, *YARN_KEYS}:
        return None
    window = getattr(config, "sliding_window", None)
    types = None
    if kind == "qwen3":
        types = list(getattr(config, "layer_types", None) or [FULL])
        window = window if SLIDING in types else None
        types = types if len(set(types)) > 1 else None
    values = {key: getattr(config, key) for key in _SHARED if hasattr(config, key)}
    return LabConfig(
        **values,
        position_embedding="yarn" if rope_type == "yarn" else "rope",
        rope_parameters=rope,
        norm="rmsnorm",
        norm_eps=config.rms_norm_eps,
        activation=activation,
        # A config.json may contain any key; these two only count for classes that have such biases.
        attention_bias=kind != "mistral" and bool(getattr(config, "attention_bias", False)),
        mlp_bias=kind == "llama" and bool(getattr(config, "mlp_bias", False)),
        qk_norm=kind == "qwen3",
        sliding_window=window if kind in ("mistral", "qwen3") else None,
        layer_types=types,
        zero_init=bool(getattr(config, "zero_init", False)),
        hidden_dropout=float(getattr(config, "hidden_dropout", 0.0) or 0.0),
    )


def set_special_tokens(model: Any, tokenizer: Any) -> None:
    """Set the tokenizer's special token ids in the model's config and generation config."""
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    generates = getattr(model, "generation_config", None) is not None  # a classifier has no generation config
    for key, value in ids.items():
        setattr(model.config, key, value)
        if generates:
            setattr(model.generation_config, key, value)
    if generates and tokenizer.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.eos_token_id


def to_native(model: Any) -> Any | None:
    """Return the model as LlamaForCausalLM (or Mistral, Qwen3) with shared weights, or None.

    In a GPT2LMHeadModel the matrices are copies: GPT-2 stores them transposed, and query, key and value as one.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if model.config.model_type != "llm_lab":
        return None
    config = native_config(model.config)
    if config is None:
        return None
    weights = model.state_dict()
    if config.model_type == "gpt2":
        weights = to_gpt2_weights(weights, config.n_layer)
    with torch.device("meta"):
        native = AutoModelForCausalLM.from_config(config)
    native.load_state_dict(weights, strict=True, assign=True)
    native.tie_weights()
    head = native.get_output_embeddings().weight
    assert head.data_ptr() == model.get_output_embeddings().weight.data_ptr(), "tying has replaced the head"
    native.generation_config = model.generation_config
    return native


def save_model(model: Any, folder: str | Path, tokenizer: Any = None, state_dict: dict | None = None) -> None:
    """Write config, weights (safetensors), generation config and tokenizer to `folder`.

    For parts that no native architecture has, the model code is written too. For a PeftModel, only the adapter.
    """
    folder = Path(folder)
    if hasattr(model, "peft_config"):
        return save_adapter(model, folder, tokenizer)
    native = to_native(model) if state_dict is None else None
    (native if native is not None else model).save_pretrained(folder, state_dict=state_dict)
    write_older_names(folder / "config.json", older_config)
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)


def restore_weights(model: Any, folder: str | Path) -> bool:
    """Load a checkpoint that the Trainer can't load into the model; returns whether it did so.

    These are checkpoints whose weights `save_model` wrote under other names, and models with YaRN or Llama 3's RoPE: to
    find the version, the Trainer reads config.json as a plain PreTrainedConfig, which has no context length and fails
    on the names that `older_config` adds. Raises UserError if files do not have exactly the model's weights.
    """
    from safetensors.torch import load_file
    from transformers import PreTrainedConfig

    if any(parameter.ndim == 3 and ".experts." in name for name, parameter in model.named_parameters()):
        # transformers stores each expert separately, under the names of its first releases.
        weights = type(model).from_pretrained(folder, dtype=model.dtype).state_dict()
        model.load_state_dict(weights)
        return True
    file = Path(folder) / "config.json"
    saved = read_object(file) or {}
    if getattr(getattr(model, "config", None), "model_type", None) == "llm_lab" and saved.get("model_type") == "gpt2":
        weights = load_file(Path(folder) / "model.safetensors")
        model.load_state_dict(from_gpt2_weights(weights, model.state_dict()))
        return True
    try:
        if file.exists():
            PreTrainedConfig.from_json_file(file)
        return False
    except AttributeError:
        missing = {*model.state_dict()} - {*model.all_tied_weights_keys}
        for part in sorted(Path(folder).glob("model*.safetensors")):
            weights = load_file(part)
            missing -= weights.keys()
            # A file is a shard, or lacks a tied head.
            missing |= {*model.load_state_dict(weights, strict=False).unexpected_keys}
        if missing:
            why = f"its weights don't match the model: {min(missing)} ({len(missing)} in total)"
            raise UserError(Problem(str(folder), why, fix="Resume from another checkpoint.")) from None
        return True


def older_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json that has transformers 4.57's names in addition to those of version 5, which take precedence.

    Version 4.57 ignores dtype and rope_parameters; without rope_theta it uses 10,000.
    """
    added: dict[str, Any] = {"torch_dtype": config["dtype"]} if config.get("dtype") else {}
    if config.get("model_type") == "qwen3_moe":
        added["num_experts"] = config["num_local_experts"]
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:  # not if there is a dictionary per kind of layer: 4.57 has no names for that
        added["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            added["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
        if "partial_rotary_factor" in rope:
            added["partial_rotary_factor"] = rope["partial_rotary_factor"]
    return added | config
