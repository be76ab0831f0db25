"""What every test has: a cache of its own, no network, one thread; and tiny runs to make."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub at import
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

WORDS = "the a small red green old tree stone river bird fish sings falls waits runs near under over".split()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Token files of a test stay out of the user's cache."""
    monkeypatch.setenv("LLM_LAB_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def online_where_the_hub_is_faked(request, monkeypatch):
    """A test with a fake Hub (its `hub` fixture) must reach it."""
    if "hub" in request.fixturenames:
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Two processes of two threads on two cores are many times slower than of one."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch) -> Path:
    """Run folders are made in ./checkpoints: work in a fresh folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_text(path: Path | str, sentences: int = 300, seed: int = 0) -> str:
    """Write a small text of made-up sentences; returns its path."""
    pick = random.Random(seed)
    lines = (" ".join(pick.choices(WORDS, k=pick.randint(4, 9))) + ".\n" for _ in range(sentences))
    Path(path).write_text("".join(lines))
    return str(path)


def tiny_recipe(text: str = "text.txt", **changes) -> dict:
    """A pretraining recipe that takes about a second; changes are {"group.key": value} or {"key": value}."""
    recipe = {
        "stage": "pretrain",
        "name": "tiny",
        "device": "cpu",
        "model": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 32,
        },
        "data": [{"path": text}],
        "optimizer": {"name": "adamw", "learning_rate": 0.01},
        "scheduler": {"warmup_steps": 2},
        "train": {
            "max_steps": 20,
            "max_length": 16,
            "per_device_train_batch_size": 4,
            "eval_steps": 10,
            "save_steps": 10,
            "logging_steps": 5,
            "dtype": "float32",
            "compile": False,
        },
        "samples": {"prompts": ["the"], "max_new_tokens": 4},
    }
    for key, value in changes.items():
        group, _, name = key.rpartition(".")
        (recipe[group] if group else recipe)[name] = value
    return recipe


def spawn_program(program: str) -> Any:
    """Run a Python program in a terminal of 80 by 24, in which Ctrl-C means what it means to a person."""
    import pexpect

    return pexpect.spawn(
        sys.executable,
        ["-c", program],
        dimensions=(24, 80),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job's children ignore it
        encoding="utf-8",
        timeout=20,
        env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
    )
