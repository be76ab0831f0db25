"""Memory, time and disk of a trained stage after pretraining, before it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .cost import (
    READ_BYTES_PER_SECOND,
    SAMPLE_SECONDS_PER_LAYER,
    SAVE_BYTES_PER_SECOND,
    SAVE_SECONDS,
    STEP_SECONDS,
    Estimate,
    available_bytes,
    flops_per_second,
    memory_by_part,
    occasions,
)
from .machine import Machine
from .measurements import find_measurement
from .parameters import ModelShape

SCORED_ROWS = 32  # held-out prompts answered at once
LIBRARIES_BYTES = 700 * 2**20  # Python, PyTorch, TRL and their libraries
PIECE_TOKENS = 1024  # whose logits the stages that compare probabilities hold at once


@dataclass(frozen=True)
class ExampleSizes:
    """What a look at the data found: number of examples, and the tokens of some of them (of prompts, in RL).

    dropped: in words, what will not be trained on.
    """

    training: int
    held_out: int
    lengths: Sequence[int]
    dropped: tuple[str, ...] = ()

    def width(self, rows: int, max_length: int) -> float:
        """Return the mean length of the longest of `rows` examples, to which the others are padded."""
        sizes = sorted(min(length, max_length) for length in self.lengths)
        count = len(sizes)
        chances = (((i + 1) / count) ** rows - (i / count) ** rows for i in range(count))
        return sum(size * chance for size, chance in zip(sizes, chances, strict=True))

    def longest(self, max_length: int) -> int:
        return min(max_length, max(self.lengths))


@dataclass(frozen=True)
class Work:
    """How a stage uses its examples.

    in_pairs: an example is a chosen and a rejected answer. has_reference: a frozen copy of the model is needed; with an
    adapter it is the model without it. has_critic: a second model of the same size is trained. generates: answers
    are generated, of at most so many tokens; epochs: how often each is trained on. whole_logits: the logits of a batch
    exist at once. has_head: the model predicts tokens.
    """

    in_pairs: bool = False
    has_reference: bool = False
    has_critic: bool = False
    generates: int = 0
    epochs: int = 1
    whole_logits: bool = False
    has_head: bool = True


def estimate_tuning(
    recipe: Mapping[str, Any],
    shape: ModelShape | None,
    machine: Machine,
    work: Work,
    examples: ExampleSizes | None,
    first_step: int = 0,
) -> Estimate:
    """Estimate a trained stage after pretraining. Without a look at its data, every example has the maximum length.

    recipe: with train.max_steps where it is known; without it, there is no time.
    """
    train, device = recipe["train"], recipe["device"]
    rows, length = train["per_device_train_batch_size"], train["max_length"]
    width, longest = (examples.width(rows, length), examples.longest(length)) if examples else (length, length)
    if work.generates and examples:
        width, longest = (min(length, prompt + work.generates) for prompt in (width, longest))
    sequences = rows * (2 if work.in_pairs else 1)
    per_step = round(sequences * width) * train["gradient_accumulation_steps"] * machine.processes
    steps = max(0, (train["max_steps"] or 0) - first_step)
    available = available_bytes(device, machine)
    if shape is None:
        return Estimate(None, {}, per_step * steps, per_step, None, {}, 0, available, {}, 0, first_step)
    memory, checkpoint = _memory(recipe, shape, work, sequences, longest)
    measured = find_measurement(recipe, shape, machine)
    seconds: dict[str, float] = {}
    if steps:
        seconds = _seconds(recipe, shape, machine, work, examples, width, first_step, checkpoint)
        if measured:
            seconds = {key: value for key, value in seconds.items() if key != "generation"}
            seconds["training"] = measured.step_seconds * steps
    trained = checkpoint - memory["optimizer"]
    return Estimate(
        parameters=shape.parameters,
        parameters_by_part=shape.parameters_by_part,
        tokens=per_step * steps,
        tokens_per_step=per_step,
        flops_per_token=shape.training_flops_per_token(int(width)),
        memory_by_part=memory,
        memory_bytes=(measured and measured.memory_bytes) or sum(memory.values()),
        memory_available_bytes=available,
        seconds_by_part=seconds,
        disk_bytes=checkpoint * (train["save_total_limit"] + 1) + trained,
        first_step=first_step,
        measurement=measured,
    )


def _memory(
    recipe: Mapping[str, Any], shape: ModelShape, work: Work, sequences: int, longest: int
) -> tuple[dict[str, int], int]:
    """Return {purpose: bytes} on each device, and the bytes of a checkpoint."""
    train, lora = recipe["train"], recipe.get("lora")
    memory = memory_by_part(
        shape,
        rows=sequences,
        length=longest,
        optimizer=recipe["optimizer"]["name"],
        dtype=train["dtype"],
        checkpointing=bool(train["gradient_checkpointing"]),
    )
    if not work.has_head:
        memory["logits"] = 0
    elif not work.whole_logits:
        memory["logits"] = min(memory["logits"], PIECE_TOKENS * shape.vocab_size * 12)
    share = 1.0
    if lora:
        share = min(1.0, adapter_parameters(shape, lora) / shape.parameters)
        width = 0.6 if lora["load_in_4bit"] else 2 if train["dtype"] == "bfloat16" else 4
        memory["weights"] = int(width * shape.parameters)
        memory["gradients"] = int(memory["gradients"] * share)
        memory["optimizer"] = int(memory["optimizer"] * share)
    weights = 4 * shape.parameters
    if work.has_reference and not lora:
        memory["reference"] = weights
    if work.has_critic:  # trained in the same way as the model, after it
        memory["critic"] = weights + memory["gradients"] + memory["optimizer"]
    if recipe["device"] == "cpu":
        memory["libraries"] = LIBRARIES_BYTES
    checkpoint = int(weights * share) + memory["optimizer"]
    return memory, checkpoint * (2 if work.has_critic else 1)


def _seconds(
    recipe: Mapping[str, Any],
    shape: ModelShape,
    machine: Machine,
    work: Work,
    examples: ExampleSizes | None,
    width: float,
    first_step: int,
    checkpoint: int,
) -> dict[str, float]:
    """Return {purpose: seconds} of the rest of a run, from typical values."""
    train, device = recipe["train"], recipe["device"]
    steps = train["max_steps"] - first_step
    rows = train["per_device_train_batch_size"] * train["gradient_accumulation_steps"]
    forward = shape.training_flops_per_token(int(width)) / 3 / flops_per_second(device, machine)
    tokens = rows * (2 if work.in_pairs else 1) * width
    backward = 1.0 if recipe.get("lora") else 2.0  # the frozen weights need no gradients of their own
    passes = work.epochs * (1 + backward + (1 if train["gradient_checkpointing"] else 0))
    passes *= 2 if work.has_critic else 1
    passes += 1 if work.has_reference else 0
    passes += 2 if work.has_critic else 0  # values, and probabilities of what was generated
    found = {"training": steps * (STEP_SECONDS[device] * work.epochs + passes * forward * tokens)}
    token = SAMPLE_SECONDS_PER_LAYER * shape.num_hidden_layers + 4 * shape.parameters / READ_BYTES_PER_SECOND[device]
    decode = forward / 2  # no attention over what comes after, and no padding
    if work.generates:
        found["generation"] = steps * work.generates * (token + rows * decode)
    evaluations = occasions(train["eval_steps"], train["max_steps"], first_step) + (first_step == 0)
    validation = recipe.get("validation") or {}
    if examples and validation.get("max_examples"):
        held_out = min(validation["max_examples"], examples.held_out) * (2 if work.in_pairs else 1)
        found["evaluation"] = evaluations * held_out * width * forward * (2 if work.has_reference else 1)
    samples, score = recipe.get("samples") or {}, recipe.get("score")
    prompts = len(samples["prompts"]) if samples.get("prompts") else 3
    answered = prompts * samples["max_new_tokens"] * token if samples else 0.0
    if score:
        batches = -(-score["prompts"] // SCORED_ROWS)
        each = score["max_completion_length"] * (batches * token + score["prompts"] * decode)
        answered += 2 * each  # greedy and sampled
    if answered:
        found["samples"] = evaluations * answered
    saves = occasions(train["save_steps"], train["max_steps"], first_step)
    found["saving"] = (SAVE_SECONDS + checkpoint / SAVE_BYTES_PER_SECOND) * saves
    return found


def adapter_parameters(shape: ModelShape, lora: Mapping[str, Any]) -> int:
    """Return about how many weights an adapter has: r times the two sides of each matrix."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    heads, kv = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    sides = {"minimal": 2 * hidden + heads + kv, "attention_only": 4 * hidden + 2 * heads + 2 * kv}
    sides["ffn_only"] = (3 if shape.gated else 2) * (hidden + inner)
    sides["all"] = sides["custom"] = sides["attention_only"] + sides["ffn_only"]
    return lora["r"] * sides[lora["preset"]] * shape.num_hidden_layers
