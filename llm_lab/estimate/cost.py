"""Memory, time and disk of a run, before it starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .batch_warmup import step_rows
from .formatting import plural
from .machine import Machine
from .measurements import Measurement, find_measurement
from .parameters import ModelShape

# Typical values, used if nothing was measured on this machine; the plan then says "about".
CUDA_UTILIZATION = 0.40
ASSUMED_CUDA_PEAK = 312e12
CPU_FLOPS_PER_CORE = 2.5e10  # small matrix products on a core with AVX2
ASSUMED_GPU_MEMORY_BYTES = 80 * 10**9
PIECE_OF_LOGITS_BYTES = 2**29  # the loss of larger float32 logits is computed in pieces of this size
STEP_SECONDS = {"cpu": 0.003, "cuda": 0.005}  # overhead of every step, however small the model
SAMPLE_SECONDS_PER_LAYER = 0.0012  # per generated token
READ_BYTES_PER_SECOND = {"cpu": 1.0e10, "cuda": 1.5e12}  # every generated token reads all the weights
SAVE_SECONDS, SAVE_BYTES_PER_SECOND = 0.1, 4e8
COMPILE_SECONDS = {"cpu": 30.0, "cuda": 45.0}
PROGRAM_BYTES = 500 * 2**20  # Python and its libraries, in the same memory as the model on a CPU
BYTES_PER_TOKEN = 3.5  # English text, with a vocabulary trained on it
FULL = 0.9  # share of the memory that a run may use; the rest is for CUDA itself, and for gaps between tensors

BASES = {
    None: "based on typical values",
    "trial": "measured on this machine",
    "run": "measured in the last similar run on this machine",
    "this run": "measured in this run so far",
}


@dataclass(frozen=True)
class Estimate:
    """What a run will cost."""

    parameters: int | None
    parameters_by_part: dict[str, int]
    tokens: int
    tokens_per_step: int
    flops_per_token: float | None
    memory_by_part: dict[str, int]
    memory_bytes: int
    memory_available_bytes: int
    seconds_by_part: dict[str, float]
    disk_bytes: int
    first_step: int = 0  # steps already done; time and tokens count the remaining ones
    measurement: Measurement | None = field(default=None, compare=False)
    disk_by_part: dict[str, int] = field(default_factory=dict)

    @property
    def wall_seconds(self) -> float | None:
        """Seconds from the first step to the last evaluation, or None if they are not estimated."""
        return sum(self.seconds_by_part.values()) if self.seconds_by_part else None

    @property
    def basis(self) -> str:
        """What the estimate is based on, in words."""
        return BASES[self.measurement.source if self.measurement else None]

    @property
    def fits(self) -> bool:
        return self.memory_bytes <= FULL * self.memory_available_bytes

    @property
    def unpredicted_bytes(self) -> int:
        """What the measured memory has beyond the estimated parts; 0 if it was not measured."""
        return self.memory_bytes - sum(self.memory_by_part.values())

    def comparable_memory_bytes(self, other: Estimate) -> int:
        """Return the memory for a comparison with another plan, which may have been measured on this machine.

        What a measurement has beyond the parts belongs to the machine, not to a choice, so it is added to both.
        """
        return self.memory_bytes + (0 if self.unpredicted_bytes else other.unpredicted_bytes)

    @property
    def tokens_per_parameter(self) -> float | None:
        return self.tokens / self.parameters if self.parameters else None


def memory_by_part(
    shape: ModelShape,
    *,
    rows: int,
    length: int,
    optimizer: str,
    dtype: str,
    checkpointing: bool,
    in_pieces: bool = False,
    compiled: bool = False,
    cautious: bool = False,
    averaged: bool = False,
) -> dict[str, int]:
    """Return {purpose: bytes} on each device.

    Master weights, gradients and moments are float32. Activations are what autograd saves per layer (a test counts
    them); a compiled model recomputes the cheap ones, about as in Korthikanti et al. (2022). in_pieces: large logits
    are never in memory all at once, as in pretraining. cautious: weight decay is cautious, which copies the weights
    that decay. averaged: a moving average of the weights is kept.
    """
    parameters, matrices = shape.parameters, shape.matrix_parameters
    moments = {
        "adamw": 8 * parameters,
        "adamw_8bit": 2 * matrices + 8 * (parameters - matrices),
        "sophia": 8 * parameters,
        "lion": 4 * parameters,
        "muon": 4 * matrices + 8 * (parameters - matrices),
        "adafactor": 4 * parameters // min(shape.hidden_size, shape.intermediate_size) * 2,  # rows and columns
    }[optimizer]
    half = dtype == "bfloat16"
    tokens = rows * length
    per_layer = tokens * _bytes_kept_per_token(shape, half, compiled)
    kept = tokens * shape.hidden_size * 4  # the residual stream stays float32 under autocast
    layers = shape.num_hidden_layers
    activations = layers * kept + per_layer if checkpointing else layers * per_layer
    return {
        "weights": 4 * parameters + (2 * parameters if half else 0),
        "gradients": 4 * parameters,
        "optimizer": moments,
        "activations": activations,
        "logits": _logits_bytes(shape, tokens, half, in_pieces and not (shape.softcap or shape.num_experts)),
        **({"averaged weights": 4 * parameters} if averaged else {}),
        **({"cautious decay": 4 * matrices} if cautious else {}),
    }


def memory_of_each(
    memory: Mapping[str, int], shape: ModelShape, train: Mapping[str, Any], processes: int, *, trained: float = 1.0
) -> dict[str, int]:
    """Return {purpose: bytes} on each device of a run in several processes, from the memory of a single process.

    trained: the share of the weights that is trained. DDP divides nothing. Sharding (FSDP2) divides weights, gradients,
    moments, and the reference and the critic if there are any. Each device still has whole weights of two layers and of
    the embeddings and head of each model, in the precision of the run, and whole gradients of one layer and of the
    embeddings and head, in that precision and in float32. Before the first step, every device has the whole model, and
    the whole reference or critic.
    """
    if processes == 1 or train.get("distributed") != "fsdp":
        return dict(memory)
    parameters, ends = shape.parameters, shape.parameters - shape.matrix_parameters
    layer = shape.matrix_parameters // shape.num_hidden_layers
    number = 2 if train["dtype"] == "bfloat16" else 4
    stored = min(memory["weights"], 4 * parameters)  # without autocast's copies: gathered weights are already cast
    others = [part for part in ("reference", "critic") if part in memory]
    gathered = number * (2 * layer + ends) * (1 + len(others)) + int((number + 4) * (layer + ends) * trained)
    divided = {"weights": stored, **{part: memory[part] for part in ("gradients", "optimizer", *others)}}
    each = {**memory, **{part: -(-size // processes) for part, size in divided.items()}, "gathered layers": gathered}
    missing = stored * (2 if others else 1) - sum(each.values())
    return {**each, **({"whole model at the start": missing} if missing > 0 else {})}


def _bytes_kept_per_token(shape: ModelShape, half: bool, compiled: bool) -> int:
    """Return the bytes that a layer saves per token for the backward pass."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    heads, keys = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    if compiled:
        return (20 * hidden + (6 if shape.gated else 4) * inner) * (1 if half else 2)
    of_norms = 8 * (heads + keys) if shape.qk_norm else 0
    of_norms += 4 * hidden if shape.residual_scalars else 0
    if shape.num_experts:  # inputs, inner states and outputs of the experts; softmax of the router
        used, number = shape.num_experts_per_tok, 2 if half else 4
        of_experts = used * (number * (4 * inner + 3 * hidden) + 24) + 16 * shape.num_experts
        return (18 if half else 16) * hidden + (4 if half else 8) * (heads + keys) + of_experts + of_norms
    if half:
        return 26 * hidden + 4 * (heads + keys) + (8 if shape.gated else 4) * inner + of_norms
    return 24 * hidden + 8 * (heads + keys) + (16 if shape.gated else 8) * inner + of_norms


def _logits_bytes(shape: ModelShape, tokens: int, half: bool, in_pieces: bool) -> int:
    if not in_pieces or 4 * tokens * shape.vocab_size <= PIECE_OF_LOGITS_BYTES:
        of_cap = (2 if half else 4) if shape.softcap else 0  # the result of the soft-cap's tanh
        return tokens * shape.vocab_size * ((14 if half else 12) + of_cap)
    # A piece and two temporary copies of it; the gradients of head and hidden states, accumulated and passed on.
    gradients = 2 * shape.hidden_size * (4 * shape.vocab_size + tokens * (2 if half else 4))
    return 3 * PIECE_OF_LOGITS_BYTES + gradients


def estimate_pretraining(
    recipe: Mapping[str, Any],
    shape: ModelShape | None,
    machine: Machine,
    *,
    first_step: int = 0,
    own: Measurement | None = None,
) -> Estimate:
    """Estimate the cost of a resolved pretraining recipe, from measurements on this machine if there are any.

    first_step: the step that a resumed run starts from; only later steps are counted. own: what that run measured.
    """
    train, device = recipe["train"], recipe["device"]
    rows, length = train["per_device_train_batch_size"], train["max_length"]
    of_steps = step_rows(train, machine.processes)
    per_step = of_steps.rows * length
    tokens = length * max(0, of_steps.before(train["max_steps"]) - of_steps.before(first_step))
    available = available_bytes(device, machine)
    if shape is None:
        return Estimate(None, {}, tokens, per_step, None, {}, 0, available, {}, 0, first_step)
    measured = find_measurement(recipe, shape, machine, own=own)
    memory = memory_by_part(
        shape,
        rows=rows,
        length=length,
        optimizer=recipe["optimizer"]["name"],
        dtype=train["dtype"],
        checkpointing=bool(train["gradient_checkpointing"]),
        in_pieces=True,
        compiled=bool(train.get("compile")),
        cautious=bool(recipe["optimizer"].get("cautious_weight_decay")),
        averaged=bool(train.get("ema_decay")),
    )
    checkpoint = 4 * shape.parameters + memory["optimizer"] + memory.get("averaged weights", 0)
    memory = memory_of_each(memory, shape, train, machine.processes)
    if device == "cpu":
        memory["libraries"] = PROGRAM_BYTES
    disk = disk_by_part(4 * shape.parameters, checkpoint, train)
    return Estimate(
        parameters=shape.parameters,
        parameters_by_part=shape.parameters_by_part,
        tokens=tokens,
        tokens_per_step=per_step,
        flops_per_token=shape.training_flops_per_token(length),
        memory_by_part=memory,
        memory_bytes=(measured and measured.memory_bytes) or sum(memory.values()),
        memory_available_bytes=available,
        seconds_by_part=_seconds_by_part(recipe, shape, machine, per_step, tokens, checkpoint, first_step, measured),
        disk_bytes=sum(disk.values()),
        first_step=first_step,
        measurement=measured,
        disk_by_part=disk,
    )


def disk_by_part(model: int, checkpoint: int, train: Mapping[str, Any]) -> dict[str, int]:
    """Return {purpose: bytes} on disk. model, checkpoint: bytes of one; train: the recipe's group.

    A new checkpoint is written before the oldest is removed. A short run saves fewer than the limit.
    """
    kept, saved = train["save_total_limit"], None
    if train["max_steps"] and train["save_steps"]:
        saved = occasions(train["save_steps"], train["max_steps"], 0)
    if saved is not None and saved <= kept:
        return {"model": model, plural(saved, "checkpoint"): checkpoint * saved}
    return {"model": model, f"{plural(kept, 'checkpoint')}, briefly {kept + 1}": checkpoint * (kept + 1)}


def estimate_model(shape: ModelShape | None, machine: Machine, *, device: str, writes_model: bool) -> Estimate:
    """Estimate a stage that trains nothing: the model in memory in float32 and, if it writes one, on disk."""
    weights = 4 * shape.parameters if shape else 0
    memory = {"weights": weights, "libraries": PROGRAM_BYTES} if shape else {}
    return Estimate(
        parameters=shape.parameters if shape else None,
        parameters_by_part=shape.parameters_by_part if shape else {},
        tokens=0,
        tokens_per_step=0,
        flops_per_token=None,
        memory_by_part=memory,
        memory_bytes=sum(memory.values()),
        memory_available_bytes=available_bytes(device, machine),
        seconds_by_part={},
        disk_bytes=weights if writes_model else 0,
    )


def available_bytes(device: str, machine: Machine) -> int:
    """Return the memory of the device that one process uses."""
    if device != "cuda":
        return machine.memory_bytes
    return machine.gpus[0].memory_bytes if machine.gpus else ASSUMED_GPU_MEMORY_BYTES


def _seconds_by_part(
    recipe: Mapping[str, Any],
    shape: ModelShape,
    machine: Machine,
    tokens_per_step: int,
    tokens: int,
    checkpoint_bytes: int,
    first_step: int,
    measured: Measurement | None,
) -> dict[str, float]:
    """Return {purpose: seconds} for the remaining steps, from typical values where nothing was measured."""
    train, device, samples = recipe["train"], recipe["device"], recipe.get("samples") or {}
    flops = shape.training_flops_per_token(train["max_length"])
    speed = flops_per_second(device, machine) * (machine.processes if device == "cuda" else 1)
    again = 4 / 3 if train["gradient_checkpointing"] else 1.0
    step = measured.step_seconds if measured else STEP_SECONDS[device] + again * flops * tokens_per_step / speed
    # A forward pass is a third of a step's work.
    evaluation = (measured and measured.evaluation_seconds_per_token) or (
        step / tokens_per_step / 3 / again if measured else flops / 3 / speed
    )
    sample = (measured and measured.sample_seconds_per_token) or (
        SAMPLE_SECONDS_PER_LAYER * shape.num_hidden_layers + 4 * shape.parameters / READ_BYTES_PER_SECOND[device]
    )
    evaluations = occasions(train["eval_steps"], train["max_steps"], first_step)
    saves = occasions(train["save_steps"], train["max_steps"], first_step)
    found = {"training": step * tokens / tokens_per_step}
    found["evaluation"] = evaluation * _held_out_tokens(recipe) * evaluations * (2 if train.get("ema_decay") else 1)
    written = len(samples.get("prompts") or ()) * (samples.get("max_new_tokens") or 0)
    found["samples"] = sample * written * evaluations
    found["saving"] = (SAVE_SECONDS + checkpoint_bytes / SAVE_BYTES_PER_SECOND) * saves
    if train.get("compile"):
        found["compiling"] = (measured and measured.compile_seconds) or COMPILE_SECONDS[device]
    return found


def flops_per_second(device: str, machine: Machine) -> float:
    """Return the typical speed of a process in training, in FLOP/s."""
    if device == "cuda":
        return CUDA_UTILIZATION * ((machine.gpus[0].bf16_peak_flops if machine.gpus else None) or ASSUMED_CUDA_PEAK)
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return CPU_FLOPS_PER_CORE * (min(int(threads), machine.cpu_cores) if threads.isdigit() else machine.cpu_cores)


def occasions(every: int, steps: int, first_step: int) -> int:
    """Return how often something that is done every `every` steps, and at the last one, happens after `first_step`."""
    return steps // every - first_step // every + (steps % every > 0)


def _held_out_tokens(recipe: Mapping[str, Any]) -> float:
    """Return how many tokens an evaluation reads: max_tokens, or fewer for small files."""
    validation, sources = recipe["validation"], recipe["data"]
    if not validation["fraction"]:
        return 0.0
    each = max(1, validation["max_tokens"] // len(sources))
    per_token = 1.0 if recipe["tokenizer"] == "bytes" else BYTES_PER_TOKEN
    total = 0.0
    for source in sources:
        size = _file_bytes(source["path"])
        total += each if size is None else min(each, validation["fraction"] * size / per_token)
    return total


def _file_bytes(path: str) -> int | None:
    """Return the size of a local file, about that of its text; None for a folder or a dataset of the Hub."""
    file = Path(path).expanduser()
    try:
        return file.stat().st_size if file.is_file() else None
    except OSError:
        return None
