"""Runs inside a study's folder: started, resumed, skipped, and stopped together with the command that started them."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import tiny_recipe, write_text

from llm_lab.errors import UserError
from llm_lab.estimate.adapter_base import weights_digest
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.lock import hold
from llm_lab.studies.child_run import run_child

SHORT = {"train.max_steps": 2, "scheduler.warmup_steps": 0, "train.eval_steps": 2, "train.save_steps": 2}
CELL = Path("checkpoints/rates/learning_rate=0.01-seed=1")


@pytest.fixture(autouse=True)
def _text(in_tmp_path):
    write_text("text.txt")


def wait_for(process: subprocess.Popen, step: int) -> None:
    """Wait until a child in a process of its own has trained some steps."""
    ends = time.monotonic() + 60
    while not any(row["step"] >= step for row in RunFolder(CELL).metrics()):
        assert process.poll() is None
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_a_child_runs_in_its_folder_and_is_skipped_when_it_is_done():
    run = run_child(tiny_recipe(**SHORT), CELL)
    facts = run.facts()
    assert (run.path, facts["status"], facts["name"]) == (CELL, "done", CELL.name)
    again = run_child(tiny_recipe(**SHORT), CELL)
    assert again.facts() == facts
    assert [path.name for path in CELL.parent.iterdir()] == [CELL.name]


def test_the_recipe_in_a_childs_folder_can_be_run_again_by_hand():
    from llm_lab.job import check

    run_child(tiny_recipe(**SHORT), CELL)
    assert check(CELL / "recipe.yaml").name == CELL.name


def test_a_folder_that_holds_another_recipe_is_refused():
    run_child(tiny_recipe(**SHORT), CELL)
    with pytest.raises(UserError, match=r"optimizer.learning_rate = 0.02: the run in .* started with 0.01"):
        run_child(tiny_recipe(**SHORT, **{"optimizer.learning_rate": 0.02}), CELL)


def test_a_failure_is_recorded_in_the_folder_and_the_next_start_begins_again():
    recipe = tiny_recipe(**SHORT)
    recipe["train"]["max_length"] = 16
    Path("text.txt").write_text("short")
    with pytest.raises(UserError):
        run_child(recipe, CELL)
    assert RunFolder(CELL).status() == "failed"
    assert "text.txt" in RunFolder(CELL).facts()["error"]
    write_text("text.txt")
    assert run_child(recipe, CELL).status() == "done"


def test_a_child_that_another_process_works_on_is_refused_and_not_recorded_as_failed():
    CELL.mkdir(parents=True)
    with hold(CELL), pytest.raises(UserError, match="in progress"):
        run_child(tiny_recipe(**SHORT), CELL)
    assert RunFolder(CELL).facts() == {}


@pytest.mark.slow
def test_a_child_ends_with_its_work_saved_when_its_parent_is_killed_and_then_ends_like_an_undisturbed_one():
    """The parent is killed with SIGKILL: it can't pass anything on."""
    recipe = tiny_recipe(**{"train.max_steps": 400, "train.eval_steps": 400, "train.save_steps": 400})
    program = "import json, sys; from pathlib import Path; from llm_lab.studies.child_run import start_child; "
    program += "start_child(json.loads(sys.argv[1]), Path(sys.argv[2]), sys.stderr).wait()"
    parent = subprocess.Popen([sys.executable, "-c", program, json.dumps(recipe), str(CELL)])
    wait_for(parent, 10)
    parent.kill()
    ends = time.monotonic() + 30
    while RunFolder(CELL).status() == "running":
        assert time.monotonic() < ends
        time.sleep(0.05)
    assert RunFolder(CELL).status() == "stopped"
    assert 0 < RunFolder(CELL).checkpoints()[-1][0] < 400
    run_child(recipe, CELL)
    whole = run_child(recipe, CELL.with_name("whole"))
    assert weights_digest(str(CELL / "model")) == weights_digest(str(whole.model_path))
