"""Batch-size warm-up: early steps train on fewer rows.

While the loss falls fast, a token helps more in a small batch (McCandlish et al. 2018, arXiv:1812.06162). GPT-3 grew
its batches over the first 4 to 12 billion tokens.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

AT_FIRST = 4  # a batch has a quarter of its rows in the first half of the warm-up, half of them in the second


@dataclass(frozen=True)
class StepRows:
    """The number of rows that each step trains on; steps are counted from 0.

    rows: per full step, over all batches and processes. at_once: per batch; a multiple of 4 if there is a warm-up.
    """

    rows: int
    at_once: int
    warmup_steps: int = 0

    def before(self, step: int) -> int:
        """Return the rows of all steps before this one."""
        quarters = (self.warmup_steps + 1) // 2
        quarter, half = min(step, quarters), min(max(0, step - quarters), self.warmup_steps - quarters)
        return self.rows // AT_FIRST * quarter + self.rows // 2 * half + self.rows * max(0, step - self.warmup_steps)

    def whole_steps(self, rows: int, most: int) -> int:
        """Return the number of steps that these rows fill, at most `most`."""
        return bisect_right(range(most + 1), rows, key=self.before) - 1

    def row_at(self, place: int) -> int | None:
        """Return the row at a place, or None if it is empty. All steps have as many places as a full step.

        Each batch starts with its rows, so that all batches of a step have the same number, in every process.
        """
        step, within = divmod(place, self.rows)
        batch, offset = divmod(within, self.at_once)
        kept = self.at_once * (self.before(step + 1) - self.before(step)) // self.rows
        return self.before(step) + batch * kept + offset if offset < kept else None


def step_rows(train: Mapping[str, Any], processes: int) -> StepRows:
    """Return the rows of each step. train: the group `train` of a resolved recipe."""
    at_once = train["per_device_train_batch_size"]
    rows = at_once * train["gradient_accumulation_steps"] * processes
    return StepRows(rows, at_once, train.get("batch_size_warmup_steps") or 0)
