"""Which combinations of parts are an architecture that every tool loads, told before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def native_architecture(parts: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return (llama, mistral, qwen3 or None, the reason in words) for resolved parts."""
    odd = [
        str(parts.get(key))
        for key, wanted in (
            ("position_embedding", ("rope", "yarn")),
            ("norm", ("rmsnorm",)),
            ("activation", ("swiglu",)),
        )
        if parts.get(key) not in wanted
    ]
    if odd:
        return None, f"own code goes with it: Llama has no {', no '.join(odd)}"
    if parts.get("qk_norm"):
        if parts.get("mlp_bias"):
            return None, "own code goes with it: Qwen3 has QK-norm, but no mlp_bias"
        return "qwen3", "a plain Qwen3 folder: any tool loads it"
    if parts.get("sliding_window"):
        if parts.get("attention_bias") or parts.get("mlp_bias"):
            return None, "own code goes with it: Mistral has a sliding window, but no biases"
        return "mistral", "a plain Mistral folder: any tool loads it"
    return "llama", "a plain Llama folder: any tool loads it"
