"""Hugging Face's Trainer for a run folder, used by all trained stages.

It has atomic checkpoints, one metrics file, saves before it evaluates, and saves on Ctrl-C.
"""

from __future__ import annotations

import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, TrainerState

from llm_lab.events import CheckpointSaved, Evaluating, Listener, MetricsLogged, Notice, RunWarning
from llm_lab.hf.load import hide_router_logits
from llm_lab.hf.save import restore_weights
from llm_lab.optim.decay import fade_decay
from llm_lab.runs.disk import describe_disk_error, is_disk_error, publish, remove_folder
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.manifest import write_manifest
from llm_lab.runs.processes import any_process, forget_launcher_settings, process_count, wait_for_all
from llm_lab.runs.resume import last_checkpoint
from llm_lab.runs.retention import steps_to_keep

from .out_of_memory import BeforeStep
from .seat_belts import HealthWatch, LossWatch, learning_rate_scale
from .sharding import (
    as_tensor,
    is_sharded,
    reshard,
    set_precision,
    shard_loaded_state,
    shard_on_a_cpu,
    sharding_options,
    whole_state,
    whole_weights,
    without_ends,
)
from .tracking import Tracking

CHECKPOINT_PREFIX = "checkpoint-"
STAGING = ".saving"


# Ctrl-C, the system's request to end, and a closed terminal (no such signal on Windows).
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interruption:
    """Whether the user (Ctrl-C) or the system (SIGTERM, SIGHUP) has requested a stop.

    in_progress: what is finished before the stop: the step, or an evaluation, which a resumed run would not repeat.
    """

    def __init__(self) -> None:
        self.requested = False
        self.in_progress = "step"

    @contextmanager
    def listen(self, listener: Listener) -> Iterator[None]:
        """Handle a signal as a request to save and stop; a second Ctrl-C stops immediately.

        The other signals often come twice, from the terminal and from its shell, so a second one is ignored. Under
        nohup, SIGHUP stays ignored.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(signum: int, frame: Any) -> None:
            if self.requested and signum == signal.SIGINT:
                raise KeyboardInterrupt
            if self.requested:
                return
            self.requested = True
            listener(
                Notice(
                    f"Stopping after this {self.in_progress} and saving a checkpoint. Ctrl-C again stops immediately, "
                    "without saving."
                )
            )

        hung_up_is_ignored = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        wanted = [n for n in STOP_SIGNALS if not (hung_up_is_ignored and n == signal.SIGHUP)]
        before = {number: signal.signal(number, handle) for number in wanted}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


if TYPE_CHECKING:  # a mixin at runtime; to the type checker, a Trainer
    from transformers import Trainer as _Base
else:
    _Base = object


class LabTrainerMixin(_Base):
    """Ties any Trainer (transformers' or TRL's) to a run folder; comes first among the base classes.

    evaluate_step: called with the step at every evaluation; returns a row for metrics.jsonl, or None.
    save: called with a folder; writes model and tokenizer as a plain Hugging Face folder.
    tracking: the recipe's trackers, which get the rows of metrics.jsonl too.
    tokens_before: returns the tokens of the steps before one, counted from 0; None if the trainer counts tokens itself,
    as TRL's trainers do.
    """

    # Metrics that TRL collects and the run logs: {TRL's name: name in metrics.jsonl}.
    logged: ClassVar[dict[str, str]] = {}
    loss_is_cross_entropy: ClassVar[bool] = False  # over all tokens: a uniform guess has ln(vocabulary)
    # Set by the Trainer.
    optimizer: Any
    lr_scheduler: Any
    control: Any
    is_fsdp_enabled: bool

    def __init__(
        self,
        *,
        run: RunFolder,
        listener: Listener,
        interruption: Interruption,
        eval_every: int,
        tokens_before: Callable[[int], int] | None,
        wall_seconds_before: float,
        save_total_limit: int,
        evaluate_step: Callable[[int], dict[str, Any] | None],
        save: Callable[[Path], None],
        build_optimizer: Callable[[torch.nn.Module], torch.optim.Optimizer],
        learning_rate_factor: Callable[[int], float],
        weight_decay_factor: Callable[[int], float] | None = None,
        tracking: Tracking | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if hasattr(self.model, "config"):
            hide_router_logits(self.model)  # TRL switches them on in the config, and also requests them in each step
        self.tracking = tracking or Tracking((), run, listener)
        self.run, self.listener, self.interruption = run, listener, interruption
        self._tokens_before = tokens_before
        self._evaluate_step, self._save_to = evaluate_step, save
        self._build_optimizer, self._factor = build_optimizer, learning_rate_factor
        self._decay_factor = weight_decay_factor
        self._started = time.perf_counter() - wall_seconds_before
        self._clock = _StepClock()
        self._staging: Path | None = None
        self._save_total_limit = save_total_limit
        self._unwritten: list[dict[str, Any]] = []  # rows that could not be written because the disk was full
        self._watch = self._watch_loss()
        self._health: HealthWatch | None = None
        self.remove_callback(PrinterCallback)
        self.before_step = BeforeStep(self)
        self.add_callback(self.before_step)
        self.add_callback(_StepCallback(interruption, eval_every, self))

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.accelerator.ddp_handler is not None:
            self.accelerator.ddp_handler.gradient_as_bucket_view = True  # avoids a second copy of all gradients
        if self.args.fsdp and self.args.device.type == "cpu":
            shard_on_a_cpu(self)

    def begin(self) -> None:
        """Start to measure speed from the current step. The model must be ready for training."""
        assert is_sharded(self.model) == bool(self.args.fsdp), "train.distributed has no effect"
        self._clock.begin(self.train_tokens)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        if not self.args.fsdp:
            return super()._prepare_for_training(*args, **kwargs)
        self.create_optimizer()  # it needs to find the embeddings
        with without_ends(self.model):
            return super()._prepare_for_training(*args, **kwargs)

    # Optimizer, schedule and data order

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = self._build_optimizer(self.model)
            shard_loaded_state(self.optimizer)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            optimizer = getattr(optimizer, "optimizer", optimizer)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
            if (factor := self._decay_factor) is not None:
                fade_decay(optimizer, lambda: factor(self.lr_scheduler.last_epoch))
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler:
        # The dataset is already in its final order, so skipping on resume only counts indices and reads no data.
        return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # Trainer's own count iterates over all parameters at every batch

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        with self._as_one_process():
            super()._save_optimizer_and_scheduler(output_dir)

    @contextmanager
    def _as_one_process(self) -> Iterator[None]:
        """Let Trainer save and load the optimizer of a sharded model as with one process."""
        if not self.is_fsdp_enabled:
            yield
            return
        optimizer, whole = self.optimizer, whole_state(self.optimizer)
        self.is_fsdp_enabled, optimizer.state_dict = False, lambda: whole
        try:
            yield
        finally:
            self.is_fsdp_enabled = True
            del optimizer.state_dict

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with self._as_one_process():
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or learning_rate_scale(self.run) == 1.0:
            return
        # The checkpoint has the learning rate of its next step, from before the run returned to it.
        schedule = self.lr_scheduler
        schedule._last_lr = [base * self._factor(schedule.last_epoch) for base in schedule.base_lrs]
        for group, rate in zip(schedule.optimizer.param_groups, schedule._last_lr, strict=True):
            group["lr"] = rate

    # The loss

    def _watch_loss(self) -> LossWatch:
        batches = self.args.gradient_accumulation_steps
        vocabulary = getattr(self.model.config, "vocab_size", None) if self.loss_is_cross_entropy else None
        rows = self.args.per_device_train_batch_size * batches * process_count()
        return LossWatch(math.log(vocabulary) if vocabulary else None, batches, rows, self.run)

    longest_tokens = 0  # in the longest batch, with padding

    def loss_of_longest_batch(self) -> torch.Tensor | None:
        """Return the loss of a batch with the longest rows; None if all rows have the same length."""
        dataset = self.train_dataset
        lengths = {name: dataset[name] for name in getattr(dataset, "column_names", ()) if name.endswith("ids")}
        if not lengths:
            return None
        sizes = [sum(map(len, row)) for row in zip(*lengths.values(), strict=True)]
        longest = sorted(range(len(sizes)), key=sizes.__getitem__)[-self.args.per_device_train_batch_size :]
        batch = self._prepare_inputs(self.data_collator([dataset[index] for index in longest]))
        self.longest_tokens = batch["input_ids"].numel()
        with self.compute_loss_context_manager():
            return self.compute_loss(self.model, batch)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self._watch.saw_loss(loss)
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = as_tensor(super()._get_grad_norm(*args, **kwargs))
        if norm is not None:
            self._watch.saw_gradient(norm)
        return norm

    # Metrics

    @property
    def wall_seconds(self) -> float:
        """Seconds spent on this run, including those before a resume."""
        return time.perf_counter() - self._started

    @property
    def train_tokens(self) -> int:
        """Tokens trained on so far; reset at each stage."""
        if self._tokens_before is None:
            return int(self.state.num_input_tokens_seen)
        return self._tokens_before(self.state.global_step)

    def record(self, row: dict[str, Any]) -> None:
        """Write a row to metrics.jsonl and report it."""
        step = self.state.global_step
        full = {
            "step": step,
            "train_tokens": self.train_tokens,
            "wall_seconds": round(self.wall_seconds, 3),
            **row,
        }
        if self.is_world_process_zero():
            if self._health is None:
                known = self.run.facts().get("warnings", ())
                self._health = HealthWatch(self.args.max_steps, self.run.metrics(), known)
            self._unwritten.append(full)
            try:
                self.write_rows()
            except OSError as error:
                if len(self._unwritten) == 1:
                    why = f"metrics.jsonl can't be written ({describe_disk_error(error)})"
                    self.listener(
                        RunWarning(
                            f"{why}. Training continues. Free disk space: metrics stay in memory until the run ends."
                        )
                    )
            self.listener(MetricsLogged(full))
            self.tracking.log(full)
            for text in self._health.saw(full):
                self.listener(RunWarning(text))

    def write_rows(self) -> None:
        """Write the rows that are not in metrics.jsonl yet. Raises OSError if the disk is full."""
        while self._unwritten:
            self.run.append_metrics(self._unwritten[0])
            del self._unwritten[0]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" not in logs:
            return  # Trainer's final summary; run.json has these facts
        self._watch.check(self.state.global_step, logs["loss"], logs.get("grad_norm"), logs["learning_rate"])
        if self._watch.is_worried and not self.control.should_training_stop:
            self.control.should_save = self.state.global_step >= self.state.max_steps
        row: dict[str, Any] = {key: logs[key] for key in ("loss", "learning_rate", "grad_norm") if key in logs}
        speed = self._clock.take(self.train_tokens)
        if speed:
            row["tokens_per_second"] = round(speed, 1)
        if torch.cuda.is_available():
            row["memory_bytes"] = torch.cuda.max_memory_allocated()
        self.record(row | self.extra_metrics())

    def extra_metrics(self) -> dict[str, Any]:
        """Return the stage's own metrics: the means of what TRL collected since the last log step."""
        collected = getattr(self, "_metrics", {}).get("train", {})
        means = {key: sum(values) / len(values) for key, values in collected.items() if values}
        means = {
            key: mean for key, mean in means.items() if math.isfinite(mean)
        }  # TRL's standard deviation of one value is NaN
        collected.clear()
        return {name: round(means[key], 6) for key, name in self.logged.items() if key in means}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        sharded, self.is_fsdp_enabled = self.is_fsdp_enabled, False
        with whole_weights(self.model, write=True):
            if not restore_weights(self.model, resume_from_checkpoint):
                super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.is_fsdp_enabled = sharded

    def restore(self, checkpoint: Path) -> None:
        """Load a checkpoint without training: the weights, the counts of the run and the random state."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        self._load_rng_state(str(checkpoint))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no model card for step checkpoints; report.md has the facts."""

    # Evaluations and checkpoints

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, Any]:
        # Save first, so that a failing evaluation does not lose the steps before it.
        if self.control.should_save:
            self._save_checkpoint(self.model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        self.evaluate_now()
        self.control.should_evaluate = False
        return {}

    def evaluate_now(self) -> None:
        """Evaluate at the current step and record the row."""
        self.interruption.in_progress = "evaluation"
        self.listener(Evaluating())
        with self._clock.paused():
            self.model.eval()
            row = self._evaluate_step(self.state.global_step)
            self.model.train()
            reshard(self.model)
            if row:
                self.record(row)
        self.interruption.in_progress = "step"
        self.listener(Evaluating(is_over=True))

    def _determine_best_metric(self, metrics: Any, trial: Any) -> bool:
        return False

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint atomically, into a temporary folder that is then moved; then delete old checkpoints."""
        steps = Path(self.args.output_dir)
        self._staging = steps / STAGING
        step = self.state.global_step
        final = steps / f"{CHECKPOINT_PREFIX}{step}"
        with self._clock.paused():
            failure = None
            if self.is_world_process_zero():
                shutil.rmtree(self._staging, ignore_errors=True)
            wait_for_all()
            try:
                self.write_rows()  # a resumed run would not repeat them
                super()._save_checkpoint(model, trial)
            except Exception as error:
                if not is_disk_error(error):
                    raise
                failure = error
            finally:
                self._staging = None
            failed = any_process(failure is not None)
            if not self.is_world_process_zero():
                return
            if not failed:
                try:
                    write_manifest(steps / STAGING / final.name)
                    publish(steps / STAGING / final.name, final)
                except OSError as error:
                    failed, failure = True, error
            shutil.rmtree(steps / STAGING, ignore_errors=True)
            if failed:
                reason = describe_disk_error(failure) if failure else "in another process"
                self.listener(
                    RunWarning(
                        f"The checkpoint of step {step:,} could not be written ({reason}). {last_checkpoint(self.run)} "
                        f"{self._next_save(step)}"
                    )
                )
                return
            saved = dict(self.run.checkpoints())
            kept = steps_to_keep(saved, self._save_total_limit, self.args.max_steps)
            for old in saved.keys() - kept:
                with suppress(OSError):
                    remove_folder(saved[old])
            with suppress(OSError):  # the disk may be full; the next checkpoint writes them again
                self.run.keep_results(step)
            self.listener(CheckpointSaved(step, str(final)))

    def _next_save(self, step: int) -> str:
        if self.control.should_training_stop or step >= self.args.max_steps:
            return "A resumed run repeats the steps since then." if self.run.checkpoints() else ""
        return f"Training continues. Free disk space before step {step + self.args.save_steps:,}."

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        with whole_weights(self.model):
            self._save(output_dir)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # Always a plain Hugging Face folder, so that every checkpoint can be loaded and chatted with.
        # transformers calls this in every process: all but the first would overwrite its files.
        if self.is_world_process_zero():
            self._save_to(Path(str(output_dir)))


class _StepClock:
    """Tokens/s between two log steps, without the time spent on saving and evaluating."""

    def __init__(self) -> None:
        self._mark = time.perf_counter()
        self._tokens: int | None = None
        self._paused = 0.0
        self._depth = 0

    def begin(self, tokens: int) -> None:
        self._mark, self._tokens, self._paused = time.perf_counter(), tokens, 0.0

    def take(self, tokens: int) -> float | None:
        """Return the speed since the last call, or None if nothing was trained."""
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


class LabTrainer(LabTrainerMixin, Trainer):
    """Hugging Face's Trainer for one run folder."""


class _StepCallback(TrainerCallback):
    """Decides after each step whether to evaluate, save or stop."""

    def __init__(self, interruption: Interruption, eval_every: int, trainer: LabTrainerMixin):
        self.interruption, self.eval_every, self.trainer = interruption, eval_every, trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        done = state.global_step >= state.max_steps
        if done or state.global_step % self.eval_every == 0:
            control.should_evaluate = True
        if done:
            control.should_save = True
        # All processes must stop at the same step: if only one stopped, the others would wait forever.
        if any_process(self.interruption.requested):
            control.should_save = control.should_training_stop = True
            control.should_evaluate = done
        # The mean loss since the last log step is not part of a checkpoint. With a log step at each checkpoint, a
        # resumed run logs the same losses as an uninterrupted one.
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
    """Return the TrainingArguments of a run; features that recipes do not have are off.

    kind: TRL's arguments class for its trainers, with its options.
    """
    if kind is not TrainingArguments:
        # On by default in TRL; LLM Lab enables it on the model. The name changed after transformers 5.17.
        known = {field.name for field in fields(kind)}
        name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
        options[name] = False
    forget_launcher_settings()
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
        save_total_limit=None,  # LabTrainerMixin deletes old ones only after the newest is in place
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
        # loss.autocast is used instead: accelerate's autocast would make a float32 copy of all logits.
        **{"bf16": False, "fp16": False, **options},
        **sharding_options(train.distributed),
    )
    set_precision(arguments, train.dtype)
    # One process per GPU: otherwise Trainer would split a batch over all GPUs with the slow DataParallel.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
