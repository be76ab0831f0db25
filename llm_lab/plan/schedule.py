"""The learning rate over a run, as a factor of the peak: the trainer follows it, the wizard draws it."""

from __future__ import annotations

import math
from collections.abc import Callable

CURVES: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1.0 - progress,
    "none": lambda progress: 1.0,
}


def learning_rate_factor(update: int, *, name: str, max_steps: int, warmup_steps: int, min_ratio: float = 0.0) -> float:
    """Return the factor for one update, counted from 0.

    It rises to 1 at the last warm-up update, never rises after it, is exactly `min_ratio` at the last
    update, and stays there past the end. A run of one update makes it at the peak.
    """
    if update < warmup_steps:
        return (update + 1) / warmup_steps
    start = max(0, warmup_steps - 1)
    span = max(1, max_steps - 1 - start)
    progress = min(1.0, (update - start) / span)
    floor = 1.0 if name == "none" else min_ratio
    return floor + (1.0 - floor) * CURVES[name](progress)
