"""Start pretraining runs in tests and read their results."""

import json
import subprocess
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from llm_lab.runs.folder import RunFolder

from .forked_command import ForkedCommand


def losses(facts: dict) -> list[tuple]:
    """Return the metric rows of a run without times."""
    clock = ("wall_seconds", "tokens_per_second")
    rows = RunFolder(Path(facts["path"])).metrics()
    return [tuple((key, value) for key, value in row.items() if key not in clock) for row in rows]


def weights(facts: dict, folder: str = "model") -> dict[str, torch.Tensor]:
    return load_file(Path(facts["path"]) / folder / "model.safetensors")


def _slow_muon() -> None:
    """Make steps slow enough that the process can be sent a signal."""
    from llm_lab.optim import factory

    original = factory.BUILDERS["muon"]

    def slow(model, options):
        optimizer = original(model, options)
        optimizer.register_step_post_hook(lambda *_: time.sleep(0.1))
        return optimizer

    factory.BUILDERS["muon"] = slow


def start(raw: dict) -> subprocess.Popen:
    """Start a run in a process of its own."""
    Path("recipe.json").write_text(json.dumps(raw))
    return ForkedCommand("run", "recipe.json", prepare=_slow_muon, stdout=subprocess.PIPE, text=True)


def wait_until(condition, process: subprocess.Popen) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < end
        time.sleep(0.02)
