"""Every problem of a recipe is reported at once: what, why, what is allowed, and how to fix it."""

import pytest
from conftest import tiny_recipe

from llm_lab.errors import MachineError, Problem, UserError
from llm_lab.recipe.resolve import diagnose
from llm_lab.recipe.validate import applies, check_rules


def problems_of(raw: dict) -> dict[str, str]:
    """Return {key: the whole paragraph} of the problems of a recipe."""
    _, problems = diagnose(raw)
    found = {problem.key: str(problem) for problem in problems}
    assert len(found) == len(problems), "a problem is reported twice"
    return found


def test_a_valid_recipe_has_no_problems():
    assert problems_of(tiny_recipe()) == {}


def test_a_mistyped_key_gets_a_suggestion():
    found = problems_of(tiny_recipe(**{"train.learning_rat": 1, "train.max_step": 5, "sede": 3}))
    assert "Did you mean max_steps?" in found["train.max_step"]
    assert "Did you mean seed?" in found["sede"]


def test_a_key_in_the_wrong_group_is_reported_with_the_right_group():
    found = problems_of(tiny_recipe(**{"train.learning_rate": 1e-3, "train.seed": 1, "warmup_steps": 5}))
    assert "It belongs in optimizer.learning_rate" in found["train.learning_rate"]
    assert "It belongs at the top level: seed." in found["train.seed"]
    assert "It belongs in scheduler.warmup_steps" in found["warmup_steps"]


def test_a_key_of_another_optimizer_is_reported_with_that_optimizer():
    found = problems_of(tiny_recipe(**{"optimizer.momentum": 0.9}))
    assert found["optimizer.momentum"].startswith("optimizer.momentum: unknown key of optimizer adamw")
    assert "It belongs to optimizer muon." in found["optimizer.momentum"]


def test_a_missing_required_key_is_reported_together_with_the_mistyped_one():
    found = problems_of(tiny_recipe(tokenizer={"bpc": 300}))
    assert "Did you mean bpe?" in found["tokenizer.bpc"]
    assert "required. Maximum vocabulary size" in found["tokenizer.bpe"]


def test_a_key_of_a_group_is_not_taken_for_one_that_means_something_else_elsewhere():
    recipe = {"stage": "grpo", "model": {"checkpoint": "x"}, "data": [{"path": "builtin:sums"}]}
    found = problems_of({**recipe, "rewards": [{"type": "exact_number"}]})["rewards.0.type"]
    assert "Did you mean" not in found
    assert "Allowed: name, model" in found


def test_an_unknown_key_without_a_similar_one_lists_the_allowed_keys():
    assert (
        "Allowed: fraction, from, max_tokens, stream_documents."
        in problems_of(tiny_recipe(validation={"xyzzy": 1}))["validation.xyzzy"]
    )


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train.max_steps", "20", "Write it without quotes: max_steps: 20."),
        ("train.max_steps", 2.5, "a whole number of at least 1"),
        ("train.max_steps", True, "a whole number of at least 1"),
        ("train.max_steps", 0, "a whole number of at least 1"),
        ("train.compile", 1, "true, false"),
        ("train.dtype", "float16", "bfloat16, float32"),
        ("train.distributed", "deepspeed", "DeepSpeed is not supported: fsdp does what its ZeRO 3 does"),
        ("train.distributed", "deepspeed", "Allowed: ddp, fsdp."),
        ("optimizer.learning_rate", 0, "a number above 0, up to 10"),
        ("optimizer.learning_rate", 500, "500: too large. Allowed: a number above 0, up to 10"),
        ("train.max_steps", 1.5, "1.5: not a whole number. Allowed"),
        ("optimizer.learning_rate", "fast", "a number above 0, up to 10"),
        ("optimizer.betas", [0.9], "a list of 2 numbers"),
        ("optimizer.betas", [0.9, 1.0], "a list of 2 numbers, each of at least 0, below 1."),
        ("model.sliding_window_pattern", "XYZ", "letters S and L, as in SSSL"),
        ("optimizer.name", "adam", "Did you mean adamw?"),
        ("scheduler.name", "cosin", "Did you mean cosine?"),
        ("model.norm", "rms_norm", "Did you mean rmsnorm?"),
        ("model.hidden_size", 4, "from 8 to 65,536"),
        ("validation.fraction", 0.9, "from 0 to 0.5"),
        ("model.dropout", 1, "a number of at least 0, below 1"),
        ("train.ema_decay", 1, "a number above 0, below 1"),
        ("name", "a/b", "letters, digits"),
        ("seed", -1, "from 0 to 4,294,967,295"),
        ("device", "gpu", "cuda, cpu, auto"),
        ("data", [], "at least one entry"),
        ("data", [{"weight": 1.0}], "this key is required"),
        ("data", ["text.txt"], "path"),
        ("train", 5, "this must be a group of keys"),
        ("tokenizer", {"bpe": 100}, "from 257"),
        ("tokenizer", 5, "bpe"),
        ("samples.prompts", "the", "a list of strings"),
        ("samples.prompts", [1, 2], "samples.prompts = [1, 2]"),
    ],
)
def test_a_wrong_value_is_reported_with_the_allowed_values(key, value, words):
    raw = tiny_recipe(validation={}, tokenizer="bytes")
    group, _, name = key.rpartition(".")
    (raw[group] if group else raw)[name] = value
    found = problems_of(raw)
    assert len(found) == 1
    ((where, text),) = found.items()
    assert where.startswith(key)
    assert words in text
    assert "pydantic" not in text
    assert "Input should" not in text


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({}, "Allowed: pretrain"),
        ({"stage": "pretain"}, "Did you mean pretrain?"),
        ({"stage": ["pretrain"]}, "there is no such stage"),
    ],
)
def test_a_recipe_must_name_a_stage(raw, words):
    with pytest.raises(UserError) as caught:
        diagnose(raw)
    assert words in str(caught.value)


def test_wrong_types_broken_rules_and_keys_without_effect_are_reported_together():
    raw = tiny_recipe(
        **{
            "model.num_attention_heads": 3,  # a rule across keys
            "model.yarn_factor": 2.0,  # has no effect with rope
            "train.max_steps": "20",  # a type
            "train.lr": 1e-3,  # not a key
            "optimizer.name": "sgd",  # not a member
            "data": [{"path": "a.txt"}, {"path": "a.txt"}],  # another rule
            "scheduler.name": "none",
            "scheduler.min_ratio": 0.5,  # has no effect with none
        }
    )
    assert set(problems_of(raw)) == {
        "model.num_attention_heads",
        "model.yarn_factor",
        "train.max_steps",
        "train.lr",
        "optimizer.name",
        "data.1.path",
        "scheduler.min_ratio",
    }


def test_null_means_left_out():
    raw = tiny_recipe(
        **{
            "train.eval_steps": None,
            "tokenizer": None,
            "model.head_dim": None,
            "scheduler.warmup_steps": None,
        }
    )
    assert problems_of(raw) == {}
    assert "model.yarn_factor" not in problems_of(tiny_recipe(**{"model.original_max_position_embeddings": None}))


@pytest.mark.parametrize(
    ("changes", "key", "owner"),
    [
        ({"model.position_embedding": "alibi", "model.rope_theta": 5e5}, "model.rope_theta", "rope or yarn"),
        ({"model.yarn_factor": 2.0}, "model.yarn_factor", "model.position_embedding = yarn"),
        (
            {"model.original_max_position_embeddings": 8},
            "model.original_max_position_embeddings",
            "model.position_embedding = yarn",
        ),
        ({"scheduler.name": "none", "scheduler.min_ratio": 0.2}, "scheduler.min_ratio", "cosine or linear"),
    ],
)
def test_a_key_without_effect_is_reported(changes, key, owner):
    raw = tiny_recipe(**changes)
    (text,) = problems_of(raw).values()
    assert text.startswith(f"{key} = ")
    assert "has no effect with" in text
    assert owner in text
    assert not applies(key, raw)


def test_whether_a_key_applies_depends_on_the_other_values():
    assert applies("model.yarn_factor", tiny_recipe(**{"model.position_embedding": "yarn"}))
    assert applies("model.hidden_size", tiny_recipe())
    assert check_rules(tiny_recipe(), {}) == []


def test_a_problem_is_one_short_paragraph():
    problem = Problem("a.b", "it is odd", value=True, allowed="false", fix="Turn it off")
    assert str(problem) == "a.b = true: it is odd. Allowed: false. Turn it off."
    assert str(Problem("a", "why?", value="x" * 100)) == f"a = {'x' * 77}...: why?"
    assert str(Problem("a", "no", value=None)) == "a = null: no."
    assert str(UserError(problem, "b")) == f"{problem}\nb"
    assert (UserError("a").exit_code, MachineError("a").exit_code) == (2, 3)


def test_an_optimizer_given_as_a_name_is_reported_with_the_right_form():
    found = problems_of(tiny_recipe(optimizer="adamw"))
    assert "Write optimizer: {name: adamw}." in found["optimizer"]
    found = problems_of(tiny_recipe(optimizer="adam"))
    assert "On the command line: optimizer.name=adamw." in found["optimizer"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("steps", "train.max_steps?"),
        ("batch_size", "train.per_device_train_batch_size?"),
        ("layers", "model.num_hidden_layers?"),
        ("heads", "model.num_attention_heads or model.num_key_value_heads?"),
    ],
)
def test_the_last_word_of_a_key_leads_to_the_key(name, meant):
    assert f"Did you mean {meant}" in problems_of(tiny_recipe() | {name: 3})[name]


@pytest.mark.parametrize("value", [None, 5, "length", ["length"]])
def test_an_entry_that_should_be_a_group_but_is_not_is_refused(value):
    raw = {"stage": "grpo", "model": {"checkpoint": "base"}, "data": [{"path": "data.jsonl"}], "rewards": [value]}
    assert any("this must be a group of keys" in text for text in problems_of(raw).values())
