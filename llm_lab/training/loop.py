"""The loop of every trained run: its start, its steps and evaluations, and what it writes at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llm_lab.errors import MachineError, Problem, UserError
from llm_lab.estimate.adapter_base import settings_digest, weights_digest
from llm_lab.estimate.cached_models import cached_files, cached_folder
from llm_lab.events import Listener, RunWarning, SampleWritten, TrainingEnded
from llm_lab.recipe.stage import StageRecipe
from llm_lab.runs.disk import describe_disk_error, is_disk_error, staged_folder
from llm_lab.runs.folder import EVALUATES_FIRST, RunFolder, find_model, now
from llm_lab.runs.processes import is_first_process
from llm_lab.runs.resume import after_a_full_disk
from llm_lab.runs.samples import add_samples


@dataclass(frozen=True)
class Result:
    """How a stage ended: "done", "stopped" or "failed", and its results."""

    status: str
    results: dict[str, float]
    stop_requested: bool = False  # also True if Ctrl-C came too late to stop this stage: then the next must not start


@dataclass(frozen=True)
class Start:
    """Where a run starts: at step 0, or at its own last checkpoint."""

    step: int
    checkpoint: Path | None
    wall_seconds: float  # spent before the start


class Evaluates(Protocol):
    """The evaluation of a run, as the loop uses it."""

    def measure(self, step: int) -> dict[str, float] | None:
        """Return a row for metrics.jsonl, or None if there is nothing to measure."""

    def done_at(self, step: int) -> bool:
        """Return whether a step has been evaluated, in this process or before a resume."""


def set_seed_and_precision(recipe: StageRecipe) -> None:
    """Set the process's random seed, TF32 for float32 products on a GPU, and deterministic kernels on request."""
    import torch
    from transformers import set_seed

    set_seed(recipe.seed)
    torch.set_float32_matmul_precision("high" if recipe.device == "cuda" else "highest")
    use_cudnn_attention(False)
    torch.use_deterministic_algorithms(bool(getattr(getattr(recipe, "train", None), "deterministic", False)))
    torch.utils.deterministic.fill_uninitialized_memory = False  # it only helps to find bugs in PyTorch
    # Read when cuBLAS starts, so it is set even if the key is not: a later stage of a pipeline may set it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def use_cudnn_attention(wanted: bool) -> None:
    """Let PyTorch use cuDNN attention: the fastest if all shapes are the same, as in compiled pretraining.

    It spends about 0.1 s on a plan for each new shape, so it is off if lengths change: other stages, generation, chat.
    """
    import torch

    torch.backends.cuda.enable_cudnn_sdp(wanted)


def find_local(name: str) -> str:
    """Return the folder of a local checkpoint, or the name itself if it is a Hub name."""
    local = Path(name).expanduser()
    return str(find_model(local)) if local.exists() else name


def describe_parent(checkpoint: str) -> dict[str, Any]:
    """Return what the lineage records about a model: its path, and digests of its weights and of its other files.

    For a name on the Hub, the revision and the ids of its files instead of digests.
    """
    facts: dict[str, Any] = {
        "path": checkpoint,
        "digest": weights_digest(checkpoint),
        "settings": settings_digest(checkpoint),
    }
    if not Path(checkpoint).exists() and (folder := cached_folder(checkpoint)):
        facts |= {"revision": folder.name, "files": cached_files(checkpoint)}
    return facts


def require_same_data(sources: Sequence[Any], folder: RunFolder) -> None:
    """Raise UserError if the data of a resumed run has changed since the run began: its record would be wrong."""
    before = [source["fingerprint"] for source in folder.facts().get("data", [])]
    changed = [source for source, old in zip(sources, before, strict=False) if source.fingerprint != old]
    if changed:
        why, fix = "this data has changed since the run began", "Restore the old data, or start a new run."
        raise UserError(*(Problem(f"{source.key}.path", why, value=source.path, fix=fix) for source in changed))


def find_start(folder: RunFolder, *, resume: bool) -> Start:
    """Return where a run starts or resumes; metrics recorded after that are dropped."""
    step, checkpoint = folder.checkpoints()[-1] if resume and folder.checkpoints() else (0, None)
    if is_first_process():
        folder.forget_after(step)
    return Start(step, checkpoint, max((row.get("wall_seconds", 0.0) for row in folder.metrics()), default=0.0))


def must_evaluate_first(start: Start, evaluation: Evaluates, eval_steps: int) -> bool:
    """Return whether the step of the checkpoint still has to be evaluated.

    A checkpoint is saved before its step is evaluated, so a crash in between skips the evaluation.
    """
    return start.step > 0 and start.step % eval_steps == 0 and not evaluation.done_at(start.step)


def run_loop(
    trainer: Any,
    start: Start,
    evaluation: Evaluates,
    listener: Listener,
    *,
    max_steps: int,
    measure_start: bool = False,
    has_ended: Callable[[int], bool] = lambda step: False,
) -> bool:
    """Train until the end or until interrupted; returns whether training is complete.

    measure_start: evaluate before the first step. has_ended: whether the data ends after a step.
    """
    from .out_of_memory import noticing_out_of_memory, try_longest_batch
    from .seat_belts import sample_weights, warn_of_standstill

    before = sample_weights(trainer.model) if start.step == 0 else None
    try:
        with (
            trainer.tracking,
            trainer.interruption.listen(listener),
            noticing_out_of_memory(trainer),
        ):
            if trainer.args.device.type == "cuda" and start.step < max_steps:
                try_longest_batch(trainer, listener)
            if measure_start and start.step == 0 and not evaluation.done_at(0):
                if is_first_process():
                    trainer.run.update(**{EVALUATES_FIRST: now()})
                trainer.evaluate_now()
            if start.checkpoint is None or (start.step < max_steps and not has_ended(start.step)):
                trainer.train(resume_from_checkpoint=str(start.checkpoint) if start.checkpoint else None)
            else:
                # The run is already complete; Trainer would train one more step.
                trainer.restore(start.checkpoint)
            step = trainer.state.global_step
            finished = step >= max_steps or has_ended(step)
            if finished and not evaluation.done_at(step):
                trainer.evaluate_now()
            _write_rows(trainer)
            if finished:
                warn_of_standstill(trainer, before, listener)
    finally:
        listener(TrainingEnded())
    return finished


def _write_rows(trainer: Any) -> None:
    """Write the rows that could not be written because the disk was full. Raises MachineError if it still is."""
    try:
        trainer.write_rows()
    except OSError as error:
        why = f"the last metrics could not be written: {describe_disk_error(error)}"
        raise MachineError(Problem(str(trainer.run.metrics_path), why, fix=after_a_full_disk(trainer.run))) from error


def write_model(folder: RunFolder, model: Any, save: Callable[[Path], None]) -> None:
    """Write model/, complete or not at all; all processes call this. Raises MachineError if the disk is full.

    save: writes `model` into a folder.
    """
    from .sharding import whole_weights

    with whole_weights(model):
        if is_first_process():
            _write_whole_model(folder, save)


def _write_whole_model(folder: RunFolder, save: Callable[[Path], None]) -> None:
    try:
        with staged_folder(folder.model_path) as staged:
            save(staged)
    except Exception as error:
        if not is_disk_error(error):
            raise
        raise not_written(folder.model_path, error, after_a_full_disk(folder)) from error


def not_written(path: Path, error: Exception, fix: str) -> MachineError:
    """Return the error for a model that could not be written."""
    return MachineError(Problem(str(path), f"the model could not be written: {describe_disk_error(error)}", fix=fix))


def write_samples(
    folder: RunFolder, listener: Listener, step: int, samples: Mapping[str, str], *, whole: bool = False
) -> None:
    """Add {prompt: generated text} to samples.md and report it. whole: quote the prompt and the text together."""
    if not is_first_process():
        return
    for prompt, text in samples.items():
        listener(SampleWritten(step, prompt, text))
    try:
        add_samples(folder, step, [(prompt, prompt + text if whole else text) for prompt, text in samples.items()])
    except OSError as error:
        listener(RunWarning(f"The samples of step {step:,} could not be written ({describe_disk_error(error)})."))
