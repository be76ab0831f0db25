"""Tiny runs of the stages after pretraining: an untrained base, and questions with answers that can be checked."""

import functools
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from llm_lab.hf.save import save_model, set_special_tokens
from llm_lab.hf.tokenizers import make_byte_tokenizer
from llm_lab.model.configuration_lab import LabConfig
from llm_lab.model.modeling_lab import LabForCausalLM
from llm_lab.runs.folder import RunFolder


def write_base(folder: str = "base", **parts: Any) -> str:
    """Write a new tiny model with a byte tokenizer and no chat template; return its folder."""
    torch.manual_seed(0)
    shutil.copytree(_made(json.dumps(parts, sort_keys=True)).name, folder, dirs_exist_ok=True)
    return folder


@functools.cache
def _made(parts: str) -> tempfile.TemporaryDirectory:
    """Make the model with these parts in a folder that exists until the process ends."""
    folder = tempfile.TemporaryDirectory()
    tokenizer = make_byte_tokenizer()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes |= {"max_position_embeddings": 128} | json.loads(parts)
    model = LabForCausalLM(LabConfig(vocab_size=len(tokenizer), **sizes))
    set_special_tokens(model, tokenizer)
    save_model(model, Path(folder.name), tokenizer)
    return folder


def write_rows(path: str, rows: list[dict]) -> str:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_questions(path: str = "questions.jsonl", count: int = 40) -> str:
    draw = random.Random(0)
    rows = [{"question": f"{i}: {draw.randrange(9)}?", "answer": f"It is {draw.randrange(9)}."} for i in range(count)]
    return write_rows(path, rows)


def write_preferences(path: str = "pairs.jsonl", count: int = 40) -> str:
    return write_rows(path, [{"prompt": f"{i}?", "chosen": f"yes {i}", "rejected": f"no, {i}"} for i in range(count)])


DATA = {stage: write_questions for stage in ("sft", "grpo", "ppo")} | {
    stage: write_preferences for stage in ("reward", "dpo")
}


def post_recipe(stage: str, **changes: Any) -> dict:
    """A recipe of a few steps; changes are {"group.key": value} or {"key": value}, None removes a key."""
    recipe: dict[str, Any] = {
        "stage": stage,
        "name": stage,
        "device": "cpu",
        "model": {"checkpoint": "base"},
        "data": [{"path": DATA[stage]()}],
        "optimizer": {"name": "adamw", "learning_rate": 3e-3},
        "scheduler": {"warmup_steps": 0},
        "train": {
            "max_steps": 6,
            "max_length": 64,
            "per_device_train_batch_size": 4,
            "eval_steps": 3,
            "save_steps": 3,
            "logging_steps": 1,
        },
        "samples": {"max_new_tokens": 3},
    }
    if stage == "reward":
        del recipe["samples"]
    if stage in ("grpo", "ppo"):
        recipe |= {"rewards": [{"name": "length", "length": 8}], stage: {"max_completion_length": 6}, "score": None}
    for key, value in changes.items():
        group, _, name = key.rpartition(".")
        target = recipe.setdefault(group, {}) if group else recipe
        if value is None and name != "score":
            target.pop(name, None)
        else:
            target[name] = value
    return recipe


def rows_of(path: str, *leave_out: str) -> list[dict]:
    """Return the metrics of a run, except those that differ between runs."""
    out = {"wall_seconds", "tokens_per_second", "memory_bytes", *leave_out}
    return [{k: v for k, v in row.items() if k not in out} for row in RunFolder(Path(path)).metrics()]


def weights_of(path: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = {}
    for file in sorted((Path(path) / "model").glob("*.safetensors")):
        found |= load_file(file)
    return found
