"""Statistics of paired runs: the mean difference, its interval, an exact sign-flip test, and the seeds it would need.

This does not need scipy; the tests compare it with scipy.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

ALPHA = 0.05
POWER = 0.8
MIN_SEEDS = 6  # with fewer, the smallest p of the sign-flip test, 2 / 2^n, is above ALPHA
EXACT_UP_TO = 20  # seeds: 2^20 sign patterns
SAMPLED_PATTERNS = 50_000
MOST_SEEDS = 1000  # beyond this, the difference is too small to matter


@dataclass(frozen=True)
class Verdict:
    """The result of a test on paired differences.

    mean: that of the differences. low, high: its 95 % t interval, NaN below two pairs. p: that of the two-sided
    sign-flip test.
    """

    n: int
    mean: float
    spread: float
    low: float
    high: float
    p: float
    is_exact: bool
    is_significant: bool

    @property
    def seeds_needed(self) -> int | None:
        """The number of seeds that would settle it if the true difference is the observed one; see seeds_to_settle."""
        return seeds_to_settle(self.mean, self.spread)


def decide(differences: Sequence[float]) -> Verdict:
    """Return the verdict on paired differences: significant only with p of at most 5 % and at least six pairs.

    Raises ValueError if there is no difference, or one is not finite.
    """
    values = [float(value) for value in differences]
    if not values or not all(map(math.isfinite, values)):
        raise ValueError("the differences must be finite numbers, at least one")
    n, mean = len(values), statistics.fmean(values)
    spread = statistics.stdev(values) if n > 1 else math.nan
    low, high = mean_interval(values)
    p = sign_flip_p(values)
    return Verdict(
        n=n,
        mean=mean,
        spread=spread,
        low=low,
        high=high,
        p=p,
        is_exact=n <= EXACT_UP_TO,
        is_significant=n >= MIN_SEEDS and p <= ALPHA,
    )


def sign_flip_p(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of the sign-flip test that the mean is zero.

    If both configurations were equally good, each difference would be as likely to have the other sign: p is the share
    of all 2^n sign patterns whose mean is at least as far from zero. Above 20 differences, the share is taken of 50,000
    random patterns and the observed one.
    """
    import numpy as np  # takes 0.1 s, which nobody should wait for without numbers

    values = np.asarray(differences, dtype=float)
    n = len(values)
    observed = abs(values.sum())
    if n <= EXACT_UP_TO:
        sums = np.zeros(1)
        for value in values:
            sums = np.concatenate([sums + value, sums - value])
        extra = 0
    else:
        random = np.random.default_rng(0)
        sums = np.where(random.random((SAMPLED_PATTERNS, n)) < 0.5, values, -values).sum(axis=1)
        extra = 1
    # Sums of the same numbers in a different order differ in their last digits.
    at_least = np.abs(sums) >= observed - 1e-9 * np.abs(values).sum()
    return float((at_least.sum() + extra) / (len(sums) + extra))


def mean_interval(values: Sequence[float], level: float = 1 - ALPHA) -> tuple[float, float]:
    """Return the t interval of a mean; NaN for fewer than two values."""
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    mean = statistics.fmean(values)
    half = t_quantile(1 - (1 - level) / 2, n - 1) * statistics.stdev(values) / math.sqrt(n)
    return mean - half, mean + half


def t_cdf(t: float, freedom: int) -> float:
    """Return the cumulative distribution function of Student's t for a whole number of degrees of freedom.

    Abramowitz and Stegun 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    if freedom == 1:
        return 0.5 + angle / math.pi
    term = cosine if freedom % 2 else 1.0
    total = term
    for k in range(3 if freedom % 2 else 2, freedom - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    both = math.sin(angle) * total
    return 0.5 + ((angle + both) / math.pi if freedom % 2 else both / 2)


def t_quantile(share: float, freedom: int) -> float:
    """Return the quantile of Student's t."""
    high = 1e3
    low = -high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, freedom) < share else (low, middle)
    return (low + high) / 2


def seeds_to_settle(mean: float, spread: float) -> int | None:
    """Return how many pairs give 80 % power at the 5 % level, if the mean and spread are the true values; at least six.

    The usual approximation for a paired t test: n = ((t of 97.5 % + t of 80 %) × spread / mean)². None if the spread is
    unknown, the mean is zero, or it is more than MOST_SEEDS.
    """
    if not math.isfinite(spread) or mean == 0:
        return None
    normal = statistics.NormalDist()
    least = ((normal.inv_cdf(1 - ALPHA / 2) + normal.inv_cdf(POWER)) * spread / mean) ** 2  # t needs a few more
    for n in range(max(MIN_SEEDS, min(int(least), MOST_SEEDS)), MOST_SEEDS + 1):
        needed = (t_quantile(1 - ALPHA / 2, n - 1) + t_quantile(POWER, n - 1)) * spread / abs(mean)
        if needed**2 <= n:
            return n
    return None
