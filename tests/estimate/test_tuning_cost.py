"""The estimated cost of training a stage after pretraining, from its model's config and a look at its data."""

import json
from pathlib import Path

import pytest

from llm_lab.estimate.machine import Machine
from llm_lab.estimate.measurements import Measurement, find_measurement, keep_measurement
from llm_lab.estimate.parameters import guess_shape
from llm_lab.estimate.tuning_cost import ExampleSizes, Work, estimate_tuning
from llm_lab.hf.tokenizers import make_byte_tokenizer
from llm_lab.job import check
from llm_lab.recipe.resolve import resolve
from llm_lab.runner import what_is_left
from llm_lab.runs.folder import RunFolder

LAPTOP = Machine((), "a CPU", 2, 16 * 2**30, True, False)
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": 1000}
LLAMA = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 1000,
    "num_attention_heads": 4, "max_position_embeddings": 256, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture
def base(in_tmp_path):
    Path("base").mkdir()
    Path("base/config.json").write_text(json.dumps(LLAMA))


def planned(stage, **changes):
    raw = {"stage": stage, "device": "cpu", "model": {"checkpoint": "base"}}
    raw |= {"data": [{"path": "builtin:word-problems"}], "train": {"max_steps": 20, "max_length": 128}}
    if stage in ("grpo", "ppo"):
        raw |= {"rewards": [{"name": "exact_number"}], stage: {"max_completion_length": 32}}
    return check(raw | changes, machine=LAPTOP).stages[0]


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "grpo", "ppo"])
def test_the_plan_of_every_trained_stage_has_time_memory_and_disk(base, stage):
    cost = planned(stage).estimate
    assert cost.wall_seconds > 0
    assert cost.memory_bytes > 700 * 2**20  # the libraries, and the model
    assert cost.disk_bytes > 0


def test_the_critic_is_counted_with_its_activations_time_and_checkpoint(base):
    with_critic, without = planned("ppo").estimate, planned("grpo").estimate
    critic = with_critic.memory_by_part["critic"]
    assert critic > with_critic.memory_by_part["activations"] + 3 * 4 * with_critic.parameters
    model = 4 * without.parameters
    assert with_critic.disk_bytes - model == 2 * (without.disk_bytes - model)


def test_a_model_of_an_architecture_that_is_not_ours_is_planned_too(base):
    from transformers import GPT2Config, GPT2LMHeadModel

    Path("base/config.json").write_text(json.dumps(GPT2))
    model = GPT2LMHeadModel(GPT2Config(**GPT2))
    cost = planned("sft").estimate
    assert cost.parameters == pytest.approx(sum(weight.numel() for weight in model.parameters()), rel=0.15)
    assert cost.wall_seconds > 0
    assert guess_shape({"model_type": "anything"}) is None


def test_the_time_left_of_a_resumed_run_follows_from_its_own_steps(base):
    raw = {"stage": "grpo", "device": "cpu", "model": {"checkpoint": "base"}, "name": "slow"}
    raw |= {"data": [{"path": "builtin:word-problems"}], "train": {"max_steps": 20, "max_length": 128}}
    raw |= {"rewards": [{"name": "exact_number"}], "grpo": {"max_completion_length": 32}}
    job = check(raw, machine=LAPTOP)
    run = RunFolder(Path("checkpoints/slow"))
    (run.steps_path / "checkpoint-3").mkdir(parents=True)
    (run.steps_path / "checkpoint-3/trainer_state.json").write_text("{}")
    run.write_recipe("stage: grpo\n")
    here = {"device": "cpu", "machine": LAPTOP.describe(), "processes": 1}
    run.update(status="stopped", recipe=dict(job.stages[0].values), **here)
    for step, seconds in ((1, 100.0), (2, 130.0), (3, 160.0)):  # the first step takes longer
        run.append_metrics({"step": step, "loss": 0.0, "wall_seconds": seconds})
    left = what_is_left(job).stages[0].estimate
    assert left.seconds_by_part["training"] == 17 * 30.0
    assert left.basis == "measured in this run so far"
    run.update(machine="another")
    assert what_is_left(job).stages[0].estimate.basis == "based on typical values"


def test_a_batch_is_as_long_as_its_longest_example():
    sizes = ExampleSizes(100, 0, [10, 20, 30, 400])
    assert sizes.width(1, 100) == pytest.approx((10 + 20 + 30 + 100) / 4)
    assert sizes.width(1, 100) < sizes.width(4, 100) < sizes.width(1000, 100) <= 100 == sizes.longest(100)


WITH_A_SYSTEM_PROMPT = (
    "{%- if messages[0]['role'] != 'system' %}{{ '<s>You are a helpful assistant.' }}{% endif %}\n"
    "{% for m in messages %}{{ m['role'] + ': ' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '|' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.mark.parametrize("kind", ["sft", "dpo", "grpo"])
def test_the_plan_counts_the_text_of_the_models_own_chat_template(base, kind):
    tokenizer = make_byte_tokenizer()
    tokenizer.chat_template = WITH_A_SYSTEM_PROMPT
    tokenizer.save_pretrained("base")
    pairs = [(f"What is {i}?", "yes" * (i % 5 + 1), "no") for i in range(40)]
    rows = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in pairs]
    if kind == "sft":
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = planned(kind, data=[{"path": "rows.jsonl"}], validation={"fraction": 0.1, "from": "end"}).examples
    asked = [[{"role": "user", "content": prompt}] for prompt, _, _ in pairs[: sizes.training]]
    if kind != "grpo":  # the longer answer of a pair
        asked = [[*one, {"role": "assistant", "content": pair[1]}] for one, pair in zip(asked, pairs, strict=False)]
    texts = [tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=kind == "grpo") for one in asked]
    assert list(sizes.lengths) == [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{% if %}", "{{ raise_exception('no') }}"])
def test_a_template_that_accepts_no_conversation_leaves_a_plan_without_it(base, template):
    plain = planned("sft").examples
    make_byte_tokenizer().save_pretrained("base")
    Path("base/chat_template.jinja").write_text(template)
    broken = planned("sft").examples
    assert broken.training == plain.training
    assert min(broken.lengths) > 0


def cost_of(work, lengths, **config):
    """Return the estimate of 20 steps of 8 rows, for a model with this config, on examples with these lengths."""
    values = planned("grpo").recipe.model_dump(by_alias=True)
    values["train"] |= {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "max_steps": 20}
    shape = guess_shape(LLAMA | config)
    return estimate_tuning(values, shape, LAPTOP, work, ExampleSizes(100, 0, lengths))


def test_a_rollout_is_as_long_as_its_longest_prompt(base):
    lengths = [10, 20, 30, 90]
    of_two, of_eight = (ExampleSizes(100, 0, lengths).width(prompts, 128) for prompts in (2, 8))
    assert cost_of(Work(generates=32, answers=4), lengths).tokens_per_step == round(8 * (of_two + 32))
    assert cost_of(Work(generates=32), lengths).tokens_per_step == round(8 * (of_eight + 32))
    train = {"max_steps": 20, "max_length": 128, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    two, eight = (
        planned("grpo", grpo={"num_generations": answers, "max_completion_length": 32}, train=train).estimate
        for answers in (2, 8)
    )
    assert eight.tokens_per_step < two.tokens_per_step


def test_the_plan_counts_no_logits_for_prompts_that_are_not_scored(base):
    answers = cost_of(Work(generates=32), [96], vocab_size=100_000).seconds_by_part["training"]
    everything = cost_of(Work(), [128], vocab_size=100_000).seconds_by_part["training"]
    assert answers < 0.4 * everything


def test_a_measured_run_predicts_only_runs_with_the_same_adapter(base, monkeypatch):
    monkeypatch.setenv("LLM_LAB_CACHE", str(Path("cache").absolute()))
    adapter, whole = planned("sft", lora={"preset": "all"}), planned("sft")
    values = adapter.recipe.model_dump(by_alias=True)
    keep_measurement(Measurement("run", 2.0, 10**9), values, adapter.shape, LAPTOP)
    again = planned("sft", lora={"preset": "all"}).estimate
    assert (again.seconds_by_part["training"], again.memory_bytes) == (40.0, 10**9)
    assert find_measurement(whole.recipe.model_dump(by_alias=True), whole.shape, LAPTOP) is None


@pytest.mark.parametrize(
    ("train", "checkpoints"),
    [
        ({"max_steps": 10}, "1 checkpoint"),
        ({"max_steps": 10, "save_steps": 5}, "2 checkpoints"),
        ({"max_steps": 10, "save_steps": 2, "save_total_limit": 3}, "3 checkpoints, briefly 4"),
        ({}, "4 checkpoints, briefly 5"),
    ],
)
def test_a_run_needs_disk_for_the_checkpoints_that_it_keeps_and_one_while_it_saves(train, checkpoints):
    sft = {"stage": "sft", "device": "cpu", "model": {"checkpoint": "gpt2"}, "data": [{"path": "builtin:instruct"}]}
    pretrain = {"stage": "pretrain", "device": "cpu", "data": [{"path": "builtin:stories"}]}
    for recipe in (sft, pretrain):
        parts = resolve({**recipe, "train": train}).estimate.disk_by_part
        assert list(parts) == ["model", checkpoints]
