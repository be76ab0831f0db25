"""Memory, time and disk of a trained stage after pretraining, before it starts."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .cost import (
    READ_BYTES_PER_SECOND,
    SAVE_BYTES_PER_SECOND,
    SAVE_SECONDS,
    STEP_SECONDS,
    Estimate,
    available_bytes,
    disk_by_part,
    flops_per_second,
    memory_by_part,
    memory_of_each,
    occasions,
)
from .machine import Machine
from .measurements import Measurement, find_measurement
from .parameters import ModelShape

SCORED_ROWS = 32  # held-out prompts answered at once
LIBRARIES_BYTES = 700 * 2**20  # Python, PyTorch, TRL and their libraries
# Speed of a CPU in training, relative to its float32 matrix products. bf16 is only used on CPUs with bf16 hardware.
EFFICIENCY = {"float32": 0.57, "bfloat16": 0.85}
SECONDS_PER_LOGIT = {"cpu": 7e-8, "cuda": 5e-11}  # softmax, its gradient, and metrics
DECODE_SECONDS_PER_LAYER = 0.0008  # per generated token
WHOLE_LOGITS_BYTES = 24  # per logit in memory on a CPU, with all copies
TILE_TOKENS, TILE_VOCABULARY = 4096, 32_768  # TRL computes the logits in tiles of at most this size
INPUT_BYTES = 8  # kept per number in the input of an adapted matrix, on a CPU; more with dropout; measured
# Per weight: 4 bits, and the scales of blocks of 64 in 8 bits (Dettmers et al. 2023). Embeddings, the output layer and
# norms are not quantized, and PEFT converts them to float32.
FOUR_BIT_BYTES = 0.52
PIECE_TOKENS = 1024  # tokens whose logits the stages that compare probabilities compute at once


@dataclass(frozen=True)
class ExampleSizes:
    """Number of examples in the data, and the lengths in tokens of some of them (of the prompts, in RL).

    dropped: in words, what is not trained on. repeated: how many were left out of validation, because their prompts are
    also in training.
    """

    training: int
    held_out: int
    lengths: Sequence[int]
    dropped: tuple[str, ...] = ()
    repeated: int = 0

    def describe(self) -> str:
        """Return in words how many examples there are, and what they are used for."""
        parts = [f"{self.training:,} to train on", f"{self.held_out:,} held out for validation"]
        if self.repeated:
            parts.append(f"{self.repeated:,} left out: their prompts are also in training")
        return f"{self.training + self.held_out + self.repeated:,}: {', '.join(parts)}"

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

    in_pairs: an example is a chosen and a rejected answer. has_reference: there is a frozen copy of the model; with an
    adapter, the base serves as the copy. has_critic: a second model of the same size is trained. generates: maximum
    tokens of a generated answer; 0: none are generated. answers: per prompt. epochs: over each rollout. whole_logits:
    all logits of a batch are in memory at once. has_head: the model predicts tokens.
    """

    in_pairs: bool = False
    has_reference: bool = False
    has_critic: bool = False
    generates: int = 0
    answers: int = 1
    epochs: int = 1
    updates_per_epoch: int = 1
    whole_logits: bool = False
    has_head: bool = True

    @property
    def updates_per_rollout(self) -> int:
        return self.epochs * self.updates_per_epoch


def estimate_tuning(
    recipe: Mapping[str, Any],
    shape: ModelShape | None,
    machine: Machine,
    work: Work,
    examples: ExampleSizes | None,
    first_step: int = 0,
    own: Measurement | None = None,
) -> Estimate:
    """Estimate a trained stage after pretraining. Without `examples`, every example counts as the maximum length.

    recipe: without train.max_steps, time is not estimated. first_step, own: for a resumed run, the step that it starts
    from, and what it measured before.
    """
    train, device = recipe["train"], recipe["device"]
    rows, length = train["per_device_train_batch_size"], train["max_length"]
    width, longest = (examples.width(rows, length), examples.longest(length)) if examples else (length, length)
    if work.generates and examples:  # all prompts of a rollout are padded to the longest one
        at_once = rows * train["gradient_accumulation_steps"] * work.updates_per_epoch
        width = examples.width(max(1, at_once // work.answers), length)
        width, longest = (min(length, prompt + work.generates) for prompt in (width, longest))
    sequences = rows * (2 if work.in_pairs else 1)
    per_step = round(sequences * width) * train["gradient_accumulation_steps"] * machine.processes
    steps = max(0, (train["max_steps"] or 0) - first_step)
    available = available_bytes(device, machine)
    if shape is None:
        return Estimate(None, {}, per_step * steps, per_step, None, {}, 0, available, {}, 0, first_step)
    memory, model, checkpoint = _memory(recipe, shape, work, sequences, longest, machine.processes)
    disk = disk_by_part(model, checkpoint, train)
    measured = find_measurement(recipe, shape, machine, own=own)
    seconds: dict[str, float] = {}
    if steps:
        seconds = _seconds(recipe, shape, machine, work, examples, width, first_step, checkpoint)
        if measured:
            seconds = {key: value for key, value in seconds.items() if key != "generation"}
            seconds["training"] = measured.step_seconds * steps
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
        disk_bytes=sum(disk.values()),
        first_step=first_step,
        measurement=measured,
        disk_by_part=disk,
    )


def _memory(
    recipe: Mapping[str, Any], shape: ModelShape, work: Work, sequences: int, longest: int, processes: int
) -> tuple[dict[str, int], int, int]:
    """Return {purpose: bytes} on each device, and the bytes of the result and of a checkpoint on disk."""
    train, lora = recipe["train"], recipe.get("lora")
    half, on_gpu, tokens = train["dtype"] == "bfloat16", recipe["device"] == "cuda", sequences * longest
    memory = memory_by_part(
        shape,
        rows=sequences,
        length=longest,
        optimizer=recipe["optimizer"]["name"],
        dtype=train["dtype"],
        checkpointing=bool(train["gradient_checkpointing"]),
        cautious=bool(recipe["optimizer"].get("cautious_weight_decay")),
    )
    if not work.has_head:
        memory["logits"] = 0
    elif on_gpu:
        memory["logits"] = _fused_head_bytes(shape, tokens, half=half, trained=not lora)
    elif work.whole_logits:  # loss, entropy and accuracy need a copy each
        memory["logits"] = min(tokens, TILE_TOKENS) * min(shape.vocab_size, TILE_VOCABULARY) * WHOLE_LOGITS_BYTES
    else:
        memory["logits"] = min(memory["logits"], PIECE_TOKENS * shape.vocab_size * 12)
    share = 1.0
    if lora:
        share = min(1.0, adapter_parameters(shape, lora) / shape.parameters)
        memory["weights"] = (2 if half and on_gpu else 4) * shape.parameters
        if lora["load_in_4bit"]:
            matrices = shape.matrix_parameters + shape.other_parameters
            memory["weights"] = int(FOUR_BIT_BYTES * matrices) + 4 * (shape.parameters - matrices)
        if half and on_gpu:
            memory["activations"] = tokens * _kept_with_adapter(shape, lora, train["gradient_checkpointing"])
        else:
            kept = INPUT_BYTES + ((8 if half else 4) if lora["dropout"] else 0)
            at_once = 1 if train["gradient_checkpointing"] else shape.num_hidden_layers  # other layers are recomputed
            memory["activations"] += tokens * at_once * adapted_inputs(shape, lora) * kept
        memory["gradients"] = int(memory["gradients"] * share)
        memory["optimizer"] = int(memory["optimizer"] * share)
    weights = 4 * shape.parameters
    if work.has_reference and not lora:
        memory["reference"] = weights
    if work.has_critic:  # trained like the model, and after it
        base = min(memory["weights"], 2 * shape.parameters) if lora and half and on_gpu else weights
        memory["critic"] = base + memory["gradients"] + memory["optimizer"]
    model = int(weights * share)
    checkpoint = (model + memory["optimizer"]) * (2 if work.has_critic else 1)
    memory = memory_of_each(memory, shape, train, processes, trained=share)
    if work.has_critic:
        memory["critic"] += memory["activations"]
    if work.generates:  # the KV cache of a whole rollout, before the backward pass needs memory
        at_once = sequences * train["gradient_accumulation_steps"] * work.updates_per_epoch
        cache = at_once * longest * shape.cache_bytes_per_token(2 if half else 4)
        memory["activations"] = max(memory["activations"], cache)
    if recipe["device"] == "cpu":
        memory["libraries"] = LIBRARIES_BYTES
    return memory, model, checkpoint


def _fused_head_bytes(shape: ModelShape, tokens: int, *, half: bool, trained: bool) -> int:
    """Return the bytes of TRL's fused head on a GPU: a tile of logits, and gradients in float32."""
    tile = min(tokens, TILE_TOKENS) * min(shape.vocab_size, TILE_VOCABULARY) * (2 if half else 4)
    of_head = 4 * shape.vocab_size * shape.hidden_size if trained else 0
    return 2 * tile + 8 * tokens * shape.hidden_size + of_head


def _kept_with_adapter(shape: ModelShape, lora: Mapping[str, Any], checkpointing: bool) -> int:
    """Return the bytes per token that a model with an adapter saves for the backward pass, on a GPU in bf16.

    Frozen weights are in bf16 and have no gradients, so their inputs are not kept; the adapter keeps its inputs in
    bf16. Counted with PyTorch's allocator for Qwen2, Qwen3, Llama and OLMo 2, within 8 %.
    """
    hidden, inner, layers = shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers
    heads, keys = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    stream = 4 if lora["load_in_4bit"] else 2  # with 4-bit weights, PEFT uses embeddings and norms in float32
    kept = (10 + 2 * stream) * hidden + (8 if shape.qk_norm else 4) * (heads + keys) + (6 if shape.gated else 4) * inner
    kept += adapted_inputs(shape, lora) * (3 if lora["dropout"] else 2)
    # While a layer is recomputed, copies of its widest parts are in memory too.
    return layers * stream * hidden + kept * 3 // 2 if checkpointing else layers * kept


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
    """Return {purpose: seconds} for the remaining steps, from typical values."""
    train, device = recipe["train"], recipe["device"]
    steps = train["max_steps"] - first_step
    rollouts = steps / work.updates_per_rollout
    rows = train["per_device_train_batch_size"] * train["gradient_accumulation_steps"]
    speed = matmul_flops(machine) * EFFICIENCY[train["dtype"]] if device == "cpu" else flops_per_second(device, machine)
    flops, head = shape.training_flops_per_token(int(width)) / 3, 2 * shape.vocab_size * shape.hidden_size
    # After generation, the head only computes logits of the generated answers.
    scored = min(1.0, work.generates / width) if work.generates else 1.0 if work.has_head else 0.0
    forward = (flops - head * (1 - scored)) / speed
    tokens = rows * (2 if work.in_pairs else 1) * width
    backward = 1.0 if recipe.get("lora") else 2.0  # frozen weights have no gradients
    passes = (1 + backward + (1 if train["gradient_checkpointing"] else 0)) * (2 if work.has_critic else 1)
    found = {"training": steps * (STEP_SECONDS[device] + passes * forward * tokens)}
    if work.has_head:
        logits = scored * tokens * shape.vocab_size * (steps + (rollouts if work.has_reference else 0))
        found["training"] += logits * SECONDS_PER_LOGIT[device]
    # Forward passes before the updates: probabilities under the reference and this model, and the critic's values.
    before = (1 if work.has_reference else 0) + (2 if work.has_critic else 0)
    found["training"] += rollouts * before * forward * tokens * work.updates_per_epoch
    token = DECODE_SECONDS_PER_LAYER * shape.num_hidden_layers + 4 * shape.parameters / READ_BYTES_PER_SECOND[device]
    decode = flops / speed / 2  # half: no padding, and no attention to later tokens
    if work.generates:
        answers = work.updates_per_epoch * rows
        prompts = max(0.0, width - work.generates) * (flops - head) / speed  # each prompt is processed once per answer
        found["generation"] = rollouts * (work.generates * (token + answers * decode) + answers * prompts)
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
        answered += 2 * each  # once greedily, once sampled
    if answered:
        found["samples"] = evaluations * answered
    if general := recipe.get("forgetting"):
        found["forgetting"] = evaluations * general["max_tokens"] * forward
    saves = occasions(train["save_steps"], train["max_steps"], first_step)
    found["saving"] = (SAVE_SECONDS + checkpoint / SAVE_BYTES_PER_SECOND) * saves
    return found


@functools.cache
def matmul_flops(machine: Machine) -> float:
    """Return the FLOP/s of this process in float32 matrix products, measured in a few milliseconds."""
    import time

    import numpy as np

    one: Any = np.ones((512, 256), np.float32)
    other: Any = np.ones((256, 768), np.float32)
    best = math.inf
    for _ in range(10):
        started = time.perf_counter()
        one @ other
        best = min(best, time.perf_counter() - started)
    return 2 * 512 * 256 * 768 / best


def adapted_inputs(shape: ModelShape, lora: Mapping[str, Any]) -> int:
    """Return the total width of the inputs of a layer's adapted matrices."""
    hidden, heads = shape.hidden_size, shape.num_attention_heads * shape.head_dim
    feed_forward = (2 if shape.gated else 1) * hidden + shape.intermediate_size
    inputs = {"minimal": 2 * hidden, "attention_only": 3 * hidden + heads, "ffn_only": feed_forward}
    return inputs.get(lora["preset"], inputs["attention_only"] + feed_forward)


def adapter_parameters(shape: ModelShape, lora: Mapping[str, Any]) -> int:
    """Estimate the number of weights of an adapter: r times (inputs + outputs) of each matrix."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    heads, kv = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    sides = {"minimal": 2 * hidden + heads + kv, "attention_only": 4 * hidden + 2 * heads + 2 * kv}
    sides["ffn_only"] = (3 if shape.gated else 2) * (hidden + inner)
    if shape.num_experts:  # in each expert, gate and up are one matrix
        sides["ffn_only"] = shape.num_experts * ((hidden + 2 * inner) + (inner + hidden))
    sides["all"] = sides["custom"] = sides["attention_only"] + sides["ffn_only"]
    return lora["r"] * sides[lora["preset"]] * shape.num_hidden_layers
