"""Recipes after pretraining: problems are reported together, and defaults depend on the stage."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.post_runs import write_base

from llm_lab.errors import UserError
from llm_lab.estimate.machine import Machine
from llm_lab.job import check, read_job
from llm_lab.recipe.fields import value_at
from llm_lab.recipe.optimizers import TUNED
from llm_lab.recipe.post_training import fill_steps
from llm_lab.recipe.registry import STAGES
from llm_lab.recipe.resolve import diagnose, resolve

CPU = Machine((), "a CPU", 2, 8 * 2**30, True, False)
EXACT = [{"name": "exact_number"}]


@pytest.fixture(scope="module", autouse=True)
def base(tmp_path_factory):
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("recipes"))
    write_base()
    yield
    os.chdir(before)


def recipe(stage: str = "sft", **changes: Any) -> dict:
    """A short recipe; changes are {"group.key": value} or {"key": value}."""
    raw: dict[str, Any] = {"stage": stage, "device": "cpu", "model": {"checkpoint": "base"}}
    if stage != "merge":
        raw["data"] = [{"path": "examples.jsonl"}]
    if stage in ("grpo", "ppo"):
        raw |= {"rewards": EXACT, stage: {"max_completion_length": 16}}
    for key, value in changes.items():
        group, _, name = key.rpartition(".")
        (raw.setdefault(group, {}) if group else raw)[name] = value
    return raw


def problems_of(raw: dict) -> dict[str, str]:
    _, problems = diagnose(raw, machine=CPU)
    found = {problem.key: str(problem) for problem in problems}
    assert len(found) == len(problems), "a problem is reported twice"
    return found


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "grpo", "ppo", "merge"])
def test_a_minimal_recipe_is_valid(stage):
    assert problems_of(recipe(stage)) == {}


def test_all_problems_are_reported_together():
    found = problems_of(
        recipe(
            "grpo",
            rewards=[{"name": "exact_numbr"}, {"name": "regex"}],
            lora={"rank": 4, "dropout": 0.1},
            grpo={"num_generations": 1, "betta": 0.1},
            train={"max_steps": "9", "num_epochs": 2, "max_length": 999},
            optimizer={"name": "adam"},
            scheduler={"warmup_step": 3},
        )
    )
    assert set(found) == {
        "rewards.0.name",
        "rewards.1.pattern",
        "lora.rank",
        "lora.dropout",
        "grpo.num_generations",
        "grpo.betta",
        "train.max_steps",
        "train.num_epochs",
        "train.max_length",
        "optimizer.name",
        "scheduler.warmup_step",
    }
    assert "Did you mean exact_number?" in found["rewards.0.name"]
    assert "Did you mean beta?" in found["grpo.betta"]
    assert "Did you mean num_train_epochs?" in found["train.num_epochs"]
    assert "Did you mean adamw?" in found["optimizer.name"]
    assert "Did you mean warmup_steps?" in found["scheduler.warmup_step"]


def test_a_misnamed_or_misplaced_key_gets_a_suggestion():
    found = problems_of(recipe("dpo", lora={"rank": 4}, train={"beta": 0.2, "sft_weight": 1.0, "epochs": 2}, r=8))
    assert "Did you mean r?" in found["lora.rank"]
    assert "Did you mean train.num_train_epochs?" in found["train.epochs"]
    assert "It belongs in dpo.beta" in found["train.beta"]
    assert "It belongs in dpo.sft_weight" in found["train.sft_weight"]
    assert "It belongs in lora.r" in found["r"]


def test_a_key_of_another_stage_is_refused():
    found = problems_of(recipe("sft", dpo={"beta": 0.1}, rewards=EXACT, train={"document_mask": True}))
    assert set(found) == {"dpo", "rewards", "train.document_mask"}


def test_every_missing_model_is_reported_whatever_its_role():
    there, gone = {"model": "owner/scorer"}, {"model": "./gone"}
    assert list(problems_of(recipe("dpo", **{"dpo.reference": "./gone"}))) == ["dpo.reference"]
    assert list(problems_of(recipe("ppo", **{"ppo.critic": "/gone", "ppo.max_completion_length": 9}))) == ["ppo.critic"]
    assert list(problems_of(recipe("grpo", rewards=[there, gone]))) == ["rewards.1.model"]
    assert list(problems_of(recipe("sft", score={"rewards": [gone]}))) == ["score.rewards.0.model"]
    assert "there is no such file or folder" in problems_of(recipe("grpo", rewards=[gone]))["rewards.0.model"]
    nul = recipe("sft", model={"checkpoint": "./a\0b/c"})
    assert "there is no such file or folder" in problems_of(nul)["model.checkpoint"]


def test_label_smoothing_belongs_to_the_robust_loss():
    found = problems_of(recipe("dpo", dpo={"label_smoothing": 0.1}))
    assert "has no effect with dpo.loss_type = sigmoid" in found["dpo.label_smoothing"]
    assert "robust" in found["dpo.label_smoothing"]


def test_sophia_is_for_pretraining_only():
    assert "sophia" not in TUNED
    assert "has no optimizer with this name" in problems_of(recipe(optimizer={"name": "sophia"}))["optimizer.name"]


# Omitted keys


def resolved(stage: str = "sft", machine: Machine = CPU, **changes: Any) -> dict:
    return resolve(recipe(stage, **changes), machine=machine).values


@pytest.mark.parametrize(
    ("stage", "share"), [("sft", 0.02), ("reward", 0.01), ("dpo", 1e-3), ("grpo", 1e-3), ("ppo", 1e-3)]
)
@pytest.mark.parametrize(
    ("name", "rate"), [("adamw", 1e-3), ("adamw_8bit", 1e-3), ("muon", 0.02), ("lion", 2e-4), ("adafactor", 0.02)]
)
def test_the_learning_rate_is_scaled_by_stage_and_ten_times_larger_with_an_adapter(stage, share, name, rate):
    changes = {"optimizer": {"name": name}, "device": "cuda"}
    share *= 180 if stage in ("grpo", "ppo") else 32  # for a narrow model
    whole = resolved(stage, **changes)
    adapter = resolved(stage, **changes, lora={})
    assert whole["optimizer"]["learning_rate"] == pytest.approx(rate * share, rel=1e-5)
    assert adapter["optimizer"]["learning_rate"] == pytest.approx(10 * rate * share, rel=1e-5)
    assert whole["optimizer"].get("adamw_learning_rate", 3e-3 * share) == pytest.approx(3e-3 * share, rel=1e-5)
    if stage == "ppo":
        assert whole["ppo"]["critic_learning_rate"] == pytest.approx(5 * rate * share, rel=1e-5)
    given = resolved(stage, **changes | {"optimizer": {"name": name, "learning_rate": 0.5}})
    assert given["optimizer"]["learning_rate"] == 0.5


@pytest.mark.parametrize(
    ("stage", "dropout"), [("sft", 0.05), ("reward", 0.05), ("dpo", 0.0), ("grpo", 0.0), ("ppo", 0.0)]
)
def test_an_adapter_has_dropout_unless_probabilities_are_compared(stage, dropout):
    assert resolved(stage, lora={})["lora"]["dropout"] == dropout
    assert resolved(stage).get("lora") is None


@pytest.mark.parametrize("generations", [2, 3, 4, 5, 7, 16])
@pytest.mark.parametrize("accumulation", [None, 1, 3])
@pytest.mark.parametrize("processes", [1, 2, 8, 16])
def test_a_grpo_batch_holds_whole_groups_of_any_size(generations, accumulation, processes):
    from dataclasses import replace

    changes = {"grpo": {"num_generations": generations, "max_completion_length": 8}}
    train = resolved(
        "grpo",
        replace(CPU, processes=processes),
        **changes,
        train={"gradient_accumulation_steps": accumulation},
    )["train"]
    assert train["per_device_train_batch_size"] % generations == 0


def test_steps_are_derived_from_epochs_once_the_examples_are_counted():
    values = resolved("sft", train={"num_train_epochs": 2.0, "per_device_train_batch_size": 4})
    assert values["train"].get("max_steps") is None
    assert values["scheduler"].get("warmup_steps") is None
    rows = 4 * values["train"]["gradient_accumulation_steps"]
    settled, reasons = fill_steps(STAGES["sft"], values, examples=1000, processes=2)
    steps = round(2 * 1000 / (rows * 2))
    assert settled["train"]["max_steps"] == steps
    assert settled["train"]["eval_steps"] == settled["train"]["save_steps"] == steps // 5
    assert settled["scheduler"]["warmup_steps"] == steps // 20
    assert settled["train"]["logging_steps"] == max(1, steps // 50)
    assert reasons["train.max_steps"] == f"2 epochs of 1,000 examples, {rows * 2} sequences per step"
    assert fill_steps(STAGES["sft"], values, examples=1, processes=1)[0]["train"]["max_steps"] == 1


def test_steps_set_in_the_recipe_are_kept_when_the_examples_are_counted():
    said = {"max_steps": 7, "eval_steps": 3, "save_steps": 2}
    settled, reasons = fill_steps(STAGES["sft"], resolved("sft", train=said), examples=1000, processes=1)
    assert {key: settled["train"][key] for key in said} == said
    assert reasons == {}


def test_grpo_epochs_count_prompts_not_answers():
    changes = {"grpo": {"num_generations": 4, "max_completion_length": 8}}
    train = {"num_train_epochs": 1.0, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    settled, _ = fill_steps(STAGES["grpo"], resolved("grpo", **changes, train=train), examples=100, processes=1)
    assert settled["train"]["max_steps"] == 50  # two prompts a step
    assert resolved("grpo")["train"]["max_steps"] == 200


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "grpo", "ppo"])
@pytest.mark.parametrize("length", [{}, {"max_steps": 9}, {"num_train_epochs": 0.5}])
def test_a_resolved_recipe_resolves_to_itself(stage, length, tmp_path):
    first = resolve(recipe(stage, train=length, lora={}), machine=CPU)
    file = tmp_path / "recipe.yaml"
    file.write_text(first.to_yaml())
    job, problems = read_job(file)
    assert problems == []
    assert job.stages[0].recipe == first.recipe


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_the_length_of_outputs_leaves_room_for_prompts_in_a_small_context(stage):
    key = f"{stage}.max_completion_length"
    assert value_at(resolved(stage, **{key: None}), key) == 64  # half of the context of 128
    assert value_at(resolved(stage, **{key: None, "train.max_length": 40}), key) == 20


def test_the_score_defaults_to_the_stages_rewards_and_lengths():
    grpo = resolved("grpo")["score"]
    assert grpo["max_completion_length"] == 16
    assert [term["name"] for term in grpo["rewards"]] == ["exact_number"]
    sft = resolved("sft", score={})["score"]
    assert sft["max_completion_length"] == 64  # half of the context of 128
    assert [term["name"] for term in sft["rewards"]] == ["exact_match"]
    assert resolved("sft").get("score") is None


@pytest.mark.parametrize(
    ("width", "scale", "of_rewards"),
    [(64, 32, 180), (576, 3.6, 6.7), (1024, 2, 2.8), (2048, 1, 1), (4096, 1, 1), (8, 32, 180)],
)
@pytest.mark.parametrize("stage", ["sft", "dpo", "grpo", "ppo"])
def test_narrower_models_get_a_larger_learning_rate_and_the_plan_says_why(stage, width, scale, of_rewards, tmp_path):
    scale, law = (of_rewards, "1 / width^1.5") if stage in ("grpo", "ppo") else (scale, "1 / width")
    config = {"model_type": "somebody-elses", "hidden_size": width, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = resolve(recipe(stage, model={"checkpoint": str(tmp_path)}), machine=CPU)
    share = {"sft": 0.02}.get(stage, 0.001)
    assert found.values["optimizer"]["learning_rate"] == pytest.approx(1e-3 * share * scale)
    reason = found.origins["optimizer.learning_rate"].reason
    assert (f"for a width of {width:,} (proportional to {law})" in reason) == (scale > 1)


# Memory


def parts_of(stage: str, **changes: Any) -> dict[str, int]:
    same = {"per_device_train_batch_size": 8, "max_length": 64, "dtype": "float32"}
    return resolve(recipe(stage, train=same, **changes), machine=CPU).estimate.memory_by_part


@pytest.mark.parametrize("stage", ["sft", "dpo", "grpo", "ppo"])
def test_an_adapter_needs_less_memory_than_all_weights(stage):
    whole, adapter = parts_of(stage), parts_of(stage, lora={})
    assert adapter["optimizer"] < whole["optimizer"] / 10
    assert adapter["gradients"] < whole["gradients"] / 10


def test_the_memory_of_critic_and_reference_is_counted():
    weights = parts_of("sft")["weights"]
    assert parts_of("ppo")["critic"] >= 4 * weights  # the weights, gradients, and AdamW's two moments
    for stage, beta in (("dpo", {}), ("ppo", {}), ("grpo", {"grpo.beta": 0.1, "grpo.max_completion_length": 16})):
        assert parts_of(stage, **beta)["reference"] == weights
        assert "reference" not in parts_of(stage, **beta, lora={})
    assert "reference" not in parts_of("grpo")
    assert "critic" not in parts_of("grpo")


def test_the_memory_of_both_answers_of_a_preference_is_counted():
    assert parts_of("dpo")["activations"] == pytest.approx(2 * parts_of("sft")["activations"], rel=0.01)


@pytest.mark.parametrize(
    ("term", "said"),
    [
        ({"weight": 2.0}, "this one has none. Add a name: exact_number, exact_match, "),
        (
            {"name": "exact_match", "python": "own.py:polite"},
            "this one has name, python. Write a separate term for each.",
        ),
        ({"name": "regex"}, "score.rewards.0.pattern: the reward regex requires it. Allowed: a regular expression."),
    ],
)
def test_an_incomplete_reward_term_is_refused_with_what_is_missing(term, said):
    score = {"path": "builtin:sums", "rewards": [term]}
    with pytest.raises(UserError) as caught:
        resolve({"stage": "eval", "device": "cpu", "model": {"checkpoint": "gpt2"}, "score": score})
    assert said in str(caught.value)


def test_a_stage_of_a_pipeline_is_refused_in_a_recipe_without_stages():
    raw = {"stage": "sft", "device": "cpu", "model": "stage:merge", "data": [{"path": "builtin:instruct"}]}
    with pytest.raises(UserError) as caught:
        check(raw)
    said = "model.checkpoint = stage:merge: stage:NAME is a stage of the same pipeline, and this recipe has no stages."
    assert str(caught.value) == f"{said} Name a run, a folder, or a model on the Hub."


def test_keys_of_a_stage_at_the_top_of_a_pipeline_are_unknown_keys_of_a_pipeline():
    inner = {"stage": "eval", "model": "base"}
    with pytest.raises(UserError, match=r"validation: unknown key of a pipeline\. Allowed: name, seed, device, score"):
        check({"stage": "pretrain", "validation": {}, "stages": [inner]})


def test_missing_rewards_are_reported_with_an_example():
    raw = {"stage": "grpo", "device": "cpu", "model": {"checkpoint": "base"}, "data": [{"path": "builtin:sums"}]}
    with pytest.raises(UserError, match=r"such as \[\{name: exact_number\}\]"):
        resolve(raw)
