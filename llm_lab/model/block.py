"""A pre-norm decoder block, composed of given modules."""

from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import Attention
from .feed_forward import FeedForward


class Block(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + feed_forward(norm(x)). Shape: (batch, length, hidden_size)."""

    def __init__(
        self,
        attention: Attention,
        feed_forward: FeedForward,
        input_layernorm: nn.Module,
        post_attention_layernorm: nn.Module,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.self_attn = attention
        self.mlp = feed_forward
        self.input_layernorm = input_layernorm
        self.post_attention_layernorm = post_attention_layernorm
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        attended, _ = self.self_attn(self.input_layernorm(x), **kwargs)
        x = x + self.dropout(attended)
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))
