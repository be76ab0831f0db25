"""The warnings of a plan: settings that are allowed, but rarely give a useful model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_lab.estimate.formatting import plural

from .files import PLAIN_TEXT
from .optimizers import pretraining_rate
from .post_training import fill_steps, learning_rate_scale, rounded, rows_per_example
from .registry import STAGES
from .resolve import Resolved
from .stage import PartialRecipe
from .what_fits import ACCUMULATION, ROWS, estimate_with

FEW_STEPS = 30  # of a fine-tune: fewer are enough only for a large model
FAR_ABOVE = 30.0  # times the usual learning rate


def plan_warnings(resolved: Resolved) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, what may go wrong and what to change) for a recipe."""
    if resolved.stage.trains:
        yield from _plain_texts(resolved)
        yield from _high_learning_rates(resolved)
        yield from _few_steps(resolved)
        yield from _long_examples(resolved)
        yield from _never_answered(resolved)
        yield from _smaller_batches(resolved)


def _plain_texts(resolved: Resolved) -> Iterator[tuple[str, str]]:
    """Warn of a text file where conversations are expected: the whole file would be one example."""
    if resolved.stage.examples != "conversation":
        return
    for index, source in enumerate(resolved.values.get("data") or ()):
        if str(source["path"]).lower().endswith(PLAIN_TEXT):
            text = (
                f"{source['path']} is plain text, so it would be a single example. To train on plain text, use "
                "stage: pretrain"
            )
            yield f"data.{index}.path", f"{text}; conversations are rows of a jsonl, csv or parquet file"


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
    """Warn of too few steps: because there are few examples, or because the recipe sets few."""
    if resolved.stage.from_scratch:
        return
    if _asks_for_steps(resolved):
        if (asked := resolved.values["train"]["max_steps"]) < FEW_STEPS:
            text = f"only {plural(asked, 'step')}: they may be too few to learn from"
            yield "train.max_steps", f"{text}. Use more: train.max_steps = {FEW_STEPS}"
    elif (epochs := enough_epochs(resolved)) is not None:
        steps = plural(_steps(resolved), "step")
        text = f"only {steps}, because there are few examples: they may be too few to learn from"
        yield "train.num_train_epochs", f"{text}. Use more data or more epochs: train.num_train_epochs = {epochs}"


def _asks_for_steps(resolved: Resolved) -> bool:
    """Return whether the recipe sets the number of steps."""
    asked, origin = resolved.values["train"].get("max_steps"), resolved.origins.get("train.max_steps")
    return asked is not None and origin is not None and origin.kind != "derived"


def enough_epochs(resolved: Resolved) -> int | None:
    """Return how many epochs give a fine-tune on few examples enough steps; None if it has enough."""
    stage, values, examples = resolved.stage, resolved.values, resolved.examples
    if not examples or stage.from_scratch or _asks_for_steps(resolved) or _steps(resolved) >= FEW_STEPS:
        return None
    train = values["train"]
    rows = train["per_device_train_batch_size"] * train["gradient_accumulation_steps"] * resolved.machine.processes
    return math.ceil(FEW_STEPS * rows / max(1, examples.training * rows_per_example(stage, values)))


def _steps(resolved: Resolved) -> int:
    assert resolved.examples is not None
    examples, processes = resolved.examples.training, resolved.machine.processes
    filled, _ = fill_steps(resolved.stage, resolved.values, examples=examples, processes=processes)
    return filled["train"]["max_steps"]


def _long_examples(resolved: Resolved) -> Iterator[tuple[str, str]]:
    """Warn of examples that are cut off; their lengths are estimated."""
    examples, key = resolved.examples, "train.max_length"
    length = resolved.values["train"].get("max_length")
    if not examples or resolved.stage.examples not in ("conversation", "preference") or not examples.lengths:
        return
    long = sum(tokens > length for tokens in examples.lengths)
    if long:
        share = 100 * long / len(examples.lengths)
        lost = "beginning" if resolved.stage.makes == "reward model" else "end"
        text = f"about {share:.0f} % of the examples are longer than {length:,} tokens: their {lost} is cut off"
        context = resolved.shape.max_position_embeddings if resolved.shape else None
        fix = "Use shorter ones, or a model with a longer context"
        if context is None or context > length:
            fix = f"Use shorter ones, or a larger {key}" + (f", up to {context:,}" if context else "")
        yield key, f"{text}. {fix}"


def _never_answered(resolved: Resolved) -> Iterator[tuple[str, str]]:
    """Warn of learning from rewards with a model that was only pretrained, so it can't answer yet."""
    if resolved.stage.examples != "prompt":
        return
    if any(reward.get("model") for reward in resolved.values.get("rewards") or ()):
        return  # a reward model scores every output
    run = Path(str(resolved.values["model"]["checkpoint"])).expanduser()
    parent = _facts(next((one for one in (run, run.parent) if (one / "run.json").is_file()), run))
    sets = {source.get("path") for source in resolved.values.get("data") or ()}
    has_seen = sets & {source.get("path") for source in parent.get("data") or () if isinstance(source, dict)}
    stage = STAGES.get(str(parent.get("stage")))
    if stage and stage.from_scratch and not parent.get("parent") and not has_seen:
        text = "the model was only pretrained, and never on these prompts: its outputs will hardly ever get a reward"
        yield "model.checkpoint", f"{text}, and then nothing is learned. Fine-tune it on answers first (SFT)"


def _smaller_batches(resolved: Resolved) -> Iterator[tuple[str, str]]:
    """If the recipe's batch does not fit, name the largest one that does, with as many sequences per step."""
    if resolved.estimate.fits:
        return
    train = resolved.values["train"]
    rows, batches = train["per_device_train_batch_size"], train["gradient_accumulation_steps"]
    while rows % 2 == 0:
        rows, batches = rows // 2, batches * 2
        smaller = estimate_with(resolved, {ROWS: rows, ACCUMULATION: batches})
        if smaller and smaller.fits:
            yield (
                ROWS,
                f"a smaller batch fits, with as many sequences per step: {ROWS}={rows} {ACCUMULATION}={batches}",
            )
            return


def _facts(run: Path) -> dict[str, Any]:
    try:
        facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
