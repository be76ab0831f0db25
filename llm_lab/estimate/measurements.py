"""Speeds measured on this machine, by a trial before a run or by a run itself. Estimates use them.

Stored in the user's cache: one small file per machine, torch version, model and settings.
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

# Keys of config.json that affect speed, in addition to the shape.
_CONFIG_KEYS = ("model_type", "position_embedding", "norm", "activation", "sliding_window", "hidden_dropout")
# Keys of an optimizer that affect the time of a step; its rates do not.
_OPTIMIZER_KEYS = ("name", "k", "ns_steps", "nesterov", "beta1")
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
    """Measured times and memory on this machine, with the model and settings of one recipe.

    source: "trial" (a few steps on random tokens), "run" (a whole run), or "this run" (the one that is resumed; not
    stored). memory_bytes: the peak on the device; on a CPU, the peak of the whole process. None: not measured.
    """

    source: str
    step_seconds: float
    memory_bytes: int | None = None
    evaluation_seconds_per_token: float | None = None
    sample_seconds_per_token: float | None = None
    compile_seconds: float | None = None


def find_measurement(
    recipe: Mapping[str, Any], shape: ModelShape | None, machine: Machine, *, own: Measurement | None = None
) -> Measurement | None:
    """Return the measurement with these settings, or None. own: the run's own, preferred to a stored one."""
    if shape is None:
        return own
    try:
        found = json.loads(_file(recipe, shape, machine).read_text(encoding="utf-8"))
        stored = Measurement(**found["measurement"])
    except (OSError, ValueError, KeyError, TypeError):
        return own
    return _completed(own, stored) if own else stored


def _completed(measurement: Measurement, other: Measurement) -> Measurement:
    """Return a measurement with missing values taken from another."""
    return replace(other, **{key: value for key, value in asdict(measurement).items() if value is not None})


def keep_measurement(
    measurement: Measurement, recipe: Mapping[str, Any], shape: ModelShape | None, machine: Machine
) -> None:
    """Store a measurement for later estimates. Missing values are taken from an earlier one."""
    if shape is None:
        return
    before = find_measurement(recipe, shape, machine)
    if before is not None:
        measurement = _completed(measurement, before)
    file = _file(recipe, shape, machine)
    text = json.dumps({"measurement": asdict(measurement), "settings": _settings(recipe, shape, machine)}, indent=2)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, file)
    except OSError:
        temporary.unlink(missing_ok=True)  # without this file the next estimate is only less precise


def cache_folder(name: str) -> Path:
    """Return the folder with this name in $LLM_LAB_CACHE, or else in llm-lab/ of the user's cache."""
    if own := os.environ.get("LLM_LAB_CACHE"):
        return Path(own).expanduser() / name
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "llm-lab" / name


def measurements_folder() -> Path:
    """Return the folder with the measurements."""
    return cache_folder("measurements")


def _file(recipe: Mapping[str, Any], shape: ModelShape, machine: Machine) -> Path:
    settings = json.dumps(_settings(recipe, shape, machine), sort_keys=True)
    return measurements_folder() / f"{hashlib.sha256(settings.encode()).hexdigest()[:32]}.json"


def _settings(recipe: Mapping[str, Any], shape: ModelShape, machine: Machine) -> dict[str, Any]:
    """Return everything that the time of a step depends on."""
    on_cuda = recipe["device"] == "cuda"
    device = [gpu.name for gpu in machine.gpus[:1]] if on_cuda else [machine.cpu_name, machine.cpu_cores]
    model = dict(recipe.get("model") or {})
    named = model.get("config") or model.get("checkpoint")
    if named:
        config = read_config_json(named) or {}
        model = {key: config.get(key) for key in _CONFIG_KEYS}
    return {
        "stage": recipe.get("stage"),
        "device": [recipe["device"], *device, machine.processes],
        "threads": None if on_cuda else os.environ.get("OMP_NUM_THREADS") or str(machine.cpu_cores),
        "versions": [_version("torch"), _version("transformers")],
        "shape": asdict(shape),
        "model": model,
        "optimizer": {key: recipe["optimizer"].get(key) for key in _OPTIMIZER_KEYS},
        "train": {key: recipe["train"].get(key) for key in _TRAIN_KEYS},
        **({"tuning": _of_tuning(recipe)} if "lora" in recipe else {}),
        **({"sharded": True} if machine.processes > 1 and recipe["train"].get("distributed") == "fsdp" else {}),
    }


def _of_tuning(recipe: Mapping[str, Any]) -> list[Any]:
    """Return what the time and memory of a stage after pretraining also depend on: adapter, options, lengths."""
    stage = str(recipe.get("stage"))
    return [recipe["lora"], recipe.get(stage), [source["path"] for source in recipe["data"]]]


@functools.cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
