"""A short trial before a run: a few real training steps on random tokens, so that the plan's time and memory hold."""

from __future__ import annotations

import copy
import gc
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from llm_lab.errors import MachineError, Problem
from llm_lab.estimate.measurements import Measurement, find_measurement, keep_measurement
from llm_lab.events import Listener, Notice, ignore
from llm_lab.recipe.resolve import Resolved, estimate_again
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.processes import forget_peak_memory, from_first_process, is_first_process, peak_memory_bytes

WORTH_IT_SECONDS = 20.0  # shorter runs are over before a better prediction would help
SHARE = 0.04  # of the predicted time that a trial may take
MOST_SECONDS = 10.0
WARM_UP_STEPS, LEAST_STEPS = 3, 2
SAMPLE_TOKENS = 16


def calibrate(resolved: Resolved, listener: Listener) -> Resolved:
    """Return the plan by what was measured here; measures first where it never was and the run is worth it.

    The run's random numbers stay what they would have been. MachineError where a step takes more memory than there is.
    """
    seconds = from_first_process(trial_seconds(resolved))
    if not seconds:
        return resolved
    listener(Notice(f"trying a few training steps, for about {max(1, round(seconds))} s"))
    measurement = try_steps(resolved, seconds)
    if is_first_process():
        keep_measurement(measurement, resolved.recipe.model_dump(by_alias=True), resolved.shape, resolved.machine)
    after = estimate_again(resolved)
    listener(
        Notice(
            f"measured here: {1000 * measurement.step_seconds:,.0f} ms a step, so the run takes about "
            f"{after.estimate.wall_seconds:,.0f} s and {after.estimate.memory_bytes / 2**30:.1f} GiB"
        )
    )
    return after


def trial_seconds(resolved: Resolved) -> float:
    """Return how long a trial may take, 0 where none is made: it was measured, or costs more than it tells."""
    cost, values = resolved.estimate, resolved.recipe.model_dump(by_alias=True)
    if resolved.shape is None or not cost.wall_seconds:
        return 0.0
    if cost.wall_seconds < WORTH_IT_SECONDS or find_measurement(values, resolved.shape, resolved.machine):
        return 0.0
    if cost.seconds_by_part.get("compiling", 0.0) > SHARE * cost.wall_seconds:
        return 0.0  # compiling twice would cost too much; the run itself leaves a measurement for the next
    return min(MOST_SECONDS, SHARE * cost.wall_seconds)


def try_steps(resolved: Resolved, seconds: float) -> Measurement:
    """Train, evaluate and write on random tokens for about so many seconds, by the trainer of the run itself."""
    import torch

    from llm_lab.hf.load import build_from_config, checkpoint_activations, quiet_libraries

    quiet_libraries()
    recipe = resolved.recipe
    with _random_state_kept(), tempfile.TemporaryDirectory(prefix="llm-lab-") as folder:
        config = _config(resolved)
        forget_peak_memory(recipe.device)
        try:
            model = build_from_config(config, attn_implementation=recipe.train.attn_implementation)
            if recipe.train.gradient_checkpointing:
                checkpoint_activations(model)
            model.to(recipe.device)
            steps = _train(resolved, model, RunFolder(Path(folder)), seconds)
            evaluation = _time_evaluation(recipe, model, config.vocab_size)
            sample = _time_writing(recipe, model, config.vocab_size)
        except torch.OutOfMemoryError:
            raise MachineError(
                Problem(
                    "train.per_device_train_batch_size",
                    "a trial step took more memory than the GPU has",
                    value=recipe.train.per_device_train_batch_size,
                    fix="Take fewer rows with more train.gradient_accumulation_steps, a shorter train.max_length, "
                    "or train.gradient_checkpointing=true.",
                )
            ) from None
        peak = peak_memory_bytes(recipe.device)
        del model
    _free(recipe)
    typical = statistics.fmean if recipe.optimizer.name == "sophia" else statistics.median
    step = typical(steps[min(WARM_UP_STEPS, len(steps) // 2) :])  # Sophia's every k-th step is longer, and counts
    compiling = max(0.0, steps[0] - step) if recipe.train.compile else None
    return Measurement("trial", step, peak, evaluation, sample, compiling)


def _config(resolved: Resolved) -> Any:
    """The config of a model of the run's shape; its weights are random."""
    from llm_lab.hf.load import config_of_parts, read_config
    from llm_lab.runs.folder import find_model

    model = resolved.recipe.model
    if hasattr(model, "checkpoint"):
        return read_config(str(find_model(model.checkpoint)))
    if hasattr(model, "config"):
        config = read_config(model.config)
        config.vocab_size = resolved.shape.vocab_size
        return config
    return config_of_parts(model.model_dump(by_alias=True), resolved.shape.vocab_size)


class _RandomBlocks:
    """Blocks of random tokens, as many as are asked for."""

    def __init__(self, vocab_size: int, max_length: int):
        self.blocks = np.random.default_rng(0).integers(0, vocab_size, size=(64, max_length + 1))

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        block = self.blocks[i % len(self.blocks)]
        return {"input_ids": block[:-1], "shift_labels": block[1:]}


def _train(resolved: Resolved, model: Any, folder: RunFolder, seconds: float) -> list[float]:
    """Return the seconds of each step, the first (in which a model compiles) among them."""
    import torch
    from transformers import TrainerCallback

    from llm_lab.optim.build import build_optimizer

    from .pretrain_trainer import PretrainTrainer
    from .trainer import Interruption, training_arguments

    recipe, interruption = resolved.recipe, Interruption()
    ends: list[float] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            if not ends:
                ends.append(time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if recipe.device == "cuda":
                torch.cuda.synchronize()
            ends.append(time.perf_counter())
            compiled = 1 if recipe.train.compile else 0
            enough = len(ends) > compiled + LEAST_STEPS and ends[-1] - ends[compiled] > seconds
            interruption.asked = interruption.asked or enough

    class Trial(PretrainTrainer):
        def extra_metrics(self) -> dict[str, Any]:
            return {}  # nothing is read of a text

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            pass

    train = recipe.train
    if train.document_mask:
        from .document_mask import mask_documents

        mask_documents(model, 0)
    trainer = Trial(
        compile_loss=train.compile,
        dtype=train.dtype,
        curvature_every=getattr(recipe.optimizer, "k", None),
        run=folder,
        listener=ignore,
        interruption=interruption,
        eval_every=train.max_steps + 1,
        tokens_per_step=resolved.estimate.tokens_per_step,
        wall_seconds_before=0.0,
        save_total_limit=1,
        evaluate_step=lambda step: None,
        save=lambda path: None,
        build_optimizer=lambda model: build_optimizer(model, recipe.optimizer),
        learning_rate_factor=lambda update: 0.0,  # the weights stay: random tokens can make no loss diverge
        model=model,
        args=training_arguments(folder.steps_path, device=recipe.device, seed=recipe.seed, train=train),
        reading=TrainerCallback(),
        train_dataset=_RandomBlocks(resolved.shape.vocab_size, train.max_length),
    )
    trainer.add_callback(Watch())
    trainer.train()
    return [after - before for before, after in itertools.pairwise(ends)]


def _time_evaluation(recipe: Any, model: Any, vocab_size: int) -> float:
    """Return the seconds that a held-out token takes."""
    from .measure import total_loss

    train = recipe.train
    tokens = np.random.default_rng(0).integers(
        0, vocab_size, size=4 * train.per_device_train_batch_size * train.max_length + 1
    )
    model.eval()
    best = []
    for _ in range(2):
        begun = time.perf_counter()
        _, count = total_loss(
            model,
            [tokens],
            max_length=train.max_length,
            rows=train.per_device_train_batch_size,
            device=recipe.device,
            dtype=train.dtype,
        )
        best.append((time.perf_counter() - begun) / count)
    return min(best)


def _time_writing(recipe: Any, model: Any, vocab_size: int) -> float:
    """Return the seconds that a token of a sample takes."""
    import torch

    from .measure import autocast

    ids = torch.zeros((1, 1), dtype=torch.long, device=recipe.device)
    with torch.no_grad(), autocast(recipe.device, recipe.train.dtype):
        for _ in range(2):
            begun = time.perf_counter()
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=SAMPLE_TOKENS,
                min_new_tokens=SAMPLE_TOKENS,
                pad_token_id=0,
                do_sample=True,
                top_k=0,
            )
            seconds = time.perf_counter() - begun
    return seconds / SAMPLE_TOKENS


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Leave every generator as it was: a run must not tell whether it was tried before."""
    import torch

    python, numbers, torches = random.getstate(), copy.deepcopy(np.random.get_state()), torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
        torch.set_rng_state(torches)
        if gpus is not None:
            torch.cuda.set_rng_state_all(gpus)


def _free(recipe: Any) -> None:
    """Give back what the trial held."""
    import torch

    gc.collect()
    if recipe.train.compile:
        torch._dynamo.reset()
    if recipe.device == "cuda":
        torch.cuda.empty_cache()
    forget_peak_memory(recipe.device)
