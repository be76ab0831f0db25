"""Start-up: from the command to the first prompt, each time in a new process."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time

ROUNDS, GOAL_SECONDS = 7, 0.5
COMMANDS = {
    "start of the wizard": "from llm_lab.terminal import driver; from llm_lab.estimate.machine import find_machine; "
    "find_machine()",
    "`llm-lab --help`": "import sys; sys.argv = ['llm-lab', '--help']; from llm_lab.cli import main; main()",
    "`import torch`, for comparison": "import torch",
}


def bench(full: bool) -> None:
    """Print the seconds of each, measured in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, code in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, cwd=tempfile.gettempdir(), capture_output=True)
            seconds[name].append(time.perf_counter() - start)
    print(f"Start-up in a new process (goal for the first prompt: {GOAL_SECONDS} s):\n")
    print("| what | seconds |\n| --- | --- |")
    for name, found in seconds.items():
        print(f"| {name} | {statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f}) |")
