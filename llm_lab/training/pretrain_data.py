"""The texts over a run: how long they last, how often each is read, and where a stream goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from llm_lab.data.block_dataset import BlockDataset, BlockStream, StreamTokens
from llm_lab.data.mixing import build_schedule
from llm_lab.errors import Problem, UserError
from llm_lab.events import Listener, Notice, RunWarning
from llm_lab.recipe.pretrain import PretrainRecipe
from llm_lab.runs.folder import write_atomically
from llm_lab.runs.processes import process_count

if TYPE_CHECKING:
    from llm_lab.stages.pretrain import TokenizedData

STREAMS_FILE = "streams.json"


def begin_reading(
    recipe: PretrainRecipe, texts: TokenizedData, checkpoint: Path | None, listener: Listener
) -> DataProgress:
    """Plan what is read when, over as many steps as the sets last; streams go on where the checkpoint left them.

    UserError where when_exhausted is stop and not even one step can be filled.
    """
    train, scheduler = recipe.train, recipe.scheduler.model_dump()
    paths = [source.path for source in texts.sources]
    rows_per_step = train.per_device_train_batch_size * train.gradient_accumulation_steps * process_count()
    plan_order = partial(
        build_schedule,
        [None if isinstance(tokens, StreamTokens) else len(tokens.train) for tokens in texts.tokens],
        [source.weight for source in recipe.data],
        max_length=train.max_length,
        seed=recipe.seed,
    )
    order, steps, exhausted = plan_order(num_samples=train.max_steps * rows_per_step), train.max_steps, None
    repeat = order.first_repeat() if recipe.when_exhausted == "stop" else None
    if repeat is not None:
        steps, ends = repeat // rows_per_step, paths[order.source(repeat)]
        _require_a_step(steps, ends, rows_per_step)
        listener(Notice(f"{ends}: used up after {steps:,} steps, so the run ends there, not at {train.max_steps:,}"))
        exhausted = {"path": ends, "step": steps, "max_steps": train.max_steps}
        if scheduler["warmup_steps"] >= steps:
            scheduler["warmup_steps"] = steps // 20
            listener(RunWarning(f"warm-up is cut to {steps // 20:,} steps, to fit the shorter run"))
        order = plan_order(num_samples=steps * rows_per_step)
    states = read_stream_states(checkpoint)
    dataset = BlockDataset(
        order,
        [
            BlockStream(tokens.source, texts.tokenizer, max_length=train.max_length, state=states.get(str(number)))
            if isinstance(tokens, StreamTokens)
            else tokens.train
            for number, tokens in enumerate(texts.tokens)
        ],
    )
    reading = DataProgress(dataset, paths, steps, rows_per_step, recipe, scheduler, listener)
    reading.exhausted = exhausted
    for source, epochs, count in zip(texts.sources, order.epochs(), order.counts(), strict=True):
        if epochs is not None:
            what = f"read {epochs:.2f} times over the run"
        else:
            what = f"{count * train.max_length:,} tokens of the stream are read over the run"
            what += "; where it ends before, the run ends too" if reading.stops_at_end else ""
        listener(Notice(f"{source.key}: {what}"))
    if checkpoint is None and reading.ends_before(1):
        _require_a_step(0, reading.ended_by or "", rows_per_step)
    return reading


def _require_a_step(steps: int, path: str, rows_per_step: int) -> None:
    if steps < 1:
        raise UserError(
            Problem(
                "when_exhausted",
                f"{path} ends within the first step of {rows_per_step:,} rows",
                value="stop",
                fix="Give more text, take fewer rows a step, or set when_exhausted: repeat.",
            )
        )


def read_stream_states(checkpoint: Path | None) -> dict[str, Any]:
    """Return where the streams of a checkpoint go on, by the number of their source; {} for a new run."""
    file = checkpoint / STREAMS_FILE if checkpoint else None
    if file is None or not file.exists():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        fix = f"Delete {checkpoint}: the run then goes on from the checkpoint before it, or from the start."
        raise UserError(Problem(str(file), "this file of the checkpoint is broken", fix=fix)) from None


class DataProgress(TrainerCallback):
    """What is read over `steps` steps, and what was read so far: tells of a second epoch, and ends the run where
    a stream ends, if when_exhausted says so.

    scheduler: the recipe's, fitted to these steps. exhausted: which set ends the run, and when, once that is known.
    """

    def __init__(
        self,
        dataset: BlockDataset,
        paths: Sequence[str],
        steps: int,
        rows_per_step: int,
        recipe: PretrainRecipe,
        scheduler: dict[str, Any],
        listener: Listener,
    ):
        self.dataset, self.paths, self.steps, self.rows_per_step = dataset, list(paths), steps, rows_per_step
        self.scheduler, self.listener, self._max_steps = scheduler, listener, recipe.train.max_steps
        self.stops_at_end = recipe.when_exhausted == "stop" and bool(dataset.streams)
        self.ended_by: str | None = None  # the stream that holds no further step
        self.exhausted: dict[str, Any] | None = None

    @property
    def has_ended(self) -> bool:
        return self.ended_by is not None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        samples = state.global_step * self.rows_per_step
        self.dataset.consumed(samples)
        before = self.dataset.epochs(samples - self.rows_per_step)
        for path, earlier, times in zip(self.paths, before, self.dataset.epochs(samples), strict=True):
            if (earlier or 0) <= 1 < (times or 0):
                self.listener(Notice(f"{path}: read to its end at step {state.global_step:,}; its second epoch begins"))
        if state.global_step < self.steps and self.ends_before(state.global_step + 1):
            path = self.ended_by
            self.listener(
                Notice(f"{path}: used up, so the run ends at step {state.global_step:,} of {self._max_steps:,}")
            )
            control.should_training_stop = control.should_save = control.should_evaluate = control.should_log = True

    def ends_before(self, step: int) -> bool:
        """Tell whether a stream ends the run before so many steps are whole; every process finds the same."""
        if not self.stops_at_end:
            return False
        source = self.dataset.exhausted_by(step * self.rows_per_step)
        if source is not None:
            self.ended_by = self.paths[source]
            self.exhausted = {"path": self.ended_by, "step": step - 1, "max_steps": self._max_steps}
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
