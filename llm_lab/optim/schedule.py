"""The learning rate over a run, as a factor of the peak. The trainer applies it; the plan draws it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any


def learning_rate_factor(
    update: int,
    *,
    name: str,
    max_steps: int,
    warmup_steps: int,
    min_ratio: float = 0.0,
    power: float = 2.0,
    decay_ratio: float = 0.2,
) -> float:
    """Return the factor for one update, counted from 0.

    It rises to 1 at the last warm-up update, never rises again, is exactly `min_ratio` at the last update, and stays
    there past the end. power: exponent of the polynomial schedule. decay_ratio: share of the run in which the wsd
    schedule decays.
    """
    if update < warmup_steps:
        return (update + 1) / warmup_steps
    if name == "none":
        return 1.0
    start = max(0, warmup_steps - 1)
    if name == "wsd":
        start = max(start, max_steps - 1 - max(1, round(decay_ratio * max_steps)))
    progress = min(1.0, max(0.0, (update - start) / max(1, max_steps - 1 - start)))
    left = {
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
        "linear": 1.0 - progress,
        "wsd": 1.0 - progress,
        "polynomial": (1.0 - progress) ** power,
    }[name]
    return min_ratio + (1.0 - min_ratio) * left


def factor_of(scheduler: Mapping[str, Any], max_steps: int, *, scale: float = 1.0) -> Callable[[int], float]:
    """Return a function update -> factor for the scheduler of a resolved recipe, whose warm-up is in steps.

    scale: multiplies all factors, for a run that has returned to a checkpoint with a smaller learning rate.
    """
    options = {key: value for key, value in scheduler.items() if key not in ("warmup_ratio", "weight_decay")}

    def factor(update: int) -> float:
        return scale * learning_rate_factor(update, max_steps=max_steps, **options)

    return factor


def decay_factor_of(scheduler: Mapping[str, Any], max_steps: int) -> Callable[[int], float] | None:
    """Return a function update -> share of the weight decay, or None if it is constant."""
    if scheduler["weight_decay"] == "constant":
        return None
    return lambda update: max(0.0, 1.0 - update / max_steps)
