"""Recipes of evaluations: what is refused, what is filled in, and what an evaluation adds to a pipeline."""

import os
from pathlib import Path
from typing import Any

import pytest
from conftest import write_text
from support.post_runs import write_base, write_questions

from llm_lab.estimate.machine import Machine, find_machine
from llm_lab.job import read_job
from llm_lab.recipe.eval import EVAL
from llm_lab.recipe.resolve import derive, diagnose, resolve
from llm_lab.recipe.validate import validate

CPU = Machine((), "a CPU", 2, 8 * 2**30, True, False)
TEXT, SCORE, TASKS = (
    {"data": [{"path": "text.txt"}]},
    {"score": {"path": "questions.jsonl"}},
    {"tasks": {"names": ["a"]}},
)


@pytest.fixture(scope="module", autouse=True)
def base(tmp_path_factory):
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("recipes"))
    write_base()
    write_text("text.txt", 5)
    write_questions()
    yield
    os.chdir(before)


def recipe(**changes: Any) -> dict:
    return {"stage": "eval", "device": "cpu", "model": {"checkpoint": "base"}} | changes


def problems_of(raw: dict) -> list[str]:
    return [problem.key for problem in diagnose(raw)[1]]


# Rule: (a recipe that breaks it, the key that is named, the recipe as it is advised).
BROKEN: dict[str, list[tuple[dict, str, dict]]] = {
    "_settings_have_an_effect": [
        (recipe(**TEXT, eval={"text_scores": ["bleu"]}), "eval.text_scores", recipe(**TEXT)),
        (recipe(**SCORE, eval={"max_tokens": 9}), "eval.max_tokens", recipe(**SCORE, **TEXT, eval={"max_tokens": 9})),
        (recipe(**TASKS, eval={"max_tokens": 9}), "eval.max_tokens", recipe(**TASKS, eval={"max_length": 9})),
        (recipe(**SCORE, eval={"max_length": 9}), "eval.max_length", recipe(**SCORE, **TEXT, eval={"max_length": 9})),
        (
            recipe(**SCORE, eval={"per_device_eval_batch_size": 2}),
            "eval.per_device_eval_batch_size",
            recipe(**TASKS, eval={"per_device_eval_batch_size": 2}),
        ),
    ],
    "_tasks_are_named_once": [(recipe(tasks={"names": ["a", "b", "a"]}), "tasks.names", recipe(**TASKS))],
}


def test_every_rule_has_its_cases():
    assert set(BROKEN) == {rule.__name__ for rule in EVAL.rules} - {
        "_reward_terms_are_complete",
        "repeated_sets",
        "prompts_are_named",
    }


@pytest.mark.parametrize(("broken", "key", "sound"), [case for cases in BROKEN.values() for case in cases])
def test_a_broken_rule_is_told_and_what_it_advises_passes(broken, key, sound):
    assert problems_of(broken) == [key]
    assert problems_of(sound) == []


def test_the_cases_of_a_rule_are_that_rules_own():
    for name, cases in BROKEN.items():
        rule = next(rule for rule in EVAL.rules if rule.__name__ == name)
        for broken, key, _ in cases:
            known, _, _ = validate(broken)
            values, _, _ = derive(EVAL, known, find_machine())
            assert [problem.key for problem in rule(values)] == [key], name


def test_prompts_without_a_place_are_refused_for_an_evaluation_has_no_data_to_take_them_from():
    assert problems_of(recipe(score={"prompts": 3})) == ["score.path"]


def test_what_is_left_out_is_filled_in_where_something_is_named():
    values = resolve(recipe(**TEXT, **SCORE), machine=CPU).values
    assert values["eval"]["max_tokens"] == 131_072
    assert (values["eval"]["dtype"], values["eval"]["per_device_eval_batch_size"]) == ("float32", 8)
    assert values["score"]["max_completion_length"] == 64  # half of the model's context
    assert values["score"]["rewards"] == [{"name": "exact_match", "weight": 1.0}]


def test_where_nothing_is_named_all_is_left_to_the_run_that_made_the_model():
    values = resolve(recipe(), machine=CPU).values["eval"]
    assert [values[key] for key in ("max_tokens", "max_length", "dtype", "per_device_eval_batch_size")] == [None] * 4


def test_a_pipeline_may_begin_by_measuring_and_its_prompts_are_its_evaluations_too_unless_declined():
    stages = [{"stage": "eval", "model": {"checkpoint": "base"}}, {"stage": "eval", "score": None, **TEXT}]
    job, problems = read_job({"name": "line", "device": "cpu", **SCORE, "stages": stages})
    assert problems == []
    assert [bool(stage.recipe.score) for stage in job.stages] == [True, False]
    assert [stage.recipe.model.checkpoint for stage in job.stages] == ["base", "base"]
