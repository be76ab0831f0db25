"""The size dial: one word that fills in a sensible modern shape."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """What a size stands for; every number can still be set by hand."""

    about: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int  # with grouped-query attention
    max_position_embeddings: int
    tie_word_embeddings: bool
    tokenizer: str | int  # "bytes", or the entries of a BPE to train


# Depth and width follow published models: small is GPT-2's, 1b, 3b and 7b are near Llama 3.2 and Llama 2.
SIZES: dict[str, Shape] = {
    "nano": Shape("under 1 M parameters: minutes on a CPU", 128, 4, 4, 2, 256, True, "bytes"),
    "micro": Shape("about 3 M: the smallest that tells a story", 192, 6, 6, 2, 256, True, 2048),
    "tiny": Shape("about 11 M: an hour on a CPU, minutes on a GPU", 384, 6, 6, 2, 512, True, 4096),
    "mini": Shape("about 33 M: a first GPU run", 512, 10, 8, 4, 1024, True, 8192),
    "small": Shape("about 100 M: GPT-2's depth and width", 768, 12, 12, 4, 1024, True, 32768),
    "medium": Shape("about 310 M: GPT-2 medium's depth and width", 1024, 24, 16, 8, 2048, True, 32768),
    "large": Shape("about 670 M: GPT-2 large's width", 1536, 24, 16, 8, 2048, True, 32768),
    "1b": Shape("about 1 B: one 80 GB GPU", 2048, 20, 32, 8, 2048, False, 32768),
    "3b": Shape("about 3 B: several GPUs", 3072, 26, 24, 8, 4096, False, 65536),
    "7b": Shape("about 7 B: many GPUs", 4096, 36, 32, 8, 4096, False, 65536),
}
