"""Interleaved timing (A B A B ...), so that noise on the machine affects all candidates alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds of one candidate over all rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def spread(self) -> str:
        """Return median and range in milliseconds."""
        low, high = min(self.seconds), max(self.seconds)
        return f"{1e3 * self.median:,.1f} ms ({1e3 * low:,.1f} to {1e3 * high:,.1f})"


def race(candidates: dict[str, Callable[[], object]], *, rounds: int, warmup: int = 2) -> dict[str, Timing]:
    """Time each candidate once per round, in turn."""
    for candidate in candidates.values():
        for _ in range(warmup):
            candidate()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            candidate()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}
