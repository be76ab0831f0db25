"""Damaged and odd input never ends as an internal error: a quick slice of `python -m benchmarks fuzz`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.fuzz import Findings, count_case

ROOT = Path(__file__).resolve().parents[1]


def findings(trials: int, seed: int) -> str:
    command = [sys.executable, "-m", "benchmarks", "fuzz", "--trials", str(trials), "--seed", str(seed)]
    found = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout


def test_40_damaged_inputs_are_read_or_refused():
    text = findings(40, seed=11)
    assert "40 cases" in text
    assert "0 findings" in text, text


@pytest.mark.slow
def test_2000_damaged_inputs_are_read_or_refused():
    assert "0 findings" in findings(2000, seed=12)


def test_a_finding_is_reported_with_its_input():
    found = Findings()
    count_case(found, "data", 3, "1", "readers.py:7 TypeError: no", "the input")
    assert found.count == 1
    assert found.internal == {"readers.py:7 TypeError: no": ["data 3: the input"]}
