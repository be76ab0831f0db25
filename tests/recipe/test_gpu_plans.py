"""The plan of every shipped recipe on an H100, an A100 with 40 GB, an RTX 4090 and an RTX 3090."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llm_lab.errors import MachineError
from llm_lab.estimate.machine import Gpu, Machine
from llm_lab.estimate.model_library import find_in_library
from llm_lab.job import SHIPPED_RECIPES
from llm_lab.recipe.files import apply_overrides, read_recipe_file
from llm_lab.recipe.plan_warnings import plan_warnings
from llm_lab.recipe.resolve import require_device, resolve
from llm_lab.recipe.what_fits import make_it_fit

CARDS = {
    "H100": Gpu("NVIDIA H100 80GB HBM3", 85_520_809_984, (9, 0)),
    "A100 40 GB": Gpu("NVIDIA A100-SXM4-40GB", 42_949_672_960, (8, 0)),
    "RTX 4090": Gpu("NVIDIA GeForce RTX 4090", 25_757_220_864, (8, 9)),
    "RTX 3090": Gpu("NVIDIA GeForce RTX 3090", 25_769_803_776, (8, 6)),
}
# After a change that is meant to change plans, write the result of `plans()` into this file, and check each line.
SNAPSHOT = Path(__file__).parents[1] / "support" / "gpu_plans.json"
RECIPES = sorted(path.stem for path in SHIPPED_RECIPES.glob("*.yaml") if path.stem != "demo")
LORA = {"preset": "all", "r": 16}


def machine(gpu: Gpu) -> Machine:
    return Machine((gpu,), "a CPU", 16, 128 * 2**30, True, True, has_bitsandbytes=True)


def plan(raw: dict, gpu: Gpu, **overrides):
    values, _ = apply_overrides(raw, [f"{key}={value}" for key, value in overrides.items()])
    return make_it_fit(resolve(values, machine=machine(gpu)))


def plans() -> dict[str, dict[str, str]]:
    """Return {recipe: {card: its plan in one line}}."""
    found: dict[str, dict[str, str]] = {}
    for name in RECIPES:
        raw = read_recipe_file(SHIPPED_RECIPES / f"{name}.yaml")
        for card, gpu in CARDS.items():
            found.setdefault(name, {})[card] = line_of(plan(raw, gpu, device="cuda"))
    return found


def line_of(resolved) -> str:
    train, cost = resolved.values["train"], resolved.estimate
    options = [name for name in ("compile", "gradient_checkpointing") if train.get(name)]
    lora = resolved.values.get("lora")
    method = "all weights" if lora is None else "QLoRA" if lora["load_in_4bit"] else "LoRA"
    batch = f"{train['per_device_train_batch_size']} x {train['gradient_accumulation_steps']}"
    hours = f", {cost.wall_seconds / 3600:.1f} h" if cost.wall_seconds else ""
    fits = "" if cost.fits else ", does not fit"
    return ", ".join([method, batch, *options, f"{cost.memory_bytes / 2**30:.1f} GiB"]) + hours + fits


def test_the_plans_of_all_shipped_recipes_are_the_reviewed_ones():
    assert plans() == json.loads(SNAPSHOT.read_text())


def test_a_plan_that_does_not_fit_names_the_batch_that_does():
    """The recipe sets its batch, so the plan does not choose another one."""
    raw = read_recipe_file(SHIPPED_RECIPES / "gpu-1b.yaml")
    said = dict(plan_warnings(plan(raw, CARDS["RTX 4090"])))["train.per_device_train_batch_size"]
    changes = dict(word.split("=") for word in said.split(": ")[1].split())
    assert changes == {"train.per_device_train_batch_size": "2", "train.gradient_accumulation_steps": "32"}
    fitting = plan(raw, CARDS["RTX 4090"], **changes)
    assert fitting.estimate.fits
    assert not list(plan_warnings(fitting))


def rl(stage: str, model: str, **train) -> dict:
    own = {"max_completion_length": 400} | ({"num_generations": 8} if stage == "grpo" else {})
    return {
        "stage": stage, "device": "cuda", "model": {"checkpoint": model}, "data": [{"path": "openai/gsm8k"}],
        "rewards": [{"name": "exact_number"}], "train": {"max_length": 800, **train}, stage: own,
    }  # fmt: skip


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_rl_of_a_small_model_fits_on_one_card(stage):
    """Logits are computed in tiles: with all logits counted, a plan of GRPO for 0.6 B parameters needed 260 GiB."""
    for card in ("H100", "RTX 4090"):
        resolved = plan(rl(stage, "Qwen/Qwen3-0.6B"), CARDS[card])
        train, usual = resolved.values["train"], resolve(rl(stage, "Qwen/Qwen3-0.6B"), machine=machine(CARDS[card]))
        assert resolved.estimate.fits
        rows = train["per_device_train_batch_size"] * train["gradient_accumulation_steps"]
        before = usual.values["train"]
        assert rows == before["per_device_train_batch_size"] * before["gradient_accumulation_steps"]


# GiB in addition to the model and its gradients: the peak of a forward and a backward pass, by PyTorch's CUDA
# allocator.
MEASURED = [
    ("Qwen/Qwen2.5-1.5B", 32, 600, False, 59.5),
    ("Qwen/Qwen2.5-1.5B", 32, 600, True, 5.0),
    ("Qwen/Qwen2.5-1.5B", 8, 600, False, 15.0),
    ("Qwen/Qwen3-0.6B", 8, 1024, False, 17.0),
    ("meta-llama/Llama-3.2-1B", 8, 1024, False, 15.9),
    ("allenai/OLMo-2-0425-1B", 4, 1024, False, 8.9),
]


@pytest.mark.parametrize(("model", "rows", "length", "checkpointing", "gib"), MEASURED)
def test_the_memory_of_an_adapter_is_that_of_the_allocator(model, rows, length, checkpointing, gib):
    train = {"per_device_train_batch_size": rows, "max_length": length, "gradient_checkpointing": checkpointing}
    raw = rl("grpo", model, **train) | {"lora": LORA, "grpo": {"num_generations": 4, "max_completion_length": 64}}
    parts = resolve(raw, machine=machine(CARDS["H100"])).estimate.memory_by_part
    assert (parts["activations"] + parts["logits"]) / 2**30 == pytest.approx(gib, rel=0.12)


def test_the_activations_of_a_compiled_model_are_those_of_the_allocator():
    found = {}
    for name, layers, tokens in (("gpu-124m", 12, 32 * 1024), ("gpu-1b", 20, 8 * 2048)):
        raw = read_recipe_file(SHIPPED_RECIPES / f"{name}.yaml")
        resolved = plan(raw, CARDS["H100"])
        assert resolved.values["train"]["compile"]
        found[name] = resolved.estimate.memory_by_part["activations"] / layers / tokens
    assert found == {"gpu-124m": pytest.approx(28_300, rel=0.03), "gpu-1b": pytest.approx(73_400, rel=0.03)}


def pretraining(**changes) -> dict:
    return {"stage": "pretrain", "device": "cuda", "data": [{"path": "builtin:stories"}], **changes}


def test_derived_rows_never_give_more_tokens_per_step_than_requested():
    for size, wanted in (("nano", 2**15), ("small", 2**18)):
        cost = resolve(pretraining(model={"size": size}), machine=machine(CARDS["H100"])).estimate
        assert cost.tokens_per_step <= wanted
    eight = replace(machine(CARDS["H100"]), gpus=(CARDS["H100"],) * 8, processes=8)
    assert resolve(pretraining(model={"size": "nano"}), machine=eight).estimate.tokens_per_step <= 2**15


def test_a_model_is_compiled_only_if_that_saves_time():
    short = resolve(pretraining(model={"size": "nano"}, train={"max_steps": 1000}), machine=machine(CARDS["H100"]))
    assert short.values["train"]["compile"] is False
    assert "it takes about 45 s and would save about" in short.origins["train.compile"].reason
    long = resolve(pretraining(model={"size": "small"}, train={"max_steps": 1000}), machine=machine(CARDS["H100"]))
    assert long.values["train"]["compile"] is True


def test_the_speed_of_a_gpu_without_a_data_sheet_is_estimated_from_its_cores_and_clock():
    gpus = {  # cores, MHz, compute capability: dense bf16 TFLOP/s with float32 sums
        "NVIDIA GeForce RTX 4070 Laptop GPU": (4608, 2175, (8, 9), 40),
        "NVIDIA GeForce RTX 4090 Laptop GPU": (9728, 2040, (8, 9), 79),
        "NVIDIA GeForce RTX 3060": (3584, 1777, (8, 6), 25),
        "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": (24_064, 2617, (12, 0), 504),
        "NVIDIA A100X": (6912, 1410, (8, 0), 312),
    }
    for name, (cores, mhz, capability, tflops) in gpus.items():
        gpu = Gpu(name, 8 * 2**30, capability, cores, mhz * 1e6)
        assert gpu.bf16_peak_flops == pytest.approx(tflops * 1e12, rel=0.08), name
    assert Gpu("something", 8 * 2**30, (8, 9)).bf16_peak_flops is None
    # For GPUs with a data sheet, both agree.
    for card, (cores, mhz) in {
        "RTX 4090": (16_384, 2520),
        "RTX 3090": (10_496, 1695),
        "A100 40 GB": (6912, 1410),
    }.items():
        unnamed = replace(CARDS[card], name=CARDS[card].name.split()[1] + " X", cores=cores, clock_hz=mhz * 1e6)
        assert unnamed.bf16_peak_flops == pytest.approx(CARDS[card].bf16_peak_flops, rel=0.03)


def test_every_model_of_a_shipped_recipe_is_known_before_its_download():
    names = {read_recipe_file(SHIPPED_RECIPES / f"{name}.yaml").get("model") for name in RECIPES if "lora" in name}
    assert names
    assert all(find_in_library(name) for name in names)


def test_a_sharded_plan_divides_weights_gradients_and_moments_and_counts_what_is_whole():
    """7 B parameters in float32 with AdamW: 16 bytes each on one GPU, 2 on each of eight."""
    raw = {"stage": "pretrain", "device": "cuda", "model": {"size": "7b"}, "data": [{"path": "a.txt"}]}
    raw |= {"optimizer": {"name": "adamw"}, "train": {"per_device_train_batch_size": 1, "max_length": 2048}}
    eight = replace(machine(CARDS["H100"]), gpus=(CARDS["H100"],) * 8, processes=8)
    whole = resolve(raw, machine=eight).estimate
    raw["train"]["distributed"] = "fsdp"
    shared = resolve(raw, machine=eight).estimate
    assert whole.memory_by_part["optimizer"] == 8 * whole.parameters
    of = shared.memory_by_part
    for part, each in (("weights", 4), ("gradients", 4), ("optimizer", 8)):
        assert of[part] == pytest.approx(each * shared.parameters / 8, rel=0.01)
    assert 2**30 < of["gathered layers"] < 6 * 2**30
    assert whole.memory_bytes > CARDS["H100"].memory_bytes > shared.memory_bytes
    # A checkpoint is not sharded.
    assert shared.disk_by_part == whole.disk_by_part


def test_a_sharded_plan_of_ppo_divides_the_reference_and_the_critic_too():
    raw = {"stage": "ppo", "device": "cuda", "model": {"checkpoint": "Qwen/Qwen3-0.6B"}}
    raw |= {"data": [{"path": "builtin:word-problems"}], "rewards": [{"name": "exact_number"}]}
    raw |= {"optimizer": {"name": "adamw"}, "ppo": {"max_completion_length": 64}}
    raw["train"] = {"per_device_train_batch_size": 1, "max_length": 256, "max_steps": 10}
    eight = replace(machine(CARDS["H100"]), gpus=(CARDS["H100"],) * 8, processes=8)
    whole = resolve(raw, machine=eight).estimate
    raw["train"]["distributed"] = "fsdp"
    shared = resolve(raw, machine=eight).estimate
    of, each = shared.memory_by_part, 4 * shared.parameters / 8
    assert of["reference"] == pytest.approx(each, rel=0.01)
    # Weights, gradients and two moments of the critic, and its activations for this process's rows.
    assert of["critic"] == pytest.approx(4 * each + of["activations"], rel=0.01)
    # Before the first step, the model and the reference or the critic are not sharded.
    assert shared.memory_bytes >= 2 * 4 * shared.parameters
    assert shared.memory_bytes < whole.memory_bytes / 2


def test_more_processes_than_gpus_are_refused_before_they_start(monkeypatch):
    resolved = resolve({**pretraining(model={"size": "nano"})}, machine=machine(CARDS["H100"]))
    require_device(resolved)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(MachineError, match="--nproc = 2: each process needs a GPU of its own, and this machine has 1"):
        require_device(resolved)
