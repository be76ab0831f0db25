"""Loss on held-out text, and texts the model writes: measured without touching the run's random state."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from llm_lab.data.block_dataset import ValidationBlocks

from .cross_entropy import head_for_pieces, summed_cross_entropy

PATIENCE_SECONDS = 2.0  # an evaluation that takes longer tells how far it is


def autocast(device: str, dtype: str) -> AbstractContextManager:
    """Return bf16 autocast, or nothing for float32."""
    return torch.autocast(device, torch.bfloat16) if dtype == "bfloat16" else nullcontext()


@torch.no_grad()
def total_loss(
    model: Any,
    texts: Sequence[np.ndarray],
    *,
    max_length: int,
    rows: int,
    device: str,
    dtype: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[float, int]:
    """Return (sum of nats, number of tokens predicted) over token arrays, each token a target once.

    With several processes each takes its share of the batches. progress: told (tokens done, tokens in all) of an
    evaluation that takes more than two seconds.
    """
    rank, world = 0, 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    total = torch.zeros(2, dtype=torch.float64)
    count, done, begun = sum(len(tokens) for tokens in texts), 0, time.perf_counter()
    for tokens in texts:
        blocks = ValidationBlocks(tokens, max_length)
        for number, start in enumerate(range(0, len(blocks), rows)):
            if number % world != rank:
                continue
            items = [blocks[i] for i in range(start, min(start + rows, len(blocks)))]
            ids = torch.from_numpy(np.stack([item["input_ids"] for item in items])).to(device)
            labels = torch.from_numpy(np.stack([item["shift_labels"] for item in items])).to(device)
            nats = summed_nats(model, ids, labels, device, dtype)
            total += torch.tensor([nats.item(), (labels != -100).sum().item()], dtype=torch.float64)
            if time.perf_counter() - begun > PATIENCE_SECONDS:
                progress(min(done + (start + rows) * max_length, count - 1), count)
        done += len(tokens)
    if time.perf_counter() - begun > PATIENCE_SECONDS:
        progress(count, count)
    if world > 1:
        total = total.to(device)
        torch.distributed.all_reduce(total)
    return float(total[0]), int(total[1])


def summed_nats(model: Any, ids: torch.Tensor, labels: torch.Tensor, device: str, dtype: str) -> torch.Tensor:
    """Return the sum of nats of a batch: ids and labels (rows, length), labels as they follow, -100 left out."""
    with head_for_pieces(model, ids.numel()) as head, autocast(device, dtype):
        output = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)
        if head is not None:
            return summed_cross_entropy(output, head, labels.flatten())
    return F.cross_entropy(output.float(), labels.flatten(), reduction="sum")


@torch.no_grad()
def write_sample(
    model: Any, tokenizer: Any, prompt: str, *, max_new_tokens: int, temperature: float, seed: int, dtype: str
) -> str:
    """Return the model's continuation of a prompt. Same seed, same text; the run's random state is kept."""
    device = model.device
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    inputs = torch.tensor([ids or [start]], device=device)
    cuda = [device] if device.type == "cuda" else []
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
    with torch.random.fork_rng(devices=cuda), autocast(device.type, dtype):
        torch.manual_seed(seed)
        output = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **sampling,
        )
    return tokenizer.decode(output[0, inputs.shape[1] :], skip_special_tokens=True)
