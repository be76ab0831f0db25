"""Faster float32 training on AMD processors: matrix products through oneDNN instead of MKL.

torch computes float32 products with MKL, which uses only AVX2 on AMD processors. On a processor with AVX-512, oneDNN
(part of torch) was 1.9 times as fast. bf16 products use oneDNN anyway.
"""

from __future__ import annotations

import ctypes
import platform
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

MIN_ROWS = 64  # for fewer rows, as in text generation, MKL is faster
KEPT_BYTES = 256 * 2**20
MAX_BLOCK_BYTES = 32 * 2**20  # glibc's upper limit for the mmap threshold
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def speed_up_products(model: nn.Module, cpu_name: str) -> bool:
    """Use oneDNN for a model's float32 products if this processor benefits; returns whether it does.

    Modules remain `nn.Linear`s with the same weights, so saving, adapters and resuming are not affected.
    """
    if "AMD" not in cpu_name or platform.machine() != "x86_64" or not torch.backends.mkldnn.is_available():
        return False
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDnnLinear
    return True


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory for the next step: page faults cost more than a small matrix product."""
    if platform.libc_ver()[0] == "glibc":
        libc: Any = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        libc.mallopt(M_MMAP_THRESHOLD, MAX_BLOCK_BYTES)


def release_freed_memory() -> None:
    """Free what `keep_freed_memory` has kept: after a step that was too large, the next ones need less memory."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


class OneDnnLinear(nn.Linear):
    """nn.Linear that uses oneDNN for float32 on a CPU, and the default path otherwise."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., in_features) to (..., out_features)."""
        rows = x.numel() // self.in_features
        plain = x.dtype == self.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if not plain or x.device.type != "cpu" or rows < MIN_ROWS:
            return super().forward(x)
        return _Product.apply(x, self.weight, self.bias)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = multiply(grad, weight.t())
        rows, inputs = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        if ctx.needs_input_grad[1]:
            # The first factor is copied row by row, so make it the narrower one.
            wide = rows.shape[1] > inputs.shape[1]
            grad_weight = multiply(inputs.t(), rows.t()).t() if wide else multiply(rows.t(), inputs.t())
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0)
        return grad_x, grad_weight, grad_bias


def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return x @ weight.T + bias in float32, computed by oneDNN. torch has no public name for this operator."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
