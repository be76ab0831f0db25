"""The first prompt appears at once: nothing heavy is imported before it is needed."""

import statistics
import subprocess
import sys
import time

import pexpect

HEAVY = {"torch", "transformers", "trl", "datasets", "numpy", "pandas", "accelerate", "peft", "tokenizers", "pyarrow"}
OURS = {"llm_lab.runs.report", "llm_lab.runs.charts"}  # for what comes after a run
LOOK = """
import sys
from prompt_toolkit.application import Application
from llm_lab import cli
sys.stdin.isatty = sys.stdout.isatty = lambda: True
def stop(self):
    print("\\nMODULES", *sorted({*sys.modules, *(name.partition(".")[0] for name in sys.modules)}))
    sys.exit(0)
Application.run = stop
cli.main([])
"""


def test_nothing_heavy_is_imported_before_the_menu(in_tmp_path):
    found = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True).stdout
    modules = set(found.rpartition("MODULES")[2].split())
    assert "prompt_toolkit" in modules
    assert not modules & (HEAVY | OURS)


def seconds_to_the_menu() -> float:
    """Start the wizard in a terminal and wait for its first prompt."""
    begin = time.perf_counter()
    child = pexpect.spawn(sys.executable, ["-m", "llm_lab"], dimensions=(24, 80), encoding="utf-8")
    child.expect_exact("What would you like to do?", timeout=30)
    seconds = time.perf_counter() - begin
    child.close(force=True)
    return seconds


def test_the_menu_appears_within_half_a_second(in_tmp_path):
    seconds = statistics.median(seconds_to_the_menu() for _ in range(3))
    assert seconds < 1.5, f"{seconds:.2f} s; the goal is half a second; the rest allows for a busy machine"
