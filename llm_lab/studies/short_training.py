"""Train a small model on batches that are generated as needed, with the optimizers and schedules of recipes.

For experiments whose data is not in a file (a new task in each sequence) or whose model no recipe can build (an LSTM).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from llm_lab.optim.factory import build_optimizer
from llm_lab.optim.schedule import learning_rate_factor
from llm_lab.training.cpu import keep_freed_memory

CLIP = 1.0


def train_model(
    model: nn.Module,
    loss_of_batch: Callable[[int], torch.Tensor],
    optimizer_options: Any,
    *,
    steps: int,
    schedule: str = "cosine",
    warmup_steps: int = 0,
    after_step: Callable[[int, torch.Tensor], bool | None] | None = None,
) -> None:
    """Take `steps` updates. loss_of_batch(step): returns the loss of a new batch; steps are counted from 0.

    optimizer_options: the optimizer group of a recipe. after_step(steps done, loss) may measure and save; returning
    True stops the training. The caller sets the seeds.
    """
    keep_freed_memory()
    optimizer = build_optimizer(model, optimizer_options)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: learning_rate_factor(step, name=schedule, max_steps=steps, warmup_steps=warmup_steps),
    )
    model.train()
    for step in range(steps):
        loss = loss_of_batch(step)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler.step()
        if after_step is not None:
            stop = after_step(step + 1, loss.detach())
            model.train()
            if stop:
                return
