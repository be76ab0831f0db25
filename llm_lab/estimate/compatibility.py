"""Which programs can load a model: decided from its parts or its config, before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .parameters import FULL, SLIDING, layer_types_of

LLAMA_CPP, TRANSFORMERS = "llama.cpp", "Transformers"
BOTH = (LLAMA_CPP, TRANSFORMERS)
# The versions of Transformers that can load an exported folder, and the model classes tested with them.
WRITTEN_FOR = "4.57 and 5"
WRITTEN_CLASSES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen3ForCausalLM",
    "GPT2LMHeadModel",
    "MixtralForCausalLM",
    "Qwen3MoeForCausalLM",
    "LabForCausalLM",
)
NAMES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gpt2": "GPT-2"}
NAMES |= {"mixtral": "Mixtral", "qwen3_moe": "Qwen3-MoE"}
GGUF_NAMES = {"mistral": "llama", "mixtral": "llama", "qwen3_moe": "qwen3moe"}
# What Llama, Mistral and Qwen3 call the gated activations in hidden_act. Most other programs support only the first.
HIDDEN_ACTS = {"swiglu": "silu", "geglu": "gelu", "reglu": "relu"}
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
STRETCHES = {"yarn": "YaRN scaling", "llama3": "Llama 3's RoPE scaling"}
# YaRN's other settings, with the only values that all readers of GGUF treat alike.
YARN_DEFAULTS = {"beta_fast": 32, "beta_slow": 1, "truncate": True}


@dataclass(frozen=True)
class Loads:
    """What loads a model, with reasons for the user.

    architecture: the model_type of a native folder, which Transformers, vLLM and others load; None if the model needs
    its own code. gguf: the architecture of its GGUF file; None if GGUF does not support it. gguf_readers: which of
    llama.cpp and Transformers read the file as the same model.
    """

    architecture: str | None
    native_reason: str
    gguf: str | None
    gguf_reason: str
    gguf_readers: tuple[str, ...] = ()


def what_loads(parts: Mapping[str, Any]) -> Loads:
    """Return what will load a model.

    parts: the `model` values of a recipe (numbers may be missing), or any config.json.
    """
    kind = parts.get("model_type")
    if kind in (None, "llm_lab"):
        architecture, reason = native_architecture(parts)
    elif parts.get("auto_map"):
        architecture, reason = None, "needs its author's modeling code"
    else:
        architecture, reason = kind, _native_reason(NAMES.get(kind, kind), parts)
    return Loads(architecture, reason, *_gguf(architecture, kind, parts))


def describe_architecture(config: Mapping[str, Any]) -> str:
    """Return the architecture of a config, as its model is saved: native, or the parts of a model with its own code."""
    kind = config.get("model_type", "unknown")
    if kind == "llm_lab":
        kind, _ = native_architecture(config)
    if kind is None:
        keys = ("position_embedding", "norm", "activation")
        return "LLM Lab parts: " + ", ".join(str(config.get(key)) for key in keys)
    return NAMES.get(kind, kind)


def native_architecture(parts: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return (the native architecture's model_type or None, the reason) for resolved parts."""
    if parts.get("position_embedding") == "learned":
        differs = _unlike_gpt2(parts)
        if differs:
            return None, f"needs its own code, saved with it: GPT-2 has no {', no '.join(differs)}"
        return "gpt2", _native_reason("GPT-2", parts)
    if parts.get("num_experts"):
        kind = "qwen3_moe" if parts.get("qk_norm") else "mixtral"
        return kind, _native_reason(NAMES[kind], parts)
    odd = _odd_parts(parts)
    if odd:
        return None, f"needs its own code, saved with it: Llama has no {', no '.join(odd)}"
    if parts.get("qk_norm"):
        if parts.get("mlp_bias"):
            return None, "needs its own code, saved with it: Qwen3 has QK-norm, but no mlp_bias"
        return "qwen3", _native_reason("Qwen3", parts)
    windowed = _layers_with_window(parts)
    if windowed == "some":
        return None, "needs its own code, saved with it: Mistral has a sliding window in every layer"
    if windowed == "all":
        if parts.get("attention_bias") or parts.get("mlp_bias"):
            return None, "needs its own code, saved with it: Mistral has a sliding window, but no biases"
        return "mistral", _native_reason("Mistral", parts)
    return "llama", _native_reason("Llama", parts)


def _native_reason(name: str, parts: Mapping[str, Any]) -> str:
    if name not in NAMES.values():
        return f"native {name}: loads in any tool that supports it"
    if (found := _hidden_act(parts)) != "silu":
        few, usual = f"hidden_act {found}", "many other programs support only SwiGLU"
    elif name.startswith("Qwen3") and parts.get("attention_bias"):
        few, usual = "biases in attention", "many other programs have no bias in its output projection"
    elif name.startswith("Qwen") and _layers_with_window(parts) == "some":
        few, usual = "a sliding window in some layers", "many other programs support windows in all layers or in none"
    else:
        return f"native {name}: loads in any tool that supports it"
    return f"native {name} with {few}: Transformers loads it; {usual}"


def _hidden_act(parts: Mapping[str, Any]) -> str:
    """Return the activation of a gated feed-forward by its name in Hugging Face configs."""
    return str(parts.get("hidden_act") or HIDDEN_ACTS.get(parts.get("activation", ""), "silu"))


def _unlike_gpt2(parts: Mapping[str, Any]) -> list[str]:
    """Return what keeps a model with learned positions from being a GPT-2. Missing biases are fine: zeros are saved."""
    heads, groups, width = (parts.get(key) for key in ("num_attention_heads", "num_key_value_heads", "hidden_size"))
    shared = parts.get("attention") in ("gqa", "mqa") if groups is None else groups != heads
    differs = [
        str(parts.get(key)) for key, own in (("norm", "layernorm"), ("activation", "gelu")) if parts.get(key) != own
    ]
    differs += ["shared key-value heads"] if shared else []
    differs += ["QK-norm"] if parts.get("qk_norm") else []
    differs += ["sliding window"] if _layers_with_window(parts) != "none" else []
    differs += [] if parts.get("tie_word_embeddings") else ["untied embeddings"]
    differs += _own_extras(parts)
    odd_heads = parts.get("head_dim") and heads and width and parts["head_dim"] * heads != width
    return [*differs, "head size of its own"] if odd_heads else differs


def _own_extras(parts: Mapping[str, Any]) -> list[str]:
    """Return the parts that no native architecture has."""
    extras = {"final_logit_softcapping": "logit soft-cap", "residual_scalars": "residual scalars"}
    extras |= {"value_embeddings": "value embeddings"}
    return [name for key, name in extras.items() if parts.get(key)]


def _odd_parts(parts: Mapping[str, Any]) -> list[str]:
    return _own_extras(parts) + [
        str(parts.get(key))
        for key, wanted in (
            ("position_embedding", ("rope", "yarn")),
            ("norm", ("rmsnorm",)),
            ("activation", tuple(HIDDEN_ACTS)),
        )
        if parts.get(key) not in wanted
    ]


def _gguf(architecture: str | None, kind: str | None, parts: Mapping[str, Any]) -> tuple[str | None, str, Any]:
    """Return (GGUF's architecture or None, the reason, which programs read it)."""
    if architecture is None:
        odd = _odd_parts(parts) if kind in (None, "llm_lab") else []
        if parts.get("position_embedding") == "learned":
            return None, f"GGUF's GPT-2 has no {', no '.join(_unlike_gpt2(parts))}", ()
        why = f"GGUF's Llama has no {', no '.join(odd)}" if odd else "no GGUF architecture has these parts"
        return None, why, ()
    if architecture not in NAMES:
        return None, f"GGUF export supports {', '.join(NAMES.values())} only, and this is {architecture}", ()
    if architecture == "gpt2":
        return _gguf_gpt2(parts)
    found = GGUF_NAMES.get(architecture, architecture)
    name = NAMES["llama" if found == "llama" else architecture]
    rope = rope_of(parts)
    window = _window(parts)
    if _hidden_act(parts) != "silu":
        return None, f"GGUF's {name} has no {_hidden_act(parts)}, SwiGLU only", ()
    if rope["rope_type"] not in ("default", *STRETCHES) or (rope["rope_type"] == "llama3" and found != "llama"):
        return None, f"GGUF export does not support RoPE type {rope['rope_type']}", ()
    odd = [key for key, usual in YARN_DEFAULTS.items() if rope.get(key) not in (None, usual)]
    odd += [key for key in ("attention_factor", "mscale", "mscale_all_dim") if rope.get(key) is not None]
    odd += ["partial_rotary_factor"] if rope.get("partial_rotary_factor", 1.0) != 1.0 else []
    if odd:
        return None, f"GGUF export does not support a custom {odd[0]}", ()
    if window and window < (parts.get("max_position_embeddings") or window + 1):
        return None, f"GGUF's {name} has no sliding window, and {window:,} tokens is less than the context", ()
    if found in ("qwen3", "qwen3moe") and parts.get("attention_bias"):
        return None, f"GGUF's {name} has no biases in attention", ()
    if found == "qwen3moe" and (parts.get("mlp_only_layers") or parts.get("decoder_sparse_step", 1) != 1):
        return None, "GGUF export requires experts in every layer", ()
    if found == "qwen3moe" and parts.get("model_type") and not parts.get("norm_topk_prob"):
        return None, "GGUF's Qwen3-MoE normalizes the weights of the experts", ()
    what = f"a {name} file"
    missing = ["ignores experts"] if architecture == "mixtral" else []
    if found == "qwen3moe" and (parts.get("moe_intermediate_size") or parts.get("intermediate_size")) != 768:
        missing.append("assumes experts of width 768")
    if rope["rope_type"] in STRETCHES and rope.get("factor", parts.get("yarn_factor")) != 1.0:
        missing.append(f"ignores {STRETCHES[rope['rope_type']]}")
    missing += [
        words for key, words in (("attention_bias", "ignores biases"), ("mlp_bias", "ignores biases")) if parts.get(key)
    ][:1]
    head_dim = parts.get("head_dim")
    if found in ("qwen3", "qwen3moe") and head_dim != 128:
        missing.append("assumes heads of 128")
    if found == "qwen2" and head_dim and head_dim * parts["num_attention_heads"] != parts["hidden_size"]:
        missing.append("ignores the head size")
    if missing:
        why = f"{what} for llama.cpp; Transformers can't read this GGUF file (it {' and '.join(missing)})"
        return found, why, BOTH[:1]
    return found, f"{what} for llama.cpp, Ollama and LM Studio", BOTH


def _gguf_gpt2(parts: Mapping[str, Any]) -> tuple[str | None, str, Any]:
    of_config = parts.get("model_type") == "gpt2"  # otherwise the parts of a recipe, whose GELU is exact
    activation = parts.get("activation_function", "gelu_new") if of_config else "gelu"
    if activation not in ("gelu", *TANH_GELU):
        return None, f"GGUF's GPT-2 has no {activation}, GELU only", ()
    if parts.get("scale_attn_by_inverse_layer_idx") or not parts.get("scale_attn_weights", True):
        return None, "GGUF's GPT-2 scales attention by the head size only", ()
    what = "a GPT-2 file for llama.cpp"
    if activation not in TANH_GELU:
        return (
            "gpt2",
            f"{what}, which computes GELU by its close tanh form; so does Transformers with this file",
            BOTH[:1],
        )
    width = parts.get("n_embd", 768)
    if parts.get("n_positions", 1024) != 1024 or (parts.get("n_inner") or 4 * width) != 4 * width:
        return (
            "gpt2",
            f"{what}; Transformers can't read this GGUF file (it ignores the context and the inner width)",
            BOTH[:1],
        )
    return "gpt2", f"{what}, Ollama and LM Studio", BOTH


def rope_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's RoPE settings, with rope_type and rope_theta, by the names that Transformers 5 uses."""
    rope = dict(config.get("rope_scaling") or {}) | dict(config.get("rope_parameters") or {})
    rope["rope_type"] = rope.get("rope_type") or rope.pop("type", None) or "default"
    if config.get("position_embedding") == "yarn":
        rope["rope_type"] = "yarn"
    if "partial_rotary_factor" in config:
        rope.setdefault("partial_rotary_factor", config["partial_rotary_factor"])
    rope.setdefault("rope_theta", config.get("rope_theta") or 10000.0)
    return rope


def _window(config: Mapping[str, Any]) -> int | None:
    """Return the sliding window of the layers that have one, or None."""
    usual = 4096 if config.get("model_type") == "mistral" else None
    return config.get("sliding_window", usual) if _layers_with_window(config) != "none" else None


def _layers_with_window(parts: Mapping[str, Any]) -> str:
    """Return which layers of a recipe's parts or a config have a sliding window: all, some or none."""
    kind, types = parts.get("model_type"), layer_types_of(parts)
    if types is None and (pattern := parts.get("sliding_window_pattern")):  # the number of layers is not known
        types = [SLIDING, FULL] if "S" in pattern else [FULL]
    if types:
        return "none" if SLIDING not in types else "some" if FULL in types else "all"
    if kind in ("qwen2", "qwen3", "qwen3_moe"):
        return "all" if parts.get("use_sliding_window") else "none"
    return "all" if parts.get("sliding_window", kind == "mistral") else "none"
