"""The statistics of a duel, against scipy, and how often it is wrong."""

import math

import numpy as np
import pytest

from llm_lab.studies.verdict import decide, mean_interval, seeds_to_settle, sign_flip_p, t_cdf, t_quantile

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 10, 29, 199])
def test_students_t_is_that_of_scipy(freedom):
    for t in (-8.0, -1.3, 0.0, 0.4, 2.0, 30.0):
        assert t_cdf(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), abs=1e-12)
    for share in (0.025, 0.5, 0.8, 0.975, 0.995):
        assert t_quantile(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), abs=1e-6)


@pytest.mark.parametrize("n", [2, 3, 6, 9])
def test_the_sign_flip_test_is_scipys_exact_permutation_test(n):
    values = np.random.default_rng(n).normal(0.4, 1, n)
    reference = stats.permutation_test(
        (values, np.zeros(n)), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=np.inf,
    )  # fmt: skip
    assert sign_flip_p(values) == pytest.approx(reference.pvalue)


def test_the_interval_is_that_of_scipys_paired_t_test():
    values = np.random.default_rng(0).normal(0.1, 0.3, 7)
    reference = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((reference.low, reference.high))
    assert math.isnan(mean_interval([0.5])[0])


@pytest.mark.parametrize(("n", "smallest"), [(1, 1.0), (2, 0.5), (3, 0.25), (5, 0.0625), (6, 0.03125)])
def test_below_six_seeds_nothing_is_significant_however_large(n, smallest):
    verdict = decide([1.0 + i / 100 for i in range(n)])
    assert verdict.p == pytest.approx(smallest)
    assert verdict.is_significant == (n >= 6)


def test_equal_values_make_no_difference():
    verdict = decide([0.0] * 8)
    assert (verdict.p, verdict.is_significant, verdict.seeds_needed) == (1.0, False, None)


def test_differences_with_ties_count_every_pattern_once():
    """Of the 64 patterns of six equal differences, exactly the two with one sign are as far from zero."""
    assert sign_flip_p([0.1] * 6) == 2 / 64
    assert sign_flip_p([0.1, 0.1, 0.1, 0.1, 0.1, -0.1]) == 14 / 64


def test_many_seeds_are_tested_with_random_patterns():
    values = np.random.default_rng(5).normal(0.3, 1, 24)
    verdict = decide(values)
    assert not verdict.is_exact
    assert verdict.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.02)


@pytest.mark.parametrize("noise", ["normal", "heavy tails", "rounded"])
def test_a_duel_of_a_recipe_with_itself_is_significant_in_at_most_five_percent(noise):
    random = np.random.default_rng(11)
    trials, wrong = 2000, 0
    for trial in range(trials):
        n = 6 + trial % 4
        a, b = random.normal(0, 0.02, (2, n)) if noise != "heavy tails" else 0.02 * random.standard_t(2, (2, n))
        difference = np.round(b - a, 2) if noise == "rounded" else b - a
        wrong += decide(difference).is_significant
    # Three standard errors above 5 %: a correct test fails this less than once in 700 times, and the seed is fixed.
    assert wrong / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
    assert wrong > 0


def test_a_planted_difference_of_a_twentieth_of_a_nat_is_found():
    """The spread between seeds is 0.02 nats, as for small models."""
    random = np.random.default_rng(3)
    found = sum(decide(0.05 + random.normal(0, 0.02, 8) - random.normal(0, 0.02, 8)).is_significant for _ in range(300))
    assert found / 300 > 0.95


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8, 1.2])
def test_the_seeds_that_it_says_would_settle_it_have_a_power_of_eighty_percent(ratio):
    n = seeds_to_settle(ratio, 1.0)
    edge = stats.t.ppf(0.975, n - 1)
    power = 1 - stats.nct.cdf(edge, n - 1, ratio * math.sqrt(n)) + stats.nct.cdf(-edge, n - 1, ratio * math.sqrt(n))
    assert 0.78 < power < 0.88


def test_a_difference_that_would_need_thousands_of_seeds_has_no_number():
    assert seeds_to_settle(0.0001, 1.0) is None
    assert seeds_to_settle(0.1, 0.0) == 6


def test_a_value_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="finite"):
        decide([0.1, math.nan])
