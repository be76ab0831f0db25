"""The run folder: no partial files, nothing lost, and a model is found by any of its names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm_lab.cli import main
from llm_lab.errors import UserError
from llm_lab.runs import folder as folder_module
from llm_lab.runs.describe import warnings_of
from llm_lab.runs.folder import (
    RunFolder,
    create_run,
    find_model,
    list_runs,
    now,
    runs_named,
    write_atomically,
)
from llm_lab.runs.lock import this_process


@pytest.fixture(autouse=True)
def _in_tmp_path(in_tmp_path):
    pass


def make_run(name: str, **facts) -> RunFolder:
    run = create_run(name)
    run.update(**({"name": run.path.name, "asked_name": name, "status": "done", "created_at": now()} | facts))
    return run


def make_model(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


def test_a_file_is_replaced_completely_or_not_at_all(monkeypatch):
    path = Path("deep/run.json")
    write_atomically(path, "old")
    assert path.read_text() == "old"

    def cut_off(*args):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", cut_off)
        with pytest.raises(OSError, match="no space"):
            write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
    write_atomically(path, "new – ünï")
    assert path.read_text(encoding="utf-8") == "new – ünï"


def test_facts_are_merged_and_a_broken_file_counts_as_empty():
    run = create_run("a")
    assert run.facts() == {}
    assert run.status() == "unknown"
    run.update(status="done", seed=1)
    run.update(seed=2)
    assert run.facts() == {"status": "done", "seed": 2}
    run.run_json.write_text("{")
    assert run.facts() == {}


@pytest.mark.parametrize(
    "text",
    [
        *(
            "{",
            "[1]",
            "null",
            "[" * 100_000,
            '{"created_at": "yesterday"}',
            '{"created_at": 1e300}',
            '{"results": [1]}',
        ),
        *('{"stages": ["../other"]}', '{"data": [{"path": 1}]}', '{"process": 3}', '{"parent": "base"}'),
    ],
)
def test_a_damaged_record_affects_only_its_own_run(text, capsys):
    make_run("good")
    bad = make_run("bad")
    make_model(bad.model_path)
    bad.run_json.write_text(text)
    assert (bad.facts(), bad.status()) == ({}, "broken")
    assert {run.path.name for run in list_runs()} == {"good", "bad"}
    assert find_model("bad") == bad.model_path
    assert main(["list", "runs"]) == 0
    assert "broken" in capsys.readouterr().out
    assert main(["show", "bad"]) == 0
    assert "run.json can't be read" in " ".join(capsys.readouterr().out.split())
    assert bad.run_json.read_text() == text, "looking at it changes nothing"
    bad.update(status="running")
    assert bad.facts() == {"status": "running"}
    assert (bad.path / "run.json.broken").read_text() == text


def test_one_broken_line_of_the_metrics_costs_one_line():
    run = make_run("a")
    for step in range(1, 6):
        run.append_metrics({"step": step, "loss": 1.0})
    lines = run.metrics_path.read_bytes().splitlines()
    lines[1:4] = [b'{"step": 2, "lo\xff', b'["step"]', b'{"step": 4, "loss": "low"}']
    run.metrics_path.write_bytes(b"\n".join([*lines, b'{"step": 6, "lo']))
    assert [row["step"] for row in run.metrics()] == [1, 5]
    assert run.broken_metrics() == [2, 3, 4], "the last line was cut off by a crash"
    assert "metrics.jsonl: 3 lines can't be read (line 2, 3, 4)." in warnings_of(run)
    run.forget_after(5)
    assert run.broken_metrics() == []


def test_a_taken_name_gets_a_number_and_no_run_is_lost():
    assert [make_run("a").path.name for _ in range(3)] == ["a", "a-2", "a-3"]
    make_run("ab")
    assert [make_run("gpt-2").path.name for _ in range(2)] == ["gpt-2", "gpt-2-2"]
    assert [run.path.name for run in runs_named("a")] == ["a", "a-2", "a-3"]
    assert [run.path.name for run in runs_named("gpt-2")] == ["gpt-2", "gpt-2-2"]
    make_run("gpt")
    assert [run.path.name for run in runs_named("gpt")] == ["gpt"]
    assert [run.path.name for run in list_runs()][:3] == ["gpt", "gpt-2-2", "gpt-2"]
    assert list_runs(Path("nowhere")) == []


def test_overwrite_replaces_a_run_and_nothing_else():
    run = make_run("a")
    (run.path / "old").touch()
    assert create_run("a", overwrite=True).path == run.path
    assert not (run.path / "old").exists()
    Path("checkpoints/mine").mkdir()
    Path("checkpoints/mine/thesis.tex").touch()
    with pytest.raises(UserError, match="not an LLM Lab run, so it is not overwritten"):
        create_run("mine", overwrite=True)
    assert Path("checkpoints/mine/thesis.tex").exists()
    make_run("busy", status="running", process=this_process())
    with pytest.raises(UserError, match="in progress"):
        create_run("busy", overwrite=True)
    assert create_run("new", overwrite=True).path.name == "new"


def test_a_run_folder_that_cannot_be_created_is_an_error():
    Path("checkpoints").write_text("a file")
    with pytest.raises(UserError, match="can't be created"):
        create_run("a")


def test_a_run_whose_process_no_longer_exists_is_interrupted():
    run = make_run("a", status="running", process=this_process())
    assert run.status() == "running"
    gone = subprocess.run(
        [
            sys.executable,
            "-c",
            "from llm_lab.runs.lock import this_process; import json; print(json.dumps(this_process()))",
        ],
        capture_output=True,
        text=True,
    )
    import json

    run.update(process=json.loads(gone.stdout))
    assert run.status() == "interrupted"
    run.update(process={**this_process(), "started": 1.0})
    assert run.status() == "interrupted", "another process has the same id"
    run.update(process={**this_process(), "pid": 1, "host": "elsewhere"})
    assert run.status() == "running", "a process of another machine can't be checked"
    run.update(process={})
    run.update(status="stopped")
    assert run.status() == "stopped"


def test_a_last_line_cut_off_by_a_crash_is_skipped():
    run = make_run("a")
    assert run.metrics() == []
    for step in (1, 2):
        run.append_metrics({"step": step, "loss": 1.0})
    with open(run.metrics_path, "a") as file:
        file.write('{"step": 3, "lo')
    assert [row["step"] for row in run.metrics()] == [1, 2]


def test_metrics_and_samples_after_a_step_are_deleted():
    run = make_run("a")
    for step in (5, 10, 10, 15):
        run.append_metrics({"step": step})
    run.samples_path.write_text("".join(f"## Step {step}\n\n> # Step 3\n> ## Step 99\n\n" for step in (5, 10, 15)))
    run.forget_after(10)
    assert [row["step"] for row in run.metrics()] == [5, 10, 10]
    assert run.samples_path.read_text().count("## Step 15") == 0
    assert run.samples_path.read_text().count("\n## Step") == 1
    run.forget_after(0)
    assert run.metrics() == []
    assert run.samples_path.read_text() == ""


def test_only_complete_checkpoints_count():
    run = make_run("a")
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-100", "checkpoint-x", ".saving", "checkpoint-11"):
        (run.steps_path / name).mkdir(parents=True)
        if name != "checkpoint-11":
            (run.steps_path / name / "trainer_state.json").touch()
    assert [step for step, _ in run.checkpoints()] == [9, 10, 100]


def test_a_model_is_found_by_run_name_path_and_checkpoint():
    run = make_run("shakespeare")
    step = make_model(run.steps_path / "checkpoint-10")
    (step / "trainer_state.json").touch()
    assert find_model("shakespeare") == step, "before the end, the newest checkpoint is the model"
    model = make_model(run.model_path)
    for name in ("shakespeare", "checkpoints/shakespeare", run.path, model, str(run.path.resolve())):
        assert Path(find_model(name)).resolve() == model.resolve()
    assert find_model("shakespeare/steps/checkpoint-10") == step
    adapter = make_run("adapter").model_path
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    assert find_model("adapter") == adapter
    assert find_model(make_model(Path("downloaded"))) == Path("downloaded")


def test_the_model_of_a_run_that_was_killed_after_a_resume_is_its_newest_checkpoint():
    run = make_run("a", status="stopped")
    make_model(run.model_path)
    for step in (10, 20):
        (make_model(run.steps_path / f"checkpoint-{step}") / "trainer_state.json").touch()
    assert find_model("a") == run.model_path
    run.update(status="running", process={})
    assert find_model("a") == run.steps_path / "checkpoint-20"


def test_a_resumed_run_offers_its_checkpoints_and_not_its_earlier_model():
    run = make_run("a", status="stopped", results={"step": 20})
    make_model(run.model_path)
    for step in (10, 20):
        (make_model(run.steps_path / f"checkpoint-{step}") / "trainer_state.json").touch()
    assert run.saved_models() == [(10, run.steps_path / "checkpoint-10"), (20, run.model_path)]
    (make_model(run.steps_path / "checkpoint-30") / "trainer_state.json").touch()
    run.update(status="running", process={})
    assert run.saved_models() == run.checkpoints()
    assert [step for step, _ in run.saved_models()] == [10, 20, 30]


def test_a_folder_with_several_runs_lists_them_if_a_model_is_requested():
    study = make_run("study")
    make_model(make_run("study/first").model_path)
    with pytest.raises(UserError, match=f"several runs.*Name one of them: {study.path}/first"):
        find_model("study")


def test_the_model_of_a_pipeline_is_that_of_its_last_stage_with_a_model():
    outer = make_run("both", stages=["first", "second"])
    first = make_model(outer.path / "first" / "model")
    assert find_model("both") == first
    assert find_model("both") == find_model("both/first")
    second = make_model(outer.path / "second" / "model")
    assert find_model("both") == second


def test_a_missing_model_is_an_error_with_suggestions():
    make_run("shakespeare")
    with pytest.raises(UserError, match="no model has been saved here yet"):
        find_model("shakespeare")
    with pytest.raises(UserError, match=r"there is no such run or model.*Did you mean shakespeare\?"):
        find_model("shakespere")
    with pytest.raises(UserError, match=r"There are: shakespeare\."):
        find_model("xyzzy")


def test_runs_are_created_in_the_current_folder():
    assert not folder_module.ROOT.is_absolute()
