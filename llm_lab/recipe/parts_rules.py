"""Rules across the parts of a model, and between them and the length of sequences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llm_lab.errors import Problem
from llm_lab.estimate.compatibility import HIDDEN_ACTS

from .files import format_value
from .parts import parts_of
from .stage import Rule, Values


def _divisors(number: int, limit: int = 16) -> str:
    """Return the divisors of a number in words; only the smallest ones if there are many."""
    found = [n for n in range(1, number + 1) if number % n == 0]
    return ", ".join(map(str, found[:limit])) + (", ..." if len(found) > limit else "")


def _nearest_divisor(wanted: int, number: int) -> int:
    return min((n for n in range(1, min(number, 1024) + 1) if number % n == 0), key=lambda n: (abs(n - wanted), n))


def _heads_divide_width(values: Values) -> Iterator[Problem]:
    model = parts_of(values)
    hidden, heads, head_dim = (model.get(key) for key in ("hidden_size", "num_attention_heads", "head_dim"))
    if not hidden or not heads:
        return
    if hidden % heads:
        yield Problem(
            "model.num_attention_heads",
            f"must divide model.hidden_size = {hidden}",
            value=heads,
            allowed=_divisors(hidden),
            fix=f"Try {_nearest_divisor(heads, hidden)}.",
        )
    elif model.get("position_embedding") in ("rope", "yarn") and head_dim and head_dim % 2:
        key = "model.head_dim" if head_dim != hidden // heads else "model.num_attention_heads"
        yield Problem(
            key,
            f"rotary positions rotate pairs of dimensions, and a head size of {head_dim} is odd",
            value=head_dim if key.endswith("dim") else heads,
            fix="Choose heads so that hidden_size / heads is even, or use alibi or sinusoidal positions.",
        )


def _kv_heads_divide_heads(values: Values) -> Iterator[Problem]:
    model, key = parts_of(values), "model.num_key_value_heads"
    heads, kv, kind = (model.get(key) for key in ("num_attention_heads", "num_key_value_heads", "attention"))
    if not heads or not kv:
        return
    fix = "Leave it out, or set model.attention to gqa."
    if heads % kv:
        why, fix = f"must divide model.num_attention_heads = {heads}", f"Try {_nearest_divisor(kv, heads)}."
        yield Problem(key, why, value=kv, allowed=_divisors(heads), fix=fix)
    elif kind == "mha" and kv != heads:
        yield Problem(key, f"multi-head attention has one key-value head per head ({heads})", value=kv, fix=fix)
    elif kind == "mqa" and kv != 1:
        yield Problem(key, "multi-query attention has one key-value head", value=kv, fix=fix)


def _sinusoids_come_in_pairs(values: Values) -> Iterator[Problem]:
    model = parts_of(values)
    if model.get("position_embedding") == "sinusoidal" and (model.get("hidden_size") or 0) % 2:
        why = "sinusoidal positions are pairs of sine and cosine, so the width must be even"
        hidden = model["hidden_size"]
        yield Problem("model.hidden_size", why, value=hidden, fix=f"Try {hidden + 1}.")


def _yarn_context_is_the_product(values: Values) -> Iterator[Problem]:
    model = parts_of(values)
    if model.get("position_embedding") != "yarn":
        return
    longest, factor = model.get("max_position_embeddings"), model.get("yarn_factor")
    original = model.get("original_max_position_embeddings")
    if longest and factor and original and abs(original * factor - longest) >= factor:
        yield Problem(
            "model.original_max_position_embeddings",
            f"multiplied by yarn_factor = {factor:g}, this is {original * factor:g}, but it must be "
            f"max_position_embeddings = {longest}",
            value=original,
            fix=f"Set it to {max(1, int(longest / factor))}, or leave it out.",
        )


def _pattern_requires_a_window(values: Values) -> Iterator[Problem]:
    pattern = parts_of(values).get("sliding_window_pattern")
    if pattern and not parts_of(values).get("sliding_window"):
        why = "a pattern of windows requires the length of the window"
        yield Problem(
            "model.sliding_window_pattern", why, value=pattern, fix="Set model.sliding_window too, to 256 for example."
        )


def _experts_are_those_of_mixtral(values: Values) -> Iterator[Problem]:
    """Yield problems of a mixture of experts, which is always saved as Mixtral, or as Qwen3-MoE with QK-norm."""
    model = parts_of(values)
    experts, used = model.get("num_experts"), model.get("num_experts_per_tok")
    if not experts:
        return
    if used and used > experts:
        key = "model.num_experts_per_tok"
        yield Problem(key, f"there are only {experts} experts", value=used, fix=f"Set it to at most {experts}.")
    name = "Qwen3-MoE" if model.get("qk_norm") else "Mixtral"
    for key, allowed in MIXTRAL.items():
        value = model.get(key)
        biased = key == "attention_bias" and model.get("qk_norm")
        if key in model and value not in allowed and not biased:
            why = f"a model with experts is saved as a native {name}, which does not have this"
            fix = f"Set it to {format_value(allowed[0])}, or leave out num_experts."
            yield Problem(f"model.{key}", why, value=value, fix=fix)


MIXTRAL: dict[str, tuple[Any, ...]] = {  # {key: the values that Mixtral supports}
    "position_embedding": ("rope", "yarn"),
    "norm": ("rmsnorm",),
    "activation": tuple(HIDDEN_ACTS),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "sliding_window_pattern": (None,),
    "final_logit_softcapping": (None,),
    "zero_init": (False,),
    "residual_scalars": (False,),
    "value_embeddings": (False,),
    "dropout": (0.0,),
}

PARTS_RULES: tuple[Rule, ...] = (
    _experts_are_those_of_mixtral,
    _pattern_requires_a_window,
    _heads_divide_width,
    _kv_heads_divide_heads,
    _sinusoids_come_in_pairs,
    _yarn_context_is_the_product,
)
