"""Memory, time and disk of a run, before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .hardware import Machine
from .parameters import ModelShape

# Shares of the peak that a run reaches, from experience; the plan calls the result "about".
CUDA_UTILISATION = 0.40
ASSUMED_CUDA_PEAK = 312e12
CPU_FLOPS_PER_CORE = 2.5e10  # what small matrix products reach on a core with AVX2
ASSUMED_GPU_MEMORY_BYTES = 80 * 10**9


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
    wall_seconds: float | None
    disk_bytes: int

    @property
    def fits(self) -> bool:
        return self.memory_bytes <= 0.95 * self.memory_available_bytes

    @property
    def tokens_per_parameter(self) -> float | None:
        return self.tokens / self.parameters if self.parameters else None


def memory_by_part(
    shape: ModelShape, *, rows: int, length: int, optimizer: str, dtype: str, checkpointing: bool
) -> dict[str, int]:
    """Return bytes on each device by what they are for.

    Master weights, gradients and moments are float32. Activations follow Korthikanti et al. (2022):
    about 34 bytes × hidden_size per token and layer in bf16 with a fused attention, twice in float32.
    """
    parameters, matrices = shape.parameters, shape.matrix_parameters
    moments = {
        "adamw": 8 * parameters,
        "sophia": 8 * parameters,
        "lion": 4 * parameters,
        "muon": 4 * matrices + 8 * (parameters - matrices),
        "adafactor": 4 * parameters // min(shape.hidden_size, shape.intermediate_size) * 2,  # rows and columns
    }[optimizer]
    half = dtype == "bfloat16"
    tokens = rows * length
    inner = shape.intermediate_size * (3 if shape.gated else 2)
    per_layer = tokens * (16 * shape.hidden_size + 2 * inner) * (1 if half else 2)
    kept = tokens * shape.hidden_size * (2 if half else 4)
    layers = shape.num_hidden_layers
    activations = layers * kept + per_layer if checkpointing else layers * per_layer
    return {
        "weights": 4 * parameters + (2 * parameters if half else 0),
        "gradients": 4 * parameters,
        "optimizer": moments,
        "activations": activations,
        "logits": tokens * shape.vocab_size * (14 if half else 12),
    }


def estimate(recipe: Mapping[str, Any], shape: ModelShape | None, machine: Machine) -> Estimate:
    """Work out the cost of a resolved pretraining recipe on this machine."""
    train, device = recipe["train"], recipe["device"]
    devices = machine.processes
    rows, length = train["per_device_train_batch_size"], train["max_length"]
    per_step = rows * length * train["gradient_accumulation_steps"] * devices
    tokens = per_step * train["max_steps"]
    if device == "cuda":
        available = machine.gpus[0].memory_bytes if machine.gpus else ASSUMED_GPU_MEMORY_BYTES
    else:
        available = machine.memory_bytes
    if shape is None:
        return Estimate(None, {}, tokens, per_step, None, {}, 0, available, None, 0)
    memory = memory_by_part(
        shape,
        rows=rows,
        length=length,
        optimizer=recipe["optimizer"]["name"],
        dtype=train["dtype"],
        checkpointing=train["gradient_checkpointing"],
    )
    flops = shape.training_flops_per_token(length)
    if device == "cuda":
        peak = (machine.gpus[0].bf16_peak_flops if machine.gpus else None) or ASSUMED_CUDA_PEAK
        speed = CUDA_UTILISATION * peak * devices
    else:
        speed = CPU_FLOPS_PER_CORE * machine.cpu_cores
    moments = memory["optimizer"]
    checkpoint = 4 * shape.parameters + moments
    return Estimate(
        parameters=shape.parameters,
        parameters_by_part=shape.parameters_by_part,
        tokens=tokens,
        tokens_per_step=per_step,
        flops_per_token=flops,
        memory_by_part=memory,
        memory_bytes=sum(memory.values()),
        memory_available_bytes=available,
        wall_seconds=flops * tokens / speed,
        disk_bytes=checkpoint * (train["save_total_limit"] + 1) + 4 * shape.parameters,
    )
