"""The model's parts: what can be chosen, and what each choice means."""

from __future__ import annotations

from typing import Literal

from .fields import Bool, Float, Group, Int, option
from .sizes import SIZES

POSITIONS = {
    "rope": "rotary: turns queries and keys by their position; today's standard",
    "yarn": "rotary, stretched to contexts longer than it was trained on",
    "alibi": "no vectors: a penalty that grows with distance; runs past its length",
    "sinusoidal": "fixed waves added to the embeddings; the original Transformer",
}
NORMS = {
    "rmsnorm": "scales by the root mean square; cheaper, today's standard",
    "layernorm": "subtracts the mean too and has a bias; GPT-2's",
}
ATTENTIONS = {
    "gqa": "grouped-query: several heads share keys and values; small cache",
    "mha": "multi-head: each head has its own keys and values; most expressive",
    "mqa": "multi-query: all heads share one key and value; smallest cache",
}
ACTIVATIONS = {
    "swiglu": "gated SiLU, three matrices; best loss per parameter in most studies",
    "gelu": "smooth ReLU; GPT-2's and BERT's",
    "silu": "x times sigmoid(x), ungated",
    "relu": "the classic: zero below zero; many exact zeros",
    "leaky_relu": "ReLU with a small slope below zero",
}
SIZE_CHOICES = {name: shape.about for name, shape in SIZES.items()}
ROTARY = {"model.position_embedding": ("rope", "yarn")}
YARN = {"model.position_embedding": ("yarn",)}


class ModelParts(Group):
    """A model from parts. A left-out number comes from `size`."""

    size: Literal[tuple(SIZE_CHOICES)] = option(
        "nano",
        help="the dial: fills in every number below that is left out",
        question="How large?",
        choices=SIZE_CHOICES,
        why="Loss falls with parameters and with tokens; about 20 tokens a parameter is the best use of "
        "compute (Hoffmann et al. 2022). Start small: a nano run shows in minutes whether data and "
        "settings are right.",
    )
    position_embedding: Literal[tuple(POSITIONS)] = option(
        "rope",
        help="how the model knows the order of tokens",
        question="How does the model know positions?",
        choices=POSITIONS,
        why="RoPE (Su et al. 2021) encodes relative distance by rotation and is what Llama, Qwen and "
        "Mistral use. YaRN (Peng et al. 2023) rescales its frequencies to reach longer contexts. ALiBi "
        "(Press et al. 2021) extrapolates without training but is slower in most kernels. Sinusoids "
        "(Vaswani et al. 2017) are for study. RoPE and YaRN with RMSNorm and SwiGLU load natively "
        "everywhere; other combinations carry their own code.",
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
        help="how many times the original context YaRN stretches to",
        question="Stretch the context how many times (YaRN factor)?",
        why="max_position_embeddings = original_max_position_embeddings × factor. Frequencies that turn "
        "many times within the original context stay, slow ones are interpolated, those between ramp.",
        ge=1.0,
        le=1024.0,
        when=YARN,
    )
    original_max_position_embeddings: Int | None = option(
        help="the context before YaRN stretches it, in tokens",
        question="Context before stretching, in tokens?",
        derived="max_position_embeddings / yarn_factor",
        ge=1,
        when=YARN,
        advanced=True,
    )
    norm: Literal[tuple(NORMS)] = option(
        "rmsnorm",
        help="what keeps activations in range",
        question="Which normalisation?",
        choices=NORMS,
        why="Both stand before attention and feed-forward (pre-norm), which trains stably without tricks. "
        "RMSNorm (Zhang & Sennrich 2019) drops the mean and the bias and loses nothing measurable.",
    )
    norm_eps: Float = option(
        1e-5, help="added under the root of the norm", question="Epsilon of the norm?", gt=0.0, le=0.1, advanced=True
    )
    attention: Literal[tuple(ATTENTIONS)] = option(
        "gqa",
        help="how many heads share keys and values",
        question="Which attention?",
        choices=ATTENTIONS,
        why="Keys and values are what generation must remember. Sharing them (Shazeer 2019; Ainslie et al. "
        "2023) cuts that memory by the number of heads that share, at little cost in loss.",
    )
    activation: Literal[tuple(ACTIVATIONS)] = option(
        "swiglu",
        help="the non-linearity of the feed-forward part",
        question="Which feed-forward?",
        choices=ACTIVATIONS,
        why="SwiGLU (Shazeer 2020) has three matrices, so its inner size is made two thirds as large: equal "
        "parameters, usually lower loss. ReLU and GELU have two matrices of four times hidden_size.",
    )
    hidden_size: Int | None = option(
        help="width: numbers per token between the layers",
        question="Width (hidden_size)?",
        candidates=(64, 96, 128, 192, 256, 320, 384, 512, 640, 768, 1024, 1280, 1536, 2048, 2560, 3072, 4096),
        derived="from size",
        ge=8,
        le=65536,
    )
    num_hidden_layers: Int | None = option(
        help="depth: how many blocks",
        question="Depth (num_hidden_layers)?",
        derived="from size",
        ge=1,
        le=512,
    )
    num_attention_heads: Int | None = option(
        help="query heads; must divide hidden_size",
        question="How many attention heads?",
        candidates=(1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64),
        why="Each head sees hidden_size / heads numbers. 64 to 128 a head is usual; fewer than 16 is little.",
        derived="from size, or hidden_size / 64",
        ge=1,
        le=1024,
    )
    num_key_value_heads: Int | None = option(
        help="key-value heads; must divide the heads",
        question="How many key-value heads?",
        candidates=(1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32),
        derived="heads for mha, 1 for mqa, from size or about heads / 4 for gqa",
        ge=1,
        le=1024,
        when={"model.attention": ("gqa",)},
    )
    head_dim: Int | None = option(
        help="numbers per head",
        question="Numbers per head (head_dim)?",
        derived="hidden_size / num_attention_heads",
        ge=2,
        le=1024,
        advanced=True,
    )
    intermediate_size: Int | None = option(
        help="inner width of the feed-forward part",
        question="Inner width of the feed-forward (intermediate_size)?",
        derived="8/3 × hidden_size for swiglu, 4 × hidden_size otherwise",
        ge=8,
        le=262144,
        advanced=True,
    )
    max_position_embeddings: Int | None = option(
        help="longest context the model is meant for, in tokens",
        question="Longest context, in tokens?",
        derived="from size, at least train.max_length",
        ge=8,
        le=10_000_000,
    )
    tie_word_embeddings: Bool | None = option(
        help="one matrix for embedding and output",
        question="Share the embedding and output matrices?",
        why="Tying saves vocabulary × hidden_size parameters: much in a small model, little in a large one.",
        derived="from size: true up to large",
        advanced=True,
    )
    attention_bias: Bool = option(False, help="biases in q, k, v, o", question="Biases in attention?", advanced=True)
    mlp_bias: Bool = option(
        False, help="biases in the feed-forward", question="Biases in the feed-forward?", advanced=True
    )
    qk_norm: Bool = option(
        False,
        help="RMSNorm on queries and keys, as in Qwen3",
        question="Normalise queries and keys (QK-norm)?",
        why="Keeps attention scores in range at high learning rates (Henry et al. 2020).",
        advanced=True,
    )
    sliding_window: Int | None = option(
        help="each token sees only this many before it, itself counted; null: all",
        question="Sliding window, in tokens (empty: none)?",
        why="Mistral's: attention costs stay linear in the context; layers pass information on.",
        ge=2,
        advanced=True,
    )
    dropout: Float = option(
        0.0,
        help="dropout on embeddings and on each block's output",
        question="Dropout?",
        why="0 where data is seen once; 0.1 to 0.2 where a small text is read many times.",
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
    """A Hugging Face-format config.json: a known shape, pretrained from scratch."""

    config: str = option(
        ...,
        help="a folder or file with config.json (Design a model writes one), or a name on the Hub",
        min_length=1,
    )


class ModelCheckpoint(Group):
    """Trained weights to go on from."""

    checkpoint: str = option(..., help="a run, a Hugging Face folder, or a name on the Hub", min_length=1)
