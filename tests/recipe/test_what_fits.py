"""Defaults by memory: what the library says fits, and how a recipe that would not fit is changed."""

import json
from pathlib import Path

import pytest

from llm_lab.estimate.machine import Gpu, Machine
from llm_lab.estimate.model_library import find_in_library
from llm_lab.estimate.tuning_cost import FOUR_BIT_BYTES
from llm_lab.job import check
from llm_lab.recipe.what_fits import fits_in, fits_of, library

LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "vocab_size": 128256, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
}  # fmt: skip


def machine(gib, *, bitsandbytes=True, **more):
    gpu = Gpu("NVIDIA GeForce RTX 4090", gib * 2**30, (8, 9))
    return Machine((gpu,), "a CPU", 16, 64 * 2**30, True, True, has_bitsandbytes=bitsandbytes, **more)


LAPTOP = Machine((), "a CPU", 8, 16 * 2**30, True, False)


@pytest.fixture
def base(in_tmp_path):
    Path("base").mkdir()
    Path("base/config.json").write_text(json.dumps(LLAMA_8B))
    long = "word " * 1500  # of every row, the first 1,024 tokens are used
    Path("rows.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{n}?", "completion": long}) + "\n" for n in range(40))
    )


def planned(on, **changes):
    raw = {"stage": "sft", "device": "cuda", "model": {"checkpoint": "base"}, "data": [{"path": "rows.jsonl"}]}
    return check(raw | changes, machine=on).stages[0]


def method(resolved):
    lora = resolved.values["lora"]
    return "full" if lora is None else "qlora" if lora["load_in_4bit"] else "lora"


def test_the_larger_the_gpu_the_more_weights_are_trained(base):
    plans = [planned(machine(gib)) for gib in (192, 80, 24, 16)]
    assert [method(plan) for plan in plans] == ["full", "lora", "lora", "qlora"]
    assert all(plan.estimate.fits for plan in plans)


def test_what_memory_changed_is_a_derived_value_with_its_reason(base):
    plan = planned(machine(16))
    reasons = {key: origin.reason for key, origin in plan.origins.items() if origin.kind == "derived"}
    assert "training all weights needs at least" in reasons["lora.preset"]
    assert "with a base in 16 bits, LoRA needs at least" in reasons["lora.load_in_4bit"]
    assert "saves memory" in reasons["train.gradient_checkpointing"]
    assert plan.origins["lora.r"].kind == "default"
    assert "as usual for SFT with LoRA" in reasons["optimizer.learning_rate"]  # it follows from the method
    assert "lora" not in plan.given


def test_a_smaller_batch_has_as_many_rows_in_a_step(base):
    small, usual = planned(machine(16)).values["train"], planned(machine(1000)).values["train"]
    assert (usual["per_device_train_batch_size"], usual["gradient_checkpointing"]) == (8, False)
    assert small["per_device_train_batch_size"] < 8
    for train in (small, usual):
        assert train["per_device_train_batch_size"] * train["gradient_accumulation_steps"] == 16


def test_values_of_the_user_are_kept_even_if_they_do_not_fit(base):
    train = {"per_device_train_batch_size": 8, "gradient_checkpointing": False}
    plan = planned(machine(16), lora=None, train=train)
    assert not plan.estimate.fits
    assert plan.values["lora"] is None
    assert plan.values["train"]["gradient_checkpointing"] is False
    assert plan.values["train"]["per_device_train_batch_size"] == 8
    adapter = planned(machine(16), lora={"r": 4, "load_in_4bit": False})
    assert (adapter.values["lora"]["load_in_4bit"], adapter.values["lora"]["r"]) == (False, 4)
    assert method(planned(machine(16), lora={"r": 4})) == "qlora"


def test_if_a_recipe_fits_nothing_changes(base, monkeypatch):
    with_fitting = planned(machine(1000)).values
    monkeypatch.setattr("llm_lab.job.make_it_fit", lambda resolved: resolved)
    assert planned(machine(1000)).values == with_fitting


def test_on_a_cpu_a_base_is_never_quantized(base):
    assert method(planned(LAPTOP, device="cpu")) == "full"  # nothing fits, so nothing changes
    small = LLAMA_8B | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    Path("base/config.json").write_text(json.dumps(small))
    assert method(planned(LAPTOP, device="cpu")) == "lora"


def test_dpo_leaves_dropout_off_and_rl_keeps_the_outputs_of_a_step(base):
    rows = [json.dumps({"prompt": f"{n}?", "chosen": "yes", "rejected": "no"}) for n in range(40)]
    Path("pairs.jsonl").write_text("\n".join(rows))
    plan = planned(machine(24), stage="dpo", data=[{"path": "pairs.jsonl"}])
    assert method(plan) == "lora"
    assert plan.values["lora"]["dropout"] == 0.0
    rewards = [{"name": "length", "length": 40}]
    prompts = [{"path": "builtin:word-problems"}]
    grpo = planned(machine(24), stage="grpo", data=prompts, rewards=rewards, score=None)
    usual = planned(machine(1000), stage="grpo", data=prompts, rewards=rewards, score=None)
    rows, batches = "per_device_train_batch_size", "gradient_accumulation_steps"
    small, large = grpo.values["train"], usual.values["train"]
    assert small[rows] * small[batches] == large[rows] * large[batches]
    assert small[rows] < large[rows]
    assert method(grpo) != "full"


def test_the_quantized_base_keeps_its_embeddings_in_float32(base):
    plan = planned(machine(24), lora={"load_in_4bit": True})
    embeddings = 2 * LLAMA_8B["vocab_size"] * LLAMA_8B["hidden_size"]
    matrices = plan.shape.matrix_parameters
    weights = plan.estimate.memory_by_part["weights"]
    assert weights == pytest.approx(4 * embeddings + FOUR_BIT_BYTES * matrices, rel=0.01)


def test_a_model_of_the_library_has_a_plan_before_it_is_downloaded(in_tmp_path, monkeypatch):
    monkeypatch.setattr("llm_lab.hf.hub.look_at_model", lambda *names, **options: None)
    raw = {"stage": "sft", "device": "cuda", "model": {"checkpoint": "meta-llama/Llama-3.1-8B"}}
    raw["data"] = [{"path": "builtin:word-problems"}]
    plan = check(raw, machine=machine(12)).stages[0]
    assert plan.estimate.parameters == 8_030_261_248
    assert method(plan) != "full"


def test_the_library_says_what_fits_and_why():
    entries = {entry.model.name: entry for entry in library(machine(24))}
    full, lora, qlora = entries["Qwen/Qwen3-8B"].fits
    assert [fit.method for fit in (full, lora, qlora)] == ["full", "lora", "qlora"]
    assert (full.fits, lora.fits, qlora.fits) == (False, True, True)
    assert full.reason.startswith("does not fit: about ")
    assert entries["Qwen/Qwen3-8B"].reason.startswith("LoRA: about ")
    assert "of 24 GiB" in lora.reason
    assert entries["HuggingFaceTB/SmolLM2-135M"].best.method == "full"


def test_each_way_that_fits_says_what_it_requires():
    model = find_in_library("meta-llama/Llama-3.1-8B")
    without = fits_of(model, machine(16, bitsandbytes=False)).best
    assert (without.method, without.note) == ("qlora", "requires pip install 'llm-lab[cuda]'")
    on_cpu = fits_of(model, LAPTOP)
    assert on_cpu.best is None
    assert on_cpu.fits[-1].reason == "requires a CUDA GPU"
    assert "does not fit: about" in on_cpu.reason


def test_what_fits_in_the_library_agrees_with_the_plan_of_a_run(base):
    Path("base/config.json").write_text(json.dumps(LLAMA_8B))
    plan = planned(machine(24), data=[{"path": "rows.jsonl"}])
    entry = fits_of(find_in_library("meta-llama/Llama-3.1-8B"), machine(24))
    assert entry.best.memory_bytes == pytest.approx(plan.estimate.memory_bytes, rel=0.02)
    assert entry.best.rows == plan.values["train"]["per_device_train_batch_size"]


def test_the_memory_of_an_adapter_is_the_same_figure_wherever_it_is_shown(base):
    for lora in ({}, {"preset": "attention_only"}, {"preset": "all", "r": 32}):
        plan = planned(machine(80), lora=lora)
        assert fits_in(plan)["lora"].memory_bytes == plan.estimate.memory_bytes
