"""A run that is out of memory does not end: it continues from the same step with smaller batches.

The cap is artificial: a forward pass with gradients fails, as on a full GPU, if it has too many rows.
"""

import gc
import json
import resource
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_recipe, write_text
from support.post_runs import post_recipe, write_base
from support.process_runs import in_processes
from transformers import LlamaModel

from llm_lab.errors import MachineError
from llm_lab.events import RunWarning
from llm_lab.job import check
from llm_lab.model.modeling_lab import LabModel
from llm_lab.runner import run
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.resume import Batch
from llm_lab.stages.sft import LabSFTTrainer
from llm_lab.training.out_of_memory import OutOfMemory, halve_batch, noticing_out_of_memory, try_longest_batch

TOLERANCE = 1e-4


@pytest.fixture
def cap(monkeypatch):
    """Set the number of rows that fit, after a number of forward passes; None: any."""
    limits = {"rows": None, "after": 0, "passes": 0}

    def limited(forward):
        def checked(self, input_ids=None, **options):
            if torch.is_grad_enabled() and self.training:
                limits["passes"] += 1
                if limits["rows"] and limits["passes"] > limits["after"] and len(input_ids) > limits["rows"]:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return forward(self, input_ids, **options)

        return checked

    for kind in (LabModel, LlamaModel):  # score heads use the latter
        monkeypatch.setattr(kind, "forward", limited(kind.forward))
    return limits


def rows_of(facts: dict) -> list[dict]:
    return [row for row in RunFolder(Path(facts["path"])).metrics() if "loss" in row]


def compare(raw: dict, cap: dict, *, rows: int, after: int) -> tuple[dict, list[str]]:
    """Run a recipe without and with a cap; the losses must agree. Return the facts and warnings of the second."""
    warnings: list[str] = []
    cap.update(rows=None, passes=0)
    free = rows_of(run({**raw, "name": "free"}))
    cap.update(rows=rows, after=after, passes=0)
    facts = run(
        {**raw, "name": "capped"}, listener=lambda e: warnings.append(e.text) if isinstance(e, RunWarning) else None
    )
    capped = rows_of(facts)
    assert [row["step"] for row in capped] == [row["step"] for row in free]
    for name in ("loss", "learning_rate", "train_tokens"):
        expected = [row[name] for row in free]
        assert [row[name] for row in capped] == pytest.approx(expected, abs=TOLERANCE), name
    assert facts["status"] == "done"
    return facts, warnings


def test_pretraining_continues_from_the_same_step_with_the_same_losses(in_tmp_path, cap):
    write_text("text.txt")
    train = {"max_steps": 8, "eval_steps": 4, "save_steps": 4, "logging_steps": 1, "gradient_accumulation_steps": 2}
    raw = tiny_recipe()
    raw["train"] |= train
    facts, warnings = compare(raw, cap, rows=1, after=5)  # in the second batch of the third step
    assert facts["batch"] == {"rows": 1, "batches": 8, "from_step": 2}
    assert facts["recipe"]["train"]["per_device_train_batch_size"] == 4
    assert len([text for text in warnings if text.startswith("Out of memory in step 3 with 4 sequences")]) == 1
    assert "per_device_train_batch_size=1 train.gradient_accumulation_steps=8" in warnings[-1]
    # A resumed run begins with the batch that was found to fit.
    folder = RunFolder(Path(facts["path"]))
    folder.update(status="stopped")
    cap.update(passes=0, after=0)
    warnings.clear()
    run(str(folder.recipe_path), ["train.max_steps=8"], resume=True, listener=warnings.append)
    assert not any(isinstance(event, RunWarning) for event in warnings)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "stage", ["sft", *(pytest.param(name, marks=SLOW) for name in ("reward", "dpo", "grpo", "ppo"))]
)
def test_every_trained_stage_continues_from_the_same_step_with_the_same_losses(stage, in_tmp_path, cap):
    write_base()
    raw = post_recipe(stage)
    raw["train"] |= {"dtype": "float32", "max_steps": 4, "eval_steps": 4, "save_steps": 4}
    rows = 4
    if stage in ("reward", "dpo"):
        rows = 8  # pairs
    if stage == "grpo":
        raw["grpo"] |= {"num_generations": 2}
    if stage == "ppo":  # the second update uses the rollout of the first
        raw["ppo"] |= {"num_ppo_epochs": 2}
    per_step = 2 if stage == "ppo" else 1  # the critic
    facts, warnings = compare(raw, cap, rows=rows // 2, after=per_step)
    assert facts["batch"] == {"rows": 2, "batches": 2, "from_step": 1}
    assert any(text.startswith("Out of memory in step 2") for text in warnings)


@SLOW
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space of a process")
def test_a_process_whose_memory_is_really_limited_continues_in_smaller_batches(in_tmp_path):
    write_text("text.txt")
    raw = tiny_recipe(**{"model.max_position_embeddings": 256, "model.hidden_size": 64, "train.max_length": 256})
    raw["train"] |= {"dtype": "float32", "max_steps": 4, "eval_steps": 4, "save_steps": 4, "logging_steps": 1}
    raw["train"] |= {"per_device_train_batch_size": 64, "gradient_accumulation_steps": 1}

    def limited():
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 150 * 2**20,) * 2)  # about half of what the run needs
        run({**raw, "name": "capped"})

    run({**raw, "name": "imports", "train": {**raw["train"], "per_device_train_batch_size": 2}})
    in_processes(lambda: run({**raw, "name": "free"}), 1)
    in_processes(limited, 1)
    free, capped = (RunFolder(Path("checkpoints") / name) for name in ("free", "capped"))
    assert capped.facts()["batch"]["rows"] < 64
    losses = [[row["loss"] for row in folder.metrics() if "loss" in row] for folder in (free, capped)]
    assert losses[1] == pytest.approx(losses[0], abs=TOLERANCE)


class OutOfMemoryInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("could not create a primitive")  # oneDNN's message


def test_nothing_of_the_failed_step_stays_in_memory():
    """This also holds if the backward pass fails before all branches of the model are done."""
    trainer = SimpleNamespace(
        before_step=SimpleNamespace(in_update=True, restore=lambda: None), state=SimpleNamespace(global_step=3)
    )
    alive = []

    def step():
        hidden = torch.ones(4, requires_grad=True) * 2
        alive.append(weakref.ref(hidden))
        (hidden.exp() * hidden + OutOfMemoryInBackward.apply(hidden)).sum().backward()

    with pytest.raises(OutOfMemory), noticing_out_of_memory(trainer):
        step()
    gc.collect()
    assert alive[0]() is None


def test_a_single_row_that_does_not_fit_is_an_error_with_a_way_out(in_tmp_path, cap):
    write_text("text.txt")
    cap["rows"] = 0.5
    with pytest.raises(MachineError) as caught:
        run(tiny_recipe(**{"train.per_device_train_batch_size": 2, "train.logging_steps": 1}))
    message = str(caught.value)
    assert "per_device_train_batch_size = 1: memory ran out in step 1, and the batch can't be smaller" in message
    assert "train.max_length=8 (about" in message


@pytest.mark.parametrize(
    ("processes", "reason"),
    [
        ("1", "with grpo.loss_type = bnpo, a smaller batch would weigh its tokens differently"),
        ("2", "with several processes, a run can't change its batch while it runs"),
    ],
)
def test_a_run_that_cannot_change_its_batch_says_why_and_how_to_start_again(
    processes, reason, in_tmp_path, monkeypatch
):
    write_base()
    raw = post_recipe("grpo")
    raw["grpo"] |= {"loss_type": "bnpo", "num_generations": 2}
    resolved = check(raw).stages[0]
    monkeypatch.setenv("WORLD_SIZE", processes)
    with pytest.raises(MachineError) as caught:
        halve_batch(resolved.recipe, resolved, RunFolder(Path("run")), OutOfMemory(6, in_update=False), pytest.fail)
    message = str(caught.value)
    assert f"memory ran out in step 7; {reason}" in message
    assert "per_device_train_batch_size=2 train.gradient_accumulation_steps=2" in message


def test_a_batch_gets_smaller_by_its_smallest_factor():
    sizes, batch = [], Batch(12, 1)
    while batch:
        sizes.append((batch.rows, batch.batches))
        batch = batch.smaller()
    assert sizes == [(12, 1), (6, 2), (3, 4), (1, 12)]


def test_the_longest_batch_is_tried_first_and_changes_nothing(in_tmp_path, cap, monkeypatch):
    """This happens on a GPU; here, the step is called directly."""
    write_base()
    lines = [{"question": f"{i}?", "answer": "no " * (1 + 5 * (i == 17))} for i in range(20)]
    Path("rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    raw = post_recipe("sft", data=[{"path": "rows.jsonl"}], validation={"fraction": 0.0})
    raw["train"] |= {"dtype": "float32", "max_steps": 5}
    expected = rows_of(run({**raw, "name": "plain"}))
    widths, compute = [], LabSFTTrainer.compute_loss
    train = LabSFTTrainer.train

    def watched(self, model, inputs, *args, **options):
        widths.append(inputs["input_ids"].shape[1])
        return compute(self, model, inputs, *args, **options)

    def try_first(self, *args, **options):
        try_longest_batch(self, lambda event: None)
        return train(self, *args, **options)

    monkeypatch.setattr(LabSFTTrainer, "compute_loss", watched)
    monkeypatch.setattr(LabSFTTrainer, "train", try_first)
    rows = rows_of(run({**raw, "name": "tried"}))
    assert widths[0] == max(widths)
    assert len(widths) == 5 + 1
    for name in ("loss", "grad_norm", "token_accuracy"):
        assert [row[name] for row in rows] == [row[name] for row in expected]
