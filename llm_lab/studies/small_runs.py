"""Recipes of small models that the experiments share, and the curves of their runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from llm_lab.runs.folder import RunFolder

Points = list[tuple[float, float]]


def pretraining(
    *,
    width: int,
    layers: int,
    steps: int,
    data: str | Sequence[Mapping[str, Any]] = "builtin:stories",
    learning_rate: float | None = None,
    vocabulary: int | None = 1024,
    length: int = 128,
    batch: int = 16,
    device: str = "auto",
    seed: int = 1337,
) -> dict[str, Any]:
    """Return the recipe of a small model: heads of size 32, AdamW, one evaluation at the end.

    vocabulary: size of a BPE tokenizer that is trained on the data; None: bytes. learning_rate: derived if None.
    """
    heads = max(1, width // 32)
    return {
        "stage": "pretrain",
        "seed": seed,
        "device": device,
        "model": {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": max(256, length),
        },
        "tokenizer": {"bpe": vocabulary} if vocabulary else "bytes",
        "data": [{"path": data}] if isinstance(data, str) else list(data),
        "validation": {"fraction": 0.02, "max_tokens": 32_768},
        "optimizer": {"name": "adamw"} | ({"learning_rate": learning_rate} if learning_rate else {}),
        "train": {
            "max_steps": steps,
            "max_length": length,
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": 1,
            "eval_steps": steps,
            "save_steps": steps,
            "logging_steps": max(1, steps // 50),
            "save_total_limit": 1,
        },
        "samples": {"prompts": [""], "max_new_tokens": 40},
    }


def fine_tuning(
    model: str,
    data: str | Sequence[Mapping[str, Any]],
    *,
    steps: int,
    validation: Mapping[str, Any],
    learning_rate: float | None = None,
    lora: Mapping[str, Any] | None = None,
    length: int = 128,
    batch: int = 8,
    device: str = "auto",
    seed: int = 1337,
) -> dict[str, Any]:
    """Return the recipe of a short SFT of a small model: AdamW, five evaluations.

    lora: preset and r of an adapter; its alpha is twice the rank, so that the size of its contribution does not change
    with the rank. learning_rate: derived if None.
    """
    recipe: dict[str, Any] = {
        "stage": "sft",
        "seed": seed,
        "device": device,
        "model": {"checkpoint": model},
        "data": [{"path": data}] if isinstance(data, str) else list(data),
        "validation": dict(validation),
        "optimizer": {"name": "adamw"} | ({"learning_rate": learning_rate} if learning_rate else {}),
        "train": {
            "max_steps": steps,
            "max_length": length,
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": 1,
            "eval_steps": max(1, steps // 5),
            "save_steps": steps,
            "save_total_limit": 1,
        },
        "samples": {"max_new_tokens": 40},
    }
    return recipe | ({"lora": {**lora, "alpha": 2.0 * lora["r"], "dropout": 0.0}} if lora else {})


def points(run: RunFolder, key: str) -> Points:
    """Return (step, value) pairs of a metric of a run."""
    return [(row["step"], row[key]) for row in run.metrics() if isinstance(row.get(key), int | float)]


def last(run: RunFolder, key: str) -> float | None:
    """Return the last value of a metric of a run; None if it has none, or if it is not finite."""
    found = points(run, key)
    return found[-1][1] if found and math.isfinite(found[-1][1]) else None


def mean_by_epoch(run: RunFolder, key: str, steps_per_epoch: float) -> Points:
    """Return (epoch, mean) pairs of a metric over the log rows of each epoch."""
    groups: dict[int, list[float]] = {}
    for step, value in points(run, key):
        if step > 0:
            groups.setdefault(math.ceil(step / steps_per_epoch - 1e-9), []).append(value)
    return [(epoch, sum(values) / len(values)) for epoch, values in sorted(groups.items())]
