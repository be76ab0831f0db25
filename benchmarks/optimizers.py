"""The validation loss of the optimizers at equal tokens and at equal time."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .shakespeare import find_text

# All with their default learning rates. Without adamw_8bit, which requires CUDA and equals AdamW to three digits.
NAMES = ("muon", "adamw", "lion", "sophia", "adafactor")
STEPS, FULL_STEPS, EVALUATIONS = 200, 2000, 10


def bench(full: bool) -> None:
    """Print a table. The data is tiny Shakespeare if it is there, otherwise the built-in stories."""
    from llm_lab.runner import run
    from llm_lab.runs.folder import RunFolder

    steps, text = FULL_STEPS if full else STEPS, find_text()
    curves: dict[str, list[tuple[int, float, float]]] = {}
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for name in NAMES:
                facts = run(_recipe(name, steps, str(text) if text else "builtin:stories"))
                rows = RunFolder(Path(facts["path"])).metrics()
                curves[name] = _curve(rows)
        finally:
            os.chdir(here)
    shortest = min(curve[-1][1] for curve in curves.values())
    print(
        f"Optimizers, {'tiny Shakespeare' if text else 'built-in stories'}, 4 × 128, {steps:,} steps of 768 tokens:\n"
    )
    print("| optimizer | validation loss | training seconds | validation loss after the time of the fastest |")
    print("| --- | --- | --- | --- |")
    for name, curve in curves.items():
        within = [loss for _, seconds, loss in curve if seconds <= 1.001 * shortest]
        print(f"| {name} | {curve[-1][2]:.3f} | {curve[-1][1]:.1f} | {f'{within[-1]:.3f}' if within else ''} |")
    print("\nOne run each, at the default learning rates: differences of 0.01 are within the variation between seeds.")


def _curve(rows: list[dict]) -> list[tuple[int, float, float]]:
    """Return (step, seconds of training alone, validation loss) of each evaluation."""
    curve, seconds, before = [], 0.0, 0
    for row in rows:
        if "tokens_per_second" in row:
            seconds += (row["train_tokens"] - before) / row["tokens_per_second"]
            before = row["train_tokens"]
        if "eval_loss" in row:
            curve.append((row["step"], seconds, row["eval_loss"]))
    return curve


def _recipe(name: str, steps: int, path: str) -> dict:
    return {
        "stage": "pretrain",
        "name": name,
        "device": "auto",
        "model": {"size": "nano"},
        "tokenizer": "bytes",
        "data": [{"path": path}],
        "validation": {"max_tokens": 32_768},
        "optimizer": {"name": name},
        "train": {
            "max_steps": steps,
            "max_length": 64,
            "per_device_train_batch_size": 12,
            "gradient_accumulation_steps": 1,
            "eval_steps": steps // EVALUATIONS,
            "save_steps": steps,
            "logging_steps": max(1, steps // 50),
            "dtype": "float32",
            "compile": False,
        },
        "samples": {"max_new_tokens": 1},
    }
