"""Whether a number looks healthy: a rule for each, based on its recent values; and warnings, each given once."""

import math
import random

import pytest

from llm_lab.runs.health import add_row, health_of, trend
from llm_lab.training.seat_belts import HealthWatch


def noisy(start, end, count=60, noise=0.02):
    draw = random.Random(count)
    return [start + (end - start) * at / (count - 1) + draw.gauss(0, noise) for at in range(count)]


def history_of(**series):
    history = {}
    for key, values in series.items():
        for step, value in enumerate(values, 1):
            add_row(history, {"step": step, key: value})
    return history


SPIKED = [*noisy(0.5, 0.5), 4.0, 0.5, 4.0, 0.5, 4.0, 0.5]
FALLING = noisy(3.0, 2.0)


@pytest.mark.parametrize(
    ("key", "series", "is_good", "words"),
    [
        ("loss", {"loss": FALLING}, True, "falling"),
        ("loss", {"loss": noisy(2.0, 3.0)}, False, "rising: the learning rate may be too high"),
        ("loss", {"loss": noisy(2.0, 2.0, 110)}, None, "level over the last 100 log lines"),
        ("loss", {"loss": [2.0, 1.9]}, None, "too early to say"),
        ("loss", {"loss": [2.0, math.nan]}, False, "not a number"),
        ("loss", {"loss": FALLING, "reward": FALLING}, None, "says little"),
        ("eval_loss", {"eval_loss": [3.0, 2.5, 2.2, 2.0]}, True, "falling"),
        ("eval_loss", {"eval_loss": [3.0, 2.5, 2.6, 2.7]}, False, "rising again"),
        ("eval_loss", {"eval_loss": [3.0, 2.5, 2.501, 2.502]}, None, "no clear trend yet"),
        ("grad_norm", {"grad_norm": noisy(0.5, 0.5)}, True, "steady"),
        ("grad_norm", {"grad_norm": SPIKED}, False, "3 spikes of more than 5 times the usual in 50 log lines"),
        ("grad_norm", {"grad_norm": [*noisy(0.5, 0.5), 4.0]}, None, "a spike"),
        ("learning_rate", {"learning_rate": noisy(0.0, 1.0, noise=0)}, None, "warming up"),
        ("learning_rate", {"learning_rate": noisy(1.0, 0.5, noise=0)}, None, "decaying"),
        ("learning_rate", {"learning_rate": [0.1] * 9}, None, "constant"),
        ("learning_rate", {"learning_rate": [0.0007, 0.002]}, None, "too early"),
        ("tokens_per_second", {"tokens_per_second": noisy(9e3, 9e3)}, True, "steady"),
        ("tokens_per_second", {"tokens_per_second": [9e3] * 20 + [4e3] * 5}, False, "slower than before"),
        ("reward", {"reward": noisy(0.1, 0.9)}, True, "rising"),
        ("reward", {"reward": noisy(0.9, 0.1)}, False, "falling"),
        ("entropy", {"entropy": noisy(2.0, 1.8), "reward": [0.0]}, True, "far from 0"),
        ("entropy", {"entropy": noisy(2.0, 0.1), "reward": [0.0]}, False, "almost gone"),
        ("entropy", {"entropy": noisy(2.0, 0.7)}, True, "falling"),
        ("zero_spread_share", {"zero_spread_share": [0.97] * 5}, False, "almost no group has a signal"),
        ("zero_spread_share", {"zero_spread_share": [0.4] * 5}, True, "enough groups"),
        ("reward_std", {"reward_std": [0.0] * 5}, False, "0: there is nothing to learn from"),
        ("kl", {"kl": [0.01] * 20, "completion_length": [20.0] * 20}, True, "near the reference model"),
        (
            "kl",
            {"kl": [3.0] * 20, "completion_length": [20.0] * 20},
            False,
            "above 50 nats per output (KL × output length)",
        ),
        ("kl", {"kl": [0.1] * 20 + [0.9], "completion_length": [20.0] * 21}, False, "a jump"),
        ("clip_fraction", {"clip_fraction": [0.4] * 5}, False, "high: the steps are too large"),
        ("clip_fraction", {"clip_fraction": [0.1] * 5}, True, "in the usual range"),
        ("completion_length", {"completion_length": noisy(20, 60)}, False, "does the reward favor it?"),
        ("completion_length", {"completion_length": noisy(20, 20)}, True, "stable"),
        ("cut_off_share", {"cut_off_share": [0.8] * 5}, False, "most outputs are truncated"),
        ("explained_variance", {"explained_variance": [-0.4] * 10}, False, "worse than a constant"),
        ("explained_variance", {"explained_variance": [0.4] * 10}, True, "better than a constant"),
        ("unclipped_share", {"unclipped_share": [0.9] * 5}, False, "high: lower optimizer.rho"),
        ("unclipped_share", {"unclipped_share": [0.05] * 5}, False, "low: raise optimizer.rho"),
        ("accuracy", {"accuracy": [0.0, 0.4, 0.5, 0.5, 0.5]}, False, "no better than chance"),
        ("eval_accuracy", {"eval_accuracy": [0.7] * 5}, True, "better than chance"),
        ("logps_chosen", {"logps_chosen": noisy(-50, -90)}, False, "falling steeply"),
        ("margin", {"margin": noisy(0.0, 1.0)}, True, "rising"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_number_has_a_rule(key, series, is_good, words):
    found = health_of(key, history_of(**series))
    assert found is not None
    assert found.is_good is is_good, found
    assert words in found.words


def test_numbers_that_may_have_any_value_get_no_verdict():
    assert health_of("memory_bytes", history_of(memory_bytes=[1e9] * 9)) is None
    assert health_of("loss", {}) is None


def test_noise_has_no_trend():
    assert [trend(noisy(1.0, 1.0, count, 0.1)) for count in (10, 20, 30, 60)] == [0] * 4


def warnings_from(rows, *, steps=1000, earlier=(), known=()):
    watch = HealthWatch(steps, earlier, known)
    return [text for row in rows for text in watch.saw(row)]


OVERFITTING = [
    *({"step": step, "loss": loss} for step, loss in enumerate(FALLING, 1)),
    *({"step": 20 * number, "eval_loss": loss} for number, loss in enumerate((2.4, 2.2, 2.3, 2.5), 1)),
]


@pytest.mark.parametrize(
    ("rows", "lead", "advice"),
    [
        (
            OVERFITTING,
            "The validation loss rises while the training loss falls (step 80): this is overfitting.",
            "lowest at step 40 (2.2000)",
        ),
        (
            [{"step": step, "grad_norm": value} for step, value in enumerate(SPIKED, 1)],
            "The gradient norm spikes (step 65)",
            "Use a smaller learning rate",
        ),
        (
            [{"step": step, "loss": value} for step, value in enumerate(noisy(2.0, 2.0, 110), 1)],
            "The training loss no longer falls (step 100)",
            "Try another learning rate",
        ),
        (
            [{"step": step, "loss": 0.0, "reward": 0.1, "zero_spread_share": 0.97} for step in range(1, 9)],
            "Almost no group has a signal (step 5): in 97 % of the groups",
            "Use easier or harder prompts",
        ),
    ],
    ids=["overfitting", "spikes", "plateau", "no signal"],
)
def test_each_problem_is_reported_once_with_what_to_do(rows, lead, advice):
    (warning,) = warnings_from(rows)
    assert warning.startswith(lead)
    assert advice in warning
    assert warnings_from(rows, known=[warning]) == [], "a resumed run does not repeat it"


def test_a_slow_fall_with_noise_is_not_a_plateau():
    rows = [{"step": step, "loss": value} for step, value in enumerate(noisy(2.0, 1.9, 200, 0.04), 1)]
    assert warnings_from(rows) == []


def test_a_healthy_run_gets_no_warning():
    rows = [{"step": step, "loss": loss, "grad_norm": 0.5} for step, loss in enumerate(FALLING, 1)]
    assert warnings_from([*rows, *({"step": 60 + n, "eval_loss": 2.5 - n / 10} for n in range(4))]) == []


def test_a_loss_that_levels_out_at_the_end_is_not_a_plateau():
    rows = [{"step": step, "loss": value} for step, value in enumerate(noisy(2.0, 2.0, 110), 1)]
    assert warnings_from(rows, steps=110) == []


def test_a_resumed_run_counts_the_rows_from_before():
    assert len(warnings_from(OVERFITTING[-1:], earlier=OVERFITTING[:-1])) == 1
