"""Every test has its own cache, no network and one thread. Also has tiny recipes and texts for tests."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub at import
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TERM"] = "xterm-256color"  # so that screens are not in plain mode, regardless of the terminal
os.environ.pop("LLM_LAB_PLAIN", None)

import contextlib
import functools
import gc
import itertools
import random
import shutil
import signal
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

# The fixtures of tests/web/. A second conftest.py would hide this one from tests that import from it.
pytest_plugins = ("support.web_pages",)
gc.set_threshold(10_000)  # as `llm-lab` does
WORDS = "the a small red green old tree stone river bird fish sings falls waits runs near under over".split()


def pytest_xdist_auto_num_workers() -> int:
    """One more process than cores, because tests also wait for browsers and processes; at most 5, to limit memory."""
    return min(len(os.sched_getaffinity(0)) + 1, 5) if hasattr(os, "sched_getaffinity") else 4


@pytest.fixture(scope="session")
def cache_folders(tmp_path_factory):
    """Names of cache folders; a folder is created only by a test that writes to it."""
    root = tmp_path_factory.mktemp("caches")
    return (root / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def own_cache(cache_folders, monkeypatch):
    """Keep the files of a test out of the user's cache and state."""
    monkeypatch.setenv("LLM_LAB_CACHE", str(next(cache_folders)))
    monkeypatch.setenv("XDG_STATE_HOME", str(next(cache_folders)))


@pytest.fixture
def own_code():
    """The code that recipes name is the user's own."""
    from llm_lab.recipe.trust import trusting_recipes

    with trusting_recipes(True):
        yield


@pytest.fixture(autouse=True)
def no_hub_is_remembered(monkeypatch):
    """Forget what a previous test found out about a Hub."""
    from llm_lab.hf import hub

    monkeypatch.setattr(hub, "_SILENT", set())
    hub._answers.cache_clear()


@pytest.fixture(autouse=True)
def online_with_a_local_hub(request, monkeypatch):
    """Allow a test with a stand-in for the Hub (its `hub` fixture) to reach it."""
    if "hub" in request.fixturenames:
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("llm_lab.hf.hub._answers", lambda endpoint: True)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Use one thread: on two cores, two processes with two threads each are many times slower."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def look_up_packages_once():
    """Remember which packages are installed: Accelerate looks for dozens of them at the start of each run."""
    from accelerate.utils import imports

    imports._is_package_available = functools.cache(imports._is_package_available)


@pytest.fixture(scope="session")
def frozen_modules():
    """The modules whose objects the garbage collector skips."""
    return set()


@pytest.fixture(autouse=True)
def skip_libraries_in_garbage_collections(frozen_modules):
    """Freeze imported objects: the Trainer collects garbage once per run, which would double a tiny run's time."""
    yield
    if len(sys.modules) > len(frozen_modules) + 100:
        gc.collect()
        gc.freeze()
        frozen_modules.update(sys.modules)


@pytest.fixture(scope="session")
def process_without_llm_lab():
    """A process that has imported torch and transformers, and runs programs in forks."""
    from support.warm_process import warm_process

    with warm_process() as process:
        yield process


@pytest.fixture
def quick_verification(process_without_llm_lab, monkeypatch):
    """Verify exports in a fork of that process, instead of in a new one."""
    monkeypatch.setattr("llm_lab.export.verify.subprocess", SimpleNamespace(run=process_without_llm_lab.run))


@pytest.fixture
def run_without_llm_lab(process_without_llm_lab, tmp_path):
    """Run a program with arguments in a process where LLM Lab can't be imported; return its output."""
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}

    def run(program: str, *arguments: object) -> str:
        command = [sys.executable, "-c", program, *map(str, arguments)]
        ended = process_without_llm_lab.run(command, cwd=tmp_path, env=environment)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    return run


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch) -> Path:
    """Work in an empty folder: run folders are created in ./checkpoints."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory) -> Path:
    """The folder of a finished run of tiny_recipe(), with its text.txt and checkpoints/."""
    from llm_lab.runner import run

    folder = tmp_path_factory.mktemp("trained-once")
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_LAB_CACHE", str(folder / "cache"))
        write_text("text.txt")
        run(tiny_recipe())
    return folder


@pytest.fixture
def finished_run(trained_once, in_tmp_path) -> dict[str, Any]:
    """The facts of a finished run of tiny_recipe(), copied into the folder of the test."""
    from llm_lab.runs.folder import RunFolder

    shutil.copytree(trained_once / "checkpoints", "checkpoints")
    return {**RunFolder(Path("checkpoints/tiny")).facts(), "path": "checkpoints/tiny"}


def write_text(path: Path | str, sentences: int = 300, seed: int = 0) -> str:
    """Write a small text of random sentences and return its path."""
    pick = random.Random(seed)
    lines = (" ".join(pick.choices(WORDS, k=pick.randint(4, 9))) + ".\n" for _ in range(sentences))
    Path(path).write_text("".join(lines))
    return str(path)


def tiny_recipe(text: str = "text.txt", **changes) -> dict:
    """Return a pretraining recipe that runs for about a second; changes are {"group.key": value} or {"key": value}."""
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
    """Run a Python program in an 80 x 24 terminal in which Ctrl-C sends SIGINT."""
    import pexpect

    return pexpect.spawn(
        sys.executable,
        ["-c", program],
        dimensions=(24, 80),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # children of a background job would ignore it
        encoding="utf-8",
        timeout=20,
        env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
    )


@pytest.fixture
def silent_hub(monkeypatch):
    """An endpoint that does not respond, for libraries that are not set to stay offline."""
    with socket.socket() as kept:  # bound, so no other process gets this port, but it does not listen
        kept.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{kept.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", False)
        yield endpoint
