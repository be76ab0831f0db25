"""An exponential moving average of a model's weights, which is evaluated and saved instead of the last weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

AVERAGE_FILE = "averaged_weights.safetensors"


class WeightAverage(TrainerCallback):
    """average <- decay * average + (1 - decay) * weights, after each step.

    In the first steps the decay is at most (1 + step) / (10 + step), so that the average is not stuck at the initial
    weights (as in TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        self.decay = decay
        self._weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._average = {name: weight.detach().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        torch._foreach_lerp_(list(self._average.values()), list(self._weights.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Use the averaged weights inside the context, and restore the model's own afterwards."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for name, weight in self._weights.items():
            weight.data, self._average[name] = self._average[name], weight.data

    def save(self, folder: Path) -> None:
        """Write the average to a checkpoint."""
        save_file({name: value.contiguous() for name, value in self._average.items()}, folder / AVERAGE_FILE)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Read the average of a checkpoint."""
        for name, value in load_file(folder / AVERAGE_FILE).items():
            self._average[name].copy_(value)
