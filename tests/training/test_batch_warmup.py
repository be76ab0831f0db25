"""Batch-size warm-up: which rows a step trains on, what is counted and planned, and resuming."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny_recipe, write_text
from support.pretrain_runs import losses, weights

from llm_lab.estimate.batch_warmup import StepRows
from llm_lab.job import check
from llm_lab.runner import run
from llm_lab.runs.resume import Batch


@pytest.mark.parametrize(("warmup", "first"), [(4, [2, 2, 4, 4, 8, 8]), (3, [2, 2, 4, 8, 8, 8]), (0, [8] * 6)])
@pytest.mark.parametrize("at_once", [4, 8])
def test_every_row_is_read_once_in_order_and_the_batches_of_a_step_have_equally_many(warmup, first, at_once):
    rows = StepRows(8, at_once, warmup)
    assert [rows.before(step + 1) - rows.before(step) for step in range(6)] == first
    read = [rows.row_at(place) for place in range(6 * 8)]
    assert [row for row in read if row is not None] == list(range(sum(first)))
    batches = [read[start : start + at_once] for start in range(0, len(read), at_once)]
    sizes = [sum(row is not None for row in batch) for batch in batches]
    assert sizes == [size * at_once // 8 for size in first for _ in range(8 // at_once)]
    assert all(batch[:size].count(None) == 0 for batch, size in zip(batches, sizes, strict=True))
    assert [rows.whole_steps(count, 6) for count in (0, first[0] - 1, first[0], 10**6)] == [0, 0, 1, 6]


def test_a_smaller_or_divided_batch_can_still_grow_from_a_quarter():
    batch = Batch(16, 1, multiple=4)
    assert batch.smaller() == Batch(8, 2, multiple=4)
    assert Batch(4, 4, multiple=4).smaller() is None
    assert batch.shared(1, 4) == Batch(4, 1, multiple=4)
    assert batch.shared(1, 8) is None


GROWING = {"train.batch_size_warmup_steps": 13, "train.logging_steps": 1, "train.dtype": "float32"}


@pytest.fixture
def grown(in_tmp_path):
    write_text("text.txt")
    raw = tiny_recipe(**GROWING, **{"train.per_device_train_batch_size": 8})
    return raw, run(raw)


def test_a_run_counts_what_its_smaller_batches_read_and_resumes_within_them_bit_for_bit(grown):
    raw, whole = grown
    planned = check(raw).stages[0].estimate
    rows, kept = losses(whole), weights(whole)
    logged = {row["step"]: row["train_tokens"] for row in map(dict, rows) if "loss" in row}
    length = raw["train"]["max_length"]
    assert [logged[step] for step in (1, 7, 8, 13, 14, 20)] == [n * length for n in (2, 14, 18, 38, 46, 94)]
    assert planned.tokens == logged[20]
    halves = {"train.per_device_train_batch_size": 4, "train.gradient_accumulation_steps": 2, "name": "halves"}
    in_halves = losses(run(tiny_recipe(**GROWING, **halves)))
    assert dict(in_halves[-1]) == pytest.approx(dict(rows[-1]), rel=1e-4)
    shutil.rmtree(Path(whole["path"]) / "steps" / "checkpoint-20")
    shutil.rmtree(Path(whole["path"]) / "model")
    resumed = run(raw, resume=True)
    assert losses(resumed) == rows
    assert all(torch.equal(weight, kept[name]) for name, weight in weights(resumed).items())
