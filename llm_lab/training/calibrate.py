"""A short trial before a run: a few real training steps on random tokens, to predict its time and memory."""

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

from llm_lab.estimate.formatting import about, size
from llm_lab.estimate.measurements import Measurement, find_measurement, keep_measurement
from llm_lab.events import Listener, Notice, ignore
from llm_lab.recipe.pretrain import PretrainRecipe
from llm_lab.recipe.resolve import Resolved, estimate_again
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.processes import (
    any_process,
    from_first_process,
    is_first_process,
    peak_memory_bytes,
    reset_peak_memory,
    wait_for_all,
)

MIN_RUN_SECONDS = 20.0  # shorter runs end before a better prediction would help
MAX_SHARE = 0.04  # share of the predicted time that a trial may take
MAX_SECONDS = 10.0
WARM_UP_STEPS = 3
MIN_STEPS = 4  # the first is a warm-up; with three more, one slow step does not change the median
SAMPLE_TOKENS = 16


def calibrate(resolved: Resolved, listener: Listener) -> Resolved:
    """Return the plan with its time and memory predicted from measurements on this machine.

    Runs a trial first if there is no measurement yet and the run is long enough. The random state of the run is
    restored afterwards.
    """
    seconds = from_first_process(trial_seconds(resolved))
    if not seconds:
        return resolved
    from .out_of_memory import free_memory

    listener(Notice(f"measuring a few training steps, for about {max(1, round(seconds))} s"))
    measurement = run_trial(resolved, seconds)
    if any_process(measurement is None) or measurement is None:
        free_memory(resolved.values["device"])
        listener(Notice("a trial step needed more memory than is available: the run starts with smaller batches"))
        return resolved
    if is_first_process():
        keep_measurement(measurement, resolved.recipe.model_dump(by_alias=True), resolved.shape, resolved.machine)
    wait_for_all()  # every process reads what the first one has kept
    after = estimate_again(resolved)
    listener(
        Notice(
            f"measured: {1000 * measurement.step_seconds:,.0f} ms per step. With evaluations and checkpoints, the run "
            f"will take {about(after.estimate.wall_seconds or 0.0)} and {size(after.estimate.memory_bytes)} of memory"
        )
    )
    return after


def trial_seconds(resolved: Resolved) -> float:
    """Return how many seconds a trial may take; 0 if there is a measurement already, or a trial would cost too much."""
    cost, values = resolved.estimate, resolved.recipe.model_dump(by_alias=True)
    if not isinstance(resolved.recipe, PretrainRecipe) or resolved.shape is None or not cost.wall_seconds:
        return 0.0
    if resolved.recipe.train.distributed == "fsdp":
        return 0.0  # a trial does not shard the weights, so it would measure something else
    if cost.wall_seconds < MIN_RUN_SECONDS or find_measurement(values, resolved.shape, resolved.machine):
        return 0.0
    if cost.seconds_by_part.get("compiling", 0.0) > MAX_SHARE * cost.wall_seconds:
        return 0.0  # compiling twice would cost too much; the run itself leaves a measurement for the next one
    return min(MAX_SECONDS, MAX_SHARE * cost.wall_seconds)


def run_trial(resolved: Resolved, seconds: float) -> Measurement | None:
    """Train, evaluate and generate on random tokens for about `seconds`, with the run's own trainer.

    Returns None if a step runs out of memory: the run itself then finds a batch that fits.
    """
    from llm_lab.hf.load import build_from_config, checkpoint_activations, quiet_libraries

    from .out_of_memory import is_out_of_memory

    quiet_libraries()
    recipe = _pretrain_recipe(resolved)
    with _restored_random_state(), tempfile.TemporaryDirectory(prefix="llm-lab-") as folder:
        config = _config(resolved)
        reset_peak_memory(recipe.device)
        try:
            model = build_from_config(config, attn_implementation=recipe.train.attn_implementation)
            if recipe.train.gradient_checkpointing:
                checkpoint_activations(model)
            model.to(recipe.device)
            steps = _train(resolved, model, RunFolder(Path(folder)), seconds)
            evaluation = _time_evaluation(recipe, model, config.vocab_size)
            sample = _time_generation(recipe, model)
        except (RuntimeError, MemoryError) as error:  # on a CPU, PyTorch raises RuntimeError
            if not is_out_of_memory(error):
                raise
            return None
        peak = peak_memory_bytes(recipe.device)
        del model
    _free(recipe)
    typical = statistics.fmean if recipe.optimizer.name == "sophia" else statistics.median
    step = typical(
        steps[min(WARM_UP_STEPS, len(steps) // MIN_STEPS) :]
    )  # every k-th step of Sophia is longer, so the mean counts
    compiling = max(0.0, steps[0] - step) if recipe.train.compile else None
    return Measurement("trial", step, peak, evaluation, sample, compiling)


def _pretrain_recipe(resolved: Resolved) -> PretrainRecipe:
    assert isinstance(resolved.recipe, PretrainRecipe)  # trial_seconds() returns 0 for others
    return resolved.recipe


def _vocab_size(resolved: Resolved) -> int:
    assert resolved.shape is not None
    return resolved.shape.vocab_size


def _config(resolved: Resolved) -> Any:
    """Return the config of a model of the run's shape; its weights are random."""
    from llm_lab.hf.configs import config_of_parts, read_config
    from llm_lab.runs.folder import find_model

    model = _pretrain_recipe(resolved).model
    if hasattr(model, "checkpoint"):
        return read_config(str(find_model(model.checkpoint)))
    if hasattr(model, "config"):
        config = read_config(model.config)
        config.vocab_size = _vocab_size(resolved)
        return config
    return config_of_parts(model.model_dump(by_alias=True), _vocab_size(resolved))


class _RandomBlocks:
    """An endless dataset of random tokens."""

    def __init__(self, vocab_size: int, max_length: int):
        self.blocks = np.random.default_rng(0).integers(0, vocab_size, size=(64, max_length + 1))

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        block = self.blocks[i % len(self.blocks)]
        return {"input_ids": block[:-1], "shift_labels": block[1:]}


def _train(resolved: Resolved, model: Any, folder: RunFolder, seconds: float) -> list[float]:
    """Return the seconds of each step, including the first one, in which the model may be compiled."""
    import torch
    from transformers import TrainerCallback

    from llm_lab.optim.factory import build_optimizer

    from .pretrain_trainer import PretrainTrainer, mask_documents
    from .trainer import Interruption, training_arguments

    recipe, interruption = _pretrain_recipe(resolved), Interruption()
    ends: list[float] = []

    class StepTimer(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            if not ends:
                ends.append(time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if recipe.device == "cuda":
                torch.cuda.synchronize()
            ends.append(time.perf_counter())
            compiled = 1 if recipe.train.compile else 0
            enough = len(ends) > compiled + MIN_STEPS and ends[-1] - ends[compiled] > seconds
            interruption.requested = interruption.requested or enough

    class Trial(PretrainTrainer):
        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            pass

    train = recipe.train
    if train.document_mask:
        mask_documents(model, 0)
    trainer = Trial(
        compile_loss=train.compile,
        document_mask=train.document_mask,
        dtype=train.dtype,
        curvature_every=getattr(recipe.optimizer, "k", None),
        run=folder,
        listener=ignore,
        interruption=interruption,
        eval_every=train.max_steps + 1,
        tokens_before=lambda step: step * resolved.estimate.tokens_per_step,
        wall_seconds_before=0.0,
        save_total_limit=1,
        evaluate_step=lambda step: None,
        save=lambda path: None,
        build_optimizer=lambda model: build_optimizer(model, recipe.optimizer),
        learning_rate_factor=lambda update: 0.0,  # constant weights: the loss can't diverge
        model=model,
        args=training_arguments(folder.steps_path, device=recipe.device, seed=recipe.seed, train=train),
        data_progress=None,
        train_dataset=_RandomBlocks(_vocab_size(resolved), train.max_length),
    )
    trainer.add_callback(StepTimer())
    trainer.train()
    return [after - before for before, after in itertools.pairwise(ends)]


def _time_evaluation(recipe: PretrainRecipe, model: Any, vocab_size: int) -> float:
    """Return the seconds per held-out token."""
    from .loss import total_loss

    train = recipe.train
    tokens = np.random.default_rng(0).integers(
        0, vocab_size, size=4 * train.per_device_train_batch_size * train.max_length + 1
    )
    model.eval()
    best = []
    for _ in range(2):
        started = time.perf_counter()
        measured = total_loss(
            model,
            [tokens],
            max_length=train.max_length,
            rows=train.per_device_train_batch_size,
            device=recipe.device,
            dtype=train.dtype,
        )
        best.append((time.perf_counter() - started) / measured.tokens)
    return min(best)


def _time_generation(recipe: PretrainRecipe, model: Any) -> float:
    """Return the seconds per token of a sample."""
    import torch

    from .loss import autocast

    ids = torch.zeros((1, 1), dtype=torch.long, device=recipe.device)
    with torch.no_grad(), autocast(recipe.device, recipe.train.dtype):
        for _ in range(2):
            started = time.perf_counter()
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=SAMPLE_TOKENS,
                min_new_tokens=SAMPLE_TOKENS,
                pad_token_id=0,
                do_sample=True,
                top_k=0,
            )
            seconds = time.perf_counter() - started
    return seconds / SAMPLE_TOKENS


@contextmanager
def _restored_random_state() -> Iterator[None]:
    """Restore all random generators at the end: a run must not depend on whether there was a trial before it."""
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


def _free(recipe: PretrainRecipe) -> None:
    """Free the memory of the trial."""
    import torch

    gc.collect()
    if recipe.train.compile:
        torch._dynamo.reset()
    if recipe.device == "cuda":
        torch.cuda.empty_cache()
    reset_peak_memory(recipe.device)
