"""`llm-lab replay`: a checkpoint retrained along its lineage, and compared with the original."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from conftest import write_text
from support.listeners import Handlers
from support.post_runs import post_recipe, write_base, write_preferences, write_questions

from llm_lab.cli import main
from llm_lab.errors import UserError
from llm_lab.hf.adapter import weights_digest
from llm_lab.job import read_job
from llm_lab.runner import run
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.lineage import describe_line, line_of, trace
from llm_lab.runs.replay import compose

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
STEPS = {"max_steps": 4, "eval_steps": 2, "save_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 4}


def tuned(stage: str, parent: str, data: str, **more) -> dict:
    return {
        "stage": stage,
        "name": stage,
        "device": "cpu",
        "model": {"checkpoint": parent},
        "data": [{"path": data}],
        "optimizer": {"name": "adamw", "learning_rate": 0.01},
        "scheduler": {"warmup_steps": 0},
        "train": STEPS | {"max_length": 64},
        **more,
    }


@pytest.fixture(scope="module", autouse=True)
def workplace(tmp_path_factory):
    """A lineage of runs, each started by hand from the one before; DPO uses the merged model as its reference."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("lines"))
    write_text("text.txt", 60)
    write_questions()
    write_preferences()
    few = {"max_new_tokens": 2}
    run(
        {
            "stage": "pretrain",
            "name": "first",
            "device": "cpu",
            "model": SIZES | {"max_position_embeddings": 64},
            "tokenizer": {"bpe": 280},
            "data": [{"path": "text.txt"}],
            "scheduler": {"warmup_steps": 0},
            "train": STEPS | {"max_length": 32, "compile": False},
            "samples": few,
        }
    )
    run(tuned("sft", "checkpoints/first", "questions.jsonl", lora={"r": 2}, samples=few))
    run({"stage": "merge", "name": "merge", "device": "cpu", "model": {"checkpoint": "checkpoints/sft"}})
    run(tuned("reward", "checkpoints/merge", "pairs.jsonl"))
    run(tuned("dpo", "checkpoints/merge", "pairs.jsonl", dpo={"reference": "checkpoints/merge"}, samples=few))
    rewarded = {
        "rewards": [{"model": "checkpoints/reward"}],
        "grpo": {"num_generations": 2, "max_completion_length": 4},
    }
    run(tuned("grpo", "checkpoints/dpo", "questions.jsonl", samples=few, score=None, **rewarded))
    yield
    os.chdir(before)


def digest(path: str) -> str:
    return weights_digest(Path(path))


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_lineage_is_traced_to_scratch_with_its_side_branches():
    node = trace("checkpoints/grpo/model", digest_of=weights_digest)
    assert [one.name for one in line_of(node)] == [
        f"checkpoints/{name}" for name in ("first", "sft", "merge", "reward", "dpo", "grpo")
    ]
    assert {link.state for one in line_of(node) for link in one.links} == {"same"}
    assert [(link.key, link.node.name) for link in node.others] == [("rewards.0.model", "checkpoints/reward")]
    assert [(link.key, link.node.name) for link in node.parent.node.others] == [("dpo.reference", "checkpoints/merge")]
    assert describe_line(RunFolder(Path("checkpoints/dpo"))) == (
        "scratch -> pretrain (checkpoints/first) -> sft (checkpoints/sft) -> merge (checkpoints/merge) -> "
        "dpo (checkpoints/dpo)"
    )


def test_show_prints_the_lineage_with_recipe_data_and_results_of_each_run(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["show", "grpo"]) == 0
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.splitlines())
    shown = lines(text[text.index("lineage") :])
    assert "● pretrain checkpoints/first, from scratch" in shown
    assert "├─● reward checkpoints/reward" in shown
    assert "● grpo checkpoints/grpo <- this model" in shown
    assert "│ recipe checkpoints/sft/recipe.yaml" in shown
    fingerprint = RunFolder(Path("checkpoints/first")).facts()["data"][0]["fingerprint"]
    assert f"│ data text.txt ({fingerprint[:12]})" in shown
    loss = RunFolder(Path("checkpoints/sft")).facts()["results"]["eval_loss"]
    assert any(line.startswith(f"│ results validation loss {loss:.4f}") for line in shown)
    assert "rewards.0.model checkpoints/reward" in shown


def test_a_dry_run_writes_the_recipe_of_the_whole_lineage_and_stops(capsys):
    assert main(["replay", "grpo", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "configs/grpo-replay.yaml" in text
    assert not Path("checkpoints/grpo-replay").exists()
    stages = yaml.safe_load(Path("configs/grpo-replay.yaml").read_text())["stages"]
    assert [stage["name"] for stage in stages] == ["first", "sft", "merge", "reward", "dpo", "grpo"]
    assert [stage["model"].get("checkpoint") for stage in stages] == [
        None,
        "stage:first",
        "stage:sft",
        "stage:merge",
        "stage:merge",
        "stage:dpo",
    ]
    assert stages[4]["dpo"]["reference"] == "stage:merge"
    assert stages[5]["rewards"][0]["model"] == "stage:reward"
    assert stages[0]["tokenizer"] == {"bpe": 280}
    assert read_job("configs/grpo-replay.yaml")[1] == []


def test_a_replay_is_identical_bit_for_bit(capsys):
    """Pretraining with its own BPE, LoRA, its merge, a reward model, DPO with a reference, and GRPO."""
    assert main(["replay", "grpo", "--name", "again"]) == 0
    assert "Identical: all weights in checkpoints/again equal those" in " ".join(capsys.readouterr().out.split())
    for name in ("first", "sft", "merge", "reward", "dpo", "grpo"):
        assert digest(f"checkpoints/again/{name}/model") == digest(f"checkpoints/{name}/model"), name
    kept = RunFolder(Path("checkpoints/again")).facts()["replay"]
    assert kept["of"] == "checkpoints/grpo/model"
    assert all(stage == {"same": True, "differences": []} for stage in kept["stages"].values())


def test_a_stage_of_a_pipeline_is_replayed_with_only_the_stages_it_needs(capsys):
    if not Path("checkpoints/again").exists():
        pytest.skip("the replay of the whole lineage failed")
    replay = compose("checkpoints/again/dpo", name=None, digest_of=weights_digest)
    assert replay.recipe["name"] == "again-dpo-replay"
    assert list(replay.runs) == ["first", "sft", "merge", "dpo"]
    assert replay.remarks == ()


def test_changed_data_is_reported_before_and_the_difference_after(capsys):
    before = Path("questions.jsonl").read_text()
    write_questions(count=38)
    try:
        assert main(["replay", "sft", "--name", "other-data"]) == 0
    finally:
        Path("questions.jsonl").write_text(before)
    text = " ".join(capsys.readouterr().out.split())
    early, late = text[: text.index("Recipe:")], text[text.index("Compared with") :]
    assert "checkpoints/sft: questions.jsonl has changed" in early
    assert "first: identical, bit for bit" in late
    assert "sft: different weights" in late
    assert "data.0: questions.jsonl has changed" in late
    assert "validation loss" in late


def test_a_checkpoint_within_a_run_is_replayed_with_the_whole_run_and_compared_at_its_step(capsys):
    assert main(["replay", "checkpoints/first/steps/checkpoint-2", "--name", "within"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "checkpoint-2 is an intermediate checkpoint: its whole run is replayed" in text
    assert "Identical: all weights" in text
    assert digest("checkpoints/within/first/steps/checkpoint-2") == digest("checkpoints/first/steps/checkpoint-2")


def test_a_lineage_may_continue_from_the_last_checkpoint_of_a_run_but_not_from_an_earlier_one():
    stage = tuned("sft", "checkpoints/first/steps/checkpoint-4", "questions.jsonl", samples={"max_new_tokens": 2})
    run(stage | {"name": "from-last"})
    assert compose("from-last", name=None, digest_of=weights_digest).recipe["stages"][1]["model"] == {
        "checkpoint": "stage:first"
    }
    run(stage | {"name": "from-inside", "model": {"checkpoint": "checkpoints/first/steps/checkpoint-2"}})
    with pytest.raises(UserError, match="a pipeline can only start from the final model of"):
        compose("from-inside", name=None, digest_of=weights_digest)


def test_a_parent_that_has_changed_or_is_gone_is_reported(capsys):
    shutil.copytree("checkpoints/first", "checkpoints/replaced")
    run(tuned("sft", "checkpoints/replaced", "questions.jsonl", samples={"max_new_tokens": 2}) | {"name": "child"})
    shutil.copytree("checkpoints/grpo/model", "checkpoints/replaced/model", dirs_exist_ok=True)
    node = trace("checkpoints/child/model", digest_of=weights_digest)
    assert node.parent.state == "changed"
    assert main(["show", "child"]) == 0
    assert "the weights in checkpoints/replaced/model have changed since" in " ".join(capsys.readouterr().out.split())
    assert "have changed since checkpoints/child" in compose("child", name=None, digest_of=weights_digest).remarks[0]
    shutil.rmtree("checkpoints/replaced")
    assert main(["show", "child"]) == 0
    assert "? checkpoints/replaced/model: missing" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match="checkpoints/replaced/model: missing, but checkpoints/child was made from it"):
        compose("child", name=None, digest_of=weights_digest)


class StopInSecondStage(Handlers):
    def begin(self, *, max_steps, first_step, facts, **_):
        self.stage = facts["stage"]

    def log(self, row):
        if self.stage == "sft" and row["step"] == 2 and "loss" in row:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_stopped_replay_resumes_and_is_compared_with_the_original(capsys):
    assert main(["replay", "sft", "--name", "halted", "--dry-run"]) == 0
    assert run("configs/halted.yaml", listener=StopInSecondStage())["status"] == "stopped"
    capsys.readouterr()
    assert main(["replay", "sft", "--name", "halted", "--resume"]) == 0
    assert "Identical: all weights in checkpoints/halted" in " ".join(capsys.readouterr().out.split())
    report = Path("checkpoints/halted/report.md").read_text()
    assert "Compared with `checkpoints/sft/model` and its lineage:" in report
    assert "| sft | identical, bit for bit |  |" in report


def test_an_incomplete_run_is_reported(capsys):
    facts = run(
        tuned("sft", "checkpoints/first", "questions.jsonl", samples={"max_new_tokens": 2}) | {"name": "cut"},
        listener=StopInSecondStage(),
    )
    assert facts["status"] == "stopped"
    (remark,) = compose("cut", name=None, digest_of=weights_digest).remarks
    assert remark == "checkpoints/cut is incomplete (stopped at step 3): it is replayed to the end"


def test_a_changed_python_file_of_the_user_is_reported(capsys):
    Path("near.py").write_text("def near(completions, **columns):\n    return [1.0 for _ in completions]\n")
    grpo = {"num_generations": 2, "max_completion_length": 4}
    few = {"samples": {"max_new_tokens": 2}, "score": None, "rewards": [{"python": "near.py:near"}], "grpo": grpo}
    run(tuned("grpo", "checkpoints/sft", "questions.jsonl", **few) | {"name": "mine"})
    assert compose("mine", name=None, digest_of=weights_digest).remarks == ()
    Path("near.py").write_text("def near(completions, **columns):\n    return [0.5 for _ in completions]\n")
    (remark,) = compose("mine", name=None, digest_of=weights_digest).remarks
    assert remark == "near.py has changed since checkpoints/mine was made (rewards.0.python)"


def test_a_run_of_several_processes_is_reported_with_the_flag_to_repeat_it():
    shutil.copytree("checkpoints/first", "checkpoints/many")
    RunFolder(Path("checkpoints/many")).update(processes=2)
    (remark,) = compose("checkpoints/many", name=None, digest_of=weights_digest).remarks
    assert remark.endswith("was trained with 2 processes: run the recipe with --nproc 2 to get the same batches")


@pytest.mark.usefixtures("quick_verification")
def test_an_export_is_replayed_with_its_lineage():
    run({"stage": "export", "name": "file", "device": "cpu", "model": {"checkpoint": "checkpoints/merge"}})
    replay = compose("file", name=None, digest_of=weights_digest)
    assert [stage["stage"] for stage in replay.recipe["stages"]] == ["pretrain", "sft", "merge", "export"]
    assert read_job(replay.recipe)[1] == []


def test_a_model_that_no_run_made_cannot_be_replayed():
    write_base()
    with pytest.raises(UserError, match="not made by a run of LLM Lab"):
        compose("base", name=None, digest_of=weights_digest)


def test_a_lineage_may_start_with_an_external_model(capsys):
    write_base()
    run(post_recipe("sft") | {"name": "tuned"})
    replay = compose("tuned", name=None, digest_of=weights_digest)
    assert [stage["model"] for stage in replay.recipe["stages"]] == [{"checkpoint": "base"}]
    assert replay.remarks == ("base was not made by LLM Lab: it is used as it is, not trained again",)
    assert main(["show", "tuned"]) == 0
    assert "● - base, not made by LLM Lab" in lines(capsys.readouterr().out)


def test_a_recipe_of_the_user_is_not_overwritten(capsys):
    Path("configs").mkdir(exist_ok=True)
    Path("configs/mine.yaml").write_text("stage: pretrain\n")
    assert main(["replay", "first", "--name", "mine", "--dry-run"]) == 2
    assert Path("configs/mine.yaml").read_text() == "stage: pretrain\n"
    assert "--name" in capsys.readouterr().err


def test_runs_that_were_moved_together_are_found(tmp_path, monkeypatch):
    shutil.copytree("checkpoints", tmp_path / "elsewhere" / "checkpoints")
    monkeypatch.chdir(tmp_path)
    node = trace("elsewhere/checkpoints/dpo/model", digest_of=weights_digest)
    assert [one.stage for one in line_of(node)] == ["pretrain", "sft", "merge", "dpo"]
    assert {link.state for one in line_of(node) for link in one.links} == {"same"}


def test_an_external_adapter_is_traced_to_its_base(tmp_path):
    shutil.copytree("checkpoints/sft/model", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(Path("checkpoints/first/model").resolve())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    node = trace(tmp_path / "adapter", digest_of=weights_digest)
    assert (node.stage, node.parent.state, node.parent.node.stage) == (None, "same", "pretrain")
