"""Running sweeps: their table, and what fails, is skipped, resumed and shared."""

import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import tiny_recipe, write_text
from support.forked_command import ForkedCommand
from support.measured_sweeps import fill_cells

import llm_lab
from llm_lab.cli import main
from llm_lab.estimate.adapter_base import weights_digest
from llm_lab.runs.folder import RunFolder
from llm_lab.studies.cells import run_cells, state_of
from llm_lab.studies.results import SweepResult, summarize
from llm_lab.studies.sweep import open_sweep, plan_sweep
from llm_lab.studies.sweep_report import write_sweep_report

SHORT = {"train.max_steps": 4, "scheduler.warmup_steps": 0, "train.eval_steps": 2, "train.save_steps": 2}
LONG = {"train.max_steps": 300, "train.eval_steps": 300, "train.save_steps": 300}


@pytest.fixture(autouse=True)
def _text(in_tmp_path):
    write_text("text.txt")


def write_recipe(**changes) -> None:
    Path("recipe.yaml").write_text(json.dumps(tiny_recipe(**changes)))


def started(*words: str) -> subprocess.Popen:
    """Start a sweep in a process of its own, in a session that can be killed with its children."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return ForkedCommand("sweep", "recipe.yaml", *words, start_new_session=True, **pipes)


def wait_for(condition, process: subprocess.Popen) -> None:
    ends = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_a_sweep_ends_with_a_table_keeps_a_failure_and_skips_what_is_done(capsys):
    """One of two runs diverges. The other continues, and the exit code shows that one failed."""
    write_recipe(**SHORT, **{"train.max_grad_norm": 1e9})
    values = "{name: adamw, learning_rate: 0.01},{name: adamw, learning_rate: 9.0, eps: 1e-30}"
    words = ["sweep", "recipe.yaml", f"optimizer={values}", "--name", "s"]
    assert main(words) == 1
    shown = capsys.readouterr().out
    assert "--retry-failed" in shown
    rows = summarize(open_sweep("s"))
    assert [row.n for row in rows] == [1, 0]
    done, failed = rows[0].states[0], rows[1].states[0]
    assert done.value == RunFolder(done.cell.folder).facts()["results"]["eval_loss"]
    assert failed.status == "failed"
    assert failed.error in shown
    written = {path.name for path in Path("checkpoints/s").iterdir()}
    assert {"report.md", "report.html", "results.csv", "results.json", "cells.csv", "sweep.json"} <= written
    before = done.cell.folder.stat().st_mtime_ns, RunFolder(failed.cell.folder).facts()
    assert main(words) == 1
    assert (done.cell.folder.stat().st_mtime_ns, RunFolder(failed.cell.folder).facts()) == before
    assert "0 of 2" in capsys.readouterr().out
    rates = [{"name": "adamw", "learning_rate": 0.01}, {"name": "adamw", "learning_rate": 9.0, "eps": 1e-30}]
    found = llm_lab.sweep("recipe.yaml", {"optimizer": rates}, name="s")  # the same sweep, from Python
    assert list(found.table["n"]) == [1, 0]
    assert list(found.cells["status"]) == ["done", "failed"]
    assert "optimizer.learning_rate" in list(found.differences["key"])


@pytest.fixture
def measured(trained_once):
    """A sweep of two keys and two seeds whose cells are copies of one real run, with losses of their own."""
    words = ["optimizer.learning_rate=0.01,0.02", "model.norm=rmsnorm,layernorm"]
    sweep = plan_sweep(tiny_recipe(), words, seeds=2, name="s")
    run = trained_once / "checkpoints" / "tiny"
    return fill_cells(sweep, run, lambda number, cell: {"eval_loss": 3.0 - number / 10})


def test_the_table_has_mean_spread_and_every_seed_and_the_best_comes_first(measured):
    table = SweepResult(measured.folder).table
    assert list(table["model.norm"]) == ["layernorm", "rmsnorm", "layernorm", "rmsnorm"]
    best = table.iloc[0]
    assert best["mean"] == pytest.approx((2.7 + 2.3) / 2)
    assert best["standard_deviation"] == pytest.approx(0.4 / 2**0.5)
    assert (best["n"], best["seed=1337"], best["seed=1338"]) == (2, pytest.approx(2.7), pytest.approx(2.3))
    assert best["train_tokens"] == 20 * 4 * 16
    assert "<table" in SweepResult(measured.folder)._repr_html_()


def test_a_sweep_is_shown_and_listed(measured, capsys):
    assert main(["show", "checkpoints/s"]) == 0
    assert "layernorm" in capsys.readouterr().out
    assert main(["list", "runs"]) == 0
    assert "8 of 8 runs done" in capsys.readouterr().out


def test_the_report_has_the_differences_the_pictures_and_the_data(measured):
    write_sweep_report(measured)
    folder = measured.folder
    report = (folder / "report.md").read_text()
    assert "lower is better" in report
    table = [line for line in report.splitlines() if line.startswith("| 0.02 · layernorm |")]
    assert {"0.02", "layernorm"} <= set(table[0].strip("| ").split(" | "))
    for picture in ("intervals.svg", "heatmap.svg", "curves.svg"):
        assert picture in report
        assert (folder / picture).read_text().startswith("<svg")
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "http://www.w3.org" not in page.replace('xmlns="http://www.w3.org/2000/svg"', "")
    with open(folder / "results.csv") as file:
        assert next(csv.DictReader(file))["mean"] == "2.5"
    data = json.loads((folder / "results.json").read_text())
    assert (data["measure"], data["less_is_better"], len(data["cells"])) == ("eval_loss", True, 8)
    assert {row["key"] for row in data["differences"]} >= {"optimizer.learning_rate", "model.norm"}


def test_a_cell_on_which_another_command_works_is_left_alone(measured):
    from llm_lab.runs.lock import hold

    cell = measured.cells()[0]
    (cell.folder / "run.json").unlink()
    place = measured.folder / ".claims" / cell.name
    place.mkdir(parents=True)
    with hold(place):
        outcome = run_cells(measured, measured.cells_to_run())
    assert outcome.count("done") == 7
    assert not (cell.folder / "run.json").exists()


@pytest.mark.slow
def test_two_commands_share_the_cells_of_one_sweep():
    """Each of four runs is run exactly once."""
    write_recipe(**{"train.max_steps": 60, "train.eval_steps": 60, "train.save_steps": 60})
    words = ("optimizer.learning_rate=0.01,0.02", "--seeds", "2", "--name", "s")
    first, second = started(*words), started(*words)
    outputs = [process.communicate(timeout=200)[0] for process in (first, second)]
    assert first.returncode == second.returncode == 0, outputs
    cells = open_sweep("s").cells()
    assert [RunFolder(cell.folder).status() for cell in cells] == ["done"] * 4
    assert not any("resumed_at" in RunFolder(cell.folder).facts() for cell in cells)
    assert len({RunFolder(cell.folder).facts()["process"]["pid"] for cell in cells}) == 4
    assert sorted(path.name for path in Path("checkpoints/s").glob("*-seed=*")) == sorted(cell.name for cell in cells)
    took = [sum(f"{cell.label}: running" in output for cell in cells) for output in outputs]
    assert all(took), outputs
    assert len(SweepResult(Path("checkpoints/s")).table) == 2
    assert "4 of 4" not in (Path("checkpoints/s") / "report.md").read_text()


@pytest.mark.slow
def test_a_sweep_that_was_killed_with_its_run_ends_like_an_undisturbed_one():
    write_recipe(**{**LONG, "train.save_steps": 50})
    words = ("optimizer.learning_rate=0.01,0.02", "--name", "s")
    process = started(*words)
    cell = Path("checkpoints/s/learning_rate=0.01-seed=1337")
    wait_for(lambda: RunFolder(cell).checkpoints(), process)
    child = RunFolder(cell).facts()["process"]["pid"]
    os.kill(child, signal.SIGKILL)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    again = started(*words)
    assert "validation loss" in again.communicate(timeout=200)[0]
    assert again.returncode == 0
    undisturbed = started(*words[:1], "--name", "t")
    undisturbed.communicate(timeout=200)
    for one, other in zip(open_sweep("s").cells(), open_sweep("t").cells(), strict=True):
        assert weights_digest(one.folder / "model") == weights_digest(other.folder / "model")
    assert RunFolder(cell).facts()["resumed_at"]
    means = [[row.mean for row in summarize(open_sweep(name))] for name in ("s", "t")]
    assert means[0] == means[1]


@pytest.mark.slow
def test_ctrl_c_stops_the_run_with_its_work_saved_and_the_same_command_resumes():
    write_recipe(**LONG)
    process = started("optimizer.learning_rate=0.01,0.02", "--name", "s")
    cell = Path("checkpoints/s/learning_rate=0.01-seed=1337")
    wait_for(lambda: RunFolder(cell).metrics(), process)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "Resume: llm-lab sweep recipe.yaml" in output
    assert RunFolder(cell).status() == "stopped"
    assert RunFolder(cell).checkpoints()
    again = started("optimizer.learning_rate=0.01,0.02", "--name", "s")
    again.communicate(timeout=200)
    assert again.returncode == 0
    assert RunFolder(cell).status() == "done"


def test_a_run_of_a_sweep_that_counts_in_epochs_has_the_steps_derived_from_its_data(in_tmp_path):
    run = RunFolder(Path("checkpoints/sweep/a"))
    run.path.mkdir(parents=True)
    run.update(status="stopped", max_steps=10, recipe={"train": {"max_steps": None}})
    assert state_of(SimpleNamespace(folder=run.path), "eval_loss").max_steps == 10
