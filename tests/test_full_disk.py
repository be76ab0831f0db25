"""A temporarily full disk costs a checkpoint; one that stays full ends the run, which can then be resumed."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_recipe, write_text
from support.post_runs import post_recipe, rows_of, weights_of, write_base
from support.pretrain_runs import losses, weights
from support.small_disk import fill, small_disk

from llm_lab.cli import main
from llm_lab.errors import MachineError
from llm_lab.events import CheckpointSaved, MetricsLogged, RunWarning
from llm_lab.runner import run
from llm_lab.runs.disk import TEMPORARY
from llm_lab.runs.folder import RunFolder
from llm_lab.stages import pretrain

RAW = tiny_recipe(**{"train.save_steps": 5, "train.logging_steps": 1, "optimizer.name": "adamw"})
TINY, FILLER = RunFolder(Path("checkpoints/tiny")), Path("filler")


class Neighbor:
    """Fills the disk after one step, and frees it after another."""

    def __init__(self, full_at, free_at=None):
        self.full_at, self.free_at = full_at, free_at
        self.warnings, self.saved = [], []

    def __call__(self, event):
        match event:
            case MetricsLogged(row) if "loss" in row and row["step"] == self.full_at:
                fill(FILLER)
            case MetricsLogged(row) if "loss" in row and row["step"] == self.free_at:
                FILLER.unlink()
            case RunWarning(text):
                self.warnings.append(text)
            case CheckpointSaved(step):
                self.saved.append(step)


@pytest.fixture
def disk(tmp_path, monkeypatch):
    with small_disk(tmp_path / "disk", "16m") as folder, monkeypatch.context() as patch:
        patch.chdir(folder)
        write_text("text.txt")
        yield folder


def assert_as_undisturbed(facts, other):
    assert facts["status"] == "done"
    assert losses(facts) == losses(other)
    theirs = weights(other)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in weights(facts).items())
    samples = [(Path(path) / "samples.md").read_text() for path in (facts["path"], other["path"])]
    assert samples[0] == samples[1]
    assert not [path for path in TINY.path.rglob("*") if TEMPORARY.fullmatch(path.name)]


def test_a_disk_that_is_full_for_a_while_costs_a_checkpoint_and_no_row(disk):
    neighbor = Neighbor(full_at=8, free_at=13)
    facts = run(RAW, listener=neighbor)
    assert neighbor.saved == [5, 15, 20]
    (text,) = [text for text in neighbor.warnings if "checkpoint of step 10" in text]
    assert "space" in text.lower()
    assert "Free disk space before step 15" in text
    assert facts["status"] == "done"
    assert [row["step"] for row in TINY.metrics() if "loss" in row] == list(range(1, 21))
    assert not [path for path in TINY.path.rglob("*") if TEMPORARY.fullmatch(path.name)]
    other = run({**RAW, "name": "whole"})
    assert losses(facts) == losses(other)
    theirs = weights(other)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in weights(facts).items())


def test_a_disk_that_stays_full_ends_the_run_which_is_then_resumed(disk):
    neighbor = Neighbor(full_at=8)
    with pytest.raises(MachineError) as caught:
        run(RAW, listener=neighbor)
    assert "the disk is full" in str(caught.value)
    assert "Free some space, then: llm-lab run checkpoints/tiny/recipe.yaml --resume" in str(caught.value)
    assert [step for step, _ in TINY.checkpoints()] == [5]
    assert not TINY.model_path.exists()
    assert not [path for path in TINY.path.rglob("*") if TEMPORARY.fullmatch(path.name)]
    FILLER.unlink()
    assert main(["run", "checkpoints/tiny/recipe.yaml", "--resume"]) == 0
    resumed = {**TINY.facts(), "path": str(TINY.path)}
    assert_as_undisturbed(resumed, run({**RAW, "name": "whole"}))


@pytest.mark.parametrize("stage", ["sft", "grpo", "ppo"])
def test_a_full_disk_costs_a_later_stage_a_checkpoint_too(disk, stage):
    write_base()
    changes = {"train.max_steps": 8, "train.save_steps": 2, "train.eval_steps": 4}
    raw = post_recipe(stage, **changes)
    neighbor = Neighbor(full_at=3, free_at=5)
    facts = run(raw, listener=neighbor)
    assert neighbor.saved == [2, 6, 8]
    (text,) = [text for text in neighbor.warnings if "checkpoint of step 4" in text]
    assert "Free disk space before step 6" in text
    assert facts["status"] == "done"
    assert not [path for path in Path(facts["path"]).rglob("*") if TEMPORARY.fullmatch(path.name)]
    other = run({**raw, "name": "whole"})
    assert rows_of(facts["path"]) == rows_of(other["path"])
    theirs = weights_of(other["path"])
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in weights_of(facts["path"]).items())


def test_a_final_model_that_cannot_be_written_is_named_with_the_way_out(disk, monkeypatch):
    """The disk fills up between the last checkpoint and the model."""
    save = pretrain.write_model

    def on_a_full_disk(folder, model, write):
        fill(FILLER)
        save(folder, model, write)

    monkeypatch.setattr(pretrain, "write_model", on_a_full_disk)
    with pytest.raises(MachineError) as caught:
        run(RAW)
    assert "checkpoints/tiny/model: the model could not be written: " in str(caught.value)
    assert "Free some space, then: llm-lab run checkpoints/tiny/recipe.yaml --resume" in str(caught.value)
    assert not [path for path in TINY.path.rglob("*") if TEMPORARY.fullmatch(path.name)]
    monkeypatch.setattr(pretrain, "write_model", save)
    FILLER.unlink()
    assert run(RAW, resume=True)["status"] == "done"
