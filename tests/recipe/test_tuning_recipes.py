"""Recipes after pretraining: what is wrong is told at once, and what is left out follows from the stage."""

import os
from pathlib import Path
from typing import Any

import pytest
from support.post_runs import write_base

from llm_lab.estimate.machine import Machine, find_machine
from llm_lab.job import read_job
from llm_lab.recipe.optimizers import TUNED
from llm_lab.recipe.post_training import fill_steps
from llm_lab.recipe.registry import STAGES
from llm_lab.recipe.resolve import derive, diagnose, resolve
from llm_lab.recipe.train_loop import LOOP_RULES
from llm_lab.recipe.validate import validate

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
    assert len(found) == len(problems), "one problem is told twice"
    return found


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "grpo", "ppo", "merge"])
def test_a_short_recipe_is_enough(stage):
    assert problems_of(recipe(stage)) == {}


def rewarded(*terms: dict) -> dict:
    return recipe("grpo", rewards=list(terms))


# Every rule: what breaks it, the key it is told under, and the nearest that passes.
BROKEN: dict[str, list[tuple[dict, str, dict]]] = {
    "_reward_terms_are_complete": [
        (rewarded({"weight": 2.0}), "rewards.0", rewarded({"name": "exact_match", "weight": 2.0})),
        (
            rewarded({"name": "exact_match", "model": "judge"}),
            "rewards.0",
            rewarded({"name": "exact_match"}, {"model": "judge"}),
        ),
        (
            rewarded(*EXACT, {"name": "format"}),
            "rewards.1.pattern",
            rewarded(*EXACT, {"name": "format", "pattern": "a"}),
        ),
        (rewarded({"name": "length"}), "rewards.0.length", rewarded({"name": "length", "length": 9})),
        (
            rewarded({"name": "exact_match", "ngram": 2}),
            "rewards.0.ngram",
            rewarded({"name": "repetition", "ngram": 2}),
        ),
        (
            recipe(score={"rewards": [{"name": "regex"}]}),
            "score.rewards.0.pattern",
            recipe(score={"rewards": [{"name": "regex", "pattern": "a"}]}),
        ),
    ],
    "_groups_fill_a_step": [
        (
            recipe("grpo", **{"train.per_device_train_batch_size": 6}),
            "train.per_device_train_batch_size",
            recipe("grpo", **{"train.per_device_train_batch_size": 8}),
        ),
        (
            recipe("grpo", train={"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}),
            "train.per_device_train_batch_size",
            recipe("grpo", train={"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),
        ),
    ],
    "prompt_and_answer_fit": [
        (
            recipe(stage, **{f"{stage}.max_completion_length": 128}),
            f"{stage}.max_completion_length",
            recipe(stage, **{f"{stage}.max_completion_length": 127}),
        )
        for stage in ("grpo", "ppo")
    ],
    "_custom_layers_are_named": [
        (
            recipe(lora={"preset": "custom"}),
            "lora.target_modules",
            recipe(lora={"preset": "custom", "target_modules": ["q_proj"]}),
        ),
    ],
    "_four_bits_require_cuda": [
        (recipe(lora={"load_in_4bit": True}), "lora.load_in_4bit", recipe(lora={"load_in_4bit": False})),
        (recipe(lora={"load_in_4bit": True}), "lora.load_in_4bit", recipe(lora={"load_in_4bit": True}, device="cuda")),
    ],
    "adapter_has_no_dropout": [
        (recipe(stage, lora={"dropout": 0.05}), "lora.dropout", recipe(stage, lora={"dropout": 0.0}))
        for stage in ("dpo", "grpo", "ppo")
    ],
    "prompts_are_named": [
        (recipe("dpo", score={"prompts": 9}), "score.path", recipe("dpo", score={"path": "asked.jsonl"})),
    ],
    "prompts_are_held_out": [
        (recipe("grpo", **{"validation.fraction": 0.0}), "score.path", recipe("grpo", score=None)),
        (
            recipe("sft", validation={"fraction": 0.0}, score={}),
            "score.path",
            recipe("sft", validation={"fraction": 0.1}, score={}),
        ),
    ],
    "_length_is_set_once": [
        (
            recipe(stage, train={"num_train_epochs": 2.0, "max_steps": 9}),
            "train.num_train_epochs",
            recipe(stage, train=one),
        )
        for stage in ("sft", "grpo")
        for one in ({"num_train_epochs": 2.0}, {"max_steps": 9}, {"num_train_epochs": 2.0, "max_steps": None})
    ],
    "_robust_loss_has_a_share": [
        (
            recipe("dpo", dpo={"loss_type": "robust"}),
            "dpo.label_smoothing",
            recipe("dpo", dpo={"loss_type": "robust", "label_smoothing": 0.1}),
        ),
    ],
}


def test_every_rule_has_its_cases():
    later = [stage for stage in STAGES.values() if stage.trains and not stage.from_scratch]
    rules = {rule.__name__ for stage in later for rule in stage.rules}
    assert set(BROKEN) == rules - {rule.__name__ for rule in LOOP_RULES} - {"repeated_sets"}


@pytest.mark.parametrize(("broken", "key", "sound"), [case for cases in BROKEN.values() for case in cases])
def test_a_broken_rule_is_told_and_what_it_advises_passes(broken, key, sound):
    assert list(problems_of(broken)) == [key]
    assert problems_of(sound) == {}


def test_the_cases_of_a_rule_are_that_rules_own():
    for name, cases in BROKEN.items():
        for broken, key, _ in cases:
            stage = STAGES[broken["stage"]]
            rule = next(rule for rule in stage.rules if rule.__name__ == name)
            known, _, _ = validate(broken)
            values, _, _ = derive(stage, known, find_machine())
            assert [problem.key for problem in rule(values)] == [key], name


def test_all_mistakes_are_told_together():
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


def test_a_key_by_another_name_or_in_another_place_is_shown_where_it_stands():
    found = problems_of(recipe("dpo", lora={"rank": 4}, train={"beta": 0.2, "sft_weight": 1.0, "epochs": 2}, r=8))
    assert "Did you mean r?" in found["lora.rank"]
    assert "Did you mean num_train_epochs?" in found["train.epochs"]
    assert "It belongs in dpo.beta" in found["train.beta"]
    assert "It belongs in dpo.sft_weight" in found["train.sft_weight"]
    assert "It belongs in lora.r" in found["r"]


def test_a_key_of_another_stage_is_no_key_of_this_one():
    found = problems_of(recipe("sft", dpo={"beta": 0.1}, rewards=EXACT, train={"document_mask": True}))
    assert set(found) == {"dpo", "rewards", "train.document_mask"}


def test_a_model_that_is_nowhere_is_told_whatever_it_is_for():
    there, gone = {"model": "owner/judge"}, {"model": "./gone"}
    assert list(problems_of(recipe("dpo", **{"dpo.reference": "./gone"}))) == ["dpo.reference"]
    assert list(problems_of(recipe("ppo", **{"ppo.critic": "/gone", "ppo.max_completion_length": 9}))) == ["ppo.critic"]
    assert list(problems_of(recipe("grpo", rewards=[there, gone]))) == ["rewards.1.model"]
    assert list(problems_of(recipe("sft", score={"rewards": [gone]}))) == ["score.rewards.0.model"]
    assert "there is no such file or folder" in problems_of(recipe("grpo", rewards=[gone]))["rewards.0.model"]


def test_label_smoothing_belongs_to_the_robust_loss():
    found = problems_of(recipe("dpo", dpo={"label_smoothing": 0.1}))
    assert "has no effect with dpo.loss_type = sigmoid" in found["dpo.label_smoothing"]
    assert "robust" in found["dpo.label_smoothing"]


def test_sophia_is_for_pretraining_alone():
    assert "sophia" not in TUNED
    assert "there is no optimizer with this name" in problems_of(recipe(optimizer={"name": "sophia"}))["optimizer.name"]


# What is left out


def resolved(stage: str = "sft", machine: Machine = CPU, **changes: Any) -> dict:
    return resolve(recipe(stage, **changes), machine=machine).values


@pytest.mark.parametrize(
    ("stage", "share"), [("sft", 0.02), ("reward", 0.01), ("dpo", 1e-3), ("grpo", 1e-3), ("ppo", 1e-3)]
)
@pytest.mark.parametrize(
    ("name", "rate"), [("adamw", 1e-3), ("adamw_8bit", 1e-3), ("muon", 0.02), ("lion", 2e-4), ("adafactor", 0.02)]
)
def test_the_learning_rate_is_a_share_of_pretrainings_and_ten_times_that_with_an_adapter(stage, share, name, rate):
    changes = {"optimizer": {"name": name}, "device": "cuda"}
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
def test_an_adapter_has_dropout_but_where_probabilities_are_compared(stage, dropout):
    assert resolved(stage, lora={})["lora"]["dropout"] == dropout
    assert resolved(stage).get("lora") is None


@pytest.mark.parametrize("generations", [2, 3, 4, 5, 7, 16])
@pytest.mark.parametrize("accumulation", [None, 1, 3])
@pytest.mark.parametrize("processes", [1, 2, 8, 16])
def test_the_batch_of_grpo_is_whole_groups_whatever_their_size(generations, accumulation, processes):
    from dataclasses import replace

    changes = {"grpo": {"num_generations": generations, "max_completion_length": 8}}
    train = resolved(
        "grpo",
        replace(CPU, processes=processes),
        **changes,
        train={"gradient_accumulation_steps": accumulation},
    )["train"]
    assert train["per_device_train_batch_size"] % generations == 0


def test_the_steps_follow_from_the_passes_once_the_examples_are_counted():
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
    assert reasons["train.max_steps"] == f"2 epochs of 1,000 examples, {rows * 2} rows per step"
    assert fill_steps(STAGES["sft"], values, examples=1, processes=1)[0]["train"]["max_steps"] == 1


def test_what_the_recipe_says_of_steps_stays_when_the_examples_are_counted():
    said = {"max_steps": 7, "eval_steps": 3, "save_steps": 2}
    settled, reasons = fill_steps(STAGES["sft"], resolved("sft", train=said), examples=1000, processes=1)
    assert {key: settled["train"][key] for key in said} == said
    assert reasons == {}


def test_passes_of_grpo_count_prompts_not_answers():
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


def test_what_is_scored_and_how_long_follows_the_stage():
    grpo = resolved("grpo")["score"]
    assert grpo["max_completion_length"] == 16
    assert [term["name"] for term in grpo["rewards"]] == ["exact_number"]
    sft = resolved("sft", score={})["score"]
    assert sft["max_completion_length"] == 64  # half of the context of 128
    assert [term["name"] for term in sft["rewards"]] == ["exact_match"]
    assert resolved("sft").get("score") is None


# Memory


def parts_of(stage: str, **changes: Any) -> dict[str, int]:
    same = {"per_device_train_batch_size": 8, "max_length": 64, "dtype": "float32"}
    return resolve(recipe(stage, train=same, **changes), machine=CPU).estimate.memory_by_part


@pytest.mark.parametrize("stage", ["sft", "dpo", "grpo", "ppo"])
def test_an_adapter_needs_less_memory_than_all_weights(stage):
    whole, adapter = parts_of(stage), parts_of(stage, lora={})
    assert sum(adapter.values()) < sum(whole.values())
    assert adapter["optimizer"] < whole["optimizer"] / 10
    assert adapter["gradients"] < whole["gradients"] / 10


def test_ppo_counts_its_critic_and_dpo_its_reference():
    weights = parts_of("sft")["weights"]
    assert parts_of("ppo")["critic"] >= 4 * weights  # the weights, gradients, and AdamW's two moments
    for stage, beta in (("dpo", {}), ("ppo", {}), ("grpo", {"grpo.beta": 0.1, "grpo.max_completion_length": 16})):
        assert parts_of(stage, **beta)["reference"] == weights
        assert "reference" not in parts_of(stage, **beta, lora={})
    assert "reference" not in parts_of("grpo")
    assert "critic" not in parts_of("grpo")


def test_both_answers_of_a_preference_are_counted():
    assert parts_of("dpo")["activations"] == pytest.approx(2 * parts_of("sft")["activations"], rel=0.01)
