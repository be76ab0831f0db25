"""The JSON Schema of recipes, with which editors check and complete them."""

from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from llm_lab.recipe.files import parse_yaml
from llm_lab.recipe.registry import json_schema

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = [file for file in sorted(CONFIGS.rglob("*.yaml")) if file.name != "duels.yaml"]  # a table of duels


def errors_in(text):
    return [error.message for error in Draft202012Validator(json_schema()).iter_errors(parse_yaml(text))]


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_schema_accepts_every_shipped_recipe(file):
    assert errors_in(file.read_text(encoding="utf-8")) == []


def test_the_schema_accepts_what_recipes_may_write_in_short():
    assert errors_in("{stage: sft, model: gpt2, data: [{path: a.jsonl}], forgetting: a.txt}") == []
    inner = "[{stage: pretrain, model: nano, data: [{path: a.txt}]}, {stage: sft, data: [{path: a.jsonl}]}]"
    assert errors_in(f"{{score: {{path: a.jsonl}}, stages: {inner}}}") == []


@pytest.mark.parametrize(
    "text",
    [
        "{data: [{path: a.txt}]}",
        "{stage: sft, data: [{path: a.jsonl}]}",
        "{stage: sft, model: 3, data: [{path: a.jsonl}]}",
        "{stages: []}",
        "{stages: [{data: [{path: a.txt}]}]}",
    ],
)
def test_the_schema_refuses_a_recipe_without_what_it_requires(text):
    assert errors_in(text)
