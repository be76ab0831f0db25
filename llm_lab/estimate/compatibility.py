"""Which programs can load a model, from its parts or its config, before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LLAMA_CPP, TRANSFORMERS = "llama.cpp", "Transformers"
BOTH = (LLAMA_CPP, TRANSFORMERS)
WRITTEN_FOR = "4.57 and 5"  # the versions of Transformers that a native folder is written for
NAMES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
STRETCHES = {"yarn": "YaRN scaling", "llama3": "Llama 3's RoPE scaling"}
# YaRN's other settings, and the only values on which the readers of GGUF agree.
YARN_DEFAULTS = {"beta_fast": 32, "beta_slow": 1, "truncate": True}


@dataclass(frozen=True)
class Loads:
    """What loads a model, with reasons for the user.

    architecture: the model_type of a native folder, which Transformers, vLLM and others load; None if the model needs
    its own code. gguf: the architecture of its GGUF file; None if GGUF does not support it. gguf_readers: of llama.cpp
    and Transformers, those that read the file as the same model.
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
        architecture, reason = kind, f"native: any tool that supports {NAMES.get(kind, kind)} loads it"
    return Loads(architecture, reason, *_gguf(architecture, kind, parts))


def native_architecture(parts: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return (llama, mistral, qwen3 or None, the reason) for resolved parts."""
    odd = _odd_parts(parts)
    if odd:
        return None, f"needs its own code, saved with it: Llama has no {', no '.join(odd)}"
    if parts.get("qk_norm"):
        if parts.get("mlp_bias"):
            return None, "needs its own code, saved with it: Qwen3 has QK-norm, but no mlp_bias"
        return "qwen3", "native Qwen3: any tool that supports it loads it"
    if parts.get("sliding_window"):
        if parts.get("attention_bias") or parts.get("mlp_bias"):
            return None, "needs its own code, saved with it: Mistral has a sliding window, but no biases"
        return "mistral", "native Mistral: any tool that supports it loads it"
    return "llama", "native Llama: any tool that supports it loads it"


def _odd_parts(parts: Mapping[str, Any]) -> list[str]:
    return [
        str(parts.get(key))
        for key, wanted in (
            ("position_embedding", ("rope", "yarn")),
            ("norm", ("rmsnorm",)),
            ("activation", ("swiglu",)),
        )
        if parts.get(key) not in wanted
    ]


def _gguf(architecture: str | None, kind: str | None, parts: Mapping[str, Any]) -> tuple[str | None, str, Any]:
    """Return (GGUF's architecture or None, the reason, which programs read it)."""
    if architecture is None:
        odd = _odd_parts(parts) if kind in (None, "llm_lab") else []
        why = f"GGUF's Llama has no {', no '.join(odd)}" if odd else "no GGUF architecture has these parts"
        return None, why, ()
    if architecture not in NAMES:
        return None, f"GGUF export supports {', '.join(NAMES.values())} only, and this is {architecture}", ()
    found = "llama" if architecture == "mistral" else architecture
    name = NAMES[found]
    rope = rope_of(parts)
    window = _window(architecture, parts)
    if parts.get("hidden_act", "silu") != "silu":
        return None, f"GGUF's {name} has no {parts['hidden_act']}, SwiGLU only", ()
    if rope["rope_type"] not in ("default", *STRETCHES) or (rope["rope_type"] == "llama3" and found != "llama"):
        return None, f"GGUF export does not support RoPE type {rope['rope_type']}", ()
    odd = [key for key, usual in YARN_DEFAULTS.items() if rope.get(key) not in (None, usual)]
    odd += [key for key in ("attention_factor", "mscale", "mscale_all_dim") if rope.get(key) is not None]
    odd += ["partial_rotary_factor"] if rope.get("partial_rotary_factor", 1.0) != 1.0 else []
    if odd:
        return None, f"GGUF export does not support a custom {odd[0]}", ()
    if window and window < (parts.get("max_position_embeddings") or window + 1):
        return None, f"GGUF's {name} has no sliding window, and {window:,} tokens is less than the context", ()
    if found == "qwen3" and parts.get("attention_bias"):
        return None, "GGUF's Qwen3 has no biases in attention", ()
    what = f"a {name} file"
    missing = []
    if rope["rope_type"] in STRETCHES:
        missing.append(STRETCHES[rope["rope_type"]])
    missing += [words for key, words in (("attention_bias", "biases"), ("mlp_bias", "biases")) if parts.get(key)][:1]
    head_dim = parts.get("head_dim")
    if found == "qwen3" and head_dim != 128:
        missing.append("head sizes other than 128")
    if found == "qwen2" and head_dim and head_dim * parts["num_attention_heads"] != parts["hidden_size"]:
        missing.append("the head size")
    if missing:
        return found, f"{what} for llama.cpp; Transformers' GGUF reader ignores {' and '.join(missing)}", BOTH[:1]
    return found, f"{what} for llama.cpp, Ollama and LM Studio", BOTH


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


def _window(architecture: str, config: Mapping[str, Any]) -> int | None:
    """Return the sliding window of the layers that have one, or None."""
    if config.get("model_type") in ("qwen2", "qwen3"):
        slides = config.get("use_sliding_window") or "sliding_attention" in (config.get("layer_types") or ())
        return config.get("sliding_window") if slides else None
    return config.get("sliding_window", 4096 if config.get("model_type") == "mistral" else None)
