"""A folder with a tiny pretrained run, in which the wizard is visited."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from support.wizard_keys import keyboard, pick

from llm_lab.runs.folder import RunFolder
from llm_lab.wizard.wizard import run_wizard
from llm_lab.wizard_actions import wizard_actions

LEAVE = pick("Leave")
MODEL = pick("checkpoints/base:")
USUAL = pick("no, the usual ones")
RUN = (*pick("Start: see"), *pick("Yes, start"))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny pretrained run."""
    from llm_lab.runner import run

    folder = tmp_path_factory.mktemp("lab")
    parts = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 160}
    raw = {"stage": "pretrain", "name": "base", "device": "cpu", "model": parts, "tokenizer": {"bpe": 320}}
    raw |= {"data": [{"path": "builtin:sums"}], "optimizer": {"name": "adamw"}}
    raw |= {"train": {"max_steps": 2, "max_length": 64, "per_device_train_batch_size": 2}}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(raw)
    return folder / "checkpoints/base"


@pytest.fixture
def lab(monkeypatch, capsys, in_tmp_path, base):
    """Return a function: the screens of a visit to the wizard with these keys, the doings replaced as said."""
    shutil.copytree(base, "checkpoints/base")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")

    def visit(*steps, **replaced):
        actions = dataclasses.replace(wizard_actions(), **replaced)
        with keyboard(steps, monkeypatch, lambda: capsys.readouterr().out) as keys:
            assert run_wizard(actions, debug=True) == 0
        return keys.screens

    return visit


def seen(screens, text):
    return any(text in " ".join(screen.split()) for screen in screens)


def results(name):
    run = RunFolder(Path("checkpoints") / name)
    assert run.status() == "done"
    return run.facts()["results"]
