"""Sample large test matrices: every pair of values in the default suite, the rest under the slow mark."""

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def every_pair(*factors: Iterable[Any]) -> list[Any]:
    """Return all combinations as pytest parameters; those not needed to cover every pair of values are slow."""
    combinations = list(itertools.product(*factors))
    missing = set().union(*map(_pairs, combinations))
    chosen = set()
    while missing:
        best = max(combinations, key=lambda combination: len(_pairs(combination) & missing))
        chosen.add(best)
        missing -= _pairs(best)
    return [pytest.param(*c, marks=() if c in chosen else pytest.mark.slow) for c in combinations]


def _pairs(combination: tuple) -> set[tuple]:
    return set(itertools.combinations(enumerate(combination), 2))
