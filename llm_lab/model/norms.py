"""The two normalization layers: LayerNorm and RMSNorm."""

import torch
import torch.nn.functional as F
from torch import nn

NORMS = ("layernorm", "rmsnorm")


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned gain over the last axis, of length `size` (arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Under autocast x is bf16 but the gain is float32, which the fused kernel does not support.
        return F.rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


def make_norm(name: str, size: int, eps: float) -> nn.Module:
    """Return the norm `name` over the last axis; LayerNorm has gain and bias (arXiv:1607.06450)."""
    return RMSNorm(size, eps) if name == "rmsnorm" else nn.LayerNorm(size, eps)
