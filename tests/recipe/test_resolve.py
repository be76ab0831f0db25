"""From a written recipe to what will run: devices, derived values with reasons, origins, and what does not fit."""

import os
from dataclasses import replace

import pytest
from conftest import tiny_recipe

from llm_lab.errors import MachineError, UserError
from llm_lab.estimate.machine import Gpu, Machine, find_machine
from llm_lab.recipe.files import parse_yaml
from llm_lab.recipe.parts import SIZES
from llm_lab.recipe.pretrain import CPU_MAX_STEPS
from llm_lab.recipe.registry import expand_model
from llm_lab.recipe.resolve import Origin, diagnose, require_device, resolve

GIB = 2**30
H100 = Gpu("NVIDIA H100 80GB HBM3", 80 * GIB, (9, 0))
T4 = Gpu("Tesla T4", 15 * GIB, (7, 5))
LAPTOP = Machine((), "a CPU", 4, 16 * GIB, has_compiler=True, cpu_bf16_is_fast=False)


def machine(*gpus: Gpu, **changes) -> Machine:
    return replace(LAPTOP, gpus=gpus, **changes)


def bare(**changes) -> dict:
    return {"stage": "pretrain", "data": [{"path": "builtin:stories"}], **changes}


def test_the_default_device_is_cuda():
    resolved = resolve(bare(), machine=LAPTOP)
    assert resolved.values["device"] == "cuda"
    with pytest.raises(
        MachineError, match=r"device = cuda: not available on this machine: no NVIDIA GPU.*device=cpu"
    ) as caught:
        require_device(resolved)
    assert caught.value.exit_code == 3
    require_device(resolve(bare(), machine=machine(H100)))


def test_8_bit_moments_require_bitsandbytes():
    raw = bare(optimizer={"name": "adamw_8bit"}, device="cuda", model={"size": "small"})
    with pytest.raises(MachineError, match=r"optimizer\.name = adamw_8bit: .*bitsandbytes.*llm-lab\[cuda\]") as caught:
        require_device(resolve(raw, machine=machine(H100)))
    assert caught.value.exit_code == 3
    small = resolve(raw, machine=machine(H100, has_bitsandbytes=True))
    require_device(small)
    plain = resolve({**raw, "optimizer": {"name": "adamw"}}, machine=machine(H100))
    saved = plain.estimate.memory_by_part["optimizer"] - small.estimate.memory_by_part["optimizer"]
    assert saved == 6 * small.shape.matrix_parameters


def test_the_memory_of_large_logits_is_estimated_in_pieces():
    raw = bare(device="cuda", model={"size": "small"}, tokenizer={"bpe": 65_536})
    logits = {
        rows: resolve(
            {**raw, "train": {"per_device_train_batch_size": rows, "max_length": 1024}}, machine=machine(H100)
        ).estimate.memory_by_part["logits"]
        for rows in (1, 2, 32, 64)
    }
    assert logits[2] == 2 * logits[1]
    assert logits[32] < 4 * logits[2]
    assert logits[64] < 1.2 * logits[32]


def test_a_gpu_without_bf16_is_refused_by_name_and_capability():
    with pytest.raises(MachineError, match=r"Tesla T4 \(compute capability 7\.5\) has no bf16"):
        require_device(resolve(bare(), machine=machine(T4)))
    resolved = resolve(bare(device="auto"), machine=machine(T4))
    assert resolved.values["device"] == "cpu"
    assert "Tesla T4" in resolved.origins["device"].reason


@pytest.mark.parametrize(
    ("wanted", "there", "device"),
    [("auto", (), "cpu"), ("auto", (H100,), "cuda"), ("cpu", (H100,), "cpu"), ("cuda", (H100,), "cuda")],
)
def test_device_auto_is_resolved(wanted, there, device):
    resolved = resolve(bare(device=wanted), machine=machine(*there))
    assert resolved.values["device"] == device
    require_device(resolved)


def test_a_run_that_exceeds_the_memory_is_refused_with_a_fix():
    raw = bare(model={"size": "7b"}, train={"per_device_train_batch_size": 64, "max_length": 4096})
    with pytest.raises(MachineError, match=r"needs about [\d.]+ TiB, and 80 GiB are available.*gradient_checkpointing"):
        require_device(
            resolve(raw | {"train": {**raw["train"], "gradient_checkpointing": False}}, machine=machine(H100))
        )
    with pytest.raises(MachineError) as caught:
        require_device(resolve(raw, machine=machine(H100)))
    assert "gradient_checkpointing" not in str(caught.value), "it is on already"
    assert "or a smaller model.size." in str(caught.value)
    tuned = {"stage": "sft", "device": "cuda", "model": {"checkpoint": "Qwen/Qwen3-8B"}, "lora": None}
    with pytest.raises(MachineError, match=r"or choose a smaller model\.$"):  # without model.size, an unknown key here
        require_device(resolve(tuned | {"data": [{"path": "builtin:instruct"}]}, machine=machine(H100)))
    with pytest.raises(MachineError, match=r"16 GiB are available"):
        require_device(resolve(bare(device="cpu", model={"size": "3b"}), machine=LAPTOP))


def test_the_batch_size_is_derived_from_the_memory():
    small, large = (
        resolve(bare(model={"size": "small"}), machine=machine(replace(H100, memory_bytes=size * GIB))).values["train"]
        for size in (16, 80)
    )
    assert small["per_device_train_batch_size"] < large["per_device_train_batch_size"]
    for train in (small, large):
        tokens = train["per_device_train_batch_size"] * train["gradient_accumulation_steps"] * train["max_length"]
        assert tokens == pytest.approx(2**18, rel=0.3)
    two = resolve(bare(model={"size": "small"}), machine=machine(H100, H100))
    assert two.estimate.tokens_per_step == pytest.approx(2**18, rel=0.3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("gpus", [(), (H100,)])
def test_every_preset_size_resolves_and_its_numbers_can_be_overridden(size, gpus):
    here = machine(*gpus)
    resolved = resolve(bare(device="auto", model={"size": size}), machine=here)
    shape, model = SIZES[size], resolved.values["model"]
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"):
        assert model[key] == getattr(shape, key)
        assert str(resolved.origins[f"model.{key}"]) == f"derived: size = {size}"
    assert model["tie_word_embeddings"] is shape.tie_word_embeddings
    by_hand = {
        "hidden_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 8,
        "intermediate_size": 100,
        "max_position_embeddings": 77,
        "tie_word_embeddings": not shape.tie_word_embeddings,
    }
    changed = resolve(bare(device="auto", model={"size": size, **by_hand}), machine=here)
    assert {key: changed.values["model"][key] for key in by_hand} == by_hand
    assert {str(changed.origins[f"model.{key}"]) for key in by_hand} == {"answer"}


@pytest.mark.parametrize(
    ("model", "key", "value", "reason"),
    [
        ({"attention": "mha"}, "num_key_value_heads", 4, "mha: one per head"),
        ({"attention": "mqa"}, "num_key_value_heads", 1, "mqa: one for all heads"),
        ({"num_attention_heads": 8}, "num_key_value_heads", 2, "gqa: about a quarter of the heads"),
        ({"hidden_size": 512}, "num_attention_heads", 8, "64 dimensions per head"),
        ({"hidden_size": 96}, "num_attention_heads", 3, "32 dimensions per head"),
        ({"activation": "relu"}, "intermediate_size", 512, "4 × hidden_size"),
        ({}, "intermediate_size", 352, "8/3 × hidden_size, to a multiple of 32"),
        ({}, "head_dim", 32, "hidden_size / num_attention_heads"),
        (
            {"position_embedding": "yarn"},
            "original_max_position_embeddings",
            64,
            "max_position_embeddings / yarn_factor",
        ),
        (
            {"position_embedding": "yarn", "original_max_position_embeddings": 100},
            "max_position_embeddings",
            400,
            "original context × yarn_factor",
        ),
    ],
)
def test_model_dimensions_are_derived_with_a_reason(model, key, value, reason):
    resolved = resolve(bare(device="cpu", model=model), machine=LAPTOP)
    assert resolved.values["model"][key] == value
    assert resolved.origins[f"model.{key}"] == Origin("derived", reason)


def test_training_settings_are_derived_with_a_reason():
    resolved = resolve(bare(device="cpu"), machine=LAPTOP)
    train, origins = resolved.values["train"], resolved.origins
    assert (train["max_length"], origins["train.max_length"].reason) == (128, "at most 128 on a CPU")
    assert train["max_steps"] == CPU_MAX_STEPS
    assert "20 tokens per parameter would be" in origins["train.max_steps"].reason
    assert (train["dtype"], train["compile"]) == ("float32", False)
    assert resolved.values["scheduler"]["warmup_steps"] == 25
    assert (train["eval_steps"], train["save_steps"], train["logging_steps"]) == (50, 50, 10)
    assert resolved.values["tokenizer"] == "bytes"
    gpu = resolve(bare(model={"size": "small"}), machine=machine(H100)).values
    assert gpu["train"]["dtype"] == "bfloat16"
    assert gpu["train"]["compile"] is True
    assert gpu["tokenizer"] == {"bpe": SIZES["small"].tokenizer}
    fast = resolve(bare(device="cpu"), machine=replace(LAPTOP, cpu_bf16_is_fast=True))
    assert fast.values["train"]["dtype"] == "float32"  # a narrow model
    wide = bare(device="cpu", model={"size": "tiny"})
    assert resolve(wide, machine=replace(LAPTOP, cpu_bf16_is_fast=True)).values["train"]["dtype"] == "bfloat16"
    long = bare(device="cpu", train={"max_steps": 10_000})
    assert resolve(long, machine=LAPTOP).values["train"]["compile"] is True
    assert resolve(long, machine=replace(LAPTOP, has_compiler=False)).values["train"]["compile"] is False
    rows = resolve(bare(device="cpu", train={"max_length": 300}), machine=LAPTOP)
    assert rows.values["model"]["max_position_embeddings"] == 300
    assert rows.origins["model.max_position_embeddings"].reason == "train.max_length"


def test_every_value_has_an_origin():
    resolved = resolve(
        tiny_recipe(tokenizer={"bpe": 300}), machine=LAPTOP, name="file", overrides={"train.max_steps", "tokenizer"}
    )
    origins = {key: origin.kind for key, origin in resolved.origins.items()}
    assert origins["train.max_steps"] == origins["tokenizer.bpe"] == "override"
    assert origins["optimizer.learning_rate"] == origins["data.0.path"] == "answer"
    assert origins["optimizer.eps"] == origins["model.norm"] == "default"
    assert origins["model.head_dim"] == "derived"
    assert str(resolve(bare(), machine=LAPTOP, name="file").origins["name"]) == "derived: the recipe file's name"


@pytest.mark.parametrize("gpus", [(), (H100,)])
@pytest.mark.parametrize("position", ["rope", "yarn", "alibi", "sinusoidal"])
def test_a_resolved_recipe_resolves_to_the_same_values(gpus, position):
    raw = bare(device="auto", model={"position_embedding": position, "attention": "mha"}, scheduler={"name": "none"})
    first = resolve(raw, machine=machine(*gpus))
    again = resolve(parse_yaml(first.to_yaml(("a header",))), machine=machine(*gpus))
    assert again.values == first.values
    assert again.estimate == first.estimate
    assert ("yarn_factor" in first.values["model"]) == (position == "yarn")
    assert "min_ratio" not in first.values["scheduler"]


def test_a_model_name_is_a_checkpoint_if_there_are_weights(in_tmp_path):
    for folder, file in (
        ("shape", "config.json"),
        ("weights", "model.safetensors"),
        ("run/model", "model.safetensors"),
    ):
        (in_tmp_path / folder).mkdir(parents=True)
        (in_tmp_path / folder / file).write_text("{}")
    named = {name: expand_model({"model": name})["model"] for name in ("shape", "weights", "run", "org/name")}
    assert [next(iter(model)) for model in named.values()] == ["config", "checkpoint", "checkpoint", "checkpoint"]


def test_a_missing_local_model_is_reported_and_a_hub_name_is_not():
    for name in ("./gone", "/gone", "checkpoints/gone", "gone.json", "a/b/c"):
        _, problems = diagnose(bare(model={"config": name}), machine=LAPTOP)
        assert [problem.key for problem in problems] == ["model.config"], name
    assert diagnose(bare(model={"checkpoint": "org/name"}), machine=LAPTOP)[1] == []


def test_resolve_raises_the_problems_that_diagnose_finds():
    with pytest.raises(UserError, match=r"Did you mean seed\?"):
        resolve(bare(sede=1), machine=LAPTOP)


def test_the_machine_describes_its_cores_and_gpus():
    here = find_machine()
    assert here.cpu_cores == len(os.sched_getaffinity(0))
    assert here.memory_bytes > GIB
    assert "CPU core" in here.describe()
    assert "2 × NVIDIA H100" in machine(H100, H100).describe()
    assert "no bf16" in machine(T4).describe()


def test_known_gpus_have_a_peak():
    peaks = {"NVIDIA H100 PCIe": 756e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA A100-SXM4-80GB": 312e12, "x": None}
    for name, peak in peaks.items():
        assert Gpu(name, GIB, (9, 0)).bf16_peak_flops == peak


def test_a_model_name_can_be_a_preset_size():
    assert resolve(tiny_recipe(model="micro")).values["model"]["size"] == "micro"
