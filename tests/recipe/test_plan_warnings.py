"""A plan warns about settings that are allowed but rarely give a useful model."""

import json
from dataclasses import replace

import pytest

from llm_lab.estimate.formatting import size
from llm_lab.estimate.measurements import Measurement
from llm_lab.estimate.tuning_cost import ExampleSizes
from llm_lab.job import problems_of_length
from llm_lab.recipe.plan_warnings import plan_warnings
from llm_lab.recipe.resolve import resolve
from llm_lab.runs.plan_lines import plan_lines


def with_examples(number, **train):
    data = [{"path": "builtin:instruct"}]
    recipe = {"stage": "sft", "device": "cpu", "model": {"checkpoint": "gpt2"}, "data": data, "train": train}
    return replace(resolve(recipe), examples=ExampleSizes(number, 0, (10,)))


def test_a_fine_tune_with_few_steps_gets_a_warning_with_what_to_change():
    few = with_examples(30)
    ((key, text),) = plan_warnings(few)
    assert key == "train.num_train_epochs"
    assert text.startswith("only 11 steps, because there are few examples")
    assert text.endswith("train.num_train_epochs = 8")
    assert ("warning", text, "warn") in list(plan_lines(few))


def test_a_text_file_used_as_conversations_gets_a_warning_with_the_right_stage():
    recipe = {"stage": "sft", "device": "cpu", "model": {"checkpoint": "gpt2"}, "train": {"max_steps": 50}}
    warned = {file: dict(plan_warnings(resolve(recipe | {"data": [{"path": file}]}))) for file in ("a.txt", "a.jsonl")}
    assert "To train on plain text, use stage: pretrain" in warned["a.txt"]["data.0.path"]
    assert warned["a.jsonl"] == {}


@pytest.mark.parametrize(("number", "train"), [(1000, {}), (1000, {"num_train_epochs": 1}), (30, {"max_steps": 30})])
def test_enough_steps_give_no_warning(number, train):
    assert list(plan_warnings(with_examples(number, **train))) == []


@pytest.mark.parametrize(
    ("train", "key", "begins"),
    [
        ({"max_steps": 4}, "train.max_steps", "only 4 steps: they may be too few"),
        ({"num_train_epochs": 1}, "train.num_train_epochs", "only 4 steps, because there are few examples"),
    ],
)
def test_few_steps_that_the_user_requested_also_get_a_warning(train, key, begins):
    ((found, text),) = plan_warnings(with_examples(30, **train))
    assert found == key
    assert text.startswith(begins)


@pytest.mark.parametrize(
    ("rate", "warned"), [({"learning_rate": 10}, 1), ({"learning_rate": 0.1}, 0), ({"adamw_learning_rate": 1.0}, 1)]
)
def test_a_learning_rate_far_above_the_usual_one_gets_a_warning(rate, warned):
    recipe = {"stage": "pretrain", "device": "cpu", "data": [{"path": "builtin:stories"}], "optimizer": rate}
    found = list(plan_warnings(resolve(recipe)))
    assert [key for key, _ in found] == [f"optimizer.{key}" for key in rate] * warned


def test_a_fine_tune_has_its_own_usual_learning_rate():
    recipe = {"stage": "sft", "device": "cpu", "model": {"checkpoint": "gpt2"}, "data": [{"path": "builtin:instruct"}]}
    usual = resolve(recipe).values["optimizer"]["learning_rate"]
    for times, warned in ((20, 0), (40, 1)):
        found = list(plan_warnings(resolve({**recipe, "optimizer": {"learning_rate": times * usual}})))
        assert len(found) == warned


def test_a_warm_up_that_is_longer_than_a_run_in_epochs_is_a_problem_once_its_examples_are_counted():
    ((problem,), fitting) = [problems_of_length(with_warmup(steps)) for steps in (11, 10)]
    assert str(problem).startswith("scheduler.warmup_steps = 11: the warm-up must be shorter than the run of")
    assert "train.max_steps = 11" in str(problem)
    assert fitting == []


def with_warmup(steps):
    found = with_examples(30)
    return replace(resolve({**found.given, "scheduler": {"warmup_steps": steps}}), examples=found.examples)


def test_examples_that_are_cut_off_are_in_the_plan():
    long = replace(with_examples(1000), examples=ExampleSizes(1000, 0, (10, 10, 10, 5000)))
    ((key, text),) = plan_warnings(long)
    assert key == "train.max_length"
    assert text.startswith("about 25 % of the examples are longer than 1,024 tokens: their end is cut off")
    assert text.endswith("Use shorter ones, or a larger train.max_length")


def test_the_plan_of_a_reward_model_says_that_the_beginning_of_long_examples_is_cut_off(tmp_path):
    shape = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"vocab_size": 300, "intermediate_size": 128, "max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    recipe = {"stage": "reward", "device": "cpu", "model": {"checkpoint": str(tmp_path)}}
    recipe |= {"data": [{"path": "builtin:word-problems"}], "train": {"max_steps": 50}}
    for length, fix in ((32, "a larger train.max_length, up to 64"), (64, "a model with a longer context")):
        found = resolve({**recipe, "train": {"max_steps": 50, "max_length": length}})
        ((_, text),) = plan_warnings(replace(found, examples=ExampleSizes(100, 0, (10, 500))))
        assert "their beginning is cut off" in text
        assert text.endswith(f"Use shorter ones, or {fix}")


def test_a_plan_accounts_for_every_example():
    few = replace(with_examples(1000), examples=ExampleSizes(31, 4, (10,), repeated=5))
    (said,) = [text for name, text, _ in plan_lines(few) if name == "examples"]
    assert said == "40: 31 to train on, 4 held out for validation, 5 left out: their prompts are also in training"


@pytest.mark.parametrize(("held_out", "number"), [(7, "7 prompts"), (1, "1 prompt"), (900, "100 prompts")])
def test_a_plan_scores_no_more_prompts_than_are_held_out(held_out, number):
    raw = {**with_examples(1000).given, "score": {"prompts": 100, "rewards": [{"name": "exact_match"}]}}
    planned = replace(resolve(raw), examples=ExampleSizes(60, held_out, (10,)))
    (said,) = [text for name, text, _ in plan_lines(planned) if name == "score"]
    assert said == f"{number} of the held-out data at each evaluation"


def test_a_plan_says_how_much_is_held_out_and_how_much_of_it_an_evaluation_measures():
    data = [{"path": "builtin:stories"}]
    raw = {"stage": "pretrain", "device": "cpu", "data": data, "train": {"max_steps": 20}}
    lines = [(name, text) for name, text, _ in plan_lines(resolve(raw))]
    assert ("data", "builtin:stories, 10 % of it held out") in lines
    assert ("evaluation", "every 10 steps, on at most 131 k tokens; checkpoint every 10") in lines
    mixed = resolve({**raw, "data": [*data, {"path": "builtin:sums"}], "validation": {"max_tokens": 500}})
    lines = [(name, text) for name, text, _ in plan_lines(mixed)]
    assert ("", "10 % of each held out") in lines
    assert ("evaluation", "every 10 steps, on at most 500 tokens; checkpoint every 10") in lines


def test_a_plan_without_validation_data_still_names_the_evaluations_which_write_samples():
    raw = {"stage": "pretrain", "device": "cpu", "data": [{"path": "builtin:stories"}], "train": {"max_steps": 20}}
    lines = [(name, text) for name, text, _ in plan_lines(resolve({**raw, "validation": {"fraction": 0}}))]
    said = "every 10 steps, without a validation loss: no data is held out; checkpoint every 10"
    assert ("evaluation", said) in lines


def test_a_plan_says_that_the_first_documents_of_a_stream_are_held_out(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one two"}\n')
    stream = {"path": str(tmp_path / "a.jsonl"), "streaming": True}
    raw = {"stage": "pretrain", "device": "cpu", "data": [stream], "train": {"max_steps": 20}}
    lines = [text for name, text, _ in plan_lines(resolve(raw)) if name in ("data", "")]
    assert lines[0] == f"{stream['path']}, at most 1,000 documents held out"
    lines = [text for name, text, _ in plan_lines(resolve({**raw, "data": [stream, {"path": "builtin:stories"}]}))]
    assert "10 % of each held out; of a stream at most 1,000 documents" in lines


def test_a_plan_says_how_many_examples_an_evaluation_measures():
    planned = replace(with_examples(1000), examples=ExampleSizes(31, 9, (10,)))
    lines = [(name, text) for name, text, _ in plan_lines(planned)]
    assert any(name == "evaluation" and ", on 9 examples" in text for name, text in lines)
    many = replace(planned, examples=ExampleSizes(90_000, 10_000, (10,)))
    (said,) = [text for name, text, _ in plan_lines(many) if name == "evaluation"]
    assert f", on {many.values['validation']['max_examples']:,} examples" in said


def test_the_parts_of_a_measured_memory_add_up_to_it_with_what_it_has_beyond_the_estimate():
    planned = resolve({"stage": "pretrain", "device": "cpu", "data": [{"path": "builtin:stories"}]})
    estimated = sum(planned.estimate.memory_by_part.values())
    for more, said in ((76 * 2**20, "76 MiB more"), (-20 * 2**20, "20 MiB less")):
        measured = Measurement("run", 0.1, memory_bytes=estimated + more)
        cost = replace(planned.estimate, measurement=measured, memory_bytes=measured.memory_bytes)
        (text,) = [text for name, text, _ in plan_lines(replace(planned, estimate=cost)) if name == "memory"]
        assert text.startswith(f"about {size(estimated + more)} (measured here, {said} than estimated) of ")
        assert "; estimated parts: libraries 500 MiB, " in text


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"training": 95.2, "evaluation": 3.2, "start": 1.0, "checkpoints": 0.6},
         "training 95 %, evaluation 3 %, other 2 %"),
        ({"training": 100.0, "evaluation": 100.0, "start": 100.0}, "training 34 %, evaluation 33 %, start 33 %"),
        ({"training": 50.0}, "training 100 %"),
        ({"training": 999.0, "start": 1.0}, "training 100 %"),
    ],
)  # fmt: skip
def test_the_parts_of_the_time_of_a_plan_add_up_to_100_percent(parts, said):
    planned = with_examples(1000)
    cost = replace(planned.estimate, seconds_by_part=parts)
    (text,) = [text for name, text, _ in plan_lines(replace(planned, estimate=cost)) if name == "time"]
    assert text.endswith(f"): {said}")


@pytest.mark.parametrize("stage", ["eval", "export"])
def test_the_plan_of_a_stage_that_does_not_train_names_its_model_and_no_more(tmp_path, stage):
    planned = resolve({"stage": stage, "device": "cpu", "model": {"checkpoint": str(tmp_path)}})
    assert ("model", str(tmp_path), "") in plan_lines(planned)


@pytest.mark.parametrize(
    ("stage", "parent", "data", "warned"),
    [
        ("pretrain", None, "builtin:stories", True),
        ("pretrain", None, "builtin:word-problems", False),  # it was pretrained on such answers
        ("pretrain", {"path": "gpt2"}, "builtin:stories", False),  # the initial model may have been fine-tuned
        ("sft", None, "builtin:instruct", False),
    ],
)
def test_rewards_for_a_model_that_only_continues_text_get_a_warning(stage, parent, data, warned, tmp_path):
    facts = {"stage": stage, "parent": parent, "data": [{"path": data}]}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    recipe = {"stage": "grpo", "device": "cpu", "model": {"checkpoint": str(tmp_path)}}
    recipe |= {"data": [{"path": "builtin:word-problems"}], "rewards": [{"name": "exact_number"}]}
    found = [text for key, text in plan_warnings(resolve(recipe)) if key == "model.checkpoint"]
    assert ["SFT" in text for text in found] == [True] * warned


def test_a_reward_model_scores_every_output_so_no_plan_says_that_rewards_are_rare(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"stage": "pretrain", "data": [{"path": "builtin:stories"}]}))
    recipe = {"stage": "ppo", "device": "cpu", "model": {"checkpoint": str(tmp_path)}}
    recipe |= {"data": [{"path": "builtin:word-problems"}], "rewards": [{"model": "scorer"}]}
    assert [text for key, text in plan_warnings(resolve(recipe)) if key == "model.checkpoint"] == []
