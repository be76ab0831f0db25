"""A folder with a tiny pretrained run, for tests of the wizard."""

import shutil
from pathlib import Path

import pytest

from llm_lab.runs.folder import RunFolder
from llm_lab.wizard.questions import StartRun


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A tiny pretrained run."""
    from llm_lab.runner import run

    folder = tmp_path_factory.mktemp("lab")
    parts = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 160}
    raw = {"stage": "pretrain", "name": "base", "device": "cpu", "model": parts, "tokenizer": {"bpe": 320}}
    raw |= {"data": [{"path": "builtin:sums"}], "optimizer": {"name": "adamw"}}
    raw |= {"validation": {"max_tokens": 2_000}}
    raw |= {"train": {"max_steps": 2, "max_length": 64, "per_device_train_batch_size": 2}}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(raw)
    return folder / "checkpoints/base"


@pytest.fixture
def lab(in_tmp_path, base) -> Path:
    """Work in a fresh folder with a copy of the tiny run in checkpoints/base."""
    shutil.copytree(base, "checkpoints/base")
    return in_tmp_path


def run_it(effect) -> bool:
    """Execute the effect that starts a run."""
    from llm_lab.runner import run

    assert isinstance(effect, StartRun), effect
    run(effect.recipe)
    return True


def results(name):
    run = RunFolder(Path("checkpoints") / name)
    assert run.status() == "done"
    return run.facts()["results"]
