"""Several processes train as one does: the same rows in each step, the same losses, gradients and outputs.

Measured in float32 on a CPU: what differs is the order in which sums are rounded.
"""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny_recipe, write_text
from support.post_runs import post_recipe, rows_of, weights_of, write_base, write_rows
from support.process_runs import run_in_processes
from torch.distributed.tensor import DTensor

from llm_lab.runner import run
from llm_lab.runs.folder import RunFolder
from llm_lab.training.trainer import LabTrainerMixin

TOLERANCE = 2e-5  # relative, of losses and gradient norms; errors add up over steps, because the weights then differ
STAGES = ("pretrain", "sft", "reward", "dpo", "grpo", "ppo")
ADAPTERS = tuple(f"{stage} with an adapter" for stage in ("sft", "reward", "dpo", "ppo"))
SLOW = pytest.mark.slow
STEPS = 6
LORA = {"preset": "all", "r": 4, "dropout": 0.0}  # with dropout, each process would draw its own


@pytest.fixture(autouse=True)
def _data(in_tmp_path):
    """Examples of very different lengths, so that rows and processes have different numbers of tokens."""
    write_base()
    write_text("text.txt")
    draw = random.Random(1)

    def some(text: str, least: int) -> str:
        return text * draw.randrange(least, 9)

    questions = [{"question": f"{i}{some('x', 0)}?", "answer": f"It is{some(' so', 0)}"} for i in range(40)]
    pairs = [{"prompt": f"{i}?", "chosen": some("yes", 1), "rejected": some("no", 1)} for i in range(40)]
    write_rows("questions.jsonl", questions)
    write_rows("pairs.jsonl", pairs)


def recipe_of(stage: str, rows: int, name: str, **changes: object) -> dict:
    """A recipe with two batches of `rows` rows in each step."""
    stage, _, option = stage.partition(" with ")
    if stage == "pretrain":
        raw = tiny_recipe()
    else:
        raw = post_recipe(stage)
        raw["data"] = [{"path": "pairs.jsonl" if stage in ("reward", "dpo") else "questions.jsonl"}]
    train = {"dtype": "float32", "max_steps": STEPS, "eval_steps": 3, "save_steps": 3, "logging_steps": 1}
    raw["train"] |= train | {"per_device_train_batch_size": rows, "gradient_accumulation_steps": 2}
    raw["name"] = name
    if option == "an adapter":
        raw["lora"] = LORA
    if stage == "dpo":
        raw["dpo"] = {"sft_weight": 0.5}
    if stage in ("grpo", "ppo"):
        raw[stage] |= {"temperature": 0.7, "max_completion_length": 12}
        raw["rewards"] = [{"name": "length", "length": 20}]
    if stage == "ppo":
        raw["ppo"] |= {"num_ppo_epochs": 2, "num_mini_batches": 2 if option == "minibatches" else 1}
    raw["train"] |= changes
    return raw


def compare(one: str, other: str, *, tolerance: float = TOLERANCE, of_weights: float = 5e-4) -> None:
    """Every row of metrics and all weights of two runs must agree."""
    rows, others = rows_of(f"checkpoints/{one}"), rows_of(f"checkpoints/{other}")
    assert [row["step"] for row in others] == [row["step"] for row in rows]
    for row, same in zip(rows, others, strict=True):
        assert same == pytest.approx(row, rel=tolerance, abs=tolerance)
    assert any("grad_norm" in row for row in rows)
    weights, same = weights_of(f"checkpoints/{one}"), weights_of(f"checkpoints/{other}")
    assert weights.keys() == same.keys()
    for name, tensor in weights.items():
        assert (tensor - same[name]).abs().max() < of_weights, name


def test_two_processes_train_as_one_does():
    run(recipe_of("sft", 4, "one"))
    run_in_processes([recipe_of("sft", 2, "two")])
    compare("one", "two")


@SLOW
@pytest.mark.parametrize("stage", [*(stage for stage in STAGES if stage != "sft"), "ppo with minibatches"])
def test_two_processes_train_each_stage_as_one_does(stage):
    run(recipe_of(stage, 4, "one"))
    run_in_processes([recipe_of(stage, 2, "two")])
    compare("one", "two")


@SLOW
@pytest.mark.parametrize("stage", [*STAGES, *ADAPTERS])
def test_two_processes_that_share_the_model_train_each_stage_as_one_does(stage):
    run(recipe_of(stage, 4, "one"))
    run_in_processes([recipe_of(stage, 2, "two", distributed="fsdp")])
    compare("one", "two")


@SLOW
def test_two_processes_with_growing_batches_train_as_one_does():
    run(recipe_of("pretrain", 8, "one", batch_size_warmup_steps=4))
    run_in_processes([recipe_of("pretrain", 4, "two", batch_size_warmup_steps=4)])
    compare("one", "two")


@SLOW
@pytest.mark.parametrize("stage", ["sft", "dpo", "ppo", "ppo with an adapter"])
def test_a_shared_model_is_really_divided(stage, monkeypatch):
    """If accelerate can't shard a model, it silently copies it to every process."""
    begin, training_step = LabTrainerMixin.begin, LabTrainerMixin.training_step

    def watched(self):
        begin(self)
        models = [self.model, *(getattr(self, name, None) for name in ("ref_model", "critic"))]
        found = [model for model in models if model is not None]
        assert len(found) == {"sft": 1, "dpo": 2, "ppo": 3, "ppo with an adapter": 2}[stage]
        for model in found:
            parameters = list(model.parameters())
            assert all(isinstance(parameter, DTensor) for parameter in parameters)
            whole = sum(parameter.numel() for parameter in parameters)
            here = sum(parameter.to_local().numel() for parameter in parameters)
            assert here == pytest.approx(whole / 2, rel=0.01)
        Path(f"divided-{os.environ['RANK']}").touch()

    def watched_step(self, *args, **kwargs):
        loss = training_step(self, *args, **kwargs)
        # After each batch, not only after the last of a step, or gradients of the whole model would be held until then.
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        assert all(isinstance(parameter.grad, DTensor) for parameter in trained)
        return loss

    monkeypatch.setattr(LabTrainerMixin, "begin", watched)
    monkeypatch.setattr(LabTrainerMixin, "training_step", watched_step)
    run_in_processes([recipe_of(stage, 2, "two", distributed="fsdp")])
    assert sorted(path.name for path in Path.cwd().glob("divided-*")) == ["divided-0", "divided-1"]
    # The saved model is complete and not sharded.
    step = Path("checkpoints/two/steps/checkpoint-6")
    for file in step.glob("*optimizer.pt"):
        kept = torch.load(file, weights_only=True)["state"]
        assert {type(value) for state in kept.values() for value in state.values()} == {torch.Tensor}
    if "adapter" not in stage:
        assert json.loads((step / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


CAUTIOUS = {"learning_rate": 0.003, "weight_decay": 0.1, "cautious_weight_decay": True}
VARIANTS = {
    "an adapter": ("sft", {"lora": LORA}),
    "DoRA": ("sft", {"lora": LORA | {"use_dora": True}}),
    "an adapter and recomputed activations": ("sft", {"lora": LORA, "train": {"gradient_checkpointing": True}}),
    "packed rows": ("sft", {"sft": {"packing": True}}),
    "Muon": ("pretrain", {"optimizer": {"name": "muon", "learning_rate": 0.01}}),
    "cautious NorMuon": ("pretrain", {"optimizer": CAUTIOUS | {"name": "muon", "normalized": True}}),
    "cautious AdamW": ("sft", {"optimizer": CAUTIOUS | {"name": "adamw"}}),
    "Lion": ("pretrain", {"optimizer": {"name": "lion", "learning_rate": 1e-4}}),
    "an adapter and its base as the reference": ("grpo", {"lora": LORA, "grpo": {"beta": 0.1}}),
    "a reference": ("grpo", {"grpo": {"beta": 0.1}}),
    "recomputed activations": ("sft", {"train": {"gradient_checkpointing": True}}),
}


@SLOW
@pytest.mark.parametrize("distributed", ["ddp", "fsdp"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_agree_with_other_options_too(variant, distributed):
    stage, changes = VARIANTS[variant]

    def raw(rows: int, name: str, **train: object) -> dict:
        made = recipe_of(stage, rows, name, **train)
        kept = {key: made.get(key, {}) for key in changes if key != "optimizer"}
        return made | {key: {**kept.get(key, {}), **group} for key, group in changes.items()}

    run(raw(4, "one"))
    run_in_processes([raw(2, "two", distributed=distributed)])
    # The divergence from a reference is small, so it has few exact digits. Muon orthogonalizes in bf16.
    in_bf16 = changes.get("optimizer", {}).get("name") == "muon"
    compare("one", "two", tolerance=5e-4 if in_bf16 else 1e-4, of_weights=3e-3 if in_bf16 else 5e-4)


@SLOW
@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "dpo", "ppo"])
def test_two_processes_that_share_the_model_train_in_bf16_as_one_does(stage):
    """Weights are gathered in bf16, so norms and the residual stream are rounded more than in one process."""
    run(recipe_of(stage, 4, "one", dtype="bfloat16"))
    run_in_processes([recipe_of(stage, 2, "two", dtype="bfloat16", distributed="fsdp")])
    rows, others = ([row for row in rows_of(f"checkpoints/{name}") if "loss" in row] for name in ("one", "two"))
    if stage == "ppo":  # one different token in an output changes everything after it
        assert others[0]["critic_grad_norm"] == pytest.approx(rows[0]["critic_grad_norm"], rel=0.3)
        assert len(others) == STEPS
    else:
        assert [row["loss"] for row in others] == pytest.approx([row["loss"] for row in rows], rel=0.01)


@SLOW
@pytest.mark.parametrize("distributed", ["ddp", "fsdp"])
def test_a_loss_in_chunks_also_works_with_a_shared_model(distributed, monkeypatch):
    """The product with the head is then outside the model."""
    monkeypatch.setattr("llm_lab.training.loss.PIECE_OF_LOGITS_BYTES", 4 * 257 * 16)
    run(recipe_of("pretrain", 4, "one"))
    run_in_processes([recipe_of("pretrain", 2, "two", distributed=distributed)])
    compare("one", "two")


def interrupt(name: str) -> None:
    """Leave a run as if it had been killed after step 3."""
    folder = RunFolder(Path("checkpoints") / name)
    shutil.rmtree(folder.steps_path / f"checkpoint-{STEPS}")
    shutil.rmtree(folder.model_path)
    folder.update(status="stopped")


@SLOW
@pytest.mark.parametrize("stage", [*STAGES, "ppo with minibatches", *ADAPTERS])
@pytest.mark.parametrize("distributed", ["ddp", "fsdp"])
def test_a_run_resumes_in_more_processes_and_in_fewer(stage, distributed):
    changes = {"distributed": distributed, "max_steps": STEPS}
    run(recipe_of(stage, 2, "one", **changes))
    shutil.copytree("checkpoints/one", "checkpoints/whole")
    interrupt("one")
    run_in_processes([recipe_of(stage, 2, "one", **changes)], resume=True)
    compare("whole", "one")
    batch = RunFolder(Path("checkpoints/one")).facts()["batch"]
    assert batch == {"from_step": 3, "rows": 2, "batches": 1, "processes": 2}

    interrupt("one")
    run(recipe_of(stage, 2, "one", **changes), resume=True)
    compare("whole", "one")
    assert RunFolder(Path("checkpoints/one")).facts()["batch"]["batches"] == 2
