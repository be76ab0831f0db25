"""The configuration of a model built from parts."""

from typing import Any, TypeGuard

from .feed_forward import ACTIVATIONS, GATED
from .norms import NORMS
from .older_transformers import PreTrainedConfig
from .positions import POSITION_EMBEDDINGS

ROTARY = ("rope", "yarn")
ROPE_KEYS = ("rope_type", "rope_theta")
YARN_KEYS = (
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
)
PARTS = {"position_embedding": POSITION_EMBEDDINGS, "norm": NORMS, "activation": tuple(ACTIVATIONS)}
COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "sliding_window",
)
# The first three stay None only if the size from which they are derived is invalid, which is reported.
MAY_BE_NONE = ("intermediate_size", "num_key_value_heads", "head_dim", "sliding_window")
SWITCHES = (
    "attention_bias",
    "mlp_bias",
    "qk_norm",
    "zero_init",
    "residual_scalars",
    "value_embeddings",
    "tie_word_embeddings",
    "use_cache",
)
FULL, SLIDING = "full_attention", "sliding_attention"  # the layer types, as in transformers


class LabConfig(PreTrainedConfig):
    """The parts and sizes of a decoder, with the names that Hugging Face configurations use.

    Multi-head, grouped-query and multi-query attention differ only in `num_key_value_heads`. Defaults:
    `num_key_value_heads` is `num_attention_heads`, `head_dim` is `hidden_size / num_attention_heads`, and
    `intermediate_size` is 4 times `hidden_size`, or for gated activations 8/3 times, rounded up to a multiple of 64.
    `layer_types` says which layers have the sliding window; without it, all of them.
    """

    model_type = "llm_lab"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    vocab_size: int = 256
    hidden_size: int = 128
    intermediate_size: int | None = None
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 1024
    position_embedding: str = "rope"
    rope_parameters: dict | None = None
    norm: str = "rmsnorm"
    norm_eps: float = 1e-6
    activation: str = "swiglu"
    attention_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    layer_types: list[str] | None = None
    final_logit_softcapping: float | None = None
    zero_init: bool = False
    residual_scalars: bool = False
    value_embeddings: bool = False
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        rope = dict(kwargs.pop("rope_scaling", None) or self.rope_parameters or {})
        problems = self._complete() + self._complete_rope(rope)
        # The base class fills in rope_theta and, for YaRN, the original context.
        self.rope_parameters = rope
        super().__post_init__(**kwargs)
        if self.position_embedding not in ROTARY:
            self.rope_parameters = None
        problems += self._problems()
        if problems:
            raise ValueError("This model cannot be built:\n" + "\n".join(f"- {problem}" for problem in problems))

    def _complete(self) -> list[str]:
        """Derive missing sizes; return problems."""
        if not (_is_count(self.hidden_size) and _is_count(self.num_attention_heads)):
            return []
        if self.layer_types is None and _is_count(self.num_hidden_layers):
            # Always a list: transformers reads this attribute if it exists.
            self.layer_types = [FULL if self.sliding_window is None else SLIDING] * self.num_hidden_layers
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.intermediate_size is None:
            gated = self.activation in GATED
            self.intermediate_size = -(-8 * self.hidden_size // 192) * 64 if gated else 4 * self.hidden_size
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                return [
                    f"hidden_size = {self.hidden_size} is not divisible by num_attention_heads = "
                    f"{self.num_attention_heads}: change one of them, or set head_dim"
                ]
            self.head_dim = self.hidden_size // self.num_attention_heads
        return []

    def _complete_rope(self, rope: dict) -> list[str]:
        """Derive rope_type and YaRN's factor in place; return problems."""
        if self.position_embedding not in ROTARY:
            return []
        wanted = "yarn" if self.position_embedding == "yarn" else "default"
        rope_type = rope.setdefault("rope_type", rope.pop("type", wanted))
        if rope_type != wanted:
            return [
                f"rope_parameters.rope_type = {rope_type!r} does not match position_embedding = "
                f"{self.position_embedding!r}: it must be {wanted!r}"
            ]
        original = rope.get("original_max_position_embeddings")
        if wanted == "yarn" and rope.get("factor") is None:
            if not _is_count(original) or not _is_count(self.max_position_embeddings):
                return [
                    "position_embedding = 'yarn' requires rope_parameters.factor (at least 1) or "
                    "rope_parameters.original_max_position_embeddings"
                ]
            rope["factor"] = max(1.0, self.max_position_embeddings / original)
        return []

    def _problems(self) -> list[str]:
        """Return all problems with the values, one sentence each."""
        found = []
        for name, allowed in PARTS.items():
            if getattr(self, name) not in allowed:
                found.append(f"{name} = {getattr(self, name)!r} is unknown: choose from {', '.join(allowed)}")
        for name in COUNTS:
            value = getattr(self, name)
            if not _is_count(value) and not (value is None and name in MAY_BE_NONE):
                found.append(f"{name} = {value!r} must be a whole number of at least 1")
        for name in SWITCHES:
            if not isinstance(getattr(self, name), bool):
                found.append(f"{name} = {getattr(self, name)!r} must be true or false")
        for name in ("attention_dropout", "hidden_dropout"):
            if not _is_number(getattr(self, name)) or not 0 <= getattr(self, name) < 1:
                found.append(f"{name} = {getattr(self, name)!r} must be at least 0 and less than 1")
        cap = self.final_logit_softcapping
        if cap is not None and (not _is_number(cap) or cap <= 0):
            found.append(f"final_logit_softcapping = {cap!r} must be greater than 0, or null")
        for name in ("norm_eps", "initializer_range"):
            if not _is_number(getattr(self, name)) or getattr(self, name) <= 0:
                found.append(f"{name} = {getattr(self, name)!r} must be greater than 0")
        if found or self.head_dim is None or self.num_key_value_heads is None:
            return found
        if self.num_attention_heads % self.num_key_value_heads:
            found.append(
                f"num_attention_heads = {self.num_attention_heads} is not divisible by "
                f"num_key_value_heads = {self.num_key_value_heads}"
            )
        if self.position_embedding in ROTARY:
            found += self._rope_problems()
        if self.position_embedding == "sinusoidal" and self.hidden_size % 2:
            found.append(f"hidden_size = {self.hidden_size} must be even for sinusoidal positions")
        if self.sliding_window == 1:
            found.append("sliding_window = 1 lets a token attend only to itself: it must be at least 2, or null")
        if self.layer_types is not None:
            found += self._layer_problems(self.layer_types)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            for token in value if isinstance(value, list | tuple) else [value]:
                if token is not None and not 0 <= token < self.vocab_size:
                    found.append(f"{name} = {token} is outside the vocabulary of {self.vocab_size}")
        return found

    def _layer_problems(self, types: list[str]) -> list[str]:
        if len(types) != self.num_hidden_layers:
            return [f"layer_types has {len(types)} entries, but num_hidden_layers = {self.num_hidden_layers}"]
        odd = [kind for kind in types if kind not in (FULL, SLIDING)]
        if odd:
            return [f"layer_types contains {odd[0]!r}: choose from {FULL}, {SLIDING}"]
        if SLIDING in types and self.sliding_window is None:
            return ["layer_types contains sliding_attention, which requires a sliding_window"]
        return []

    def _rope_problems(self) -> list[str]:
        rope, found = self.rope_parameters or {}, []
        allowed = ROPE_KEYS if rope["rope_type"] == "default" else ROPE_KEYS + YARN_KEYS
        if (self.head_dim or 0) % 2:
            found.append(f"head_dim = {self.head_dim} must be even for {self.position_embedding}")
        for name in sorted(set(rope) - set(allowed)):
            found.append(f"rope_parameters.{name} is not allowed here: choose from {', '.join(allowed)}")
        if not _is_number(rope["rope_theta"]) or rope["rope_theta"] <= 1:
            found.append(f"rope_parameters.rope_theta = {rope['rope_theta']!r} must be greater than 1")
        for name in YARN_KEYS:
            value, least = rope.get(name), 1 if name == "factor" else 0
            if name == "truncate" or value is None:
                continue
            if not _is_number(value) or value < least or value == 0:
                bound = f"at least {least}" if least else "greater than 0"
                found.append(f"rope_parameters.{name} = {value!r} must be {bound}")
        return found


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
