"""What the form shows of a draft: derived values with reasons, problems at their keys, choices, plan and recipe."""

import pytest
import yaml

from llm_lab.job import read_job
from llm_lab.recipe.files import parse_yaml
from llm_lab.web.form_draft import begin, change, look, take_up


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


DATA = {"path": "data", "value": [{"path": "builtin:stories"}]}


def looked_at(stage, *changes):
    return look(change(begin(stage), changes))


def keys_of(seen):
    return [problem["key"] for problem in seen["problems"]]


def test_a_new_draft_lacks_only_the_model_and_the_data():
    seen = looked_at("sft")
    assert keys_of(seen) == ["model.checkpoint", "data"]
    assert seen["plan"] is None
    assert seen["values"]["train.per_device_train_batch_size"] == "8"  # defaults are shown already


def test_derived_values_follow_the_answers_with_their_reasons():
    before = looked_at("pretrain", DATA)
    after = looked_at("pretrain", DATA, {"path": "model.hidden_size", "text": "256"})
    assert (before["values"]["model.intermediate_size"], after["values"]["model.intermediate_size"]) == ("352", "672")
    assert "8/3 × hidden_size" in after["reasons"]["model.intermediate_size"]
    assert after["plan"]["parameters"] > before["plan"]["parameters"]
    again = look(change(after["raw"], [{"path": "model.hidden_size", "text": ""}]))
    assert again["recipe"] == before["recipe"]


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("optimizer.learning_rate", "fast", "= fast"),
        ("train.max_steps", "1.5", "a whole number"),
        ("train.max_length", "-3", "at least 2"),
        ("model.num_attention_heads", "7", "128"),
        ("name", "../outside", "letters, digits"),
    ],
)
def test_a_wrong_value_is_a_problem_of_its_key_and_is_kept_as_typed(path, text, said):
    seen = looked_at("pretrain", DATA, {"path": path, "text": text})
    assert keys_of(seen) == [path]
    assert said in seen["problems"][0]["text"]
    assert seen["answers"][path] == text
    assert seen["file"].startswith("configs/")
    assert ".." not in seen["file"]


def test_impossible_choices_come_with_the_reason_and_possible_ones_with_their_effect():
    seen = looked_at("sft", {"path": "model.checkpoint", "text": "gpt2"})
    assert seen["choices"]["optimizer.name"]["sophia"] == {"why_not": "for pretraining only"}
    assert "why_not" not in seen["choices"]["optimizer.name"]["adamw"]
    parts = looked_at("pretrain", DATA)["choices"]["model.attention"]
    assert "parameters" in parts["mha"]["effect"]
    assert parts["mha"]["effect"] != parts["mqa"]["effect"]


def test_answers_that_no_longer_have_an_effect_are_removed_and_named():
    wsd = look(change(begin("pretrain"), [DATA, {"path": "scheduler.name", "text": "wsd"}]))
    assert "scheduler.decay_ratio" not in wsd["idle"]
    answered = change(wsd["raw"], [{"path": "scheduler.decay_ratio", "text": "0.3"}])
    cosine = look(change(answered.raw, [{"path": "scheduler.name", "text": "cosine"}]))
    assert "scheduler.decay_ratio = 0.3" in cosine["notice"]
    assert "scheduler.decay_ratio" in cosine["idle"]
    assert cosine["problems"] == []


def test_a_group_is_switched_on_and_off():
    model = {"path": "model.checkpoint", "text": "gpt2"}
    data = {"path": "data", "value": [{"path": "builtin:sums"}]}
    off = looked_at("sft", model, data)
    on = look(change(off["raw"], [{"path": "lora", "value": {}}]))
    assert "lora" in off["off"]
    assert "lora" not in on["off"]
    assert (on["values"]["lora.preset"], on["problems"]) == ("minimal", [])
    # Null is kept, because if it were left out, an adapter would be derived when all weights need too much memory.
    assert "lora: null" in look(change(on["raw"], [{"path": "lora", "off": True}]))["recipe"]
    scored = looked_at("grpo", model, data)
    assert "score" not in scored["off"]
    unscored = look(change(scored["raw"], [{"path": "score", "off": True}]))
    assert "score" in unscored["off"]
    assert "score: null" in unscored["recipe"]


def test_the_recipe_in_view_runs_as_it_is_and_gives_the_same_plan():
    changes = [DATA, {"path": "model.size", "text": "micro"}, {"path": "samples.prompts", "text": "One day\nTwo"}]
    seen = looked_at("pretrain", *changes)
    job, problems = read_job(yaml.safe_load(seen["recipe"]))
    assert problems == []
    assert job.stages[0].estimate.parameters == seen["plan"]["parameters"]
    assert job.stages[0].values["samples"]["prompts"] == ["One day", "Two"]
    assert seen["command"] == f"llm-lab run {seen['file']}"
    assert sum(seen["plan"]["disk_parts"].values()) == seen["plan"]["disk"]


def test_another_recipe_of_the_same_name_is_never_overwritten(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "my-run.yaml").write_text("stage: pretrain\n")
    assert looked_at("pretrain", DATA)["command"] == "llm-lab run configs/my-run-2.yaml"


def test_the_recipe_of_a_run_keeps_its_values_and_another_size_changes_the_model():
    job, _ = read_job({**begin("pretrain"), "data": DATA["value"], "model": {"size": "nano", "num_hidden_layers": 3}})
    raw = take_up(parse_yaml(job.stages[0].to_yaml()))
    before = look(change(raw, []))
    assert before["values"] == look(change(parse_yaml(job.stages[0].to_yaml()), []))["values"]
    assert "hidden_size" not in raw["model"]
    assert raw["model"]["num_hidden_layers"] == 3
    after = look(change(raw, [{"path": "model.size", "text": "micro"}]))
    assert after["plan"]["parameters"] > 2 * before["plan"]["parameters"]
    assert "model.num_hidden_layers = 3" in after["notice"]
    effects = {choice["effect"] for choice in before["choices"]["model.size"].values()}
    assert len(effects) == len(before["choices"]["model.size"])


def test_a_name_that_is_taken_shows_the_name_that_the_run_gets(tmp_path):
    assert looked_at("pretrain", DATA)["taken"] is None
    (tmp_path / "checkpoints" / "my-run").mkdir(parents=True)
    assert looked_at("pretrain", DATA)["taken"] == "my-run-2"


@pytest.mark.parametrize(
    "odd",
    [
        {"model": "nano"},
        {"optimizer": "adamw"},
        {"train": None},
        {"data": "a.txt"},
        {"data": [3]},
        {"nothing": {"x": 1}},
    ],
)
def test_an_odd_recipe_gives_problems_or_a_draft_and_never_a_fault(odd):
    seen = look(change({**begin("pretrain"), **odd}, [{"path": "optimizer.learning_rate", "text": "0.01"}, {}, 3]))
    assert seen["answers"]["optimizer.learning_rate"] == "0.01"
