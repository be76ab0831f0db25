"""The feed-forward network, plain or gated."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


def relu_squared(x: torch.Tensor) -> torch.Tensor:
    """The square of ReLU (So et al., Primer, arXiv:2109.08668)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "relu2": relu_squared,
    "gelu": F.gelu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "swiglu": F.silu,
    "geglu": F.gelu,
    "reglu": F.relu,
}
GATED = ("swiglu", "geglu", "reglu")  # the activation of one projection multiplies another (Shazeer, arXiv:2002.05202)


class FeedForward(nn.Module):
    """Up projection, activation, down projection; with a gate projection, as in Llama, for the gated activations."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str, bias: bool) -> None:
        super().__init__()
        self.gated = activation in GATED
        self.activation = ACTIVATIONS[activation]
        if self.gated:
            self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=bias)
        self.down_proj.adds_to_residual = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., hidden_size) to the same shape."""
        if self.gated:
            return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
        return self.down_proj(self.activation(self.up_proj(x)))
