"""Damaged and odd input never ends as an internal error: a quick slice of `python -m benchmarks fuzz`."""

import pytest

from benchmarks.fuzz import Findings, campaign, count_case


def test_40_damaged_inputs_are_read_or_refused():
    found = campaign(40, seed=11)
    assert found.cases == {"recipes": 20, "data": 8, "models": 8, "commands": 2, "chat": 2}
    assert found.internal == {}
    assert {code.split()[1] for code in found.codes} == {"0", "2"}


@pytest.mark.slow
def test_2000_damaged_inputs_are_read_or_refused():
    assert campaign(2000, seed=12).internal == {}


def test_a_finding_is_reported_with_its_input():
    found = Findings()
    count_case(found, "data", 3, "1", "readers.py:7 TypeError: no", "the input")
    assert found.count == 1
    assert found.internal == {"readers.py:7 TypeError: no": ["data 3: the input"]}
