"""A run that was killed anywhere can be resumed, and nothing of the killed process is left over."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_recipe, write_text
from support.listeners import Handlers
from support.post_runs import post_recipe, write_base
from support.pretrain_runs import losses, weights

from llm_lab.events import RunWarning
from llm_lab.job import check
from llm_lab.runner import STOP_REQUESTED, run
from llm_lab.runs.disk import TEMPORARY
from llm_lab.runs.evaluations import evaluations_of
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.report import keep_evaluation

ROOT = Path(__file__).resolve().parent.parent
TINY = RunFolder(Path("checkpoints/tiny"))
GONE = {"status": "running", "process": {"pid": 2**30, "host": socket.gethostname(), "started": 1.0}}
SHORT = {"train.max_steps": 2, "scheduler.warmup_steps": 0, "train.eval_steps": 2, "train.save_steps": 2}


@pytest.fixture(autouse=True)
def _text(in_tmp_path):
    write_text("text.txt")


@pytest.mark.parametrize("left", [[], ["recipe.yaml"], ["recipe.yaml", ".run.json.77.tmp"]])
def test_a_run_killed_before_its_first_files_were_written_is_resumed_in_its_folder(left):
    TINY.path.mkdir(parents=True)
    for name in left:
        (TINY.path / name).write_text("stage: pre")
    facts = run(tiny_recipe(**SHORT), resume=True)
    assert (facts["status"], facts["path"]) == ("done", "checkpoints/tiny")
    assert {"stage", "seed", "predicted", "threads", "created_at"} <= facts.keys()
    assert not [path for path in TINY.path.rglob("*") if TEMPORARY.fullmatch(path.name)]


def test_a_run_killed_before_its_first_step_has_a_complete_record_after_the_resume(finished_run):
    facts = TINY.facts()
    for name in ("steps", "model"):
        shutil.rmtree(TINY.path / name)
    for name in ("metrics.jsonl", "samples.md"):
        (TINY.path / name).unlink()
    TINY.run_json.write_text(json.dumps({"name": "tiny", "asked_name": "tiny", "stage": "pretrain", **GONE}))
    resumed = run(tiny_recipe(), resume=True)
    assert resumed.keys() - {"path", "resumed_at", STOP_REQUESTED} == facts.keys() - {"path"}


def test_leftovers_of_a_killed_process_are_deleted_by_the_next_start(finished_run):
    for name in (".model.tmp", ".tokenizer.tmp", "steps/.saving", "steps/.checkpoint-10.tmp"):
        (TINY.path / name).mkdir()
        (TINY.path / name / "model.safetensors").touch()
    (TINY.path / ".metrics.jsonl.123.tmp").touch()
    run(tiny_recipe(), resume=True)
    assert not [path for path in TINY.path.rglob("*") if TEMPORARY.fullmatch(path.name)]


def test_a_pipeline_killed_in_any_stage_resumes_though_the_next_stage_names_the_unfinished_one():
    pretrain = {key: value for key, value in tiny_recipe(**SHORT).items() if key not in ("name", "device")}
    evaluate = {"stage": "eval", "data": [{"path": "text.txt"}], "eval": {"max_tokens": 100, "speed_tokens": 0}}
    raw = {"name": "two", "device": "cpu", "stages": [pretrain, evaluate]}
    whole = run(raw)
    before = losses({"path": "checkpoints/two/pretrain"})
    outer = RunFolder(Path("checkpoints/two"))
    first, second = (outer.path / "pretrain", outer.path / "eval")
    shutil.rmtree(second)
    for name in ("model", "steps"):  # nothing can be loaded from the first stage yet
        shutil.rmtree(first / name)
    (first / "report.md").unlink()
    RunFolder(first).update(**GONE)
    outer.update(**GONE)
    second.mkdir()
    (second / "recipe.yaml").write_text("stage: ev")  # killed between its first two files
    resumed = run(raw, resume=True)
    assert resumed["status"] == whole["status"] == "done"
    assert losses({"path": str(first)}) == before
    assert RunFolder(second).facts()["results"]["eval_loss"] == resumed["results"]["eval_loss"]


@pytest.mark.parametrize("left", ["steps/.saving/checkpoint-2/adapter_config.json", "model/config.json"])
def test_a_pipeline_does_not_look_at_what_its_earlier_stages_will_make(left):
    """The folder of a stage may contain a partly saved adapter of a killed process, or the model of an older run."""
    pretrain = {key: value for key, value in tiny_recipe(**SHORT).items() if key not in ("name", "device")}
    Path("pairs.jsonl").write_text('{"question": "a?", "answer": "b"}\n' * 40)
    sft = {"stage": "sft", "data": [{"path": "pairs.jsonl"}], "lora": {"r": 2}, "train": {"max_length": 16}}
    file = Path("checkpoints/two/sft", left)
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"model_type": "gpt2"}))
    export = {"stage": "export", "export": {"to": "gguf"}}
    job = check({"name": "two", "device": "cpu", "stages": [pretrain, sft, {"stage": "merge"}, export]})
    assert [resolved.values["name"] for resolved in job.stages] == ["pretrain", "sft", "merge", "export"]


def test_a_done_stage_without_its_report_gets_it_when_the_pipeline_is_resumed():
    pretrain = {key: value for key, value in tiny_recipe(**SHORT).items() if key not in ("name", "device")}
    raw = {"name": "one", "device": "cpu", "stages": [pretrain]}
    run(raw)
    stage, outer = Path("checkpoints/one/pretrain"), RunFolder(Path("checkpoints/one"))
    report = (stage / "report.md").read_text()
    (stage / "report.md").unlink()
    (stage / ".curves.svg.77.tmp").touch()
    outer.update(**GONE)
    run(raw, resume=True)
    assert (stage / "report.md").read_text() == report
    assert not (stage / ".curves.svg.77.tmp").exists()


def test_an_evaluation_killed_after_it_saved_its_result_is_saved_once(finished_run):
    raw = {"stage": "eval", "name": "measured", "device": "cpu", "model": {"checkpoint": "checkpoints/tiny"}}
    raw |= {"data": [{"path": "text.txt"}], "eval": {"max_tokens": 100, "speed_tokens": 0}}
    facts = run(raw)
    folder, kept = RunFolder(Path("checkpoints/measured")), TINY.path / "evaluations.jsonl"
    saved = kept.read_bytes()
    before = {key: value for key, value in folder.facts().items() if key not in ("measured", "data", "parent")}
    folder.run_json.write_text(json.dumps({**before, "results": {}, **GONE}))
    resumed = run(raw, resume=True)
    assert kept.read_bytes() == saved
    assert (resumed["status"], resumed["measured"]) == ("done", facts["measured"])
    assert resumed["results"]["eval_loss"] == facts["results"]["eval_loss"]
    run(raw)
    assert len(kept.read_bytes().splitlines()) == 2, "another evaluation is another line"


def test_a_line_that_a_killed_evaluation_cut_off_costs_no_other_line(finished_run):
    kept = TINY.path / "evaluations.jsonl"
    keep_evaluation(TINY.model_path, {"results": {"eval_loss": 1.0}})
    kept.write_bytes(kept.read_bytes() + b'{"checkpoint": "checkpoi')
    keep_evaluation(TINY.model_path, {"results": {"eval_loss": 2.0}})
    assert [row["results"]["eval_loss"] for row in evaluations_of(TINY.path)] == [1.0, 2.0]


def test_a_merge_killed_after_its_model_was_published_is_resumed():
    run(post_recipe("sft", lora={"r": 2}, **{"model": {"checkpoint": write_base()}, "train.max_steps": 1}))
    raw = {"stage": "merge", "name": "merged", "device": "cpu", "model": {"checkpoint": "checkpoints/sft"}}
    facts = run(raw)
    expected = {name: tensor.clone() for name, tensor in weights(facts).items()}
    folder = RunFolder(Path("checkpoints/merged"))
    (folder.model_path / "model.safetensors").write_bytes(b"of another process")
    kept = {key: value for key, value in folder.facts().items() if key not in ("results", "parent", "base", "ended_at")}
    folder.run_json.write_text(json.dumps(kept | GONE))
    resumed = run(raw, resume=True)
    assert resumed["status"] == "done"
    assert resumed["results"]["logit_difference"] == facts["results"]["logit_difference"]
    assert all((tensor == expected[name]).all() for name, tensor in weights(resumed).items())


def test_a_warning_is_in_run_json_as_soon_as_it_is_given():
    """A killed process has no time to write it at the end."""

    class Looking(Handlers):
        kept = None

        def begin(self, **_):
            self.kept = TINY.facts().get("warnings")

    looking = Looking()
    raw = tiny_recipe(**SHORT)
    raw["data"][0]["path"] = "text.txt"
    raw |= {"when_exhausted": "stop"}
    raw["train"] |= {"max_steps": 5000}
    raw["scheduler"] = {"warmup_steps": 3000}
    warned = []
    run(
        raw,
        ["train.eval_steps=1000", "train.save_steps=1000"],
        listener=lambda event: (looking(event), warned.append(event)),
    )
    texts = [event.text for event in warned if isinstance(event, RunWarning)]
    assert texts
    assert looking.kept == texts


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_runs_killed_at_random_end_like_undisturbed_ones():
    """`python -m benchmarks kills` runs hundreds. Not in a fork, which can't use the threads of this process."""
    program = "from benchmarks.kills import campaign; o = campaign(40, seed=3)"
    program += "; print(sum(o.kills.values()), o.failures)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    kills, _, failures = done.stdout.partition(" ")
    assert failures.strip() == "[]", done.stderr
    assert int(kills) >= 40
