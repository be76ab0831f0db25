"""Two models for comparison with a Transformer: an LSTM, and a network that sees one position at a time."""

from __future__ import annotations

import torch
from torch import nn

from llm_lab.model.feed_forward import FeedForward
from llm_lab.model.norms import RMSNorm


class LstmModel(nn.Module):
    """Embeddings, an LSTM, and a language model head: a memory of fixed size instead of attention."""

    def __init__(self, vocab_size: int, hidden_size: int, layers: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, hidden_size)
        self.lstm = nn.LSTM(hidden_size, hidden_size, layers, batch_first=True)
        self.lm_head = nn.Linear(hidden_size, vocab_size, bias=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Map token ids (batch, length) to logits (batch, length, vocab_size)."""
        return self.lm_head(self.lstm(self.embed_tokens(input_ids))[0])


class PositionModel(nn.Module):
    """A Transformer without its attention: each position sees only its own token."""

    def __init__(self, vocab_size: int, hidden_size: int, intermediate_size: int, layers: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, hidden_size)
        self.norms = nn.ModuleList(RMSNorm(hidden_size, 1e-6) for _ in range(layers))
        self.layers = nn.ModuleList(
            FeedForward(hidden_size, intermediate_size, "swiglu", bias=False) for _ in range(layers)
        )
        self.norm = RMSNorm(hidden_size, 1e-6)
        self.lm_head = nn.Linear(hidden_size, vocab_size, bias=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Map token ids (batch, length) to logits (batch, length, vocab_size)."""
        x = self.embed_tokens(input_ids)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.lm_head(self.norm(x))


def logits_of(model: nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    """Return the logits (batch, length, vocab_size) of one of these models, or of a Hugging Face model."""
    output = model(input_ids)
    return output if isinstance(output, torch.Tensor) else output.logits
