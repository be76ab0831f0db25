"""Sums modulo a number: the split, the spectrum of embeddings, and a study that learns."""

import json

import pytest
import torch

from llm_lab.errors import UserError
from llm_lab.hf.load import load_model
from llm_lab.studies.experiment_files import find_experiment
from llm_lab.studies.modular_sums import (
    SumPlan,
    build_sum_model,
    number_tokenizer,
    score_sums,
    spectrum,
    split_sums,
    step_of_accuracy,
    train_sums,
)
from llm_lab.studies.study_process import open_study, run_study

TINY = SumPlan(7, 0.6, 16, 1, 30, 16, 1e-2, 0.1, 0, measurements=5)


def test_every_sum_is_on_one_side_of_the_split_with_both_orders_on_the_same_side():
    train, test = split_sums(11, 0.4, seed=0)
    known, unknown = ({tuple(pair) for pair in side.pairs.tolist()} for side in (train, test))
    assert len(known) + len(unknown) == 121
    assert not known & unknown
    assert {(b, a) for a, b in known} == known
    assert len(known) == pytest.approx(0.4 * 121, abs=4)
    assert torch.equal(train.results, train.pairs.sum(1) % 11)


def test_embeddings_on_a_circle_have_one_frequency_and_random_ones_have_all():
    model = build_sum_model(TINY)
    angles = torch.arange(7) * 2 * torch.pi * 2 / 7
    with torch.no_grad():
        random = spectrum(model, 7)
        weight = model.get_input_embeddings().weight
        weight[:7] = 0
        weight[:7, 0], weight[:7, 1] = angles.cos(), angles.sin()
    assert spectrum(model, 7) == pytest.approx([0, 1, 0], abs=1e-6)
    assert max(random) < 0.8
    assert sum(random) == pytest.approx(1)


def test_a_result_is_stored_with_a_model_that_opens_and_is_not_computed_twice(tmp_path):
    said = []
    first = train_sums(TINY, tmp_path, "sums", said.append)
    again = train_sums(TINY, tmp_path, "sums", said.append)
    assert again == json.loads(json.dumps(first))
    assert said[-1] == "sums: already done"
    _, test = split_sums(7, 0.6, 0)
    found = score_sums(load_model(str(tmp_path / "model")), test)
    assert found == pytest.approx((first["curve"][-1]["test_accuracy"], first["curve"][-1]["test_loss"]), abs=1e-5)
    assert number_tokenizer(7)("6 0")["input_ids"] == [6, 0]


def test_the_step_of_an_accuracy_is_the_first_that_reaches_it():
    curve = [{"step": 10, "a": 0.5}, {"step": 20, "a": 0.99}, {"step": 30, "a": 1.0}]
    assert step_of_accuracy(curve, "a", 0.99) == 20
    assert step_of_accuracy(curve[:1], "a", 0.99) is None


def run_tiny(root, **options):
    wanted = {"modulus": 7, "hidden_size": 16, "steps": 12, "batch_size": 8, **options}
    folder, _ = open_study(find_experiment("grokking"), wanted, root=root)
    run_study(folder, lambda event: None)
    return folder


def test_the_experiment_trains_with_and_without_weight_decay_for_the_same_number_of_steps(tmp_path):
    folder = run_tiny(tmp_path)
    rows = json.loads((folder.path / "tables/runs.json").read_text())
    assert [row["steps"] for row in rows] == [12, 12]
    plans = [json.loads((folder.path / run / "result.json").read_text())["plan"] for run in folder_names(folder)]
    assert [plan["weight_decay"] for plan in plans] == [1.0, 0.0]
    for picture in ("accuracy", "loss", "spectrum"):
        assert (folder.path / f"pictures/{picture}.svg").read_text().startswith("<svg")


def folder_names(folder):
    return sorted(path.parent.name for path in folder.path.glob("*/result.json"))


def test_the_experiment_refuses_a_width_that_the_heads_do_not_divide(tmp_path):
    with pytest.raises(UserError, match="multiple of 8"):
        run_tiny(tmp_path, hidden_size=20)
