"""From the command to the first prompt, each time in a fresh process."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time

ROUNDS, WANTED_SECONDS = 7, 0.5
CONTENDERS = {
    "start of the menu": "from llm_lab.wizard import wizard; from llm_lab.estimate.machine import find_machine; "
    "find_machine()",
    "`llm-lab --help`": "import sys; sys.argv = ['llm-lab', '--help']; from llm_lab.cli import main; main()",
    "`import torch`, for comparison": "import torch",
}


def bench(full: bool) -> None:
    """Print seconds of each, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(ROUNDS):
        for name, code in CONTENDERS.items():
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=False, cwd=tempfile.gettempdir(), capture_output=True)
            seconds[name].append(time.perf_counter() - begun)
    print(f"Start, a fresh process (wanted before the first prompt: {WANTED_SECONDS} s):\n")
    print("| what | seconds |\n| --- | --- |")
    for name, found in seconds.items():
        print(f"| {name} | {statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f}) |")
