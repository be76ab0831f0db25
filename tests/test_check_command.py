"""`llm-lab check`: all problems of a recipe are reported at once, each in plain words."""

import json
from pathlib import Path

import pytest
import yaml
from support.local_hub import LocalHub

from llm_lab.cli import main
from llm_lab.recipe.optimizers import AdamW
from llm_lab.recipe.validate import with_overrides

FOUR = """
stage: pretrain
name: four
device: cpu
weights: [1.0, 2.0, 3.0]
data:
  - {path: rows.jsonl, text_column: body}
  - {path: b.txt}
optimizer: {name: adamw, momentum: 0.9}
scheduler: {name: cosine, warmup_steps: 5000}
train: {max_steps: 100}
"""


@pytest.fixture(autouse=True)
def _data(in_tmp_path):
    Path("rows.jsonl").write_text('{"text": "hello there"}\n{"text": "good day"}\n')
    Path("b.txt").write_text("hello\n")


def errors_of(recipe: str, capsys) -> str:
    Path("recipe.yaml").write_text(recipe)
    assert main(["check", "recipe.yaml"]) == 2
    printed = capsys.readouterr()
    return " ".join((printed.out + printed.err).split())


def test_problems_of_schedule_weights_optimizer_and_columns_are_reported_together(capsys):
    said = errors_of(FOUR, capsys)
    for words in (
        "scheduler.warmup_steps = 5000: the warm-up must be shorter than the run of train.max_steps = 100.",
        "weights: unknown key of a pretrain recipe. There are 3 weights and 2 datasets. Each dataset has its own:",
        "optimizer.momentum: unknown key of optimizer adamw. It belongs to optimizer muon.",
        "data.0.text_column = body: There is no such column. Allowed: text.",
    ):
        assert words in said, words
    assert said.count("rows.jsonl") + said.count("Traceback") == 0


def test_a_warm_up_and_a_decay_that_exceed_the_run_are_reported_with_allowed_values(capsys):
    said = errors_of(
        FOUR.replace("name: cosine, warmup_steps: 5000", "name: wsd, warmup_steps: 30, decay_ratio: 0.8"), capsys
    )
    assert (
        "30 warm-up steps and 80 decay steps are more than train.max_steps = 100. Allowed: above 0, up to 0.7." in said
    )
    assert "There is no such column" in said


def test_the_optimizer_that_has_a_key_is_named(capsys):
    assert "It belongs to optimizer sophia." in errors_of(FOUR.replace("momentum: 0.9", "rho: 0.1"), capsys)


def test_a_stage_and_a_tokenizer_of_the_wrong_type_are_explained(capsys):
    pipeline = "stages:\n- {stage: pretrain, data: [{path: b.txt}], device: cpu, tokenizer: 5}\n- 5\n"
    said = errors_of(pipeline, capsys)
    assert "stages.1 = 5: this must be a group of keys" in said
    said = errors_of("{stage: pretrain, data: [{path: b.txt}], device: cpu, tokenizer: 5}", capsys)
    assert "tokenizer = 5: invalid value (bytes, {bpe: vocabulary size} to train a BPE tokenizer, a folder, or" in said
    assert "Allowed: group" not in said


def test_the_plan_shows_the_folder_of_each_stage(in_tmp_path, capsys):
    assert main(["check", "demo"]) == 0
    shown = capsys.readouterr().out
    assert all(f"checkpoints/demo/{stage}/" in shown for stage in ("pretrain", "sft", "grpo"))


MUON = """
stage: pretrain
device: cpu
model: {size: nano}
data:
  - {path: b.txt}
optimizer: {name: muon, learning_rate: 0.015, adamw_learning_rate: 0.04}
train: {max_steps: 100, max_length: 2}
"""


def test_another_optimizer_by_override_drops_the_settings_of_the_recipes_own_and_says_which(capsys):
    Path("recipe.yaml").write_text(MUON)
    assert main(["check", "recipe.yaml", "--json", "optimizer.weight_decay=0.2", "optimizer.name=adamw"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["remarks"] == [
        "With adamw, the recipe's settings of muon are not used: optimizer.learning_rate = 0.015, "
        "optimizer.adamw_learning_rate = 0.04"
    ]
    optimizer = plan["stages"][0]["recipe"]["optimizer"]
    assert optimizer == {**AdamW().model_dump(), "betas": [0.9, 0.95], "weight_decay": 0.2}
    assert main(["run", "recipe.yaml", "--dry-run", "optimizer.name=adamw"]) == 0
    assert "optimizer.adamw_learning_rate = 0.04." in " ".join(capsys.readouterr().out.split())
    assert main(["check", "recipe.yaml", "--json", "optimizer.name=muon"]) == 0
    assert json.loads(capsys.readouterr().out)["remarks"] == []


def test_a_mistyped_key_of_the_optimizer_is_refused_with_another_optimizer_too(capsys):
    Path("recipe.yaml").write_text(MUON.replace("adamw_learning_rate", "adam_learning_rate"))
    assert main(["check", "recipe.yaml", "optimizer.name=adamw"]) == 2
    assert "optimizer.adam_learning_rate: unknown key of optimizer adamw" in capsys.readouterr().err


def test_an_override_in_a_pipeline_drops_the_settings_of_the_stage_that_it_changes():
    stages = [{**yaml.safe_load(MUON), "name": name} for name in ("one", "two")]
    result, _, remarks = with_overrides({"stages": stages}, ["stages.1.optimizer.name=lion"])
    assert result["stages"][0]["optimizer"] == stages[0]["optimizer"]
    assert result["stages"][1]["optimizer"] == {"name": "lion"}
    assert len(remarks) == 1
    assert "stages.1.optimizer.learning_rate = 0.015" in remarks[0]


def test_a_text_in_the_wrong_format_is_refused_with_the_right_format(capsys):
    Path("recipe.yaml").write_text(
        "stage: sft\nname: .x\ndevice: cpu\ntemplate_date: yesterday\nmodel: {checkpoint: gpt2}\n"
        "data: [{path: builtin:sums}]\n"
    )
    assert main(["check", "recipe.yaml"]) == 2
    said = capsys.readouterr().err
    assert "letters, digits and . _ = -, starting with a letter or digit" in said
    assert "template_date = yesterday: not of the allowed form. Allowed: a date such as 2026-11-28" in said


def test_a_wrong_reward_function_is_reported_once_where_the_recipe_names_it(capsys):
    recipe = (
        "{stage: grpo, name: g, device: cpu, model: {checkpoint: gpt2}, data: [{path: builtin:sums}], "
        "rewards: [{name: exact_number}, {python: r.py}]}"
    )
    said = errors_of(recipe, capsys)
    assert said.count("r.py: this is not a function in a file") == 1
    assert "rewards.1.python = r.py: " in said
    assert "score" not in said
    own = recipe.replace("rewards: [{name: exact_number}, {python: r.py}]", "rewards: [{name: exact_number}]")
    said = errors_of(own[:-1] + ", score: {rewards: [{python: r.py}]}}", capsys)
    assert "score.rewards.0.python = r.py: " in said


PLAIN = "{stage: pretrain, data: [{path: b.txt}], device: cpu, train: {max_steps: 2}, "


@pytest.mark.parametrize("name", ["bpe", "BPE"])
def test_a_bpe_tokenizer_without_a_size_is_refused_with_the_way_to_write_it(name, capsys, silent_hub, monkeypatch):
    with LocalHub({}) as there:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", there.url)
        said = errors_of(f"{PLAIN} tokenizer: {name}}}", capsys)
    how = "Write {bpe: 4096}; on the command line: tokenizer.bpe=4096."
    assert f"tokenizer = {name}: a BPE tokenizer needs a vocabulary size. {how}" in said
    assert said.count("tokenizer =") == 1, "it is not looked up on the Hub as well"
    Path("recipe.yaml").write_text(f"{PLAIN} tokenizer: bytes}}")
    assert main(["check", "recipe.yaml", "tokenizer.bpe=300"]) == 0


def test_a_tokenizer_that_is_no_local_folder_is_checked_like_a_model(capsys, silent_hub):
    said = errors_of(f"{PLAIN} tokenizer: ./gone}}", capsys)
    assert "tokenizer = ./gone: there is no such file or folder" in said
    for name, near in (("bits", " Did you mean bytes?"), ("off", ""), ("org/name", "")):
        Path("recipe.yaml").write_text(f"{PLAIN} tokenizer: '{name}'}}")
        assert main(["check", "recipe.yaml"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert f"tokenizer: {name} is not a local folder and was not checked: the Hub can't be reached.{near}" in said


def test_a_tokenizer_that_the_hub_does_not_have_is_refused(capsys, silent_hub, monkeypatch):
    with LocalHub({}) as there:
        there.make_repository("ann/words", private=False, files={"tokenizer.json": b"{}"})
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", there.url)
        said = errors_of(f"{PLAIN} tokenizer: ann/gone}}", capsys)
        assert "tokenizer = ann/gone: no tokenizer with this name, locally or on the Hub." in said
        Path("recipe.yaml").write_text(f"{PLAIN} tokenizer: ann/words}}")
        assert main(["check", "recipe.yaml"]) == 0
        assert "was not checked" not in capsys.readouterr().out


def test_a_reward_model_that_scores_too_is_checked_once(silent_hub, capsys):
    recipe = (
        "{stage: grpo, name: g, device: cpu, model: {checkpoint: org/base}, data: [{path: builtin:sums}], "
        "rewards: [{model: org/rewards}]}"
    )
    Path("recipe.yaml").write_text(recipe)
    assert main(["check", "recipe.yaml"]) == 0
    assert " ".join(capsys.readouterr().out.split()).count("org/rewards is not a local folder") == 1
