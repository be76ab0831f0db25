"""The shipped experiments run with options that make them tiny, and report what they promise."""

import json
import math
import re
from pathlib import Path

import pytest

from llm_lab.cli import main
from llm_lab.runs.folder import RunFolder
from llm_lab.studies.answers import overlap, repeated_share
from llm_lab.studies.experiments.learning_rate import _lowest_point
from llm_lab.studies.small_runs import mean_by_epoch

pytestmark = pytest.mark.usefixtures("in_tmp_path")


def study(*words: str) -> RunFolder:
    """Run an experiment by its command; return its folder."""
    assert main(["study", *words]) == 0
    return RunFolder(Path("checkpoints") / words[0])


def table(folder: RunFolder, name: str) -> list[dict]:
    return json.loads((folder.path / "tables" / f"{name}.json").read_text())


@pytest.mark.slow
def test_a_learning_rate_that_diverges_is_shown_next_to_one_that_learns(capfd):
    folder = study("learning_rate", "learning_rates=1e-2,10", "widths=32", "layers=1", "steps=12", "batch=2")
    right, large = table(folder, "losses")
    assert right["validation loss"] < math.log(257)
    assert (large["validation loss"], large["outcome"]) == (None, "diverged")
    assert folder.facts()["results"]["best_learning_rate_width_32"] == 0.01
    report = folder.report_path.read_text()
    assert "pictures/valley.svg" in report
    assert "Right: " in report
    assert "Too large: " not in report, "no such curve is drawn"
    assert "diverges: 10" in (folder.path / "pictures/curves.svg").read_text()
    assert "diverged" in (folder.path / "pictures/valley.svg").read_text()


@pytest.mark.slow
def test_every_rank_is_compared_with_full_fine_tuning():
    folder = study("lora_rank", "ranks=1,4", "steps=10", "batch=2", "length=64", "base_steps=10", "width=32")
    full, *ranks = table(folder, "ranks")
    assert [row["what is trained"] for row in ranks] == ["rank 1", "rank 4"]
    assert full["share"] == 1.0
    assert ranks[0]["weights"] < ranks[1]["weights"] < full["weights"]


@pytest.mark.slow
def test_forgetting_is_measured_on_the_same_text_for_every_fine_tune():
    small = ["steps=10", "batch=2", "base_steps=10", "width=32"]
    folder = study("forgetting", "learning_rates=1e-4,1e-2", "replay=0.5", "lora_ranks=2", *small)
    before, *rows = table(folder, "forgetting")
    assert len(rows) == 4
    for row in rows:
        rise = row["old text: bits per byte"] - before["old text: bits per byte"]
        assert row["forgetting"] == pytest.approx(rise)
    gentle, strong = (row["old text: bits per byte"] for row in rows[:2])
    assert abs(gentle - before["old text: bits per byte"]) < abs(strong - before["old text: bits per byte"])


@pytest.mark.slow
def test_base_and_tuned_answer_the_same_e_mails_and_every_decoding_is_shown():
    small = ["epochs=2", "examples=3", "shown=3", "max_new_tokens=4", "base_steps=10", "width=32"]
    folder = study("finetuning", *small)
    rows = table(folder, "answers")
    assert [set(row) for row in rows] == [{"e-mail", "written by a person", "base", "tuned"}] * 3
    assert [row["epoch"] for row in table(folder, "losses")] == [0, 1, 2]
    names = [row["decoding"] for row in table(folder, "decoding")]
    assert names == ["greedy", "beam search, 4 beams", "repetition penalty 1.3", "no repeated 3-grams"]
    assert re.search(r"fell from .* to .* at epoch", folder.report_path.read_text())


def test_the_best_learning_rate_lies_between_the_cells_of_the_grid():
    rates, best = [1e-4, 1e-3, 1e-2, 1e-1], 3e-3
    losses = {(32, rate): 1 + math.log(rate / best) ** 2 for rate in rates}
    assert _lowest_point(rates, losses, 32) == pytest.approx(best)
    assert _lowest_point(rates, {key: -loss for key, loss in losses.items()}, 32) is None  # at the edge
    assert _lowest_point(rates, losses | {(32, 1e-2): None}, 32) is None  # next to a run that diverged


def test_repetition_and_overlap_are_counted_in_words():
    assert repeated_share("a b a b") == pytest.approx(1 / 3)
    assert repeated_share("a b c") == repeated_share("a") == 0.0
    assert overlap("Meeting on Friday", "the meeting, Friday") == pytest.approx(2 / 3)
    assert overlap("to to", "to") == pytest.approx(2 / 3)
    assert overlap("", "") == 0.0


def test_losses_are_averaged_within_each_epoch():
    folder = RunFolder(Path("run"))
    folder.path.mkdir()
    for step, loss in ((1, 4.0), (2, 2.0), (3, 1.0), (4, 3.0)):
        folder.append_metrics({"step": step, "loss": loss})
    assert mean_by_epoch(folder, "loss", 2) == [(1, 3.0), (2, 2.0)]
