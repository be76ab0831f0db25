"""What was measured on this machine, by a trial before a run or by a run itself: plans predict from it.

Kept in the user's cache, one small file for each machine, torch, model and setting.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .machine import Machine
from .parameters import ModelShape, read_config_json

# What tells, of a model named by its config or checkpoint, how fast it is beside its shape.
_SPEAKING_KEYS = ("model_type", "position_embedding", "norm", "activation", "sliding_window", "hidden_dropout")
# What an optimizer's step costs hangs on these of its keys; its rates cost nothing.
_COSTLY_KEYS = ("name", "k", "ns_steps", "nesterov", "beta1")
_TRAIN_KEYS = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "dtype",
    "attn_implementation",
    "gradient_checkpointing",
    "compile",
)


@dataclass(frozen=True)
class Measurement:
    """How long things take here, with one recipe's model and settings.

    source: "trial" (a few steps on random tokens) or "run" (a whole run). memory_bytes: the peak on the device;
    on a CPU of the whole process. What was not measured is None.
    """

    source: str
    step_seconds: float
    memory_bytes: int | None = None
    evaluation_seconds_per_token: float | None = None
    sample_seconds_per_token: float | None = None
    compile_seconds: float | None = None


def find_measurement(recipe: Mapping[str, Any], shape: ModelShape | None, machine: Machine) -> Measurement | None:
    """Return what was measured here with these settings, or None."""
    if shape is None:
        return None
    try:
        found = json.loads(_file(recipe, shape, machine).read_text(encoding="utf-8"))
        return Measurement(**found["measurement"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep_measurement(
    measurement: Measurement, recipe: Mapping[str, Any], shape: ModelShape | None, machine: Machine
) -> None:
    """Keep a measurement for plans to come. What it leaves open stays as an earlier one had it."""
    if shape is None:
        return
    before = find_measurement(recipe, shape, machine)
    if before is not None:
        new = {key: value for key, value in asdict(measurement).items() if value is not None}
        measurement = replace(before, **new)
    file = _file(recipe, shape, machine)
    text = json.dumps({"measurement": asdict(measurement), "settings": _settings(recipe, shape, machine)}, indent=2)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, file)
    except OSError:
        temporary.unlink(missing_ok=True)  # a cache that can't be written costs the next plan its precision, no more


def measurements_folder() -> Path:
    """Return measurements/ in $LLM_LAB_CACHE, or in llm-lab/ of the user's cache."""
    if own := os.environ.get("LLM_LAB_CACHE"):
        return Path(own).expanduser() / "measurements"
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "llm-lab" / "measurements"


def _file(recipe: Mapping[str, Any], shape: ModelShape, machine: Machine) -> Path:
    settings = json.dumps(_settings(recipe, shape, machine), sort_keys=True)
    return measurements_folder() / f"{hashlib.sha256(settings.encode()).hexdigest()[:32]}.json"


def _settings(recipe: Mapping[str, Any], shape: ModelShape, machine: Machine) -> dict[str, Any]:
    """Return all that a step's time hangs on."""
    on_cuda = recipe["device"] == "cuda"
    device = [gpu.name for gpu in machine.gpus[:1]] if on_cuda else [machine.cpu_name, machine.cpu_cores]
    model = dict(recipe.get("model") or {})
    named = model.get("config") or model.get("checkpoint")
    if named:
        config = read_config_json(named) or {}
        model = {key: config.get(key) for key in _SPEAKING_KEYS}
    return {
        "stage": recipe.get("stage"),
        "device": [recipe["device"], *device, machine.processes],
        "threads": None if on_cuda else os.environ.get("OMP_NUM_THREADS") or str(machine.cpu_cores),
        "versions": [_version("torch"), _version("transformers")],
        "shape": asdict(shape),
        "model": model,
        "optimizer": {key: recipe["optimizer"].get(key) for key in _COSTLY_KEYS},
        "train": {key: recipe["train"].get(key) for key in _TRAIN_KEYS},
    }


@functools.cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
