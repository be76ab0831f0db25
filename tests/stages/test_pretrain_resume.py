"""A run that was interrupted anywhere resumes as if it had not been."""

import json
import os
import resource
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import tiny_recipe, write_text
from support.listeners import Handlers
from support.pretrain_runs import losses, start, wait_until, weights
from support.tiny_models import combinations, expert_combinations, named, recipe_keys

from llm_lab.cli import main
from llm_lab.errors import UserError
from llm_lab.events import Evaluating, MetricsLogged, Notice, SampleWritten, TrainingStarted
from llm_lab.runner import run
from llm_lab.runs.folder import RunFolder
from llm_lab.stages.pretrain import PretrainEvaluation
from llm_lab.training.trainer import LabTrainerMixin

TINY = RunFolder(Path("checkpoints/tiny"))
MUON = {"optimizer": {"name": "muon"}, "model.dropout": 0.1}


@pytest.fixture(autouse=True)
def _text(in_tmp_path):
    write_text("text.txt")


def assert_same(mine: dict, other: dict) -> None:
    assert losses(mine) == losses(other)
    theirs = weights(other)
    for name, tensor in weights(mine).items():
        assert torch.equal(tensor, theirs[name]), name


def steps_logged() -> list[int]:
    return [row["step"] for row in TINY.metrics() if "loss" in row]


def test_resume_bitwise_after_kill_9():
    raw = tiny_recipe(**MUON, **{"train.logging_steps": 3, "train.save_steps": 8})
    process = start(raw)
    wait_until(lambda: 12 in steps_logged(), process)
    process.kill()
    process.wait()
    assert TINY.status() == "interrupted"
    assert [step for step, _ in TINY.checkpoints()] == [8]
    with open(TINY.metrics_path, "a") as file:
        file.write('{"step": 13, "lo')
    resumed = run(raw, resume=True)
    assert resumed["status"] == "done"
    assert_same(resumed, run({**raw, "name": "whole"}))
    samples = [(Path(path) / "samples.md").read_text() for path in (resumed["path"], "checkpoints/whole")]
    assert samples[0] == samples[1]


@pytest.mark.slow
@pytest.mark.parametrize("parts", [*map(recipe_keys, combinations(2)), *expert_combinations(2)], ids=named)
def test_a_run_of_every_pair_of_parts_is_exported_alike_and_resumes_bit_for_bit(parts, quick_verification):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 32}
    steps = {"train.max_steps": 4, "train.eval_steps": 2, "train.save_steps": 2, "train.logging_steps": 1}
    raw = tiny_recipe(model=sizes | parts, optimizer={"name": "muon"}, **steps)
    whole = run(raw)
    rows, kept = losses(whole), weights(whole)
    export = {"stage": "export", "name": "out", "device": "cpu", "model": "checkpoints/tiny", "export": {"to": "hf"}}
    checks = run(export)["proof"]
    assert checks["verdict"] == "proven", checks
    shutil.rmtree(TINY.path / "steps" / "checkpoint-4")
    shutil.rmtree(TINY.model_path)
    resumed = run(raw, resume=True)
    assert losses(resumed) == rows
    assert all(torch.equal(weight, kept[name]) for name, weight in weights(resumed).items())


def test_a_second_ctrl_c_says_what_is_saved_and_the_resumed_run_is_recorded_as_one():
    started, written = [], []

    def press_ctrl_c_twice(event):
        written.extend([event] if isinstance(event, SampleWritten) else [])
        if isinstance(event, MetricsLogged) and event.row["step"] == 15:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    raw = tiny_recipe()
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(raw, listener=press_ctrl_c_twice)
    resume = "llm-lab run checkpoints/tiny/recipe.yaml --resume"
    assert str(stopped.value) == f"Stopped at once. The checkpoint of step 10 is saved. Resume: {resume}"
    assert "Incomplete: stopped at step 10." in TINY.report_path.read_text()
    facts = run(raw, resume=True, listener=lambda event: started.append(event))
    (event,) = [event for event in started if isinstance(event, TrainingStarted)]
    assert [row["step"] for row in event.earlier if "loss" in row] == [1, 5, 10], "the live curve is whole"
    assert {step for step, _, _ in event.samples} == {10}, "the live view shows the samples from before"
    assert event.samples == [(one.step, one.prompt, one.text) for one in written if one.step == 10]
    report, card = TINY.report_path.read_text(), (TINY.model_path / "README.md").read_text()
    assert "| step | 20 |" in report
    for text in (report, card):
        assert "Incomplete" not in text
        assert f"| training loss | {facts['results']['loss']:.4f} |" in text
    assert facts["results"]["train_tokens"] == 20 * 4 * 16
    assert steps_logged() == [1, 5, 10, 15, 20]


@pytest.mark.parametrize(("event_type", "finished"), [(MetricsLogged, "step"), (Evaluating, "evaluation")])
def test_ctrl_c_says_what_is_finished_before_the_run_stops(event_type, finished):
    said = []

    def press_ctrl_c(event):
        said.extend([event.text] if isinstance(event, Notice) else [])
        if isinstance(event, event_type) and not any("Stopping" in text for text in said):
            signal.raise_signal(signal.SIGINT)

    raw = tiny_recipe(**{"train.max_steps": 4, "train.eval_steps": 2})
    assert run(raw, listener=press_ctrl_c)["status"] == "stopped"
    (text,) = [text for text in said if "Stopping" in text]
    assert text.startswith(f"Stopping after this {finished} and saving a checkpoint.")


def test_ctrl_c_saves_and_the_resumed_run_equals_an_uninterrupted_one():
    def press_ctrl_c(event):
        if isinstance(event, MetricsLogged) and event.row["step"] == 5:
            signal.raise_signal(signal.SIGINT)

    raw = tiny_recipe(**MUON)
    assert run(raw, listener=press_ctrl_c)["status"] == "stopped"
    facts = TINY.facts()
    assert facts["status"] == "stopped"
    stopped_at = facts["results"]["step"]
    assert stopped_at in (5, 6), "it stops after the step"
    assert [step for step, _ in TINY.checkpoints()][-1] == stopped_at
    assert (TINY.model_path / "model.safetensors").exists()
    resumed, whole = run(raw, resume=True), run({**raw, "name": "whole"})
    assert resumed["results"]["eval_loss"] == whole["results"]["eval_loss"]
    theirs = weights(whole)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in weights(resumed).items())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_closed_terminal_or_a_shutdown_saves_the_run_even_if_the_signal_comes_twice(number):
    def close(event):
        if isinstance(event, MetricsLogged) and event.row["step"] == 5:
            signal.raise_signal(number)
            signal.raise_signal(signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        assert run(tiny_recipe(), listener=close)["status"] == "stopped"
        assert [step for step, _ in TINY.checkpoints()][-1] in (5, 6)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_under_nohup_a_closed_terminal_does_not_stop_the_run():
    def close(event):
        if isinstance(event, MetricsLogged) and event.row["step"] == 5:
            signal.raise_signal(signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run(tiny_recipe(), listener=close)["status"] == "done"
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "sophia", "adafactor"])
def test_resume_bitwise_with_every_optimizer_from_any_checkpoint(optimizer):
    raw = tiny_recipe(**{"model.dropout": 0.1, "model.attention_dropout": 0.1, "train.logging_steps": 7})
    raw["optimizer"] = {"name": optimizer} | ({"k": 3} if optimizer == "sophia" else {})
    whole = run(raw)
    shutil.copytree("checkpoints/tiny", "checkpoints/whole")
    shutil.rmtree(TINY.steps_path / "checkpoint-20")
    shutil.rmtree(TINY.model_path)
    resumed = run(raw, resume=True)
    assert resumed["path"] == whole["path"]
    assert_same(resumed, {**whole, "path": "checkpoints/whole"})


def test_resuming_a_finished_run_trains_no_step(finished_run, monkeypatch):
    raw, before = tiny_recipe(), finished_run
    rows, kept = TINY.metrics(), weights(before)
    monkeypatch.setattr(torch.optim.AdamW, "step", None)
    after = run(raw, resume=True)
    assert TINY.metrics() == rows
    assert after["results"] | {"memory_bytes": 0} == before["results"] | {"memory_bytes": 0}
    assert all(torch.equal(tensor, kept[name]) for name, tensor in weights(after).items())


def test_a_checkpoint_that_was_cut_off_is_ignored(finished_run):
    raw = tiny_recipe()
    expected, rows = weights(finished_run), losses(finished_run)
    shutil.rmtree(TINY.steps_path / "checkpoint-20")
    staging = TINY.steps_path / ".saving" / "checkpoint-15"
    shutil.copytree(TINY.steps_path / "checkpoint-10", staging)
    (staging / "model.safetensors").write_bytes(b"half")
    shutil.copytree(TINY.steps_path / "checkpoint-10", TINY.steps_path / "checkpoint-12")
    for name in ("trainer_state.json", "manifest.json"):  # the last files to be written
        (TINY.steps_path / "checkpoint-12" / name).unlink()
    resumed = run(raw, resume=True)
    assert losses(resumed) == rows
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(resumed).items())


def test_a_damaged_checkpoint_is_named_and_the_run_resumes_bitwise_from_the_one_before(finished_run, capsys):
    before, rows = weights(finished_run), losses(finished_run)
    TINY.update(status="stopped")
    (TINY.steps_path / "checkpoint-20" / "optimizer.pt").unlink()
    recipe = ["run", "checkpoints/tiny/recipe.yaml"]
    assert main([*recipe, "--resume"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "checkpoints/tiny/steps/checkpoint-20/optimizer.pt: is missing" in said
    assert (
        "the checkpoint of step 10, which is complete: llm-lab run checkpoints/tiny/recipe.yaml --resume-from 10"
        in said
    )
    assert TINY.facts()["status"] == "stopped", "a refused resume changes nothing"
    assert main([*recipe, "--resume-from", "15"]) == 2
    assert "no checkpoint of this step. Allowed: 10, 20" in " ".join(capsys.readouterr().err.split())
    assert main([*recipe, "--resume-from", "10"]) == 0
    assert losses(finished_run) == rows
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(finished_run).items())
    assert [step for step, _ in TINY.checkpoints()] == [10, 20]
    assert (TINY.steps_path / "checkpoint-20.set-aside" / "model.safetensors").exists()


def test_with_no_complete_checkpoint_the_run_is_offered_from_its_start(finished_run):
    before = weights(finished_run)
    for step, folder in TINY.checkpoints():
        with open(folder / "model.safetensors", "r+b") as file:
            file.seek(-step, os.SEEK_END)
            file.write(b"?")
    with pytest.raises(UserError, match=r"another SHA-256.* from the start: .* --resume-from 0"):
        run(tiny_recipe(), resume=True)
    assert run(tiny_recipe(), resume_from=0)["status"] == "done"
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(finished_run).items())


def test_a_checkpoint_of_an_older_version_without_a_manifest_is_resumed_with_a_notice(finished_run):
    raw, before = tiny_recipe(), weights(finished_run)
    for step, folder in TINY.checkpoints():
        shutil.rmtree(folder) if step == 20 else (folder / "manifest.json").unlink()
    facts = TINY.facts()
    TINY.run_json.write_text(json.dumps({key: value for key, value in facts.items() if key != "manifests_from_step"}))
    display = Listening()
    run(raw, resume=True, listener=display)
    assert any("checkpoint-10 has no manifest, so its files can't be checked" in text for text in display.said)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(finished_run).items())
    (TINY.steps_path / "checkpoint-20" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest.json: is missing"):
        run(raw, resume=True)


def test_the_record_of_a_killed_run_has_the_results_of_its_newest_checkpoint(finished_run):
    shutil.rmtree(TINY.steps_path / "checkpoint-20")
    rows = {row["step"]: row for row in TINY.metrics() if "eval_loss" in row}
    TINY.append_metrics({"step": 19, "loss": 9.0, "train_tokens": 1, "wall_seconds": 1.0})

    def press_ctrl_c_twice(event):
        if isinstance(event, MetricsLogged) and event.row["step"] == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny_recipe(), resume=True, listener=press_ctrl_c_twice)
    results = TINY.facts()["results"]
    assert (results["step"], results["eval_loss"]) == (10, rows[10]["eval_loss"])
    assert results["train_tokens"] == rows[10]["train_tokens"]


def test_a_checkpoint_is_saved_before_it_is_evaluated(monkeypatch):
    def broken(self, step):
        raise RuntimeError("evaluation is broken")

    with monkeypatch.context() as patch:
        patch.setattr(PretrainEvaluation, "measure", broken)
        with pytest.raises(RuntimeError, match="evaluation is broken"):
            run(tiny_recipe())
    assert TINY.status() == "failed"
    assert [step for step, _ in TINY.checkpoints()] == [10]
    assert run(tiny_recipe(), resume=True)["status"] == "done"
    assert [row["step"] for row in TINY.metrics() if "eval_loss" in row] == [10, 20], "evaluated after the resume"


class Listening(Handlers):
    def __init__(self):
        self.said, self.saved_steps = [], []

    def notice(self, text):
        self.said.append(text)

    def saved(self, step, path):
        self.saved_steps.append(step)


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(monkeypatch):
    from transformers import Trainer

    original = Trainer._save_checkpoint
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_a_full_disk(self, model, trial):
        # At step 10 the size of files is limited, which looks like a full disk to safetensors and torch.
        full = self.state.global_step == 10
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]) if full else limits)
        try:
            original(self, model, trial)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(Trainer, "_save_checkpoint", on_a_full_disk)
    display = Listening()
    facts = run(tiny_recipe(**{"train.save_steps": 5}), listener=display)
    assert facts["status"] == "done"
    assert display.saved_steps == [5, 15, 20]
    (warning,) = [text for text in display.said if "could not be written" in text]
    assert "step 10" in warning
    assert "The checkpoint of step 5 is saved. Training continues. Free disk space before step 15." in warning
    assert [step for step, _ in TINY.checkpoints()] == [5, 15, 20]
    assert not (TINY.steps_path / ".saving").exists()


def test_the_first_the_middle_and_the_last_two_checkpoints_are_kept():
    run(tiny_recipe(**{"train.save_steps": 2}))
    assert [step for step, _ in TINY.checkpoints()] == [2, 10, 18, 20]


def test_a_changed_recipe_is_not_resumed(finished_run):
    with pytest.raises(UserError) as caught:
        run(tiny_recipe(**{"optimizer.learning_rate": 0.02, "train.max_steps": 40}), resume=True)
    assert [problem.key for problem in caught.value.problems] == ["optimizer.learning_rate", "train.max_steps"]
    assert "started with 0.01" in str(caught.value)
    assert "checkpoints/tiny/recipe.yaml --resume" in str(caught.value)
    assert run("checkpoints/tiny/recipe.yaml", resume=True)["path"] == "checkpoints/tiny"


def test_a_run_recorded_before_a_key_existed_is_resumed(finished_run):
    path = Path(finished_run["path"]) / "recipe.yaml"
    text = path.read_text()
    assert "report_to: none" in text
    path.write_text("".join(line for line in text.splitlines(keepends=True) if "report_to" not in line))
    TINY.run_json.write_text(json.dumps({key: value for key, value in TINY.facts().items() if key != "recipe"}))
    with pytest.raises(UserError, match="started with None"):
        run(tiny_recipe(**{"train.report_to": ["tensorboard"]}), resume=True)
    assert run(tiny_recipe(), resume=True)["status"] == "done"
    with pytest.raises(UserError, match="started with none"):
        run(tiny_recipe(**{"train.report_to": ["tensorboard"]}), resume=True)


def test_an_override_that_would_change_a_resumed_run_is_to_be_left_out(finished_run, capsys):
    assert main(["run", "tiny", "--resume", "train.max_steps=30"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "train.max_steps = 30: the run in checkpoints/tiny started with 20. Leave it out, or start a new run" in said


def test_a_recipe_edited_in_its_run_folder_is_compared_with_the_original_one(finished_run, capsys):
    path = TINY.recipe_path
    path.write_text(path.read_text().replace("max_steps: 20", "max_steps: 30"))
    assert main(["run", str(path), "--resume"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "train.max_steps = 30: the run in checkpoints/tiny started with 20" in said
    assert f"Restore it in {path}, or start a new run without --resume" in said


def test_a_run_with_a_damaged_record_is_resumed_and_the_record_is_kept(finished_run):
    expected, rows = weights(finished_run), losses(finished_run)
    shutil.rmtree(TINY.steps_path / "checkpoint-20")
    lines = TINY.metrics_path.read_text().splitlines()
    lines[0] = "{"
    TINY.metrics_path.write_text("\n".join(lines) + "\n")
    TINY.run_json.write_text('{"status": ')
    display = Listening()
    facts = run("checkpoints/tiny/recipe.yaml", resume=True, listener=display)
    assert any("run.json.broken" in text for text in display.said)
    assert any("metrics.jsonl: dropped the lines that can't be read: 1" in text for text in display.said)
    assert (TINY.path / "run.json.broken").read_text() == '{"status": '
    assert (facts["status"], facts["stage"], facts["results"]["step"]) == ("done", "pretrain", 20)
    assert losses(facts) == rows[1:]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(facts).items())


def test_a_missing_or_running_run_is_not_resumed(finished_run):
    with pytest.raises(UserError, match="no run to resume"):
        run(tiny_recipe(name="missing"), resume=True)
    from llm_lab.runs.lock import this_process

    TINY.update(status="running", process=this_process())
    with pytest.raises(UserError, match=f"in progress .process {os.getpid()} on"):
        run(tiny_recipe(), resume=True)


def test_a_run_killed_before_its_first_checkpoint_starts_again_in_its_folder(finished_run):
    shutil.copytree("checkpoints/tiny", "checkpoints/whole")
    shutil.rmtree(TINY.steps_path)
    shutil.rmtree(TINY.model_path)
    resumed = run(tiny_recipe(), resume=True)
    assert resumed["path"] == "checkpoints/tiny"
    assert_same(resumed, {"path": "checkpoints/whole"})


def test_only_the_first_of_several_processes_writes_the_model_of_a_checkpoint():
    written = []
    for first in (True, False):
        process = SimpleNamespace(is_world_process_zero=lambda first=first: first, _save_to=written.append)
        LabTrainerMixin._save(process, "folder")
    assert written == [Path("folder")]


SHORT = {"train.max_steps": 2, "train.save_steps": 1, "scheduler.warmup_steps": 0}


@pytest.mark.parametrize("is_pipeline", [False, True])
def test_the_plan_of_a_resumed_run_names_the_folder_that_is_resumed(is_pipeline, capsys):
    raw = tiny_recipe(**SHORT)
    raw, stage = ({"name": "tiny", "stages": [{**raw, "name": "first"}]}, "/first") if is_pipeline else (raw, "")
    Path("tiny.yaml").write_text(yaml.safe_dump(raw))
    assert run("tiny.yaml")["path"] == "checkpoints/tiny"
    capsys.readouterr()

    def planned(*options: str) -> str:
        assert main(["run", "tiny.yaml", *options, "--dry-run", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["stages"][0]["folder"] == f"checkpoints/{named}{stage}"
        assert main(["run", "tiny.yaml", *options, "--dry-run"]) == 0
        text = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert f"in checkpoints/{named}{stage}/" in text
        assert f"Plan: {'first' if is_pipeline else named} · pretrain" in text
        return text

    named = "tiny-2"
    assert is_pipeline or "checkpoints/tiny/ is taken" in planned()
    assert run("tiny.yaml")["path"] == "checkpoints/tiny-2"
    capsys.readouterr()
    assert "is taken" not in planned("--resume")
    planned("--resume-from", "1")
    named = "tiny"
    planned("--overwrite")
    named = "tiny-3"
    planned()


def test_a_dry_run_refuses_to_resume_where_the_run_would_refuse_it(capsys):
    raw = tiny_recipe(**SHORT)
    Path("tiny.yaml").write_text(yaml.safe_dump(raw))
    run("tiny.yaml")

    def refused(step: str) -> list[str]:
        capsys.readouterr()
        said = []
        for dry in (["--dry-run"], ["--dry-run", "--json"], []):
            assert main(["run", "tiny.yaml", "--resume-from", step, *dry]) == 2
            said.append(" ".join(capsys.readouterr().err.split()))
        return said

    missing = "--resume-from = 77: checkpoints/tiny has no checkpoint of this step. Allowed: 1, 2, or 0 for the start."
    assert all(missing in said for said in refused("77"))
    next((TINY.steps_path / "checkpoint-1").glob("*.safetensors")).unlink()
    assert all("is missing" in said for said in refused("1"))
