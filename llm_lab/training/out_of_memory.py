"""If training runs out of memory: keep what was trained, halve the batch, and continue from the same step.

A step has the same rows: half as many at a time, in twice as many batches. The gradient is the same sum.
"""

from __future__ import annotations

import gc
import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from llm_lab.errors import MachineError, Problem
from llm_lab.estimate.formatting import size
from llm_lab.events import Listener, Notice, RunWarning
from llm_lab.recipe.resolve import Resolved
from llm_lab.recipe.what_fits import ACCUMULATION, CHECKPOINTING, ROWS, estimate_with
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.processes import is_first_process, process_count
from llm_lab.runs.resume import BATCH, batch_of, batch_to_resume, with_batch

from .cpu import release_freed_memory

# Messages of PyTorch and oneDNN, which have no special exception for this.
ON_A_CPU = ("can't allocate memory", "could not create a primitive")


class OutOfMemory(Exception):
    """Memory ran out in the step after `step`. in_update: in the optimizer's update, so the weights are lost."""

    def __init__(self, step: int, *, in_update: bool):
        super().__init__(f"out of memory after step {step}")
        self.step, self.in_update = step, in_update


@contextmanager
def noticing_out_of_memory(trainer: Any) -> Iterator[None]:
    """If a trainer runs out of memory, save its state from before the step and raise OutOfMemory.

    With several processes nothing is saved: the other processes wait in the middle of the step.
    """
    failed = False
    forget = _make_queue_drain()
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # the frames hold the tensors of the step
        failed = True
        forget()
    if failed and process_count() > 1:
        raise OutOfMemory(trainer.state.global_step, in_update=trainer.before_step.in_update)
    if failed:
        trainer.before_step.restore()
        in_update = trainer.before_step.in_update
        if not in_update:
            _save(trainer)
        raise OutOfMemory(trainer.state.global_step, in_update=in_update)


def _make_queue_drain() -> Callable[[], None]:
    """Return a function that drops the unfinished work of failed backward passes, with the activations it holds.

    On a CPU, PyTorch keeps this work in the thread's queue until another backward pass empties the queue. Work of later
    operations comes first, so that pass must start from a tensor that was computed earlier.
    """
    earlier = torch.zeros((), requires_grad=True) * 1
    return earlier.backward


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, on a GPU or on a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in ON_A_CPU)


def _save(trainer: Any) -> None:
    step = trainer.state.global_step
    if step == 0 or step in dict(trainer.run.checkpoints()):
        return
    trainer.model.zero_grad(set_to_none=True)
    if steps := step - trainer._globalstep_last_logged:  # a resumed run lacks the losses from before this step
        trainer.log({"loss": (trainer._tr_loss / steps).item(), "learning_rate": trainer._get_learning_rate()})
    trainer._save_checkpoint(trainer.model, None)


class BeforeStep(TrainerCallback):
    """Remembers what a step changes before it ends: random states and counts."""

    def __init__(self, trainer: Any):
        self.trainer, self.in_update = trainer, False
        self._counts: dict[str, Any] = {}
        self._random: tuple[Any, ...] | None = None

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        self._counts = {"_tr_loss": trainer._tr_loss.clone()}
        if hasattr(trainer, "_step"):  # TRL's count of batches
            self._counts["_step"] = trainer._step
        self._tokens = trainer.state.num_input_tokens_seen
        on_gpu = trainer.args.device.type == "cuda"
        gpu = torch.cuda.get_rng_state() if on_gpu else None
        self._random = (random.getstate(), np.random.get_state(), torch.get_rng_state(), gpu)

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.in_update = True

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.in_update = False

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._random = None  # from here on, an evaluation may fail, which does not change the random state

    def restore(self) -> None:
        """Restore the state at the start of the current step, if there is one."""
        if self._random is None:
            return
        for name, value in self._counts.items():
            setattr(self.trainer, name, value)
        self.trainer.state.num_input_tokens_seen = self._tokens
        python, numbers, torches, gpu = self._random
        random.setstate(python)
        np.random.set_state(numbers)
        torch.set_rng_state(torches)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu)


# --- the run


def with_remembered_batch(recipe: Any, folder: RunFolder, listener: Listener) -> Any:
    """Return the recipe with the batch of a resumed run.

    It is the smaller batch that was found to fit, or the batch for a different number of processes, which is recorded
    and reported. A step has the same rows.
    """
    batch, before = batch_to_resume(folder, batch_of(recipe))
    assert batch is not None  # require_same_beginning() has checked this
    if before != process_count():
        if is_first_process():
            known = {"rows": batch.rows, "batches": batch.batches, "processes": process_count()}
            folder.update(**{BATCH: {"from_step": max((step for step, _ in folder.checkpoints()), default=0), **known}})
        listener(
            Notice(
                f"The run continues with {process_count()} instead of {before} processes: each step reads the same "
                f"sequences, {batch.rows} at a time and {batch.batches} times in each process. Sums are rounded in "
                "a different order, and dropout is drawn again."
            )
        )
    return with_batch(recipe, batch) if batch != batch_of(recipe) else recipe


def halve_batch(recipe: Any, resolved: Resolved, folder: RunFolder, error: OutOfMemory, listener: Listener) -> Any:
    """Return the recipe with a smaller batch, remember it in run.json, and report it.

    Raises MachineError, which says what to change, if no smaller batch would help.
    """
    batch = batch_of(recipe)
    smaller = None if error.in_update or _obstacle(recipe) else batch.smaller()
    if smaller is None:
        raise MachineError(_advice(recipe, resolved, error))
    listener(
        RunWarning(
            f"Out of memory in step {error.step + 1:,} with {batch.rows} sequences at a time. Continuing from step "
            f"{error.step:,} with {smaller.rows} at a time, {smaller.batches} times in a step: the same sequences and "
            f"gradients. For the next run: {ROWS}={smaller.rows} {ACCUMULATION}={smaller.batches}"
        )
    )
    known = folder.facts().get(BATCH) or {}
    folder.update(**{BATCH: {**known, "rows": smaller.rows, "batches": smaller.batches, "from_step": error.step}})
    free_memory(recipe.device)
    return with_batch(recipe, smaller)


def _obstacle(recipe: Any) -> str | None:
    """Return why a run can't continue with smaller batches, None if it can."""
    if process_count() > 1:
        return "with several processes, a run can't change its batch while it runs"
    if getattr(getattr(recipe, recipe.stage, None), "loss_type", None) == "bnpo":
        return "with grpo.loss_type = bnpo, a smaller batch would weigh its tokens differently"
    return None


def free_memory(device: str) -> None:
    """Free memory that is no longer referenced."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    else:
        release_freed_memory()


def _advice(recipe: Any, resolved: Resolved, error: OutOfMemory) -> Problem:
    """Return what to change, and how much memory each change saves according to the plan."""
    train, now = recipe.train, resolved.estimate.memory_bytes
    obstacle, smaller = _obstacle(recipe), batch_of(recipe).smaller()
    if obstacle and smaller and not error.in_update:
        why = f"memory ran out in step {error.step + 1:,}; {obstacle}"
        fix = f"Start the run again with {ROWS}={smaller.rows} {ACCUMULATION}={smaller.batches}."
        return Problem(ROWS, why, value=train.per_device_train_batch_size, fix=fix)
    tries: dict[str, dict[str, Any]] = {}
    if error.in_update:
        why = f"memory ran out in the update of step {error.step + 1:,}; a smaller batch would not help"
    else:
        why = f"memory ran out in step {error.step + 1:,}, and the batch can't be smaller"
        if not train.gradient_checkpointing:
            tries[f"{CHECKPOINTING}=true"] = {CHECKPOINTING: True}
        tries[f"train.max_length={train.max_length // 2}"] = {"train.max_length": train.max_length // 2}
    if hasattr(recipe, "lora") and recipe.lora is None:
        tries["lora.preset=all"] = {"lora.preset": "all"}
    elif recipe.device == "cuda" and hasattr(recipe, "lora") and not recipe.lora.load_in_4bit:
        tries["lora.load_in_4bit=true"] = {"lora.load_in_4bit": True}
    elif recipe.device == "cuda" and recipe.optimizer.name in ("adamw", "sophia"):
        tries["optimizer.name=adamw_8bit"] = {"optimizer.name": "adamw_8bit"}
    saved = {}
    for text, changes in tries.items():
        then = estimate_with(resolved, {ROWS: train.per_device_train_batch_size, **changes})
        if then and 0 < then.memory_bytes < now:
            saved[text] = f"{text} (about {size(now - then.memory_bytes)} less)"
    known = ", or ".join(saved.values()) or "a smaller model"
    return Problem(ROWS, why, value=train.per_device_train_batch_size, fix=f"Set {known}.")


# --- the longest batch


def try_longest_batch(trainer: Any, listener: Listener) -> None:
    """Compute and discard the loss and the gradient of the longest batch of the run.

    So a batch that does not fit fails now, not after an hour. The random state does not change. Skipped if the model
    will be sharded, because it is still whole at this point.
    """
    if trainer.args.fsdp:
        return
    devices = [torch.cuda.current_device()] if trainer.args.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        loss = trainer.loss_of_longest_batch()
        if loss is None:
            return
        trainer.accelerator.backward(loss)
    tokens = trainer.longest_tokens
    trainer.model.zero_grad(set_to_none=True)
    with suppress(AttributeError):
        trainer.critic.zero_grad(set_to_none=True)
    for found in getattr(trainer, "_metrics", {}).values():
        found.clear()
    listener(Notice(f"the longest batch, of {tokens:,} tokens, fits into memory"))
