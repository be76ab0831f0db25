"""The loss of a language model, in training and on held-out text, in nats.

If the logits of a whole batch would be large, they are computed in chunks.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from llm_lab.data.block_dataset import ValidationBlocks
from llm_lab.estimate.cost import PIECE_OF_LOGITS_BYTES
from llm_lab.runs.processes import shares, sum_over_processes

from .cpu import OneDnnLinear, multiply
from .sharding import plain_type

IGNORED = -100
GPU_TILE = 128  # products with a vocabulary of 50,257 are 5 to 8 times slower than with 50,304 on an H100
PATIENCE_SECONDS = 2.0  # an evaluation that takes longer reports its progress
# Models whose logits are the head's product with the last hidden state and nothing else; a test checks this. Others
# scale the logits (Cohere, Granite), cap them (Gemma 2) or add something unknown: they compute all logits at once.
PLAIN_HEADS = ("llm_lab", "llama", "mistral", "qwen2", "qwen3", "gpt2")
_IDENTITY = nn.Identity()


def autocast(device: str, dtype: str) -> AbstractContextManager:
    """Return a bf16 autocast, or an empty context for float32."""
    return torch.autocast(device, torch.bfloat16) if dtype == "bfloat16" else nullcontext()


def next_token_loss(
    model: Any,
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    device: str,
    dtype: str,
    head: nn.Linear | None = None,
    balancing: float = 0.0,
) -> torch.Tensor:
    """Return the mean cross-entropy of labels[i, j], the token after input_ids[i, j].

    head: the detached output head (see `detach_large_head`), or None if the model returns logits. balancing: the weight
    of the loss that balances the experts (see `balancing_weight`), which is added to the result.
    """
    with autocast(device, dtype):
        if balancing:
            found = model(input_ids=input_ids, use_cache=False, output_router_logits=True)
            return F.cross_entropy(found.logits.flatten(0, 1).float(), labels.flatten()) + balancing * found.aux_loss
        output = model(input_ids=input_ids, use_cache=False).logits.flatten(0, 1)
        if head is not None:
            return linear_cross_entropy(output, head, labels.flatten())
    return F.cross_entropy(output.float(), labels.flatten())


def balancing_weight(model: Any) -> float:
    """Return the weight of the loss that balances a model's experts, 0 if it has none."""
    config = model.config.get_text_config()
    can = "output_router_logits" in inspect.signature(model.forward).parameters
    return float(getattr(config, "router_aux_loss_coef", None) or 0.0) if can else 0.0


@contextmanager
def detach_large_head(model: Any, tokens: int) -> Iterator[nn.Linear | None]:
    """If the logits of `tokens` tokens are too large to hold at once, detach the output head and yield it.

    Inside the context the model then returns hidden states instead of logits. Otherwise yield None and change nothing.
    The model is still called as a whole, so wrappers (data parallelism, compilation) see a complete forward pass.
    """
    head = model.get_output_embeddings()
    known = (
        model.config.model_type in PLAIN_HEADS and plain_type(head) in (nn.Linear, OneDnnLinear) and head.bias is None
    )
    known = known and not getattr(model.config, "final_logit_softcapping", None)
    if not known or 4 * tokens * head.out_features <= PIECE_OF_LOGITS_BYTES:
        yield None
        return
    model.set_output_embeddings(_IDENTITY)
    try:
        yield head
    finally:
        model.set_output_embeddings(head)


@torch.compiler.disable  # in one graph with the model, the inductor would keep several chunks of the logits at once
def linear_cross_entropy(hidden: torch.Tensor, head: nn.Linear, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of `head(hidden)`, with the gradients of both, without holding all logits.

    hidden: (tokens, hidden_size); labels: (tokens,), -100 is ignored. The gradients are computed in the forward pass,
    chunk by chunk, while the logits of a chunk are available (as in Liger Kernel, arXiv:2410.10989; see also Cut
    Cross-Entropy, arXiv:2411.09009). The matrix products are the usual ones, and none is computed twice.
    """
    return _LinearCrossEntropy.apply(hidden, head.weight, labels, _dtype(hidden), _product_of(head))


@torch.no_grad()
def summed_cross_entropy(hidden: torch.Tensor, head: nn.Linear, labels: torch.Tensor) -> torch.Tensor:
    """Return the sum of nats over tokens, for evaluation; shapes as in `linear_cross_entropy`."""
    dtype, product = _dtype(hidden), _product_of(head)
    weight = head.weight.to(dtype)
    total = torch.zeros((), device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        for chunk, targets in _chunks(hidden, labels, len(weight)):
            total += F.cross_entropy(product(chunk.to(dtype), weight).float(), targets, reduction="sum")
    return total


@torch.no_grad()
def sample_labels(hidden: torch.Tensor, head: nn.Linear) -> torch.Tensor:
    """Return a token for each hidden state, sampled from the model's own distribution: (tokens,)."""
    labels = torch.empty(len(hidden), dtype=torch.long, device=hidden.device)
    for chunk, sampled in _chunks(hidden, labels, head.out_features):
        sampled.copy_(torch.distributions.Categorical(logits=head(chunk).float()).sample())
    return labels


def _chunks(hidden: torch.Tensor, labels: torch.Tensor, vocabulary: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    most = max(1, PIECE_OF_LOGITS_BYTES // (4 * vocabulary))
    rows = (
        math.ceil(len(hidden) / max(1, math.ceil(len(hidden) / most))) or 1
    )  # chunks of about equal size, so that few shapes are compiled
    yield from zip(hidden.split(rows), labels.split(rows), strict=True)


def _dtype(hidden: torch.Tensor) -> torch.dtype:
    """Return the dtype that the head would compute in."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _product_of(head: nn.Linear) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    ours = isinstance(head, OneDnnLinear) and not torch.is_autocast_enabled("cpu")
    return multiply if ours else F.linear


def _loss_of_chunk(
    states: torch.Tensor,
    factor: torch.Tensor,
    targets: torch.Tensor,
    count: torch.Tensor,
    vocabulary: int,
    product: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (sum of the loss, gradient of the states, gradient of the logits) of a chunk.

    states: (rows, hidden_size); factor: (vocabulary and padding, hidden_size); targets: (rows,), -100 is ignored;
    count: the number of targets in all chunks, by which both gradients are divided.
    """
    logits = product(states, factor).float()
    logits[:, vocabulary:] = -math.inf
    kept = (targets != IGNORED).float()[:, None]
    chosen = targets.clamp(min=0)[:, None]
    norm = logits.logsumexp(-1, keepdim=True)
    total = ((norm - logits.gather(1, chosen)) * kept).sum()
    # From here on the memory of the logits holds their gradient: softmax minus 1 at the target.
    slope = logits.sub_(norm).exp_()
    if torch.compiler.is_compiling():  # fused with the line above; a scatter would be a separate pass
        slope.add_(torch.arange(slope.shape[1], device=slope.device) == chosen, alpha=-1)
    else:
        slope.scatter_add_(1, chosen, torch.full_like(norm, -1.0))
    slope = slope.mul_(kept / count).to(states.dtype)
    return total, product(slope, factor.t()), slope


def _padded(weight: torch.Tensor, multiple: int) -> torch.Tensor:
    """Return a head's weight with rows of zeros up to a multiple: GPUs are slow at matrix products of odd sizes."""
    missing = -len(weight) % multiple
    return F.pad(weight, (0, 0, 0, missing)) if missing else weight


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
        on_gpu, vocabulary = hidden.is_cuda, len(weight)
        # Compiled separately, a chunk is read once instead of eight times.
        loss_of_chunk = torch.compile(_loss_of_chunk, dynamic=False) if on_gpu else _loss_of_chunk
        with torch.autocast(hidden.device.type, enabled=False):
            factor = _padded(weight.to(dtype), GPU_TILE if on_gpu else 1)
            count = (labels != IGNORED).sum()
            total = torch.zeros((), device=hidden.device)
            grads = []
            # Not in bf16: the sum over all chunks would be rounded after each of them.
            grad_weight = torch.zeros(factor.shape, dtype=weight.dtype, device=weight.device)
            for chunk, targets in _chunks(hidden, labels, vocabulary):
                states = chunk.to(dtype)
                loss, gradient, slope = loss_of_chunk(states, factor, targets, count, vocabulary, product)
                total += loss
                grads.append(gradient.to(hidden.dtype))
                if on_gpu:  # avoids a float32 copy of the product
                    torch.addmm(grad_weight, slope.t(), states, out_dtype=grad_weight.dtype, out=grad_weight)
                else:
                    grad_weight += product(slope.t(), states.t())
        ctx.save_for_backward(torch.cat(grads), grad_weight[:vocabulary])
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad, grad_weight * grad, None, None, None


@dataclass(frozen=True)
class TotalLoss:
    """A sum of nats over `tokens` predicted tokens; text_nats: without the tokens that end documents.

    Bits per byte are computed from text_nats: the end of a document has no bytes.
    """

    nats: float
    tokens: int
    text_nats: float


@torch.no_grad()
def total_loss(
    model: Any,
    texts: Sequence[np.ndarray],
    *,
    max_length: int,
    rows: int,
    device: str,
    dtype: str,
    separator: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TotalLoss:
    """Return the loss summed over token arrays. In each array, every token except the first is a target once.

    separator: the token that ends a document.
    With several processes, each computes its share of the batches. progress: called with (tokens done, tokens in
    total) if the evaluation takes more than two seconds.
    """
    total = torch.zeros(3, dtype=torch.float64)
    count, done, started = sum(len(tokens) for tokens in texts), 0, time.perf_counter()
    for tokens in texts:
        blocks = ValidationBlocks(tokens, max_length)
        for number, counts in shares(math.ceil(len(blocks) / rows)):
            start = number * rows
            items = [blocks[i] for i in range(start, min(start + rows, len(blocks)))]
            ids = torch.from_numpy(np.stack([item["input_ids"] for item in items])).to(device)
            labels = torch.from_numpy(np.stack([item["shift_labels"] for item in items])).to(device)
            nats, of_separators = summed_nats(model, ids, labels, device, dtype, separator)
            count_here = (labels != IGNORED).sum()
            sums = torch.tensor([nats.item(), count_here.item(), of_separators.item()], dtype=torch.float64)
            total += counts * sums
            if time.perf_counter() - started > PATIENCE_SECONDS:
                progress(min(done + (start + rows) * max_length, count - 1), count)
        done += len(tokens)
    if time.perf_counter() - started > PATIENCE_SECONDS:
        progress(count, count)
    total = sum_over_processes(total, device)
    return TotalLoss(nats=float(total[0]), tokens=int(total[1]), text_nats=float(total[0] - total[2]))


def summed_nats(
    model: Any, ids: torch.Tensor, labels: torch.Tensor, device: str, dtype: str, separator: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of nats of a batch, and the part of it whose target is the separator.

    ids, labels: (rows, length); labels are already shifted, -100 is ignored.
    """
    targets = labels.flatten()
    ends = targets == separator if separator is not None else torch.zeros_like(targets, dtype=torch.bool)
    with detach_large_head(model, ids.numel()) as head, autocast(device, dtype):
        output = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)
        if head is not None:
            return summed_cross_entropy(output, head, targets), summed_cross_entropy(output[ends], head, targets[ends])
    output = output.float()
    return (
        F.cross_entropy(output, targets, reduction="sum"),
        F.cross_entropy(output[ends], targets[ends], reduction="sum"),
    )
