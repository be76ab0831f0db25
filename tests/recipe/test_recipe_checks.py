"""All that is wrong with a recipe is told at once: what, why, what is allowed, and how to fix it."""

import pytest
from conftest import tiny_recipe

from llm_lab.errors import MachineError, Problem, UserError
from llm_lab.estimate.machine import find_machine
from llm_lab.recipe.registry import STAGES
from llm_lab.recipe.resolve import derive, diagnose
from llm_lab.recipe.validate import applies, check_rules, validate


def problems_of(raw: dict) -> dict[str, str]:
    """Diagnose a recipe; {key: the whole paragraph}."""
    _, problems = diagnose(raw)
    found = {problem.key: str(problem) for problem in problems}
    assert len(found) == len(problems), "one problem is told twice"
    return found


def test_a_good_recipe_has_no_problems():
    assert problems_of(tiny_recipe()) == {}


def test_a_mistyped_key_is_named_with_the_nearest_one():
    found = problems_of(tiny_recipe(**{"train.learning_rat": 1, "train.max_step": 5, "sede": 3}))
    assert "Did you mean max_steps?" in found["train.max_step"]
    assert "Did you mean seed?" in found["sede"]


def test_a_key_in_the_wrong_group_is_shown_its_place():
    found = problems_of(tiny_recipe(**{"train.learning_rate": 1e-3, "train.seed": 1, "warmup_steps": 5}))
    assert "It belongs in optimizer.learning_rate" in found["train.learning_rate"]
    assert "It belongs at the top level: seed." in found["train.seed"]
    assert "It belongs in scheduler.warmup_steps" in found["warmup_steps"]


def test_a_key_of_another_optimizer_is_refused_with_its_owner():
    found = problems_of(tiny_recipe(**{"optimizer.momentum": 0.9}))
    assert found["optimizer.momentum"].startswith("optimizer.momentum: unknown key of optimizer adamw")
    assert "It belongs to optimizer muon." in found["optimizer.momentum"]


def test_a_key_that_is_needed_is_asked_for_beside_the_one_that_was_mistyped():
    found = problems_of(tiny_recipe(tokenizer={"bpc": 300}))
    assert "Did you mean bpe?" in found["tokenizer.bpc"]
    assert "required. Maximum vocabulary size" in found["tokenizer.bpe"]


def test_an_unknown_key_that_is_near_none_lists_what_there_is():
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
        ("optimizer.learning_rate", 0, "a number above 0, up to 10"),
        ("optimizer.learning_rate", "fast", "a number above 0, up to 10"),
        ("optimizer.betas", [0.9], "a list of 2 numbers"),
        ("optimizer.betas", [0.9, 1.0], "a list of 2 numbers"),
        ("optimizer.name", "adam", "Did you mean adamw?"),
        ("scheduler.name", "cosin", "Did you mean cosine?"),
        ("model.norm", "rms_norm", "Did you mean rmsnorm?"),
        ("model.hidden_size", 4, "from 8 to 65,536"),
        ("validation.fraction", 0.9, "from 0 to 0.5"),
        ("name", "a/b", "letters, digits"),
        ("seed", -1, "from 0 to 4,294,967,295"),
        ("device", "gpu", "cuda, cpu, auto"),
        ("data", [], "at least one entry"),
        ("data", [{"weight": 1.0}], "this key is required"),
        ("data", ["text.txt"], "path"),
        ("train", 5, "this must be a group of keys"),
        ("tokenizer", {"bpe": 100}, "from 257"),
        ("tokenizer", 5, "bpe"),
        ("samples.prompts", "the", "a list"),
        ("samples.prompts", [1, 2], "samples.prompts = [1, 2]"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_allowed(key, value, words):
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
def test_a_recipe_says_what_it_does(raw, words):
    with pytest.raises(UserError) as caught:
        diagnose(raw)
    assert words in str(caught.value)


def test_types_rules_and_idle_keys_are_told_together():
    raw = tiny_recipe(
        **{
            "model.num_attention_heads": 3,  # a rule across keys
            "model.yarn_factor": 2.0,  # has no effect with rope
            "train.max_steps": "20",  # a type
            "train.lr": 1e-3,  # no key
            "optimizer.name": "sgd",  # no such member
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


def test_null_is_as_good_as_left_out():
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


# Every rule: what breaks it, the key it is told under, and the nearest that passes.
BROKEN = {
    "_heads_divide_width": [
        ({"model.num_attention_heads": 3}, "model.num_attention_heads", {"model.num_attention_heads": 4}),
        ({"model.num_attention_heads": 32}, "model.num_attention_heads", {"model.num_attention_heads": 16}),
        ({"model.head_dim": 9}, "model.head_dim", {"model.head_dim": 10}),
    ],
    "_kv_heads_divide_heads": [
        (
            {"model.num_attention_heads": 4, "model.num_key_value_heads": 3},
            "model.num_key_value_heads",
            {"model.num_attention_heads": 4, "model.num_key_value_heads": 2},
        ),
        (
            {"model.attention": "mha"},
            "model.num_key_value_heads",
            {"model.attention": "mha", "model.num_key_value_heads": 2},
        ),
        (
            {"model.attention": "mqa", "model.num_key_value_heads": 2},
            "model.num_key_value_heads",
            {"model.attention": "mqa"},
        ),
    ],
    "_sinusoids_come_in_pairs": [
        (
            {"model.position_embedding": "sinusoidal", "model.hidden_size": 33, "model.num_attention_heads": 1},
            "model.hidden_size",
            {"model.position_embedding": "sinusoidal"},
        ),
    ],
    "_yarn_context_is_the_product": [
        (
            {"model.position_embedding": "yarn", "model.original_max_position_embeddings": 10},
            "model.original_max_position_embeddings",
            {"model.position_embedding": "yarn", "model.original_max_position_embeddings": 8},
        ),
    ],
    "_rows_fit_the_context": [({"train.max_length": 33}, "train.max_length", {"train.max_length": 32})],
    "_warmup_is_set_once": [
        ({"scheduler.warmup_ratio": 0.5}, "scheduler.warmup_ratio", {"scheduler.warmup_ratio": 0.1})
    ],
    "_warmup_ends_within_the_run": [
        ({"scheduler.warmup_steps": 20}, "scheduler.warmup_steps", {"scheduler.warmup_steps": 19})
    ],
    "_warmup_leaves_room_for_the_decay": [
        (
            {"scheduler": {"name": "wsd", "warmup_steps": 11, "decay_ratio": 0.5}},
            "scheduler.decay_ratio",
            {"scheduler": {"name": "wsd", "warmup_steps": 10, "decay_ratio": 0.5}},
        ),
    ],
    "_kernel_supports_the_model": [
        (
            {"device": "cuda", "train.dtype": "bfloat16", "train.attn_implementation": kernel} | parts,
            "train.attn_implementation",
            {"device": "cuda", "train.dtype": "bfloat16", "train.attn_implementation": "sdpa"} | parts,
        )
        for kernel, parts in (
            ("flex_attention", {"model.attention_dropout": 0.1}),
            ("flex_attention", {"model.head_dim": 8}),
            ("flash_attention_2", {"model.head_dim": 258}),
            ("flash_attention_2", {"train.dtype": "float32"}),
        )
    ],
    "_flash_attention_has_no_alibi": [
        (
            {"model.position_embedding": "alibi", "train.attn_implementation": "flash_attention_2", "device": "cuda"},
            "train.attn_implementation",
            {"model.position_embedding": "alibi", "train.attn_implementation": "eager"},
        ),
    ],
    "_kernel_runs_on_the_device": [
        (
            {"train.attn_implementation": kernel},
            "train.attn_implementation",
            {"train.attn_implementation": kernel, "device": "cuda", "train.dtype": "bfloat16"},
        )
        for kernel in ("flash_attention_2", "flex_attention")
    ],
    "eight_bits_require_cuda": [
        (
            {"optimizer": {"name": "adamw_8bit"}},
            "optimizer.name",
            {"optimizer": {"name": "adamw_8bit"}, "device": "cuda", "train.dtype": "bfloat16"},
        ),
    ],
    "_checkpoint_has_its_own_tokenizer": [
        (
            {"model": {"checkpoint": "org/model"}, "tokenizer": "bytes"},
            "tokenizer",
            {"model": {"checkpoint": "org/model"}, "tokenizer": "org/model"},
        ),
    ],
    "repeated_sets": [
        (
            {"data": [{"path": "a.txt"}, {"path": "a.txt", "weight": 2.0}]},
            "data.1.path",
            {"data": [{"path": "a.txt", "subset": "x"}, {"path": "a.txt"}]},
        ),
    ],
    "_builtin_text_is_not_streamed": [
        (
            {"data": [{"path": "builtin:stories", "streaming": True}]},
            "data.0.streaming",
            {"data": [{"path": "rows.jsonl", "streaming": True}]},
        ),
    ],
    "_kernel_supports_document_masks": [
        (
            {
                "train.dtype": "bfloat16",
                "train.document_mask": True,
                "train.attn_implementation": "flash_attention_2",
                "device": "cuda",
            },
            "train.document_mask",
            {"train.document_mask": True, "train.attn_implementation": "sdpa"},
        ),
    ],
    "_there_is_a_sample_prompt": [({"samples": {"prompts": []}}, "samples.prompts", {"samples": {"prompts": [""]}})],
}


# Rules that later stages share have their cases in test_tuning_recipes.py.
ELSEWHERE = {"_reward_terms_are_complete", "prompts_are_named"}


def test_every_rule_has_its_cases():
    assert set(BROKEN) == {rule.__name__ for rule in STAGES["pretrain"].rules} - ELSEWHERE


@pytest.mark.parametrize(("broken", "key", "sound"), [case for cases in BROKEN.values() for case in cases])
def test_a_broken_rule_is_told_and_what_it_advises_passes(broken, key, sound):
    found = problems_of(tiny_recipe(**broken))
    assert list(found) == [key]
    assert problems_of(tiny_recipe(**sound)) == {}


def test_the_cases_of_a_rule_are_that_rules_own():
    for name, cases in BROKEN.items():
        rule = next(rule for rule in STAGES["pretrain"].rules if rule.__name__ == name)
        for broken, key, _ in cases:
            recipe, _, _ = validate(tiny_recipe(**broken))
            values, _, _ = derive(STAGES["pretrain"], recipe, find_machine())
            assert [problem.key for problem in rule(values)] == [key], name


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
def test_a_key_that_does_nothing_is_told(changes, key, owner):
    raw = tiny_recipe(**changes)
    (text,) = problems_of(raw).values()
    assert text.startswith(f"{key} = ")
    assert "has no effect with" in text
    assert owner in text
    assert not applies(key, raw)


def test_applies_reads_the_other_values():
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


def test_an_optimizer_given_by_its_name_alone_is_told_how_it_is_written():
    found = problems_of(tiny_recipe(optimizer="adamw"))
    assert "Write optimizer: {name: adamw}." in found["optimizer"]
