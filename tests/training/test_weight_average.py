"""The moving average of the weights: its value, what is evaluated and saved, and resuming."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_recipe, write_text
from support.pretrain_runs import losses, weights
from torch import nn

from llm_lab.hf.load import load_model
from llm_lab.runner import run
from llm_lab.runs.folder import RunFolder
from llm_lab.training.weight_average import WeightAverage


def test_the_average_equals_the_formula_and_can_be_put_into_the_model(tmp_path):
    layer, expected = nn.Linear(3, 2), {}
    average = WeightAverage(layer, 0.25)
    expected = layer.weight.detach().clone()
    for step in range(1, 5):
        layer.weight.data += torch.randn(2, 3)
        decay = min(0.25, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * layer.weight.detach()
        average.on_step_end(None, SimpleNamespace(global_step=step), None)
    now = layer.weight.detach().clone()
    with average.applied():
        torch.testing.assert_close(layer.weight.detach(), expected)
    assert torch.equal(layer.weight, now)
    average.save(tmp_path)
    other = WeightAverage(nn.Linear(3, 2), 0.25)
    other.load(tmp_path)
    assert torch.equal(other._average["weight"], average._average["weight"])


@pytest.fixture
def averaged(in_tmp_path):
    write_text("text.txt")
    raw = tiny_recipe(**{"train.ema_decay": 0.7})
    return raw, run(raw)


def test_a_run_evaluates_and_saves_the_average_and_resumes_bit_for_bit(averaged):
    raw, whole = averaged
    rows, kept = losses(whole), weights(whole)
    evaluated = [dict(row) for row in rows if "raw_eval_loss" in dict(row)]
    assert [row["step"] for row in evaluated] == [10, 20]
    assert all(row["eval_loss"] != row["raw_eval_loss"] for row in evaluated)
    folder = Path(whole["path"])
    last = weights(whole, "steps/checkpoint-20")
    assert any(not torch.equal(weight, kept[name]) for name, weight in last.items()), "a checkpoint has the weights"
    plain = run({**raw, "name": "plain", "train": {**raw["train"], "ema_decay": None}})
    assert [dict(row).get("eval_loss") for row in losses(plain) if "eval_loss" in dict(row)] == [
        row["raw_eval_loss"] for row in evaluated
    ], "training itself is unchanged"
    assert RunFolder(folder).facts()["results"]["eval_loss"] == evaluated[-1]["eval_loss"]
    load_model(folder / "model")
    shutil.rmtree(folder / "steps" / "checkpoint-20")
    shutil.rmtree(folder / "model")
    resumed = run(raw, resume=True)
    assert losses(resumed) == rows
    assert all(torch.equal(weight, kept[name]) for name, weight in weights(resumed).items())
