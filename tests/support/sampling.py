"""Sample large test matrices: few combinations that contain every pair, or every triple, of values."""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def covering(factors: Sequence[Sequence[Any]], strength: int) -> list[tuple[Any, ...]]:
    """Return few combinations that together contain every combination of values of any `strength` factors.

    This is greedy: each one starts from a combination that is still missing. For the other factors, those with the most
    values first, it takes the value that completes the most missing combinations, or if several do, the least used one.
    """
    order = sorted(range(len(factors)), key=lambda factor: -len(factors[factor]))
    values = [[(factor, value) for value in range(len(factors[factor]))] for factor in range(len(factors))]
    missing = {
        chosen
        for of in itertools.combinations(range(len(factors)), strength)
        for chosen in itertools.product(*(values[factor] for factor in of))
    }
    used: Counter[tuple[int, int]] = Counter()
    rows = []
    while missing:
        row = dict(min(missing))
        for factor in order:
            if factor not in row:
                pairs = list(itertools.combinations(sorted(row.items()), strength - 1))
                gains = {
                    pair: sum(tuple(sorted((*known, pair))) in missing for known in pairs) for pair in values[factor]
                }
                row[factor] = max(values[factor], key=lambda pair: (gains[pair], -used[pair]))[1]
        missing -= set(itertools.combinations(sorted(row.items()), strength))
        used.update(row.items())
        rows.append(tuple(factors[factor][row[factor]] for factor in range(len(factors))))
    return rows


def every_pair(*factors: Iterable[Any]) -> list[Any]:
    """Return all combinations as pytest parameters; those not needed to cover every pair of values are slow."""
    lists = [list(factor) for factor in factors]
    chosen = set(covering(lists, 2))
    combinations = itertools.product(*lists)
    return [pytest.param(*c, marks=() if c in chosen else pytest.mark.slow) for c in combinations]
