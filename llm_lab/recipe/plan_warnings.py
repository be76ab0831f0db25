"""What a plan warns of: settings that are allowed, and rarely give a useful model."""

from __future__ import annotations

import math
from collections.abc import Iterator

from llm_lab.estimate.formatting import plural

from .optimizers import pretraining_rate
from .post_training import fill_steps, learning_rate_scale, rounded, rows_per_example
from .resolve import Resolved
from .stage import PartialRecipe

FEW_STEPS = 30  # of a fine-tune: fewer are enough for a large model only
FAR_ABOVE = 30.0  # times the usual learning rate


def plan_warnings(resolved: Resolved) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, what may go wrong and what to change) of a recipe."""
    if resolved.stage.trains:
        yield from _high_learning_rates(resolved)
        yield from _few_steps(resolved)


def _high_learning_rates(resolved: Resolved) -> Iterator[tuple[str, str]]:
    optimizer, stage = resolved.values.get("optimizer") or {}, resolved.stage
    scale = 1.0
    if not stage.from_scratch:
        scale = learning_rate_scale(stage, PartialRecipe(resolved.values), resolved.shape)
    for key in ("learning_rate", "adamw_learning_rate"):
        rate = optimizer.get(key)
        if rate is None:
            continue
        usual = rounded(pretraining_rate(optimizer["name"], key) * scale)
        if rate > FAR_ABOVE * usual:
            text = f"learning rate {rate:g} is {rate / usual:,.0f} times the usual {usual:g} of {optimizer['name']}"
            yield f"optimizer.{key}", f"{text}: the loss will probably not go down. Try {usual:g}"


def _few_steps(resolved: Resolved) -> Iterator[tuple[str, str]]:
    """Warn of few steps: because there are few examples, or because the recipe asks for few."""
    stage, values, examples = resolved.stage, resolved.values, resolved.examples
    if stage.from_scratch:
        return
    asked, origin = values["train"].get("max_steps"), resolved.origins.get("train.max_steps")
    if asked is not None and origin is not None and origin.kind != "derived":
        if asked < FEW_STEPS:
            text = f"only {plural(asked, 'step')}: they may be too few to learn from"
            yield "train.max_steps", f"{text}. Use more: train.max_steps = {FEW_STEPS}"
        return
    if not examples:
        return
    processes = resolved.machine.processes
    filled, _ = fill_steps(stage, values, examples=examples.training, processes=processes)
    steps, train = filled["train"]["max_steps"], values["train"]
    if steps >= FEW_STEPS:
        return
    rows = train["per_device_train_batch_size"] * train["gradient_accumulation_steps"] * processes
    epochs = math.ceil(FEW_STEPS * rows / max(1, examples.training * rows_per_example(stage, values)))
    text = f"only {plural(steps, 'step')}, because there are few examples: they may be too few to learn from"
    yield "train.num_train_epochs", f"{text}. Use more data or more epochs: train.num_train_epochs = {epochs}"
