"""The model of a recipe: its parts, the preset sizes, and what is derived from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from llm_lab.estimate.parameters import GATED, ModelShape, context_in, read_config_json, shape_of_config, shape_of_parts

from .fields import WINDOWS, Bool, Float, Group, Int, OneOf, option
from .stage import PartialRecipe, Values

POSITIONS = {
    "rope": "rotary: rotates queries and keys by their position; today's standard",
    "yarn": "rotary, extended to contexts longer than the original",
    "alibi": "no position vectors: a penalty that grows with distance; extrapolates",
    "learned": "a trained vector for each position, as in GPT-2; the context can't be longer than in training",
    "sinusoidal": "fixed sine waves added to the embeddings; the original Transformer",
}
NORMS = {
    "rmsnorm": "scales by the root mean square; cheaper, today's standard",
    "layernorm": "also subtracts the mean and has a bias; used in GPT-2",
}
ATTENTIONS = {
    "gqa": "grouped-query: several heads share keys and values; a small KV cache",
    "mha": "multi-head: each head has its own keys and values; most expressive",
    "mqa": "multi-query: all heads share one key and value; the smallest KV cache",
}
ACTIVATIONS = {
    "swiglu": "gated SiLU, three matrices; best loss per parameter in most studies",
    "geglu": "gated GELU, three matrices; close to SwiGLU, used in Gemma",
    "reglu": "gated ReLU, three matrices; the cheapest gate, with exact zeros",
    "relu2": "ReLU squared; used in nanochat and in speed records of small models",
    "gelu": "smooth ReLU; used in GPT-2 and BERT",
    "silu": "x times sigmoid(x), ungated",
    "relu": "zero below zero; many exact zeros",
    "leaky_relu": "ReLU with a small slope below zero",
}


@dataclass(frozen=True)
class Size:
    """A preset size. Each of its numbers can be overridden."""

    parameters: str  # with the tokenizer of the size
    about: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int  # with grouped-query attention
    max_position_embeddings: int
    tie_word_embeddings: bool
    tokenizer: str | int  # "bytes", or the vocabulary size of a BPE to train


# Depth and width follow published models: small is GPT-2's, 1b, 3b and 7b are near Llama 3.2 and Llama 2.
SIZES: dict[str, Size] = {
    "nano": Size("under 1 M parameters", "minutes on a CPU", 128, 4, 4, 2, 256, True, "bytes"),
    "micro": Size("about 3 M", "the smallest that writes stories", 192, 6, 6, 2, 256, True, 2048),
    "tiny": Size("about 11 M", "minutes on a GPU", 384, 6, 6, 2, 512, True, 4096),
    "mini": Size("about 33 M", "a first GPU run", 512, 10, 8, 4, 1024, True, 8192),
    "small": Size("about 100 M", "GPT-2's depth and width", 768, 12, 12, 4, 1024, True, 32768),
    "medium": Size("about 310 M", "GPT-2 medium's depth and width", 1024, 24, 16, 8, 2048, True, 32768),
    "large": Size("about 670 M", "between GPT-2 medium and GPT-2 large", 1536, 24, 16, 8, 2048, True, 32768),
    "1b": Size("about 1 B", "one 80 GB GPU", 2048, 20, 32, 8, 2048, False, 32768),
    "3b": Size("about 3 B", "several GPUs", 3072, 26, 24, 8, 4096, False, 65536),
    "7b": Size("about 7 B", "many GPUs", 4096, 36, 32, 8, 4096, False, 65536),
}

SIZE_CHOICES = {name: f"{shape.parameters}: {shape.about}" for name, shape in SIZES.items()}
ROTARY = {"model.position_embedding": ("rope", "yarn")}
YARN = {"model.position_embedding": ("yarn",)}


class ModelParts(Group):
    """A model from parts. Numbers that are left out come from the preset `size`."""

    size: Annotated[str, OneOf(SIZE_CHOICES)] = option(
        "nano",
        help="a preset size; it sets every number that is left out",
        question="Which size?",
        choices=SIZE_CHOICES,
        why="Loss falls with parameters and with tokens; about 20 tokens per parameter is compute-optimal (Hoffmann et "
        "al. 2022). Start small: a nano run shows within minutes whether data and settings are right.",
    )
    position_embedding: Annotated[str, OneOf(POSITIONS)] = option(
        "rope",
        help="how the model encodes the order of tokens",
        question="Which position encoding?",
        choices=POSITIONS,
        why="RoPE (Su et al. 2021) is used by Llama, Qwen and Mistral; YaRN (Peng et al. 2023) rescales it for longer "
        "contexts. ALiBi (Press et al. 2021) extrapolates, but is slower in most kernels. Learned positions with "
        "LayerNorm, GELU, multi-head attention and tied embeddings make a GPT-2. RoPE and YaRN with RMSNorm and SwiGLU "
        "load natively everywhere; most others need their own code, saved with the model.",
    )
    rope_theta: Float = option(
        10000.0,
        help="base of the rotary frequencies; larger for long contexts",
        question="Base of the rotary frequencies (rope_theta)?",
        why="10,000 suits contexts up to a few thousand tokens; Llama 3 uses 500,000 for 8,192 and more.",
        gt=1.0,
        when=ROTARY,
        advanced=True,
    )
    yarn_factor: Float = option(
        4.0,
        help="context length after YaRN, as a multiple of the original",
        question="YaRN factor?",
        why="max_position_embeddings = original_max_position_embeddings × factor. High frequencies are kept, low ones "
        "interpolated, with a ramp between the two.",
        ge=1.0,
        le=1024.0,
        when=YARN,
    )
    original_max_position_embeddings: Int | None = option(
        help="the context before YaRN extends it, in tokens",
        question="Original context, in tokens?",
        derived="max_position_embeddings / yarn_factor",
        ge=1,
        when=YARN,
        advanced=True,
    )
    norm: Annotated[str, OneOf(NORMS)] = option(
        "rmsnorm",
        help="the normalization layer",
        question="Which normalization?",
        choices=NORMS,
        why="Both come before attention and before the feed-forward network (pre-norm), which trains stably. RMSNorm "
        "(Zhang & Sennrich 2019) drops the mean and the bias without a measurable loss.",
    )
    norm_eps: Float = option(
        1e-5,
        help="added under the square root of the norm, for numerical stability",
        question="Epsilon of the norm?",
        gt=0.0,
        le=0.1,
        advanced=True,
    )
    attention: Annotated[str, OneOf(ATTENTIONS)] = option(
        "gqa",
        help="how many heads share keys and values",
        question="Which attention type?",
        choices=ATTENTIONS,
        why="Generation caches keys and values. Sharing them between heads (Shazeer 2019; Ainslie et al. 2023) divides "
        "that memory by the number of heads that share, at little cost in loss.",
    )
    activation: Annotated[str, OneOf(ACTIVATIONS)] = option(
        "swiglu",
        help="the activation of the feed-forward network",
        question="Which activation?",
        choices=ACTIVATIONS,
        why="Gated ones (Shazeer 2020) have three matrices and two thirds of the inner width: as many parameters, "
        "usually a lower loss. Squared ReLU (So et al. 2021) is as cheap as ReLU; published results prefer it to "
        "SwiGLU for one pass over the data, not for many.",
    )
    hidden_size: Int | None = option(
        help="width: the size of the hidden states",
        question="Width (hidden_size)?",
        candidates=(64, 96, 128, 192, 256, 320, 384, 512, 640, 768, 1024, 1280, 1536, 2048, 2560, 3072, 4096),
        derived="from size",
        ge=8,
        le=65536,
    )
    num_hidden_layers: Int | None = option(
        help="depth: the number of transformer blocks",
        question="Depth (num_hidden_layers)?",
        derived="from size",
        ge=1,
        le=512,
    )
    num_attention_heads: Int | None = option(
        help="number of query heads; must divide hidden_size",
        question="How many attention heads?",
        candidates=(1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64),
        why="Each head has hidden_size / heads dimensions. 64 to 128 is usual; fewer than 16 is very little.",
        derived="from size, or about hidden_size / 64 (/ 32 below a width of 256)",
        ge=1,
        le=1024,
    )
    num_key_value_heads: Int | None = option(
        help="number of key-value heads; must divide num_attention_heads",
        question="How many key-value heads?",
        candidates=(1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32),
        derived="heads for mha, 1 for mqa, from size or about heads / 4 for gqa",
        ge=1,
        le=1024,
        when={"model.attention": ("gqa",)},
    )
    head_dim: Int | None = option(
        help="dimensions per head",
        question="Head size (head_dim)?",
        derived="hidden_size / num_attention_heads",
        ge=2,
        le=1024,
        advanced=True,
    )
    intermediate_size: Int | None = option(
        help="inner width of the feed-forward network",
        question="Inner width of the feed-forward network (intermediate_size)?",
        derived="8/3 × hidden_size for gated activations (with experts divided by num_experts_per_tok), "
        "4 × hidden_size otherwise",
        ge=8,
        le=262144,
        advanced=True,
    )
    max_position_embeddings: Int | None = option(
        help="longest context of the model, in tokens",
        question="Longest context, in tokens?",
        derived="from size; at least train.max_length",
        ge=8,
        le=10_000_000,
    )
    tie_word_embeddings: Bool | None = option(
        help="use one matrix for embedding and output",
        question="Tie the embedding and output matrices?",
        why="Tying saves vocabulary × hidden_size parameters: a large share of a small model, a small one of a large "
        "model.",
        derived="from size: true up to size large, false above",
        advanced=True,
    )
    attention_bias: Bool = option(
        False,
        help="biases in the query, key, value and output projections",
        question="Biases in attention?",
        advanced=True,
    )
    mlp_bias: Bool = option(
        False, help="biases in the feed-forward network", question="Biases in the feed-forward network?", advanced=True
    )
    qk_norm: Bool = option(
        False,
        help="RMSNorm on queries and keys, as in Qwen3",
        question="Normalize queries and keys (QK-norm)?",
        why="Keeps attention scores in range at high learning rates (Henry et al. 2020).",
        advanced=True,
    )
    sliding_window: Int | None = option(
        help="each token attends to this many tokens, itself included; null: to all",
        question="Sliding window, in tokens (empty: none)?",
        why="As in Mistral: the cost of attention stays linear in the context, and layers pass information along.",
        ge=2,
        advanced=True,
    )
    sliding_window_pattern: Annotated[str, Field(pattern=WINDOWS)] | None = option(
        help="which layers have the sliding window: letters S (with the window) and L (the whole context), repeated "
        "over the layers; the last layer is always L; null: all layers have the window",
        question="Pattern of windows, such as SSSL (empty: a window in every layer)?",
        why="Most layers need little context, and a few with the whole context pass it on: as in Gemma 2, "
        "GPT-3 and nanochat (SSSL). Long contexts get cheaper and the KV cache smaller; at short ones there is nothing "
        "to gain.",
        advanced=True,
    )
    final_logit_softcapping: Float | None = option(
        help="limit logits to plus and minus this number, by tanh, as in Gemma 2; null: no limit",
        question="Soft-cap of the logits (empty: none)?",
        why="30 in Gemma 2 (2024), 15 to 20 in nanochat and modded-nanogpt, with slightly lower losses there. It keeps "
        "the model from growing overconfident. It costs memory: the logits of a whole batch are held at once.",
        gt=0.0,
        advanced=True,
    )
    zero_init: Bool = option(
        False,
        help="start the output projections of attention and of the feed-forward network at zero, so each block starts "
        "as the identity",
        question="Start output projections at zero?",
        why="As in muP and in the speed records of modded-nanogpt: it helps in short runs over new data. It costs "
        "nothing. For many passes over little data, published results found it slightly worse.",
        advanced=True,
    )
    residual_scalars: Bool = option(
        False,
        help="two learned numbers per layer, which weight the residual stream and the token embeddings in the layer's "
        "input",
        question="Learned scalars for the residual stream and the embeddings?",
        why="As in modded-nanogpt and nanochat, where they lower the loss by 0.4 to 1 % at 12 to 20 layers, and "
        "by more in small models. It costs two numbers per layer, and the model needs its own code.",
        advanced=True,
    )
    value_embeddings: Bool = option(
        False,
        help="every second layer adds a learned vector of each token to its attention values",
        question="Value embeddings?",
        why="As in modded-nanogpt and nanochat: many parameters (vocabulary × key-value width for every second layer), "
        "but nearly no computing time. They help most in small models. The model needs its own code.",
        advanced=True,
    )
    num_experts: Int | None = option(
        help="number of experts in each feed-forward network; a router picks some for each token; null: no experts",
        question="How many experts (empty: none)?",
        why="A mixture of experts (Shazeer et al. 2017; Mixtral, Jiang et al. 2024) has many more parameters at the "
        "computing cost of a small model: lower loss per FLOP, but more memory. Saved as a native Mixtral, or with "
        "QK-norm as Qwen3-MoE.",
        ge=2,
        le=1024,
        advanced=True,
    )
    num_experts_per_tok: Int = option(
        2,
        help="experts that each token uses",
        question="How many experts per token?",
        why="2 in Mixtral, 8 of 128 in Qwen3. With intermediate_size left out, each expert is this many times "
        "narrower, so that a token costs as much as without experts.",
        ge=1,
        le=1024,
        advanced=True,
    )
    router_aux_loss_coef: Float = option(
        0.01,
        help="weight of the loss that balances the use of experts; in training only",
        question="Weight of the loss that balances the experts?",
        why="Without it, a router sends most tokens to few experts (Fedus et al. 2021). The metrics busiest_expert "
        "and idle_experts show whether that happens.",
        ge=0.0,
        le=10.0,
        advanced=True,
    )
    dropout: Float = option(
        0.0,
        help="dropout on embeddings, and on the outputs of attention and of the feed-forward network",
        question="Dropout?",
        why="0 if the data is seen once; 0.1 to 0.2 for many epochs over a small dataset.",
        ge=0.0,
        lt=1.0,
        advanced=True,
    )
    attention_dropout: Float = option(
        0.0,
        help="dropout on attention weights",
        question="Dropout in attention?",
        ge=0.0,
        lt=1.0,
        advanced=True,
    )
    initializer_range: Float = option(
        0.02,
        help="standard deviation of the initial weights",
        question="Standard deviation of the initial weights?",
        gt=0.0,
        le=1.0,
        advanced=True,
    )


class ModelConfig(Group):
    """A Hugging Face config.json: a known architecture, pretrained from scratch."""

    config: str = option(
        ...,
        help="a file or folder with config.json (`llm-lab design` writes one), or a name on the Hub",
        min_length=1,
        names="config",
    )


class ModelCheckpoint(Group):
    """Trained weights to start from."""

    checkpoint: str = option(
        ..., help="a run, a Hugging Face folder, a GGUF file, or a name on the Hub", min_length=1, names="model"
    )


def _model_kind(value: Any) -> str:
    if isinstance(value, dict):
        return next((kind for kind in ("config", "checkpoint") if kind in value), "parts")
    return (
        "config" if isinstance(value, ModelConfig) else "checkpoint" if isinstance(value, ModelCheckpoint) else "parts"
    )


Model = Annotated[
    Annotated[ModelParts, Tag("parts")]
    | Annotated[ModelConfig, Tag("config")]
    | Annotated[ModelCheckpoint, Tag("checkpoint")],
    Discriminator(_model_kind),
]


def model_source(values: Values) -> str:
    """Return how a recipe defines its model: parts, config or checkpoint."""
    model = values.get("model")
    return _model_kind(model) if isinstance(model, dict) else "parts"


def parts_of(values: Values) -> Mapping[str, Any]:
    """Return the parts of a model that is defined by its parts; empty for others."""
    model = values.get("model")
    return model if isinstance(model, Mapping) and model_source(values) == "parts" else {}


def named_context(values: Values) -> int | None:
    """Return the longest context of a model that is defined by a local config or checkpoint, or None."""
    source = model_source(values)
    config = read_config_json(values["model"][source]) if source != "parts" else None
    return context_in(config or {})


def position_embedding_of(values: Values) -> str | None:
    """Return the model's position embedding from its parts or its local config, or None if it is not known."""
    source = model_source(values)
    model = values.get("model") if source == "parts" else read_config_json(values["model"][source])
    return (model or {}).get("position_embedding")


# --- derived values


def derive_model(recipe: PartialRecipe, vocab_size: int) -> ModelShape | None:
    """Fill in the parts that are left out; returns the model's shape, or None if its config is not on this machine."""
    source = model_source(recipe.values)
    if source != "parts":
        config = read_config_json(recipe.get(f"model.{source}"))
        if config is None:
            return None
        return shape_of_config(config, vocab_size if source == "config" else None)
    name: str = recipe.get("model.size")
    size, preset = SIZES[name], f"size = {name}"
    given_width = recipe.get("model.hidden_size")
    recipe.fill("model.hidden_size", size.hidden_size, preset)
    recipe.fill("model.num_hidden_layers", size.num_hidden_layers, preset)
    hidden: int = recipe.get("model.hidden_size")
    if given_width in (None, size.hidden_size):
        recipe.fill("model.num_attention_heads", size.num_attention_heads, preset)
    else:
        heads = _heads_for(hidden)
        recipe.fill("model.num_attention_heads", heads, f"{hidden // heads} dimensions per head")
    heads = recipe.get("model.num_attention_heads")
    attention = recipe.get("model.attention")
    if attention == "mha":
        recipe.fill("model.num_key_value_heads", heads, "mha: one per head")
    elif attention == "mqa":
        recipe.fill("model.num_key_value_heads", 1, "mqa: one for all heads")
    elif heads == size.num_attention_heads:
        recipe.fill("model.num_key_value_heads", size.num_key_value_heads, preset)
    else:
        recipe.fill("model.num_key_value_heads", _kv_heads_for(heads), "gqa: about a quarter of the heads")
    recipe.fill("model.head_dim", max(1, hidden // heads), "hidden_size / num_attention_heads")
    used = recipe.get("model.num_experts_per_tok") if recipe.get("model.num_experts") else 1
    if recipe.get("model.activation") in GATED:
        inner = max(32 if used > 1 else 8, round(hidden * 8 / 3 / used / 32) * 32)
        reason = "8/3 × hidden_size" + (f" / {used} experts per token" if used > 1 else "")
        recipe.fill("model.intermediate_size", inner, f"{reason}, to a multiple of 32")
    else:
        recipe.fill("model.intermediate_size", 4 * hidden, "4 × hidden_size")
    recipe.fill("model.tie_word_embeddings", size.tie_word_embeddings, preset)
    _derive_context(recipe, size, preset)
    return shape_of_parts(recipe.get("model"), vocab_size)


def _derive_context(recipe: PartialRecipe, size: Size, preset: str) -> None:
    rows = recipe.get("train.max_length") or 0
    original, factor = recipe.get("model.original_max_position_embeddings"), recipe.get("model.yarn_factor")
    is_yarn = recipe.get("model.position_embedding") == "yarn"
    if is_yarn and original:
        recipe.fill("model.max_position_embeddings", int(original * factor), "original context × yarn_factor")
    reason = preset if rows <= size.max_position_embeddings else "train.max_length"
    recipe.fill("model.max_position_embeddings", max(size.max_position_embeddings, rows), reason)
    if is_yarn:
        longest = recipe.get("model.max_position_embeddings")
        reason = "max_position_embeddings / yarn_factor"
        recipe.fill("model.original_max_position_embeddings", max(1, int(longest / factor)), reason)


def _heads_for(hidden: int) -> int:
    """Return a number of heads that divides the width: about 64 dimensions per head, fewer in narrow models."""
    wanted = max(1, hidden / (64 if hidden >= 256 else 32))
    possible = [n for n in range(1, hidden + 1) if hidden % n == 0 and (hidden // n) % 2 == 0] or [1]
    return min(possible, key=lambda n: (abs(n - wanted), n))


def _kv_heads_for(heads: int) -> int:
    possible = [n for n in range(1, heads + 1) if heads % n == 0 and n < heads] or [1]
    return min(possible, key=lambda n: (abs(n - heads / 4), n))
