"""The texts over a run: how long they last, how often each is read, and where a stream goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from llm_lab.data.dataset import BlockDataset
from llm_lab.data.mixing import BlockSchedule
from llm_lab.recipe.errors import Problem, UserError
from llm_lab.runs.display import Display
from llm_lab.runs.folder import write_atomically

STREAMS_FILE = "streams.json"


def steps_that_last(order: BlockSchedule, rows_per_step: int, paths: Sequence[str]) -> int:
    """Return how many whole steps there are before a set would be read a second time.

    UserError where there is not even one.
    """
    repeat = order.first_repeat()
    steps = (order.num_samples if repeat is None else repeat) // rows_per_step
    if steps < 1:
        path = paths[order.source(repeat)]
        raise UserError(
            Problem(
                "when_exhausted",
                f"{path} ends within the first step of {rows_per_step:,} rows",
                value="stop",
                mend="Give more text, take fewer rows a step, or set when_exhausted: repeat.",
            )
        )
    return steps


def read_stream_states(checkpoint: Path | None) -> dict[str, Any]:
    """Return where the streams of a checkpoint go on, by the number of their source; {} for a new run."""
    file = checkpoint / STREAMS_FILE if checkpoint else None
    if file is None or not file.exists():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        mend = f"Delete {checkpoint}: the run then goes on from the checkpoint before it, or from the start."
        raise UserError(Problem(str(file), "this file of the checkpoint is broken", mend=mend)) from None


class Reading(TrainerCallback):
    """What was read so far: tells of a second epoch, and ends the run where a stream does.

    stop_at_end: end the run where a stream's first epoch holds no whole further step.
    """

    def __init__(
        self, dataset: BlockDataset, paths: Sequence[str], rows_per_step: int, display: Display, *, stop_at_end: bool
    ):
        self.dataset, self.paths, self.rows_per_step = dataset, list(paths), rows_per_step
        self.display, self.stop_at_end = display, stop_at_end
        self.ended: str | None = None  # the stream that ended the run

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        samples = state.global_step * self.rows_per_step
        self.dataset.consumed(samples)
        before = self.dataset.epochs(samples - self.rows_per_step)
        for path, earlier, times in zip(self.paths, before, self.dataset.epochs(samples), strict=True):
            if (earlier or 0) <= 1 < (times or 0):
                self.display.notice(f"{path}: read to its end at step {state.global_step:,}; its second epoch begins")
        if self.stop_at_end and state.global_step < state.max_steps and self.ends_before(state.global_step + 1):
            control.should_training_stop = control.should_save = control.should_evaluate = control.should_log = True

    def ends_before(self, step: int) -> bool:
        """Tell whether a stream ends before so many steps are whole; every process finds the same."""
        source = self.dataset.exhausted_by(step * self.rows_per_step)
        self.ended = None if source is None else self.paths[source]
        return source is not None

    def metrics(self, step: int) -> dict[str, Any]:
        """Return the measured shares of several sets, and how often each was read (None: a stream, not yet once)."""
        if len(self.paths) == 1:
            return {}
        samples = step * self.rows_per_step
        epochs = [None if times is None else round(times, 4) for times in self.dataset.epochs(samples)]
        return {"mix": [round(share, 4) for share in self._shares(samples)], "epochs": epochs}

    def facts(self, step: int) -> list[dict[str, Any]]:
        """Return what run.json tells of each set."""
        samples = step * self.rows_per_step
        rows = zip(self.paths, self._shares(samples), self.dataset.epochs(samples), strict=True)
        return [
            {"path": path, "share": share, "epochs": None if times is None else round(times, 4)}
            for path, share, times in rows
        ]

    def write_stream_states(self, folder: Path, step: int) -> None:
        """Write where streams go on behind a step, counting what steps have used and not what was read ahead."""
        if self.dataset.streams:
            states = self.dataset.stream_states(step * self.rows_per_step)
            write_atomically(folder / STREAMS_FILE, json.dumps(states))

    def _shares(self, samples: int) -> list[float]:
        return [count / max(1, samples) for count in self.dataset.schedule.counts(samples)]
