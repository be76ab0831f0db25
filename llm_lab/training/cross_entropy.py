"""Cross-entropy of the next token. Where all logits of a batch would be large, they are made in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from llm_lab.estimate.cost import PIECE_OF_LOGITS_BYTES

from .cpu import OneDnnLinear, multiply

IGNORED = -100
# Their logits are the head's product with the last hidden state and nothing else, as a test holds. Others scale
# them (Cohere, Granite), cap them (Gemma 2) or add what we do not know: they keep the plain way.
PLAIN_HEADS = ("llm_lab", "llama", "mistral", "qwen2", "qwen3", "gpt2")
_HANDS_ON = nn.Identity()


@contextmanager
def head_for_pieces(model: Any, tokens: int) -> Iterator[nn.Linear | None]:
    """Where the logits of so many tokens are too large to be held at once, let the model give its hidden states
    in their place and yield the head that was taken off; else yield None, and it gives logits.

    The model is still called as a whole, so that what wraps it (data parallelism, compilation) sees a whole forward.
    """
    head = model.get_output_embeddings()
    known = model.config.model_type in PLAIN_HEADS and type(head) in (nn.Linear, OneDnnLinear) and head.bias is None
    if not known or 4 * tokens * head.out_features <= PIECE_OF_LOGITS_BYTES:
        yield None
        return
    model.set_output_embeddings(_HANDS_ON)
    try:
        yield head
    finally:
        model.set_output_embeddings(head)


def linear_cross_entropy(hidden: torch.Tensor, head: nn.Linear, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of `head(hidden)`, with the gradients of both, without holding all logits.

    hidden: (tokens, hidden_size); labels: (tokens,), -100 is left out. The gradients are made in the forward pass,
    piece by piece, while a piece's logits are at hand (as in Liger Kernel, arXiv:2410.10989; see also Cut
    Cross-Entropy, arXiv:2411.09009): the products are those of the plain way, none is made twice.
    """
    return _LinearCrossEntropy.apply(hidden, head.weight, labels, _dtype(hidden), _product_of(head))


@torch.no_grad()
def summed_cross_entropy(hidden: torch.Tensor, head: nn.Linear, labels: torch.Tensor) -> torch.Tensor:
    """Return the sum of nats over tokens, for measuring: shapes as above."""
    dtype, product = _dtype(hidden), _product_of(head)
    weight = head.weight.to(dtype)
    total = torch.zeros((), device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        for piece, targets in _pieces(hidden, labels, len(weight)):
            total += F.cross_entropy(product(piece.to(dtype), weight).float(), targets, reduction="sum")
    return total


@torch.no_grad()
def drawn_labels(hidden: torch.Tensor, head: nn.Linear) -> torch.Tensor:
    """Return a token for each hidden state, drawn from the model's own distribution: (tokens,)."""
    labels = torch.empty(len(hidden), dtype=torch.long, device=hidden.device)
    for piece, drawn in _pieces(hidden, labels, head.out_features):
        drawn.copy_(torch.distributions.Categorical(logits=head(piece).float()).sample())
    return labels


def _pieces(hidden: torch.Tensor, labels: torch.Tensor, vocabulary: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    rows = max(1, PIECE_OF_LOGITS_BYTES // (4 * vocabulary))
    yield from zip(hidden.split(rows), labels.split(rows), strict=True)


def _dtype(hidden: torch.Tensor) -> torch.dtype:
    """Return what the head would multiply in."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _product_of(head: nn.Linear) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    ours = isinstance(head, OneDnnLinear) and not torch.is_autocast_enabled("cpu")
    return multiply if ours else F.linear


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        dtype: torch.dtype,
        product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            factor = weight.to(dtype)
            count = (labels != IGNORED).sum()
            total = torch.zeros((), device=hidden.device)
            grads = []
            # The sum over all pieces must not be rounded to bf16 after each.
            grad_weight = torch.zeros_like(weight)
            for piece, targets in _pieces(hidden, labels, len(weight)):
                states = piece.to(dtype)
                logits = product(states, factor).float()
                kept = (targets != IGNORED).float()[:, None]
                chosen = targets.clamp(min=0)[:, None]
                norm = logits.logsumexp(-1, keepdim=True)
                total += ((norm - logits.gather(1, chosen)) * kept).sum()
                # From here on the logits' memory holds their gradient: softmax less one for the target.
                slope = logits.sub_(norm).exp_()
                slope.scatter_add_(1, chosen, torch.full_like(norm, -1.0))
                slope = slope.mul_(kept / count).to(dtype)
                grads.append(product(slope, factor.t()).to(hidden.dtype))
                grad_weight += product(slope.t(), states.t())
        ctx.save_for_backward(torch.cat(grads), grad_weight)
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad, grad_weight * grad, None, None, None
