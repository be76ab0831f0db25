"""The training step of pretraining: ids in, mean loss out, compiled where it pays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from .measure import autocast
from .trainer import LabTrainer


def collate(items: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Stack blocks into a batch of input_ids and shift_labels, each (rows, max_length).

    No attention mask and no positions: either would make attention leave its is_causal kernel.
    """
    return {key: torch.from_numpy(np.stack([item[key] for item in items])) for key in items[0]}


def next_token_loss(model: Any, input_ids: torch.Tensor, labels: torch.Tensor, device: str, dtype: str) -> torch.Tensor:
    """Return the mean cross-entropy of labels[i, j], the token after input_ids[i, j]."""
    with autocast(device, dtype):
        logits = model(input_ids=input_ids, use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())


class PretrainTrainer(LabTrainer):
    """Trains on blocks of equal length, so that a mean of means is the mean."""

    def __init__(self, *, compile_loss: bool, dtype: str, **kwargs: Any):
        super().__init__(data_collator=collate, **kwargs)
        # dynamic=False: every batch has the same shape, and a second graph would only cost time.
        self._loss = torch.compile(next_token_loss, dynamic=False) if compile_loss else next_token_loss
        self._dtype = dtype

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        return self._loss(model, inputs["input_ids"], inputs["shift_labels"], self.args.device.type, self._dtype)
