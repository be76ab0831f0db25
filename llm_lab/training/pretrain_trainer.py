"""The training step of pretraining: ids in, mean loss out, compiled where it pays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import TrainerCallback

from llm_lab.estimate.machine import find_machine

from .cpu import keep_freed_memory, speed_up_products
from .cross_entropy import drawn_labels, head_for_pieces, linear_cross_entropy
from .measure import autocast
from .pretrain_data import DataProgress
from .trainer import LabTrainer


def collate(items: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Stack blocks into a batch of input_ids and shift_labels, each (rows, max_length).

    No attention mask and no positions: either would make attention leave its is_causal kernel.
    """
    return {key: torch.from_numpy(np.stack([item[key] for item in items])) for key in items[0]}


def next_token_loss(
    model: Any, input_ids: torch.Tensor, labels: torch.Tensor, device: str, dtype: str, head: nn.Linear | None = None
) -> torch.Tensor:
    """Return the mean cross-entropy of labels[i, j], the token after input_ids[i, j].

    head: what was taken off the model (see `head_for_pieces`).
    """
    with autocast(device, dtype):
        output = model(input_ids=input_ids, use_cache=False).logits.flatten(0, 1)
        if head is not None:
            return linear_cross_entropy(output, head, labels.flatten())
    return F.cross_entropy(output.float(), labels.flatten())


class PretrainTrainer(LabTrainer):
    """Trains on blocks of equal length, so that a mean of means is the mean.

    reading: what is known of the texts over the run. curvature_every: steps between two estimates of the Hessian's
    diagonal, for Sophia.
    """

    def __init__(
        self,
        *,
        compile_loss: bool,
        dtype: str,
        reading: DataProgress,
        curvature_every: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(data_collator=collate, **kwargs)
        self._reading = reading
        self.add_callback(reading)
        # dynamic=False: every batch has the same shape, and a second graph would only cost time.
        self._loss = torch.compile(next_token_loss, dynamic=False) if compile_loss else next_token_loss
        self._dtype = dtype
        if self.args.device.type == "cpu":
            keep_freed_memory()
            if dtype == "float32" and not compile_loss:
                speed_up_products(self.model, find_machine().cpu_name)
        self._last_ids: torch.Tensor | None = None
        if curvature_every is not None:
            self.add_callback(_Curvature(self, curvature_every))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        ids = self._last_ids = inputs["input_ids"]
        with head_for_pieces(self.model, ids.numel()) as head:
            return self._loss(model, ids, inputs["shift_labels"], self.args.device.type, self._dtype, head)

    def estimate_curvature(self) -> None:
        """Give the optimizer gradients of the loss on labels that the model draws itself (Sophia's estimator)."""
        model, ids = self.model_wrapped, self._last_ids
        with head_for_pieces(self.model, ids.numel()) as head, autocast(self.args.device.type, self._dtype):
            output = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)
            if head is not None:
                labels = drawn_labels(output, head)
                loss = linear_cross_entropy(output, head, labels)
        if head is None:
            labels = torch.distributions.Categorical(logits=output.detach().float()).sample()
            loss = F.cross_entropy(output.float(), labels)
        self.accelerator.backward(loss)
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        # Processes average their gradients: together they saw that many tokens.
        inner.update_hessian(labels.numel() * self.args.world_size)
        model.zero_grad()

    def extra_metrics(self) -> dict[str, Any]:
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        told = {"unclipped_share": inner.unclipped_share()} if hasattr(inner, "unclipped_share") else {}
        return told | self._reading.metrics(self.state.global_step)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        self._reading.write_stream_states(Path(output_dir), self.state.global_step)


class _Curvature(TrainerCallback):
    """Asks for an estimate after the first step, and then every so many."""

    def __init__(self, trainer: PretrainTrainer, every: int):
        self.trainer, self.every = trainer, every

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (state.global_step - 1) % self.every == 0:
            self.trainer.estimate_curvature()
