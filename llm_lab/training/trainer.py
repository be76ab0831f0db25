"""Hugging Face's Trainer with what a run of ours promises: atomic checkpoints, one metrics file,
saving before evaluating, and a Ctrl-C that saves. Every trained stage builds on it."""

from __future__ import annotations

import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from llm_lab.errors import Problem, UserError
from llm_lab.events import CheckpointSaved, Listener, MetricsLogged, Notice, RunWarning
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.processes import any_process, process_count, wait_for_all

from .tracking import Tracking

CHECKPOINT_PREFIX = "checkpoint-"
STAGING = ".saving"


class Interruption:
    """Whether the user (Ctrl-C) or the system (SIGTERM) has asked to stop."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listen(self, listener: Listener) -> Iterator[None]:
        """Turn the first signal into a request to save and stop; a second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(signum: int, frame: Any) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True
            listener(Notice("Stopping after this step, with a checkpoint. Ctrl-C again stops at once, without."))

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class LabRun:
    """What makes any Trainer (Hugging Face's own, TRL's) one of ours; stands before it among the bases.

    evaluate_step: called at every evaluation with the step; returns a row for metrics.jsonl, or None.
    save: called with a folder; writes model and tokenizer as a plain Hugging Face folder.
    tracking: where rows go beside metrics.jsonl, where the recipe names trackers.
    tokens_per_step: fixed by the batch's shape; None where the trainer counts what it saw, as TRL's do.
    """

    # What TRL gathers and we record: {its name: ours}.
    tells: ClassVar[dict[str, str]] = {}

    def __init__(
        self,
        *,
        run: RunFolder,
        listener: Listener,
        interruption: Interruption,
        eval_every: int,
        tokens_per_step: int | None,
        wall_seconds_before: float,
        save_total_limit: int,
        evaluate_step: Callable[[int], dict[str, Any] | None],
        save: Callable[[Path], None],
        build_optimizer: Callable[[torch.nn.Module], torch.optim.Optimizer],
        learning_rate_factor: Callable[[int], float],
        tracking: Tracking | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.tracking = tracking or Tracking((), run, listener)
        self.run, self.listener, self.interruption = run, listener, interruption
        self.tokens_per_step = tokens_per_step
        self._evaluate_step, self._save_to = evaluate_step, save
        self._build_optimizer, self._factor = build_optimizer, learning_rate_factor
        self._started = time.perf_counter() - wall_seconds_before
        self._clock = _StepClock()
        self._staging: Path | None = None
        self._save_total_limit = save_total_limit
        self.remove_callback(PrinterCallback)
        self.add_callback(_Flow(interruption, eval_every, self))

    def begin_clock(self) -> None:
        """Start to measure the speed at what has been trained on so far."""
        self._clock.begin(self.train_tokens)

    # What is trained how

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = self._build_optimizer(self.model)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                getattr(optimizer, "optimizer", optimizer), self._factor
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler:
        # The schedule already is the order; skipping on resume then reads no data, only counts indices.
        return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # Trainer's own count walks over all parameters at every batch

    # What is written

    @property
    def wall_seconds(self) -> float:
        """Seconds of work on this run, those before a resume included."""
        return time.perf_counter() - self._started

    @property
    def train_tokens(self) -> int:
        """Tokens trained on so far; a new stage counts anew."""
        if self.tokens_per_step is None:
            return int(self.state.num_input_tokens_seen)
        return self.state.global_step * self.tokens_per_step

    def record(self, row: dict[str, Any]) -> None:
        """Write a row of metrics.jsonl and show it."""
        step = self.state.global_step
        full = {
            "step": step,
            "train_tokens": self.train_tokens,
            "wall_seconds": round(self.wall_seconds, 3),
            **row,
        }
        if self.is_world_process_zero():
            self.run.append_metrics(full)
            self.listener(MetricsLogged(full))
            self.tracking.log(full)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" not in logs:
            return  # Trainer's closing summary: run.json says it better
        if not math.isfinite(logs["loss"]):
            raise UserError(
                Problem(
                    "optimizer.learning_rate",
                    f"the loss became {logs['loss']} at step {self.state.global_step}: training has diverged",
                    value=logs["learning_rate"],
                    fix="Take a smaller learning rate or a longer scheduler.warmup_steps, and --resume from the "
                    "last checkpoint or start anew.",
                )
            )
        row = {key: logs[key] for key in ("loss", "learning_rate", "grad_norm") if key in logs}
        speed = self._clock.take(self.train_tokens)
        if speed:
            row["tokens_per_second"] = round(speed, 1)
        if torch.cuda.is_available():
            row["memory_bytes"] = torch.cuda.max_memory_allocated()
        self.record(row | self.extra_metrics())

    def extra_metrics(self) -> dict[str, float]:
        """Return what a stage's optimizer or loss has to tell beside the usual: the means of what TRL gathered."""
        gathered = getattr(self, "_metrics", {}).get("train", {})
        means = {key: sum(values) / len(values) for key, values in gathered.items() if values}
        means = {key: mean for key, mean in means.items() if math.isfinite(mean)}  # TRL's spread of one value is NaN
        gathered.clear()
        return {name: round(means[key], 6) for key, name in self.tells.items() if key in means}

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none beside the checkpoints: report.md has the facts."""

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, Any]:
        # Save first: an evaluation that fails must not cost the steps before it.
        if self.control.should_save:
            self._save_checkpoint(self.model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        self.evaluate_now()
        self.control.should_evaluate = False
        return {}

    def evaluate_now(self) -> None:
        """Evaluate at the current step and record what comes out."""
        with self._clock.paused():
            self.model.eval()
            row = self._evaluate_step(self.state.global_step)
            self.model.train()
            if row:
                self.record(row)

    def _determine_best_metric(self, metrics: Any, trial: Any) -> bool:
        return False

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint beside its place and move it there whole, then drop the oldest."""
        steps = Path(self.args.output_dir)
        self._staging = steps / STAGING
        step = self.state.global_step
        final = steps / f"{CHECKPOINT_PREFIX}{step}"
        with self._clock.paused():
            trouble = None
            if self.is_world_process_zero():
                shutil.rmtree(self._staging, ignore_errors=True)
            wait_for_all()
            try:
                super()._save_checkpoint(model, trial)
            except (OSError, RuntimeError, SafetensorError) as error:
                if not _is_disk_trouble(error):
                    raise
                trouble = error
            finally:
                self._staging = None
            failed = any_process(trouble is not None)
            if not self.is_world_process_zero():
                return
            if not failed:
                try:
                    publish(steps / STAGING / final.name, final)
                except OSError as error:
                    failed, trouble = True, error
            shutil.rmtree(steps / STAGING, ignore_errors=True)
            if failed:
                reason = _first_line(trouble) if trouble else "in another process"
                self.listener(
                    RunWarning(
                        f"The checkpoint of step {step} could not be written ({reason}). Training goes on; the last "
                        f"complete one is kept. Free some disk before step {step + self.args.save_steps}."
                    )
                )
                return
            for _, folder in self.run.checkpoints()[: -self._save_total_limit]:
                shutil.rmtree(folder, ignore_errors=True)
            self.listener(CheckpointSaved(step, str(final)))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # Always a plain Hugging Face folder, so that every checkpoint can be talked to.
        self._save_to(Path(output_dir))


def publish(staged: Path, final: Path) -> None:
    """Sync a finished folder to disk and move it to its place in one step."""
    for file in staged.rglob("*"):
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
    if final.exists():
        shutil.rmtree(final)
    os.replace(staged, final)


def _is_disk_trouble(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, OSError) or any(word in text for word in ("write", "no space", "i/o error"))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


class _StepClock:
    """Tokens a second between two log lines, time spent on saving and evaluating left out."""

    def __init__(self) -> None:
        self._mark = time.perf_counter()
        self._tokens: int | None = None
        self._paused = 0.0
        self._depth = 0

    def begin(self, tokens: int) -> None:
        self._mark, self._tokens, self._paused = time.perf_counter(), tokens, 0.0

    def take(self, tokens: int) -> float | None:
        """Return the speed since the last call."""
        seconds = time.perf_counter() - self._mark - self._paused
        new = tokens - (self._tokens if self._tokens is not None else tokens)
        self.begin(tokens)
        return new / seconds if new > 0 and seconds > 0 else None

    @contextmanager
    def paused(self) -> Iterator[None]:
        start = time.perf_counter()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._paused += time.perf_counter() - start


class LabTrainer(LabRun, Trainer):
    """Hugging Face's Trainer for one run folder."""


class _Flow(TrainerCallback):
    """When to evaluate, and when to stop."""

    def __init__(self, interruption: Interruption, eval_every: int, trainer: LabRun):
        self.interruption, self.eval_every, self.trainer = interruption, eval_every, trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        done = state.global_step >= state.max_steps
        if done or state.global_step % self.eval_every == 0:
            control.should_evaluate = True
        if done:
            control.should_save = True
        # All processes must stop at the same step, or the others wait for ever.
        if any_process(self.interruption.asked):
            control.should_save = control.should_training_stop = True
            control.should_evaluate = done
        # The mean loss since the last log line is not part of a checkpoint: with a line at each, a resumed
        # run logs what the run would have logged in one piece.
        control.should_log |= control.should_save


def training_arguments(
    steps_path: Path,
    *,
    device: str,
    seed: int,
    train: Any,
    eval_on_start: bool = False,
    kind: type[TrainingArguments] = TrainingArguments,
    **options: Any,
) -> TrainingArguments:
    """Return Trainer's arguments for a run: what our recipe does not name is switched off.

    kind: TRL's own arguments for its trainers, with their options.
    """
    if kind is not TrainingArguments:
        # TRL switches it on by default; ours is switched on in the model. The name changed after transformers 5.17.
        known = {field.name for field in fields(kind)}
        name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
        options[name] = False
    arguments = kind(
        output_dir=str(steps_path),
        max_steps=train.max_steps,
        per_device_train_batch_size=train.per_device_train_batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        max_grad_norm=train.max_grad_norm,
        logging_strategy="steps",
        logging_steps=train.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=train.save_steps,
        save_total_limit=None,  # ours: LabTrainer drops the oldest only after the newest is in its place
        eval_strategy="no",
        eval_on_start=eval_on_start,
        report_to="none",  # see tracking.py
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=seed,
        data_seed=seed,
        use_cpu=device == "cpu",
        ddp_backend="gloo" if device == "cpu" and process_count() > 1 else None,
        ddp_find_unused_parameters=False,
        # Autocast is ours (see PretrainTrainer): accelerate's turns all logits into a float32 copy.
        **{"bf16": False, "fp16": False, **options},
    )
    # One process is one GPU: Trainer would spread a batch over all it sees, through the slow DataParallel.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
