"""train.report_to: trackers get the rows of metrics.jsonl, at their steps, under grouped names."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_recipe, write_text
from support.listeners import Handlers
from support.post_runs import post_recipe, write_base

from llm_lab.errors import MachineError, UserError
from llm_lab.events import ignore
from llm_lab.job import check
from llm_lab.runner import run
from llm_lab.runs.folder import RunFolder
from llm_lab.training.tracking import OPENERS, Tracking, grouped

HAS = {name: importlib.util.find_spec(name) is not None for name in OPENERS}
needs_tensorboard = pytest.mark.skipif(not HAS["tensorboard"], reason="tensorboard is not installed")
needs_wandb = pytest.mark.skipif(not HAS["wandb"], reason="wandb is not installed")
needs_trackio = pytest.mark.skipif(not HAS["trackio"], reason="trackio is not installed")
NOT_LOGGED_IN = ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_IDENTITY_TOKEN_FILE")


def tiny(**changes) -> dict:
    write_text("text.txt")
    few = {"train.max_steps": 6, "train.eval_steps": 3, "train.save_steps": 3, "train.logging_steps": 2}
    return tiny_recipe(**few, **changes)


def expected(path: str) -> dict[str, list[tuple[int, float]]]:
    """Return the metrics in metrics.jsonl, under the names of trackers."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in RunFolder(Path(path)).metrics():
        for name, value in grouped(row).items():
            found.setdefault(name, []).append((row["step"], value))
    return found


class StoppedAt(Handlers):
    """Presses Ctrl-C at a step."""

    def __init__(self, step):
        self.step = step

    def log(self, row):
        if row["step"] == self.step and "loss" in row:
            os.kill(os.getpid(), 2)


def test_metrics_have_grouped_names():
    training = {"step": 4, "loss": 2.0, "kl": 0.1, "reward/near": 0.5, "train_tokens": 9, "mix": {"a": 1}}
    assert grouped(training) == {
        "train/loss": 2.0,
        "train/kl": 0.1,
        "train/reward/near": 0.5,
        "progress/train_tokens": 9,
    }
    assert grouped({"step": 4, "eval_loss": 1.0, "bits_per_byte": 0.5, "exact_match": 1.0}) == {
        "eval/loss": 1.0,
        "eval/bits_per_byte": 0.5,
        "eval/exact_match": 1.0,
    }


def test_without_trackers_nothing_is_imported_or_written(in_tmp_path, monkeypatch):
    for name in OPENERS:
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises
    write_text("text.txt")
    for given in ([], "none"):
        run(tiny_recipe(**{"train.report_to": given}), overwrite=True)
    assert not Path("checkpoints/tiny/tracking").exists()
    assert not Path("wandb").exists()
    assert "tracking" not in RunFolder(Path("checkpoints/tiny")).facts()


def test_one_tracker_and_a_list_of_one_are_the_same(in_tmp_path):
    for given in ("tensorboard", ["tensorboard"], ["tensorboard", "tensorboard"]):
        job = check(tiny(**{"train.report_to": given}))
        assert job.stages[0].recipe.train.trackers == ("tensorboard",)
    for given in ("none", ["none"]):
        assert check(tiny(**{"train.report_to": given})).stages[0].recipe.train.trackers == ()
    with pytest.raises(UserError, match="Did you mean wandb") as caught:
        check(tiny(**{"train.report_to": "wandbb"}))
    assert [problem.key for problem in caught.value.problems] == ["train.report_to"]
    with pytest.raises(UserError, match="tensorboard, wandb, trackio") as caught:
        check(tiny(**{"train.report_to": ["tensorboard", "mlflow"]}))
    assert [problem.key for problem in caught.value.problems] == ["train.report_to"]


def test_a_tracker_that_is_not_installed_is_reported_before_the_run(in_tmp_path, monkeypatch):
    find = importlib.util.find_spec
    without = {"trackio"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in without else find(name, *rest))
    with pytest.raises(MachineError, match=r"trackio.*pip install 'llm-lab\[tracking\]'") as caught:
        run(tiny(**{"train.report_to": "trackio"}))
    assert caught.value.exit_code == 3
    assert not Path("checkpoints").exists()


def scalars(folder: str) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(folder)
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, points in wanted.items():
        assert [step for step, _ in found[name]] == [step for step, _ in points], name
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in points], rel=1e-6), name


@needs_tensorboard
def test_tensorboard_gets_every_metric_and_a_resumed_run_continues_its_curves(in_tmp_path):
    recipe = tiny(**{"train.report_to": "tensorboard"})
    stopped = run(recipe, listener=StoppedAt(4))
    assert stopped["status"] == "stopped"
    # As after a crash: steps 4 and 5 are repeated, and their metrics are replaced.
    run_folder = RunFolder(Path(stopped["path"]))
    step, folder = run_folder.checkpoints()[-1]
    assert step == 5
    shutil.rmtree(folder)
    assert run(recipe, resume=True)["status"] == "done"
    found = scalars(f"{stopped['path']}/tracking/tensorboard")
    assert {"train/loss", "train/learning_rate", "eval/loss", "eval/bits_per_byte"} <= found.keys()
    assert_same(found, expected(stopped["path"]))
    assert [step for step, _ in found["eval/loss"]] == [3, 6]


@needs_tensorboard
def test_trackers_get_reward_kl_and_the_score_at_step_0(in_tmp_path):
    write_base()
    code = "def near(completions, **columns):\n    return [sum(map(ord, text)) % 97 / 97 for text in completions]\n"
    Path("mine.py").write_text(code)
    changes = {"train.max_steps": 2, "train.eval_steps": 2, "train.save_steps": 2, "train.report_to": ["tensorboard"]}
    score = {"prompts": 2, "max_completion_length": 4, "rewards": [{"python": "mine.py:near"}]}
    facts = run(post_recipe("ppo", score=score, rewards=[{"python": "mine.py:near"}], **changes))
    found = scalars(f"{facts['path']}/tracking/tensorboard")
    assert_same(found, expected(facts["path"]))
    assert [step for step, _ in found["train/loss"]] == [1, 2]
    assert [step for step, _ in found["train/kl"]] == [1]  # one rollout for both
    assert [step for step, _ in found["train/reward"]] == [1]
    assert [step for step, _ in found["eval/reward_sampled"]] == [0, 2]


def rows_of_wandb(folder: Path) -> list[dict]:
    """Read the file of an offline run: records in LevelDB's log format, each a protobuf."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("run-*.wandb")
    data, place, rows = file.read_bytes(), 7, []
    assert len(data) < 32_768, "records beyond the first block are split"
    while place + 7 <= len(data):
        length = int.from_bytes(data[place + 4 : place + 6], "little")
        record = Record.FromString(data[place + 7 : place + 7 + length])
        place += 7 + length
        if record.WhichOneof("record_type") == "history":
            rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item})
    return rows


@needs_wandb
def test_wandb_without_a_login_is_stored_in_the_run_folder(in_tmp_path, monkeypatch):
    for name in NOT_LOGGED_IN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(in_tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(in_tmp_path))
    recipe = tiny(**{"train.report_to": "wandb"})
    stopped = run(recipe, listener=StoppedAt(4))
    first = RunFolder(Path(stopped["path"])).facts()["tracking"]["wandb"]
    assert run(recipe, resume=True)["status"] == "done"
    assert RunFolder(Path(stopped["path"])).facts()["tracking"]["wandb"] == first
    folders = sorted((Path(stopped["path"]) / "tracking" / "wandb").glob("offline-run-*"))
    assert [folder.name.endswith(first) for folder in folders] == [True, True]
    assert not Path("wandb").exists()
    found: dict[str, list[tuple[int, float]]] = {}
    for folder in folders:
        for row in rows_of_wandb(folder):
            for name, value in row.items():
                if not name.startswith("_"):
                    found.setdefault(name, []).append((row["_step"], value))
    # wandb merges the log row and the evaluation of a step into one row.
    wanted = {name: list(dict(points).items()) for name, points in expected(stopped["path"]).items()}
    assert_same(found, wanted)


@needs_trackio
@pytest.mark.slow
def test_trackio_gets_every_metric_and_a_resumed_run_continues_its_curves(tmp_path):
    """In a separate process, because trackio reads TRACKIO_DIR at import."""
    program = """
import json, os, sys
sys.path[:0] = sys.argv[1].split(os.pathsep)
from pathlib import Path
from test_tracking import StoppedAt, expected, tiny
from llm_lab.runner import run
recipe = tiny(**{"train.report_to": ["trackio"]})
stopped = run(recipe, listener=StoppedAt(4))
facts = run(recipe, resume=True)
from trackio.sqlite_storage import SQLiteStorage
logs = SQLiteStorage.get_logs("llm-lab", facts["tracking"]["trackio"])
print(json.dumps([stopped["status"], facts["status"], logs, expected(facts["path"])]))
"""
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "kept"), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-c", program, os.pathsep.join(sys.path)]
    result = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    stopped, status, logs, wanted = json.loads(result.stdout.splitlines()[-1])
    assert (stopped, status) == ("stopped", "done")
    found: dict[str, list[tuple[int, float]]] = {}
    for row in logs:
        for name in row.keys() & wanted.keys():
            found.setdefault(name, []).append((row["step"], row[name]))
    assert_same({name: sorted(points) for name, points in found.items()}, wanted)


def test_a_failing_tracker_does_not_stop_the_run(in_tmp_path, monkeypatch):
    class Failing:
        def __init__(self, run, first_step, display):
            pass

        def log(self, numbers, step):
            raise OSError("the line is cut")

        def close(self):
            raise AssertionError("it was given up")

    monkeypatch.setitem(OPENERS, "tensorboard", Failing)
    facts = run(tiny(**{"train.report_to": "tensorboard"}))
    assert facts["status"] == "done"
    (warning,) = facts["warnings"]
    assert warning == "tensorboard: the line is cut; no more metrics are sent to it. metrics.jsonl has all of them."


def test_a_tracker_that_cannot_be_opened_is_reported_before_the_first_step(in_tmp_path, monkeypatch):
    def refuse(run, first_step, display):
        raise ValueError("the key is wrong")

    monkeypatch.setitem(OPENERS, "tensorboard", refuse)
    with (
        pytest.raises(MachineError, match="tensorboard can't be opened: the key is wrong"),
        Tracking(("tensorboard",), RunFolder(in_tmp_path), ignore),
    ):
        pass
