"""Recipes of evaluations: what is refused, what is derived, and evaluations in pipelines."""

import os
from pathlib import Path
from typing import Any

import pytest
from conftest import write_text
from support.post_runs import write_base, write_questions

from llm_lab.estimate.machine import Machine
from llm_lab.job import read_job
from llm_lab.recipe.resolve import resolve

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


def test_an_evaluation_with_data_gets_defaults():
    values = resolve(recipe(**TEXT, **SCORE), machine=CPU).values
    assert values["eval"]["max_tokens"] == 131_072
    assert (values["eval"]["dtype"], values["eval"]["per_device_eval_batch_size"]) == ("float32", 8)
    assert values["score"]["max_completion_length"] == 64  # half of the model's context
    assert values["score"]["rewards"] == [{"name": "exact_match", "weight": 1.0}]


def test_an_evaluation_without_data_takes_its_settings_from_the_models_run():
    values = resolve(recipe(), machine=CPU).values["eval"]
    assert [values[key] for key in ("max_tokens", "max_length", "dtype", "per_device_eval_batch_size")] == [None] * 4


def test_a_pipeline_may_start_with_an_evaluation_and_passes_its_score_settings_to_it():
    stages = [{"stage": "eval", "model": {"checkpoint": "base"}}, {"stage": "eval", "score": None, **TEXT}]
    job, problems = read_job({"name": "line", "device": "cpu", **SCORE, "stages": stages})
    assert problems == []
    assert [bool(stage.recipe.score) for stage in job.stages] == [True, False]
    assert [stage.recipe.model.checkpoint for stage in job.stages] == ["base", "base"]
