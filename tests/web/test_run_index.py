"""The list of runs has every run on disk, sends only what has changed, and stays fast with hundreds of runs."""

import json
import os
import time
from pathlib import Path

import pytest
from support.web_runs import append, row, write_run

from llm_lab.runs.folder import RunFolder
from llm_lab.runs.lock import hold
from llm_lab.web import run_index
from llm_lab.web.run_index import RunIndex, seconds_left
from llm_lab.web.run_view import head_of


@pytest.fixture
def index(tmp_path, monkeypatch):
    monkeypatch.setattr(run_index, "AT_MOST_EVERY", 0.0)
    (tmp_path / "checkpoints").mkdir()
    return RunIndex(tmp_path / "checkpoints")


def test_a_run_whose_process_is_gone_is_shown_as_died_and_a_locked_one_as_running(index, tmp_path):
    gone = {"pid": 2**22 + 1, "host": os.uname().nodename, "started": 1.0}
    write_run(tmp_path, "dead", status="running", process=gone, rows=[row(1, 3.0)])
    write_run(tmp_path, "ended", results={"eval_loss": 1.5, "step": 9})
    write_run(tmp_path, "paused", status="stopped")
    alive = write_run(tmp_path, "alive", status="running", rows=[row(1, 3.0), row(2, 2.5)], max_steps=10)
    with hold(alive):
        rows = index.rows()
        assert {name: one["status"] for name, one in rows.items()} == {
            "dead": "interrupted",
            "ended": "done",
            "paused": "stopped",
            "alive": "running",
        }
        assert rows["ended"]["numbers"] == ["validation loss 1.5000"]
        assert rows["alive"]["numbers"] == ["training loss 2.5000"]
        assert (rows["alive"]["step"], rows["alive"]["max_steps"], rows["alive"]["left"]) == (2, 10, 4)
    # The same run.json: only the process has changed.
    assert index.rows()["alive"]["status"] == "interrupted"


def test_only_changes_are_sent_including_the_names_of_removed_runs(index, tmp_path):
    first, second = write_run(tmp_path, "one"), write_run(tmp_path, "two")
    cursor, data = index.since(None)
    assert {one["name"] for one in data["rows"]} == {"one", "two"}
    assert index.since(cursor) is None
    write_run(tmp_path, "one", status="stopped")
    for file in (*second.iterdir(), second):
        file.rmdir() if file.is_dir() else file.unlink()
    cursor, data = index.since(cursor)
    assert [(one["name"], one["status"]) for one in data["rows"]] == [("one", "stopped")]
    assert data["gone"] == ["two"]
    assert index.since(cursor) is None
    # A restarted server ignores a cursor of the previous one.
    assert RunIndex(first.parent).since(cursor)[1]["all"]


def test_stages_and_the_runs_of_sweeps_are_listed_inside_their_pipeline_or_sweep(index, tmp_path):
    write_run(tmp_path, "life", stages=["sft", "dpo"])
    write_run(tmp_path, "life/sft")
    sweep = tmp_path / "checkpoints" / "rates"
    for name in ("a-seed=1", "b-seed=1"):
        write_run(tmp_path, f"rates/{name}", status="done" if name[0] == "a" else "stopped")
    (sweep / "sweep.json").write_text(json.dumps({"kind": "duel", "configurations": [{}, {}], "seeds": [1]}))
    rows = index.rows()
    assert {name: one["parent"] for name, one in rows.items()} == {
        "life": None,
        "life/sft": "life",
        "rates": None,
        "rates/a-seed=1": "rates",
        "rates/b-seed=1": "rates",
    }
    assert (rows["life"]["kind"], rows["life"]["children"]) == ("pipeline", 1)
    assert (rows["rates"]["kind"], rows["rates"]["status"]) == ("duel", "stopped")
    assert rows["rates"]["numbers"] == ["1 of 2 runs done"]


def test_the_list_leaves_out_links_hidden_folders_and_what_is_not_a_run(index, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "run.json").write_text('{"status": "done"}')
    (index.root / "link").symlink_to(outside)
    (index.root / "notes").mkdir()
    write_run(tmp_path, ".half.tmp")
    damaged = write_run(tmp_path, "damaged")
    (damaged / "run.json").write_text('{"status": 7')
    assert {name: one["status"] for name, one in index.rows().items()} == {"damaged": "broken"}


def test_500_runs_are_listed_quickly_and_the_second_time_even_faster(index, tmp_path):
    rows = [row(step, 3.0) for step in range(1, 6)]
    for number in range(500):
        write_run(tmp_path, f"run-{number}", rows=rows, results={"eval_loss": 1.0 + number, "step": 5})
    started = time.perf_counter()
    cursor, data = index.since(None)
    first = time.perf_counter() - started
    append(index.root / "run-3", row(6, 2.0))  # a run that is done: nothing to send
    started = time.perf_counter()
    assert index.since(cursor) is None
    again = time.perf_counter() - started
    assert len(data["rows"]) == 500
    assert first < 1.5  # 0.06 s on an idle machine
    assert again < 0.5


def test_a_pipeline_at_work_says_at_which_stage_it_is(index, tmp_path):
    outer = write_run(tmp_path, "life", status="running", stages=["sft", "merge", "dpo"])
    write_run(tmp_path, "life/sft")
    write_run(tmp_path, "life/merge", status="running")
    with hold(outer):
        assert index.rows()["life"]["numbers"] == ["stage 2 of 3: merge"]


def test_invalid_values_break_one_row_and_not_the_list(index, tmp_path):
    write_run(tmp_path, "good", results={"eval_loss": 1.5})
    write_run(tmp_path, "huge", results={"eval_loss": 10**400}, parameters=10**400)
    write_run(tmp_path, "odd", children={"..": 1, "a/b": 2}, study=3, data=[], results={"step": "many"})
    alive = write_run(tmp_path, "alive", status="running", rows=[row(1, 10**400)], max_steps=5)
    with hold(alive):
        found = {name: one["status"] for name, one in index.rows().items()}
    assert found == {"good": "done", "huge": "broken", "odd": "done", "alive": "running"}


def test_a_run_that_counts_in_epochs_shows_its_progress_from_its_first_evaluation_on(index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    facts = {"status": "running", "recipe": {"train": {"max_steps": None}}, "first_evaluation_at": 1.0}
    tuned = write_run(tmp_path, "tuned", stage="sft", **facts)
    RunFolder(tuned).update(max_steps=10)
    with hold(tuned):
        known = index.rows()["tuned"]
        assert (known["step"], known["max_steps"], known["numbers"]) == (0, 10, ["first evaluation"])
        head = head_of(RunFolder(Path("checkpoints/tuned")))
        assert (head["progress"]["text"], head["evaluates_first"]) == ("step 0 of 10", True)
        append(tuned, row(0, eval_loss=2.0), row(1, 3.0), row(2, 2.5), row(3, 2.0))
        known = index.rows()["tuned"]
        assert (known["step"], known["max_steps"], known["left"]) == (3, 10, round(7 * 0.5))
        assert head_of(RunFolder(Path("checkpoints/tuned")))["progress"]["text"] == "step 3 of 10"


def test_the_time_left_is_that_of_a_usual_step_and_counts_evaluations():
    rows = [{"step": 0, "wall_seconds": 9.0}, {"step": 1, "wall_seconds": 60.0}]
    assert seconds_left(rows, 101) is None  # the first step warms up
    rows += [{"step": step, "wall_seconds": 60.0 + step} for step in (2, 3, 4)]
    assert seconds_left(rows, 104) == pytest.approx(100)
    rows += [{"step": 5, "wall_seconds": 164.0}, {"step": 6, "wall_seconds": 165.0}]  # one step of 100 s
    assert seconds_left(rows, 106) == pytest.approx(100)
    rows += [{"step": 6, "wall_seconds": 170.0}]  # an evaluation of 5 s in 5 steps
    assert seconds_left(rows, 106) == pytest.approx(200)
