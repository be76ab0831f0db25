"""A run with a broken loss stops and reports where, or returns to a checkpoint; a run on rewards warns early."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_recipe, write_text
from support.post_runs import post_recipe, rows_of, weights_of, write_base

from llm_lab.errors import UserError
from llm_lab.events import RunWarning
from llm_lab.runner import run
from llm_lab.runs.folder import RunFolder, create_run
from llm_lab.terminal.results_view import print_closing
from llm_lab.training.seat_belts import (
    BELTS,
    Diverged,
    LossWatch,
    RewardWatch,
    sample_weights,
    warn_of_standstill,
    why_nothing_moved,
)

TINY = RunFolder(Path("checkpoints/tiny"))
NAN = float("nan")


def watch(losses, norms=None, *, batches=1, guess=None, steps=1):
    """Pass the batches of `steps` steps to a watch, up to step 10."""
    found = LossWatch(guess, batches, 8, TINY)
    for loss in losses:
        found.saw_loss(torch.tensor(loss))
    for norm in norms or [1.0] * steps:
        found.saw_gradient(torch.tensor(norm))
    finite = [loss for loss in losses if math.isfinite(loss)]
    mean = sum(losses) / len(losses) if len(finite) == len(losses) else NAN
    found.check(10, mean, (norms or [1.0])[-1], 0.1)
    return found


def test_the_first_bad_batch_since_the_last_log_row_is_named():
    with pytest.raises(Diverged) as caught:
        watch([2.0, 2.0, 2.0, NAN, NAN, NAN], [1.0, 3.5, NAN], batches=2, steps=3)
    text = str(caught.value)
    assert caught.value.step == 9
    assert "the loss became nan at step 9 (batch 2 of 2, sequences 65 to 72 in the order of the data)" in text
    assert "gradient norm 3.5" in text
    assert text.startswith("optimizer.learning_rate: the loss became nan")
    assert "the schedule's learning rate was 0.1." in text
    assert "No checkpoint is saved." in text


def test_a_gradient_that_is_not_a_number_stops_the_run_before_it_is_saved():
    with pytest.raises(Diverged, match=r"the gradient became inf at step 10 \(loss 2;"):
        watch([2.0], [math.inf])


def test_a_loss_far_worse_than_a_guess_stops_only_if_it_stays_there():
    found = watch([5.0], guess=5.5)
    for step, loss in ((11, 30.0), (12, 4.0), (13, 30.0)):
        found.check(step, loss, 1.0, 0.1)
    assert found.is_worried
    with pytest.raises(Diverged, match="exploded to 25 at step 14"):
        found.check(14, 25.0, 1.0, 0.1)


def test_a_large_loss_is_allowed_if_the_loss_of_a_uniform_guess_is_unknown():
    found = watch([0.7])
    for step in range(11, 20):
        found.check(step, 1e4, 1.0, 0.1)


# A run

HOT = {"optimizer.learning_rate": 1.0, "train.logging_steps": 1, "train.save_steps": 2, "scheduler.warmup_steps": 4}


@pytest.fixture
def _text(in_tmp_path):
    write_text("text.txt")


@pytest.mark.usefixtures("_text")
def test_an_exploding_run_stops_says_where_and_keeps_a_checkpoint_from_before():
    with pytest.raises(
        UserError, match=r"exploded to [\d.]+ at step \d+ .*sequences \d+ to \d+ .*gradient norm [\d.]+"
    ):
        run(tiny_recipe(**HOT))
    assert TINY.facts()["status"] == "failed"
    step, _ = TINY.checkpoints()[-1]
    (row,) = [row for row in TINY.metrics() if row["step"] == step and "loss" in row]
    limit = max(1.5 * math.log(257), 2 * TINY.metrics()[0]["loss"])
    assert row["loss"] < limit, "no checkpoint is written while the loss is far too large"


@pytest.mark.usefixtures("_text")
def test_on_request_a_run_returns_to_its_checkpoint_with_a_smaller_learning_rate_and_repeats_bit_for_bit():
    warnings = []

    def listen(event):
        if isinstance(event, RunWarning):
            warnings.append(event.text)

    raw = tiny_recipe(**HOT, **{"train.on_divergence": "roll_back"})
    facts = run(raw, listener=listen)
    assert facts["status"] == "done"
    scale = facts["rollbacks"][-1]["learning_rate_scale"]
    assert [rollback["learning_rate_scale"] for rollback in facts["rollbacks"]] == [0.5, 0.25, 0.125][: len(warnings)]
    assert facts["warnings"] == warnings
    assert "Back to step" in warnings[0]
    assert "exploded" in (TINY.path / "report.md").read_text()
    back_to = facts["rollbacks"][-1]["to_step"]
    rates = {row["step"]: row["learning_rate"] for row in TINY.metrics() if "loss" in row}
    assert list(rates) == list(range(1, 21)), "every step once"
    assert all(rates[step] <= scale for step in rates if step > back_to), "from the first step after the return"
    assert run({**raw, "name": "again"})["results"]["eval_loss"] == facts["results"]["eval_loss"]


@pytest.mark.parametrize("lora", [None, {"r": 8, "alpha": 256}])
def test_fine_tuning_returns_to_its_checkpoint_with_a_smaller_learning_rate(in_tmp_path, lora):
    write_base()
    hot = {"optimizer.learning_rate": 10.0 if lora else 1.0, "scheduler.warmup_steps": 6, "train.max_steps": 12}
    warnings = []

    def listen(event):
        if isinstance(event, RunWarning) and "Back to step" in event.text:
            warnings.append(event.text)

    changes = {"lora": lora, "train.save_steps": 2, "train.on_divergence": "roll_back"}
    facts = run(post_recipe("sft", **hot, **changes), listener=listen)
    assert facts["status"] == "done"
    assert [rollback["learning_rate_scale"] for rollback in facts["rollbacks"]] == [0.5, 0.25, 0.125][: len(warnings)]
    back = facts["rollbacks"][-1]
    assert f"Back to step {back['to_step']:,}, with {back['learning_rate_scale']:g} ×" in warnings[-1]
    rates = {row["step"]: row["learning_rate"] for row in RunFolder(Path(facts["path"])).metrics() if "loss" in row}
    assert list(rates) == list(range(1, 13)), "every step once"
    assert max(rates[step] for step in rates if step > back["to_step"]) <= (
        back["learning_rate_scale"] * hot["optimizer.learning_rate"]
    )


# Rewards

GOOD = {"entropy": 2.0, "cut_off_share": 0.1, "kl": 0.1, "completion_length": 20.0, "zero_spread_share": 0.5}
BAD = [{"entropy": 0.1}, {"cut_off_share": 0.7}, {"kl": 4.0}, {"zero_spread_share": 1.0}]


def warnings_of(rows, known=()):
    belts = RewardWatch(known)
    return [(step, text) for step, row in enumerate(rows, start=1) for text in belts.saw({"step": step, **row})]


@pytest.mark.parametrize(("bad", "belt"), list(zip(BAD, BELTS, strict=True)))
def test_each_health_check_warns_once_after_three_rows(bad, belt):
    rows = [GOOD, GOOD | bad, GOOD, *[GOOD | bad] * 6, GOOD, *[GOOD | bad] * 4]
    ((step, text),) = warnings_of(rows)
    assert step == 6
    assert text.startswith(belt.lead)
    assert warnings_of(rows, known=[text]) == [], "not again after the run was resumed"


def test_a_healthy_run_has_no_warning():
    assert warnings_of([GOOD] * 20) == []
    assert warnings_of([{"reward_std": 0.2, "entropy": 1.0}] * 20) == []


def test_rewards_that_never_differ_are_a_warning_in_the_run_and_its_report(in_tmp_path):
    write_base()
    Path("same.py").write_text("def same(completions, **columns):\n    return [1.0 for _ in completions]\n")
    raw = post_recipe("grpo", rewards=[{"python": "same.py:same"}], **{"train.max_steps": 4, "train.eval_steps": 10})
    (text,) = [text for text in run(raw)["warnings"] if text.startswith(BELTS[3].lead)]
    assert text in Path("checkpoints/grpo/report.md").read_text()


def test_on_request_a_collapsed_run_stops_and_keeps_its_best_checkpoint(in_tmp_path, capsys):
    write_base()
    Path("falls.py").write_text(
        "calls = []\n"
        "def falls(completions, **columns):\n"
        "    calls.append(0)\n"
        "    return [1.0 if len(calls) == 2 else 0.0 for _ in completions]\n"
    )
    changes = {"train.max_steps": 6, "train.save_steps": 1, "train.eval_steps": 10, "grpo.on_collapse": "stop"}
    facts = run(post_recipe("grpo", rewards=[{"python": "falls.py:falls"}], **changes))
    assert facts["status"] == "stopped"
    assert facts["collapsed"]["step"] == 3
    best = max((row for row in rows_of(facts["path"]) if "reward" in row), key=lambda row: row["reward"])
    assert facts["collapsed"]["model_of_step"] == best["step"]
    assert (facts["results"]["step"], facts["results"]["reward"]) == (best["step"], best["reward"])
    report = " ".join(Path(facts["path"], "report.md").read_text().split())
    print_closing(facts)
    for shown in (report, " ".join(capsys.readouterr().out.split())):
        assert f"stopped at step 3; its model and its results are those of step {best['step']}, " in shown
        assert "Resume with" not in shown, "it would continue from the collapsed checkpoint"
    kept = weights_of(facts["path"])
    expected = weights_of_checkpoint(facts["path"], best["step"])
    assert kept.keys() == expected.keys()
    assert all(torch.equal(kept[name], expected[name]) for name in kept)


def weights_of_checkpoint(path, step):
    from safetensors.torch import load_file

    return load_file(Path(path) / "steps" / f"checkpoint-{step}" / "model.safetensors")


# A run that learned nothing


def rows_of_a_run(before, after, *, steps=40, **trained):
    log = [{"step": step, "loss": 0.7, "grad_norm": 0.1, **trained} for step in range(10, steps + 1, 10)]
    return [{"step": 0, **before}, *log, {"step": steps, **after}]


SAME = {"eval_reward": 0.5, "eval_reward_sampled": 0.25, "exact_match": 0.5, "eval_completion_length": 20.0}


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (rows_of_a_run({"eval_loss": 0.6931}, {"eval_loss": 0.6919}), "validation loss was 0.6931 before"),
        (rows_of_a_run({"eval_loss": 0.6931}, {"eval_loss": 0.6553}), None),
        (rows_of_a_run({"eval_loss": 2.0}, {"eval_loss": 2.0}, steps=10), None),  # too short for a verdict
        (rows_of_a_run(SAME, SAME), "exactly the scores"),
        (rows_of_a_run(SAME, SAME | {"eval_reward_sampled": 0.3}), None),
        (rows_of_a_run(SAME, SAME | {"eval_reward": 0.6}, zero_spread_share=1.0), "got the same reward"),
        (rows_of_a_run(SAME, SAME | {"eval_reward": 0.6}, zero_spread_share=0.9), None),
        (rows_of_a_run({}, {}, grad_norm=0.0), "the gradient was 0"),
        ([{"step": 0, "eval_loss": 2.0}], None),
    ],
)
def test_a_run_that_learned_nothing_is_recognized(rows, why):
    found = why_nothing_moved(rows, weights_changed=True)
    assert (found is None) if why is None else (why in found)


def test_a_run_whose_weights_did_not_change_says_so_at_its_end(in_tmp_path):
    model = torch.nn.Linear(4, 4)
    run, seen = create_run("still"), []
    run.append_metrics({"step": 1, "loss": 1.0, "learning_rate": 0.1, "grad_norm": 1.0})
    trainer = SimpleNamespace(model=model, run=run)
    before = sample_weights(model)
    warn_of_standstill(trainer, before, seen.append)
    assert "no trained weight has changed" in seen[0].text
    assert run.facts()["unmoved"] == "no trained weight has changed"
    with torch.no_grad():
        model.weight[3, 3] += 1e-3
    warn_of_standstill(trainer, before, seen.append)
    assert len(seen) == 1
    assert run.facts()["unmoved"] is None


@pytest.mark.parametrize(
    ("row", "fix"),
    [({"zero_spread_share": 1.0}, "answers first (SFT)"), ({"grad_norm": 0.0}, "optimizer.learning_rate")],
)
def test_the_fix_for_a_run_that_learned_nothing_is_one_for_its_cause(row, fix, in_tmp_path):
    model = torch.nn.Linear(4, 4)
    run, seen = create_run("still"), []
    run.append_metrics({"step": 1, "loss": 1.0, "learning_rate": 0.1, **row})
    before = sample_weights(model)
    with torch.no_grad():
        model.weight += 1.0
    warn_of_standstill(SimpleNamespace(model=model, run=run), before, seen.append)
    assert fix in seen[0].text


def test_a_run_that_learned_nothing_does_not_end_with_a_plain_done(capsys):
    print_closing({"path": "checkpoints/a", "status": "done", "stage": "sft", "unmoved": "the gradient was 0"})
    assert "Done, but nothing was learned: the gradient was 0." in " ".join(capsys.readouterr().out.split())
