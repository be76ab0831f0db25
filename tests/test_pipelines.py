"""Pipelines: stages that start from earlier ones, by default or by name, are scored, replayed and resumed."""

import io
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import tiny_recipe, write_text
from rich.console import Console
from support.post_runs import rows_of, write_preferences, write_questions

from llm_lab.errors import UserError
from llm_lab.events import MetricsLogged, ScoresReported, TrainingStarted, ignore
from llm_lab.hf.adapter import read_adapter
from llm_lab.job import check, read_job
from llm_lab.runner import run
from llm_lab.runs.folder import RunFolder, find_model
from llm_lab.runs.glossary import name_of
from llm_lab.runs.report import describe_scores
from llm_lab.studies.child_run import run_child
from llm_lab.terminal.progress import PlainDisplay

NAMES = ["pretrain", "sft", "merge", "reward", "dpo", "grpo", "ppo"]
COURSE = {"max_steps": 2, "eval_steps": 2, "save_steps": 1, "logging_steps": 1, "per_device_train_batch_size": 4}
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}


def life() -> dict[str, Any]:
    """Every stage of a model, with two steps each."""
    tuned = {"train": COURSE | {"max_length": 64}, "scheduler": {"warmup_steps": 0}}
    talked = tuned | {"samples": {"max_new_tokens": 2}, "optimizer": {"name": "adamw", "learning_rate": 0.03}}
    rewarded = talked | {"data": [{"path": "questions.jsonl"}], "rewards": [{"model": "stage:reward"}]}
    return {
        "name": "demo",
        "seed": 5,
        "device": "cpu",
        "score": {"path": "asked.jsonl", "split": "train", "prompts": 4, "max_completion_length": 4}
        | {"rewards": [{"name": "exact_number"}, {"python": "mine.py:near", "weight": 0.5}]},
        "stages": [
            {
                "stage": "pretrain",
                "model": SIZES | {"max_position_embeddings": 64},
                "tokenizer": "bytes",
                "data": [{"path": "text.txt"}],
                "optimizer": {"name": "adamw", "learning_rate": 1e-3},
                "scheduler": {"warmup_steps": 0},
                "train": COURSE | {"max_length": 32, "compile": False},
                "samples": {"max_new_tokens": 2},
            },
            {"stage": "sft", "data": [{"path": "questions.jsonl"}], "lora": {"r": 2}, **talked},
            {"stage": "merge"},
            {"stage": "reward", "data": [{"path": "pairs.jsonl"}], **tuned},
            {"stage": "dpo", "data": [{"path": "pairs.jsonl"}], "dpo": {"reference": "stage:merge"}, **talked},
            {"stage": "grpo", "grpo": {"num_generations": 2, "max_completion_length": 4}, **rewarded}
            | {"train": COURSE | {"max_length": 64, "max_steps": 3}},
            {"stage": "ppo", "ppo": {"critic": "stage:reward", "max_completion_length": 4}, **rewarded},
        ],
    }


class Stopping(PlainDisplay):
    """A plain display whose user presses Ctrl-C in the second stage that learns from rewards."""

    def __init__(self, at: str):
        self.at, self.text = at, io.StringIO()
        super().__init__(Console(file=self.text, width=100))

    def __call__(self, event):
        super().__call__(event)
        match event:
            case TrainingStarted(facts=facts):
                self.stage = facts["stage"]
            case MetricsLogged(row) if self.stage == self.at and row["step"] == 1:
                os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module", autouse=True)
def workplace(tmp_path_factory):
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("pipelines"))
    write_text("text.txt", 60)
    write_questions()
    write_questions("asked.jsonl", 6)
    write_preferences()
    near = "def near(completions, **columns):\n    return [sum(map(ord, text)) % 97 / 97 for text in completions]\n"
    Path("mine.py").write_text(near)
    yield
    os.chdir(before)


@pytest.fixture(scope="module")
def whole() -> tuple[dict, str]:
    """The pipeline run in one piece: its facts, and what was printed."""
    display = Stopping(at="none")
    facts = run(life(), listener=display)
    return facts, display.text.getvalue()


@pytest.fixture(scope="module")
def again(whole) -> tuple[dict, dict, dict]:
    """The same pipeline from its recipe.yaml: stopped in GRPO, with its stages at that time, and resumed."""
    stopped = run(f"{whole[0]['path']}/recipe.yaml", listener=Stopping(at="grpo"))
    return stopped, stages_of(stopped["path"]), run("checkpoints/demo-2", resume=True)


def stages_of(path: str) -> dict[str, dict]:
    return {stage.path.name: stage.facts() for stage in RunFolder(Path(path)).stages()}


def test_a_pipeline_of_every_stage_runs_to_its_end(whole):
    facts, _ = whole
    assert (facts["status"], facts["stages"]) == ("done", NAMES)
    stages = stages_of(facts["path"])
    assert {stage["status"] for stage in stages.values()} == {"done"}
    assert {stage["seed"] for stage in stages.values()} == {5}


def test_a_stage_starts_from_the_last_model_that_generates_text(whole):
    home = Path(whole[0]["path"])
    parents = {name: Path(f["parent"]["path"]).parent.name for name, f in stages_of(home).items() if "parent" in f}
    assert parents == {
        "sft": "pretrain",
        "merge": "sft",
        "reward": "merge",
        "dpo": "merge",  # not the reward model
        "grpo": "dpo",
        "ppo": "grpo",
    }
    assert read_adapter(home / "sft" / "model").base == str((home / "pretrain" / "model").resolve())
    assert not (home / "merge" / "model" / "adapter_config.json").exists()


def test_references_resolve_to_the_results_of_stages(whole):
    recipe = {stage: yaml.safe_load((Path(whole[0]["path"]) / stage / "recipe.yaml").read_text()) for stage in NAMES}
    assert recipe["dpo"]["dpo"]["reference"] == "checkpoints/demo/merge"
    assert recipe["grpo"]["rewards"][0]["model"] == "checkpoints/demo/reward"
    assert recipe["ppo"]["ppo"]["critic"] == "checkpoints/demo/reward"
    written = yaml.safe_load((Path(whole[0]["path"]) / "recipe.yaml").read_text())
    assert written["stages"][4]["dpo"]["reference"] == "stage:merge"
    assert written["stages"][5]["rewards"][0]["model"] == "stage:reward"
    assert written["stages"][6]["ppo"]["critic"] == "stage:reward"
    assert written["stages"][4]["model"] == {"checkpoint": "stage:merge"}


def test_every_stage_is_scored_on_the_same_prompts(whole):
    facts, printed = whole
    scores = facts["results"]["scores"]
    assert list(scores) == ["pretrain", "sft", "dpo", "grpo", "ppo"]
    assert all(row.keys() == {"exact_match", "exact_match_sampled", "reward", "seconds"} for row in scores.values())
    for name, row in scores.items():
        last = [r for r in RunFolder(Path(facts["path"]) / name).metrics() if "exact_match" in r][-1]
        assert row["exact_match"] == last["exact_match"]
        assert row["reward"] == last["eval_reward_sampled"]
    # On the same prompts, a stage starts with the score that the stage before it reached.
    assert len({row["reward"] for row in scores.values()}) > 2
    start = RunFolder(Path(facts["path"]) / "ppo").metrics()[0]
    assert start["step"] == 0
    assert start["eval_reward_sampled"] == scores["grpo"]["reward"]
    table = describe_scores(scores)
    assert table[0] == [
        "stage",
        *map(name_of, ("exact_match", "exact_match_sampled", "eval_reward_sampled", "wall_seconds")),
    ]
    lines = [line.split() for line in printed.splitlines()]
    for row in table[1:]:
        assert " ".join(row).split() in lines
    report = (Path(facts["path"]) / "report.md").read_text()
    for row in table:
        assert f"| {' | '.join(row)} |" in report
    assert all(f"[{name}]({name}/report.md)" in report for name in NAMES)
    assert all((Path(facts["path"]) / name / "report.md").exists() for name in NAMES)


def test_the_name_of_a_pipeline_means_its_last_model(whole):
    assert find_model("demo").resolve() == (Path(whole[0]["path"]) / "ppo" / "model").resolve()


def test_a_stopped_pipeline_has_the_status_stopped(again):
    stopped, stages, _ = again
    assert (stopped["status"], stopped["path"]) == ("stopped", "checkpoints/demo-2")
    assert [facts.get("status") for facts in stages.values()] == ["done"] * 5 + ["stopped", None]
    assert stages["grpo"]["results"]["step"] == 2  # of 3
    assert list(stopped["results"]["scores"]) == ["pretrain", "sft", "dpo", "grpo"]


def test_a_pipeline_replayed_stopped_and_resumed_gives_the_same_run(whole, again):
    _, _, resumed = again
    assert (resumed["status"], resumed["path"]) == ("done", "checkpoints/demo-2")
    for name in NAMES:
        if name != "merge":
            assert rows_of(f"checkpoints/demo-2/{name}") == rows_of(f"checkpoints/demo/{name}"), name
    moved = yaml.safe_load(Path("checkpoints/demo-2/ppo/recipe.yaml").read_text())
    assert moved["ppo"]["critic"] == moved["rewards"][0]["model"] == "checkpoints/demo-2/reward"
    assert Path(stages_of("checkpoints/demo-2")["ppo"]["parent"]["path"]).parts[-3:-1] == ("demo-2", "grpo")

    def scores(facts):
        return {name: {**row, "seconds": 0} for name, row in facts["results"]["scores"].items()}

    assert scores(resumed) == scores(whole[0])


def test_a_failed_stage_ends_the_pipeline_and_is_run_again_on_resume(whole):
    Path("fails.py").write_text("def f(completions, **columns):\n    raise ValueError('not yet')\n")
    stages = life()["stages"]
    grpo = stages[5] | {"rewards": [{"python": "fails.py:f"}], "model": {"checkpoint": "checkpoints/demo/merge"}}
    sft = stages[1] | {"model": {"checkpoint": "checkpoints/demo/pretrain"}}
    raw = {"name": "fails", "device": "cpu", "stages": [sft, grpo]}
    with pytest.raises(UserError, match="not yet"):
        run(raw)
    outer = RunFolder(Path("checkpoints/fails"))
    assert outer.facts()["status"] == "failed"
    assert "not yet" in outer.facts()["error"]
    Path("fails.py").write_text("def f(completions, **columns):\n    return [1.0 for _ in completions]\n")
    before = rows_of("checkpoints/fails/sft")
    assert run(raw, resume=True)["status"] == "done"
    assert rows_of("checkpoints/fails/sft") == before
    assert (outer.facts()["status"], outer.facts()["error"]) == ("done", None)


def test_the_name_of_a_pipeline_does_not_mean_its_reward_model(whole):
    stages = life()["stages"]
    sft = stages[1] | {"model": {"checkpoint": "checkpoints/demo/merge"}}
    reward = stages[3] | {"lora": {"r": 2}}
    merge = {"stage": "merge", "model": {"checkpoint": "stage:reward"}}
    raw = {"name": "scored", "device": "cpu", "stages": [sft, reward, merge, stages[4] | {"dpo": {}}]}
    job, problems = read_job(raw)
    assert problems == []
    # Neither the reward model nor the merge of its adapter is the default model.
    assert job.stages[3].recipe.model.checkpoint == "checkpoints/scored/sft"
    facts = run(raw | {"stages": raw["stages"][:3]})
    assert find_model(facts["path"]) == Path(facts["path"]) / "sft" / "model"


# Errors


def problems_of(stages: list[dict], **more: Any) -> dict[str, str]:
    _, problems = read_job({"name": "demo", "device": "cpu", "stages": stages} | more)
    return {problem.key: str(problem) for problem in problems}


def test_a_pipeline_of_every_stage_is_valid():
    _, problems = read_job(life())
    assert problems == []


@pytest.mark.parametrize(
    ("index", "change", "key"),
    [
        (1, {"model": {"checkpoint": "stage:pretrian"}}, "stages.1.model.checkpoint"),
        (4, {"dpo": {"reference": "stage:pretrian"}}, "stages.4.dpo.reference"),
        (5, {"rewards": [{"model": "stage:pretrian"}]}, "stages.5.rewards.0.model"),
        (6, {"ppo": {"critic": "stage:pretrian", "max_completion_length": 4}}, "stages.6.ppo.critic"),
    ],
)
def test_a_reference_to_an_unknown_stage_gets_a_suggestion(index, change, key):
    stages = life()["stages"]
    stages[index] |= change
    found = problems_of(stages)
    assert list(found) == [key]
    assert "no earlier stage has this name" in found[key]
    assert "Did you mean pretrain?" in found[key]


def test_a_stage_cannot_depend_on_a_later_stage():
    stages = life()["stages"]
    stages[1] |= {"model": {"checkpoint": "stage:ppo"}}
    assert list(problems_of(stages)) == ["stages.1.model.checkpoint"]


def test_only_reward_models_and_merges_can_start_from_a_reward_model():
    stages = life()["stages"]
    stages[4] |= {"model": {"checkpoint": "stage:reward"}}
    found = problems_of(stages)
    assert list(found) == ["stages.4.model.checkpoint"]
    assert "a reward model, which can't generate text" in found["stages.4.model.checkpoint"]
    assert problems_of([*stages[:4], stages[3] | {"name": "again", "model": {"checkpoint": "stage:reward"}}]) == {}


def test_two_stages_of_the_same_kind_get_different_names():
    stages = life()["stages"]
    job, problems = read_job({"name": "twice", "device": "cpu", "stages": [*stages[:2], stages[1]]})
    assert problems == []
    assert [stage.values["name"] for stage in job.stages] == ["pretrain", "sft", "sft-2"]
    assert job.stages[2].recipe.model.checkpoint == "checkpoints/twice/sft"


def test_a_pipeline_score_applies_to_stages_without_their_own():
    raw = life()
    raw["stages"][1] |= {"score": None}
    raw["stages"][5] |= {"score": {"path": "questions.jsonl", "split": "train", "prompts": 2}}
    job, problems = read_job(raw)
    assert problems == []
    stages = {stage.values["name"]: stage.recipe for stage in job.stages}
    assert stages["sft"].score is None
    assert stages["grpo"].score.prompts == 2
    assert stages["dpo"].score.path == stages["pretrain"].score.path == "asked.jsonl"
    assert not hasattr(stages["reward"], "score")


def test_problems_of_all_stages_are_reported_together_with_their_stage():
    stages = life()["stages"]
    stages[1] |= {"lora": {"rank": 2}}
    stages[4] |= {"dpo": {"loss_type": "sigmod"}}
    found = problems_of([*stages, {"stage": "dop"}], sead=1)
    assert set(found) == {"sead", "stages.1.lora.rank", "stages.4.dpo.loss_type", "stages.7.stage"}
    assert "Did you mean dpo?" in found["stages.7.stage"]


def test_missing_data_is_reported_with_its_stage():
    raw = life()
    raw["stages"][4] |= {"data": [{"path": "gone.jsonl"}]}
    raw["stages"][5] |= {"data": [{"path": "gone.jsonl"}]}
    with pytest.raises(UserError) as caught:
        check(raw)
    assert [problem.key for problem in caught.value.problems] == ["stages.4.data.0.path", "stages.5.data.0.path"]


def test_an_error_in_a_running_stage_is_reported_with_its_stage():
    pretrain, sft = life()["stages"][:2]
    sft = sft | {"train": COURSE | {"max_length": 8}}  # no question of the data is as short as that
    with pytest.raises(UserError) as caught:
        run({"name": "cut", "device": "cpu", "stages": [pretrain, sft]})
    assert [problem.key for problem in caught.value.problems] == ["stages.1.data.0.path"]


class StoppingAtTheEnd:
    """A listener whose user presses Ctrl-C when the last step of a stage is logged."""

    def __call__(self, event):
        match event:
            case MetricsLogged(row) if row["step"] == 4 and "loss" in row:
                os.kill(os.getpid(), signal.SIGINT)


def short(name: str) -> dict:
    keys = {"train.max_steps": 4, "train.logging_steps": 1, "train.eval_steps": 4, "train.save_steps": 4}
    return tiny_recipe(name=name, **keys)


def test_ctrl_c_in_the_last_step_of_a_stage_stops_the_pipeline_before_the_next_stage():
    stages = [short("one"), short("two")]
    for stage in stages:
        del stage["device"]
    stopped = run({"name": "late", "device": "cpu", "stages": stages}, listener=StoppingAtTheEnd())
    assert stopped["status"] == "stopped"
    assert [facts.get("status") for facts in stages_of(stopped["path"]).values()] == ["done", None]
    assert run(stopped["path"], resume=True)["status"] == "done"


def test_ctrl_c_in_the_last_step_of_a_run_of_a_study_stops_the_study_too():
    with pytest.raises(KeyboardInterrupt):
        run_child(short("alone"), Path("checkpoints/alone"), listener=StoppingAtTheEnd())
    assert RunFolder(Path("checkpoints/alone")).status() == "done"
    assert run_child(short("alone"), Path("checkpoints/alone")).status() == "done"


def test_a_silent_listener_accepts_the_scores():
    assert ignore(ScoresReported({"sft": {"exact_match": 1.0, "seconds": 1.0}})) is None
