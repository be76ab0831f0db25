"""A cross-entropy that stays outside the compiled graph of the model: a variant of the training step.

Inside one graph with the model, inductor keeps more than one chunk of the logits in memory at once. Here the graph ends
at the hidden states; only the work on a chunk is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

CHUNK_BYTES = 2**29  # of float32 logits
IGNORED = -100
Chunk = Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def loss_of_chunk(
    states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, count: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (sum of the loss, gradient of the states, gradient of the logits) of a chunk.

    states: (rows, hidden_size); weight: (vocabulary, hidden_size); targets: (rows,), -100 is ignored; count: number of
    targets in all chunks, by which both gradients are divided.
    """
    logits = nn.functional.linear(states, weight).float()
    kept, chosen = (targets != IGNORED).float()[:, None], targets.clamp(min=0)[:, None]
    norm = logits.logsumexp(-1, keepdim=True)
    total = ((norm - logits.gather(1, chosen)) * kept).sum()
    is_target = torch.arange(logits.shape[1], device=logits.device)[None] == chosen
    slope = (((logits - norm).exp() - is_target.float()) * (kept / count)).to(states.dtype)
    return total, slope @ weight, slope


class _OutsideLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype, chunk: Chunk
    ) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            factor, count = weight.to(dtype), (labels != IGNORED).sum()
            total = torch.zeros((), device=hidden.device)
            grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
            # Chunks of equal size, so that few shapes are compiled.
            rows = -(-len(hidden) // -(-len(hidden) * len(weight) * 4 // CHUNK_BYTES))
            for start in range(0, len(hidden), rows):
                states = hidden[start : start + rows].to(dtype)
                loss, gradient, slope = chunk(states, factor, labels[start : start + rows], count)
                total += loss
                grad_hidden[start : start + rows] = gradient
                if hidden.is_cuda:
                    torch.addmm(grad_weight, slope.t(), states, out_dtype=torch.float32, out=grad_weight)
                else:
                    grad_weight += slope.t() @ states
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total / count

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad, grad_weight * grad, None, None, None


def outside_loss(
    hidden: torch.Tensor, head: nn.Linear, labels: torch.Tensor, chunk: Chunk = loss_of_chunk
) -> torch.Tensor:
    """Return the mean cross-entropy of `head(hidden)`: hidden (tokens, hidden_size), labels (tokens,)."""
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    return _OutsideLoss.apply(hidden, head.weight, labels, dtype, chunk)
