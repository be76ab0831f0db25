"""Parameters, FLOPs, cache and vocabulary size, from configs and files, without importing torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .adapter_base import base_circle, find_base, places_of_model, read_adapter_json, read_object
from .formatting import count
from .gguf_header import gguf_config, is_gguf

BYTE_VOCABULARY = 257  # 256 bytes and the end-of-text token
CHARACTERS_PER_TOKEN = 3.5  # English text, with a usual vocabulary
GATED = ("swiglu", "geglu", "reglu")  # activations with a gate; a test compares them with the model's
ASSUMED_HUB_VOCABULARY = 50_257  # GPT-2's, until the tokenizer has been downloaded


@dataclass(frozen=True)
class ModelShape:
    """The dimensions of a decoder-only model, which determine its cost."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    gated: bool  # three matrices instead of two: SwiGLU, GeGLU, ReGLU
    norm_has_bias: bool  # LayerNorm
    attention_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_word_embeddings: bool = True
    max_position_embeddings: int | None = None
    learned_positions: bool = False
    sliding_window: int | None = None
    full_layers: int = 0  # layers without the window, if others have a sliding window
    residual_scalars: bool = False
    value_embeddings: bool = False
    softcap: bool = False  # of the logits
    num_experts: int = 0  # each has intermediate_size; 0: no experts
    num_experts_per_tok: int = 0
    other_parameters: int = 0  # in parts that the other fields don't describe, such as linear attention

    @property
    def parameters_by_part(self) -> dict[str, int]:
        """Parameters of each part. The sum is exactly that of the built model."""
        hidden, inner, layers = self.hidden_size, self.intermediate_size, self.num_hidden_layers
        query, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        attention = hidden * query + 2 * hidden * keys + query * hidden
        if self.attention_bias:
            attention += query + 2 * keys + hidden
        feed_forward = (3 if self.gated else 2) * hidden * inner
        if self.num_experts:
            feed_forward = feed_forward * self.num_experts + hidden * self.num_experts  # with the router
        if self.mlp_bias:
            feed_forward += (2 if self.gated else 1) * inner + hidden
        norm = hidden * (2 if self.norm_has_bias else 1)
        norms = layers * (2 * norm + (2 * self.head_dim if self.qk_norm else 0)) + norm
        return {
            "embedding": self.vocab_size * hidden,
            "attention": layers * attention,
            "feed-forward": layers * feed_forward,
            "norms": norms,
            "output": 0 if self.tie_word_embeddings else self.vocab_size * hidden,
            **({"positions": (self.max_position_embeddings or 0) * hidden} if self.learned_positions else {}),
            **({"value embeddings": self._value_tables * self.vocab_size * keys} if self.value_embeddings else {}),
            **({"scalars": 2 * layers} if self.residual_scalars else {}),
            **({"other": self.other_parameters} if self.other_parameters else {}),
        }

    @property
    def _value_tables(self) -> int:
        return (self.num_hidden_layers + 1) // 2  # every second layer, and the last

    @property
    def parameters(self) -> int:
        return sum(self.parameters_by_part.values())

    @property
    def matrix_parameters(self) -> int:
        """Parameters of the hidden matrices, which Muon updates."""
        parts = self.parameters_by_part
        return parts["attention"] + parts["feed-forward"]

    @property
    def active_matrix_parameters(self) -> int:
        """Parameters of the hidden matrices that process a token: of the experts, only those that it uses."""
        idle = max(0, self.num_experts - self.num_experts_per_tok)
        expert = (3 if self.gated else 2) * self.hidden_size * self.intermediate_size
        return self.matrix_parameters - self.num_hidden_layers * idle * expert

    @property
    def active_parameters(self) -> int:
        """Parameters that process a token: all except those of the experts that it does not use."""
        return self.parameters - self.matrix_parameters + self.active_matrix_parameters

    def describe_parameters(self) -> str:
        """Return the number of parameters, and how many are active if that differs: 8.1 M, 2.3 M active."""
        active = f", {count(self.active_parameters)} active" if self.active_parameters < self.parameters else ""
        return f"{count(self.parameters)}{active}"

    def training_flops_per_token(self, length: int) -> float:
        """FLOPs of forward and backward for one token in a row of `length` (Chowdhery et al. 2022, B)."""
        multiplied = self.active_matrix_parameters + self.vocab_size * self.hidden_size
        windows = 0 if self.sliding_window is None else self.num_hidden_layers - self.full_layers
        seen = (self.num_hidden_layers - windows) * length + windows * min(length, self.sliding_window or length)
        return 6.0 * multiplied + 12.0 * self.num_attention_heads * self.head_dim * seen

    def cache_bytes_per_token(self, bytes_per_number: int = 2) -> int:
        """Return the bytes of the KV cache for each token."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * bytes_per_number


def shape_of_parts(parts: Mapping[str, Any], vocab_size: int) -> ModelShape | None:
    """Return the shape of a model from resolved parts, or None if a number is missing."""
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")
    if any(not parts.get(key) for key in (*needed, "num_key_value_heads")):
        return None
    return ModelShape(
        vocab_size=vocab_size,
        **{key: parts[key] for key in (*needed, "num_key_value_heads")},
        gated=parts.get("activation") in GATED,
        norm_has_bias=parts.get("norm") == "layernorm",
        max_position_embeddings=parts.get("max_position_embeddings"),
        learned_positions=parts.get("position_embedding") == "learned",
        sliding_window=parts.get("sliding_window"),
        full_layers=(layer_types_of(parts) or []).count(FULL),
        softcap=bool(parts.get("final_logit_softcapping")),
        **{key: bool(parts.get(key)) for key in ("residual_scalars", "value_embeddings")},
        num_experts=parts.get("num_experts") or 0,
        num_experts_per_tok=(parts.get("num_experts_per_tok") or 0) if parts.get("num_experts") else 0,
        **{key: bool(parts.get(key)) for key in ("attention_bias", "mlp_bias", "qk_norm", "tie_word_embeddings")},
    )


FULL, SLIDING = "full_attention", "sliding_attention"  # layer types, as in Hugging Face configs


def layer_types_of(parts: Mapping[str, Any]) -> list[str] | None:
    """Return the type of each layer of a recipe's parts or a config; None: all layers are alike."""
    pattern, layers = parts.get("sliding_window_pattern"), parts.get("num_hidden_layers")
    if not pattern or not layers:
        return parts.get("layer_types")
    return [SLIDING if pattern[index % len(pattern)] == "S" else FULL for index in range(layers - 1)] + [FULL]


# {model_type of Hugging Face: facts that its config does not contain}.
_GPT2_BLOCK = {"gated": False, "norm_has_bias": True, "attention_bias": True, "mlp_bias": True}
_ARCHITECTURES: dict[str, dict[str, bool]] = {
    "llama": {"gated": True, "norm_has_bias": False},
    "mistral": {"gated": True, "norm_has_bias": False},
    "qwen3": {"gated": True, "norm_has_bias": False, "qk_norm": True},
    "mixtral": {"gated": True, "norm_has_bias": False},
    "qwen3_moe": {"gated": True, "norm_has_bias": False, "qk_norm": True},
    "gpt2": {**_GPT2_BLOCK, "learned_positions": True},
    "llm_lab": {},
}
# Keys of a config that determine a shape, but are not its fields.
_OTHERS = ("activation", "norm", "position_embedding", "layer_types", "final_logit_softcapping")
# {our name: (GPT-2's, its default in transformers)}
GPT2_NAMES = {
    "hidden_size": ("n_embd", 768),
    "num_hidden_layers": ("n_layer", 12),
    "num_attention_heads": ("n_head", 12),
    "max_position_embeddings": ("n_positions", 1024),
}
# The defaults of transformers for keys that a config leaves out.
_LEFT_OUT: dict[str, dict[str, int]] = {
    "mistral": {"num_key_value_heads": 8},
    "mixtral": {"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
}


def read_config_json(path: str | Path) -> dict[str, Any] | None:
    """Read a local config.json (a file or its folder), or None. The config of an adapter is that of its base.

    For a GGUF file, the config comes from its header.
    """
    file = Path(path)
    if is_gguf(file):
        return gguf_config(file)
    if file.is_dir():
        file = next((f for place in places_of_model(file) if (f := place / "config.json").exists()), file)
    if file.is_dir():
        adapter, base = read_adapter_json(file), None if base_circle(file) else find_base(file)
        config = read_config_json(base) if base else None
        return _with_rows(config, adapter) if config and adapter else None
    return read_object(file)


def _with_rows(config: dict[str, Any], adapter: Mapping[str, Any]) -> dict[str, Any]:
    """Return the base's config with the size of the vocabulary that the adapter has extended."""
    trained = adapter.get("trainable_token_indices") or []
    rows = [row for ids in (trained.values() if isinstance(trained, dict) else [trained]) for row in ids]
    return {**config, "vocab_size": max([config.get("vocab_size", 0), *(row + 1 for row in rows)])}


# Names of the longest context in configs: most models, GPT-2, MPT, some with custom code.
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length", "max_sequence_length")


def context_in(config: Mapping[str, Any]) -> int | None:
    """Return the longest context of a config.json in tokens, or None if it names none."""
    inner = config.get("text_config") or {}
    named = (found.get(key) for found in (config, inner) for key in CONTEXT_KEYS)
    return next((length for length in named if isinstance(length, int) and length > 0), None)


def shape_at(checkpoint: str | Path) -> ModelShape | None:
    """Return the shape of a local checkpoint, or None."""
    config = read_config_json(checkpoint)
    return shape_of_config(config) if config else None


def shape_of_config(config: Mapping[str, Any], vocab_size: int | None = None) -> ModelShape | None:
    """Return the shape of a Hugging Face config, or None for an unsupported architecture."""
    kind = _ARCHITECTURES.get(config.get("model_type", ""))
    if kind is None:
        return None
    if config["model_type"] == "gpt2":
        config = {**config, **{ours: config.get(theirs, usual) for ours, (theirs, usual) in GPT2_NAMES.items()}}
        config.setdefault("tie_word_embeddings", True)
        config["intermediate_size"] = config.get("n_inner") or 4 * config["hidden_size"]
    config = {**_LEFT_OUT.get(config["model_type"], {}), **config}
    if config["model_type"] in ("mixtral", "qwen3_moe"):
        if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
            return None  # some layers have no experts
        config["num_experts"] = config.get("num_local_experts") or config.get("num_experts")
        config["intermediate_size"] = config.get("moe_intermediate_size") or config.get("intermediate_size")
    parts = {key: config.get(key) for key in (f.name for f in fields(ModelShape)) if config.get(key) is not None}
    if config.get("use_sliding_window") is False:
        parts.pop("sliding_window", None)
    heads = parts.get("num_attention_heads")
    if not heads or not parts.get("hidden_size"):
        return None
    parts.setdefault("num_key_value_heads", heads)
    parts.setdefault("head_dim", parts["hidden_size"] // heads)
    parts.setdefault("tie_word_embeddings", False)
    shape = shape_of_parts(
        {**{key: config.get(key) for key in _OTHERS}, **parts},
        vocab_size or config.get("vocab_size") or 0,
    )
    if shape is None or not kind:
        return shape
    values = {f.name: getattr(shape, f.name) for f in fields(shape)}
    return ModelShape(**{**values, **kind})


def guess_shape(config: Mapping[str, Any]) -> ModelShape | None:
    """Estimate the shape of a model of another architecture; None if its config lacks sizes.

    The parts are assumed to be the usual ones, with a gated feed-forward for SiLU and GELU's tanh form.
    """

    def first(*keys: str) -> int | None:
        return next((config[key] for key in keys if isinstance(config.get(key), int) and config[key] > 0), None)

    hidden, layers = first("hidden_size", "n_embd", "d_model"), first("num_hidden_layers", "n_layer", "n_layers")
    heads = first("num_attention_heads", "n_head", "n_heads")
    if not (hidden and layers and heads):
        return None
    activation = str(config.get("hidden_act") or config.get("hidden_activation") or config.get("activation_function"))
    biased = config.get("model_type") in ("gpt2", "opt", "gpt_neox", "gpt_bigcode", "bloom")
    return ModelShape(
        vocab_size=first("vocab_size") or ASSUMED_HUB_VOCABULARY,
        hidden_size=hidden,
        intermediate_size=first("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size") or 4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=first("num_key_value_heads") or heads,
        head_dim=first("head_dim") or max(1, hidden // heads),
        gated=activation in ("silu", "swish", "gelu_pytorch_tanh"),
        norm_has_bias=biased,
        attention_bias=biased,
        mlp_bias=biased,
        qk_norm=str(config.get("model_type")).startswith(("olmo2", "olmo3", "gemma3")),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", True)),
    )


def vocabulary_size(tokenizer: Any) -> tuple[int, bool]:
    """Return (entries, whether that is certain) for a recipe's tokenizer.

    A BPE that is still to be trained has at most the requested size. A tokenizer on the Hub gets an assumed size.
    """
    if tokenizer == "bytes":
        return BYTE_VOCABULARY, True
    if isinstance(tokenizer, dict) and "bpe" in tokenizer:
        return int(tokenizer["bpe"]), False
    if isinstance(tokenizer, str):
        counted = _count_tokens(Path(tokenizer).expanduser())
        if counted:
            return counted, True
    return ASSUMED_HUB_VOCABULARY, False


def token_counter(checkpoint: str) -> Callable[[str], int]:
    """Return a function that counts the tokens of a text: by the checkpoint's tokenizer.json, else by its length."""
    given = Path(checkpoint).expanduser()
    for file in (given / "tokenizer.json", given / "model" / "tokenizer.json"):
        if file.is_file():
            try:
                from tokenizers import Tokenizer

                tokenizer = Tokenizer.from_file(str(file))
            except Exception:  # tokenizers raises plain Exceptions; the run reports a broken file
                break
            return lambda text: len(tokenizer.encode(text, add_special_tokens=False))
    return lambda text: round(len(text) / CHARACTERS_PER_TOKEN)


def _count_tokens(folder: Path) -> int | None:
    for file in (folder / "tokenizer.json", folder / "model" / "tokenizer.json"):
        if file.is_file():
            try:
                data = json.loads(file.read_text(encoding="utf-8"))
                vocabulary = data["model"]["vocab"]
                ids = range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values()
                added = [token["id"] for token in data.get("added_tokens", [])]
                return len(set(ids) | set(added))
            except (OSError, ValueError, KeyError, TypeError):
                return None
    return None
