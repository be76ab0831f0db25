"""The data of a pretraining run: open and tokenize it, plan the order of reading, and track progress.

Also used after training, to measure a model on its run's own validation split.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from llm_lab.data.block_dataset import BlockDataset, BlockStream, GrowingBatches, StreamTokens, prepare_stream
from llm_lab.data.encoding import (
    TokenSet,
    default_cache_dir,
    prepare_tokens,
    tokenizer_fingerprint,
    trained_elsewhere,
)
from llm_lab.data.mixing import build_schedule
from llm_lab.data.sources import TextSource, open_source
from llm_lab.data.streams import StreamSource, hold_out, open_stream
from llm_lab.errors import Problem, UserError
from llm_lab.estimate.batch_warmup import StepRows, step_rows
from llm_lab.events import Listener, Notice, RunWarning, progress_of
from llm_lab.recipe.pretrain import DataSource, PretrainRecipe
from llm_lab.runs.disk import write_atomically
from llm_lab.runs.processes import process_count, read_once

STREAMS_FILE = "streams.json"


@dataclass(frozen=True)
class TokenizedData:
    """The data of a run: the sources, the tokens of each, and the tokenizer."""

    tokenizer: Any
    sources: list[TextSource | StreamSource]
    tokens: list[TokenSet | StreamTokens]


def open_sources(recipe: PretrainRecipe) -> list[TextSource | StreamSource]:
    """Open every data source; hold out the start of streams. Raises UserError with the problems of all sources."""
    sources: list[TextSource | StreamSource] = []
    problems: list[Problem | str] = []
    for index, source in enumerate(recipe.data):
        try:
            sources.append(_open(source, f"data.{index}", recipe))
        except UserError as error:
            problems.extend(error.problems)
    if problems:
        raise UserError(*problems)
    return sources


def _open(source: DataSource, key: str, recipe: PretrainRecipe) -> TextSource | StreamSource:
    named: dict[str, Any] = {"subset": source.subset, "split": source.split, "text_column": source.text_column}
    if not source.streaming:
        return open_source(source.path, key=key, **named)
    held_out = recipe.validation.stream_documents if recipe.validation.fraction > 0 else 0
    return hold_out(open_stream(source.path, key=key, **named), held_out)


def tokenize_sources(
    recipe: PretrainRecipe, sources: Sequence[TextSource | StreamSource], tokenizer: Any, listener: Listener
) -> list[TokenSet | StreamTokens]:
    """Return the tokens of every source, split into training and validation."""
    fingerprint = tokenizer_fingerprint(tokenizer)
    tokens: list[TokenSet | StreamTokens] = []
    files, validation = [source for source in sources if isinstance(source, TextSource)], recipe.validation
    left_out: dict[int, Any] = {}
    if len(files) > 1 and validation.from_ == "end" and validation.fraction > 0:
        hashes = trained_elsewhere(files, fraction=validation.fraction, cache_dir=default_cache_dir())
        left_out = {id(source): found for source, found in zip(files, hashes, strict=True)}
    for source in sources:
        found: TokenSet | StreamTokens
        if isinstance(source, StreamSource):
            found = prepare_stream(source, tokenizer)
        else:
            found = prepare_tokens(
                source,
                tokenizer,
                tokenizer_fingerprint=fingerprint,
                fraction=recipe.validation.fraction,
                take=recipe.validation.from_,
                max_length=recipe.train.max_length,
                cache_dir=default_cache_dir(),
                left_out=left_out.get(id(source)),
                progress=progress_of(listener, f"tokenizing {source.key}"),
            )
        listener(Notice(f"{source.key}: {found.description}"))
        tokens.append(found)
    return tokens


def validation_tokens(tokens: Sequence[TokenSet | StreamTokens], max_tokens: int) -> tuple[list[Any], int]:
    """Return the validation tokens that are measured, one array per source, and the bytes of text that they predict.

    The first token of each array is not predicted, so its bytes do not count.
    """
    each = max(1, max_tokens // len(tokens))
    measured = [part for part in tokens if len(part.validation) > 1]
    size = sum(int(part.validation_sizes[1:each].sum()) for part in measured)
    return [part.validation[:each] for part in measured], size


def plan_reading(
    recipe: PretrainRecipe, data: TokenizedData, checkpoint: Path | None, listener: Listener
) -> DataProgress:
    """Plan the order of reading, for as many steps as the data allows; streams resume at the checkpoint's position.

    Raises UserError if when_exhausted is stop and the data does not fill even one step.
    """
    train, scheduler = recipe.train, recipe.scheduler.model_dump()
    paths = [source.path for source in data.sources]
    rows = step_rows(train.model_dump(), process_count())
    plan_order = partial(
        build_schedule,
        [None if isinstance(tokens, StreamTokens) else len(tokens.train) for tokens in data.tokens],
        [source.weight for source in recipe.data],
        max_length=train.max_length,
        seed=recipe.seed,
    )
    order, steps, exhausted = plan_order(num_samples=rows.before(train.max_steps)), train.max_steps, None
    repeat = order.first_repeat() if recipe.when_exhausted == "stop" else None
    if repeat is not None:
        steps, ends = rows.whole_steps(repeat, train.max_steps), paths[order.source(repeat)]
        _require_a_step(steps, ends, rows.before(1))
        listener(
            Notice(f"{ends}: exhausted after {steps:,} steps, so the run stops there instead of at {train.max_steps:,}")
        )
        exhausted = {"path": ends, "step": steps, "max_steps": train.max_steps}
        if scheduler["warmup_steps"] >= steps:
            scheduler["warmup_steps"] = steps // 20
            listener(RunWarning(f"warm-up is shortened to {steps // 20:,} steps, because the run is shorter"))
        order = plan_order(num_samples=rows.before(steps))
    states = read_stream_states(checkpoint)
    dataset = BlockDataset(
        order,
        [
            BlockStream(
                tokens.source,
                data.tokenizer,
                max_length=train.max_length,
                state=states.get(str(number)),
                share=read_once(),
            )
            if isinstance(tokens, StreamTokens)
            else tokens.train
            for number, tokens in enumerate(data.tokens)
        ],
    )
    progress = DataProgress(dataset, paths, steps, rows, recipe, scheduler, listener)
    progress.exhausted = exhausted
    for source, epochs, count in zip(data.sources, order.epochs(), order.counts(), strict=True):
        if epochs is not None:
            what = f"{epochs:.2f} epochs over the run"
        else:
            what = f"{count * train.max_length:,} tokens of the stream are read over the run"
            what += "; if it ends earlier, so does the run" if progress.stops_at_end else ""
        listener(Notice(f"{source.key}: {what}"))
    if checkpoint is None and progress.ends_before(1):
        _require_a_step(0, progress.ended_by or "", rows.before(1))
    return progress


def _require_a_step(steps: int, path: str, rows: int) -> None:
    if steps < 1:
        raise UserError(
            Problem(
                "when_exhausted",
                f"{path} ends within the first step of {rows:,} sequences",
                value="stop",
                fix="Use more text, a smaller batch size, or when_exhausted: repeat.",
            )
        )


def read_stream_states(checkpoint: Path | None) -> dict[str, Any]:
    """Return the saved positions of a checkpoint's streams, by the number of their source; {} for a new run."""
    file = checkpoint / STREAMS_FILE if checkpoint else None
    if file is None or not file.exists():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        fix = f"Delete {checkpoint}: the run then resumes from the checkpoint before it, or from the start."
        raise UserError(Problem(str(file), "this checkpoint file is broken", fix=fix)) from None


class DataProgress(TrainerCallback):
    """What is read over `steps` steps, and what has been read so far.

    Reports when a source starts its second epoch, and stops the run at the end of a stream if when_exhausted is stop.

    scheduler: the recipe's, adjusted to these steps. exhausted: which source ends the run, and when, once this is
    known.
    """

    def __init__(
        self,
        dataset: BlockDataset,
        paths: Sequence[str],
        steps: int,
        rows: StepRows,
        recipe: PretrainRecipe,
        scheduler: dict[str, Any],
        listener: Listener,
    ):
        self.dataset, self.paths, self.steps, self.rows = dataset, list(paths), steps, rows
        self.scheduler, self.listener, self._max_steps = scheduler, listener, recipe.train.max_steps
        self.stops_at_end = recipe.when_exhausted == "stop" and bool(dataset.streams)
        self.ended_by: str | None = None  # the stream that is too short for another step
        self.exhausted: dict[str, Any] | None = None

    @property
    def to_train_on(self) -> BlockDataset | GrowingBatches:
        """The dataset that the trainer reads, batch by batch."""
        return GrowingBatches(self.dataset, self.rows, self.steps) if self.rows.warmup_steps else self.dataset

    @property
    def has_ended(self) -> bool:
        return self.ended_by is not None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        samples = self.rows.before(state.global_step)
        self.dataset.consumed(samples)
        before = self.dataset.epochs(self.rows.before(state.global_step - 1))
        for path, earlier, times in zip(self.paths, before, self.dataset.epochs(samples), strict=True):
            if (earlier or 0) <= 1 < (times or 0):
                self.listener(Notice(f"{path}: first epoch done at step {state.global_step:,}; the second one starts"))
        if state.global_step < self.steps and self.ends_before(state.global_step + 1):
            self.listener(
                Notice(
                    f"{self.ended_by}: exhausted, so the run stops at step {state.global_step:,} of {self._max_steps:,}"
                )
            )
            control.should_training_stop = control.should_save = control.should_evaluate = control.should_log = True

    def ends_before(self, step: int) -> bool:
        """Return whether a stream is exhausted before `step` steps are complete; the same in every process."""
        if not self.stops_at_end:
            return False
        source = self.dataset.exhausted_by(self.rows.before(step))
        if source is not None:
            self.ended_by = self.paths[source]
            self.exhausted = {"path": self.ended_by, "step": step - 1, "max_steps": self._max_steps}
        return source is not None

    def metrics(self, step: int) -> dict[str, Any]:
        """Return the measured shares of several sources, and the epochs of each (None: a stream in its first epoch)."""
        if len(self.paths) == 1:
            return {}
        samples = self.rows.before(step)
        epochs = [None if times is None else round(times, 4) for times in self.dataset.epochs(samples)]
        return {"mix": [round(share, 4) for share in self._shares(samples)], "epochs": epochs}

    def facts(self, step: int) -> list[dict[str, Any]]:
        """Return what run.json records about each source."""
        samples = self.rows.before(step)
        rows = zip(self.paths, self._shares(samples), self.dataset.epochs(samples), strict=True)
        return [
            {"path": path, "share": share, "epochs": None if times is None else round(times, 4)}
            for path, share, times in rows
        ]

    def write_stream_states(self, folder: Path, step: int) -> None:
        """Write the stream positions after a step, counting what the steps have used and not what was prefetched."""
        if self.dataset.streams:
            states = self.dataset.stream_states(self.rows.before(step))
            write_atomically(folder / STREAMS_FILE, json.dumps(states))

    def _shares(self, samples: int) -> list[float]:
        return [count / max(1, samples) for count in self.dataset.schedule.counts(samples)]
