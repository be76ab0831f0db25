"""Start-up: from a command to its first prompt or its help, each time in a new process."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS, GOAL_SECONDS, RUNS = 7, 0.3, 500
PROMPT = "What would you like to do?"
LAB = [sys.executable, "-m", "llm_lab"]


def bench(full: bool) -> None:
    """Print the seconds of each, measured in turn."""
    with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryDirectory() as used:
        _make_runs(Path(used))
        measures = {
            "first prompt of the wizard": lambda: _to_prompt(empty),
            f"the same, with {RUNS} runs": lambda: _to_prompt(used),
            "`llm-lab --help`": lambda: _whole([*LAB, "--help"]),
            "`llm-lab run --help`": lambda: _whole([*LAB, "run", "--help"]),
            "`import torch`, for comparison": lambda: _whole([sys.executable, "-c", "import torch"]),
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in measures}
        for _ in range(ROUNDS):
            for name, measure in measures.items():
                found[name].append(measure())
    print(f"Start-up in a new process (goal for the first prompt and for help: {GOAL_SECONDS} s):\n")
    print("| what | seconds | CPU seconds |\n| --- | --- | --- |")
    for name, pairs in found.items():
        seconds, cpu = zip(*pairs, strict=True)
        shown = f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
        print(f"| {name} | {shown} | {statistics.median(cpu):.2f} |")


def _to_prompt(folder: str) -> tuple[float, float]:
    """Start the wizard in a terminal of its own; return the (wall, CPU) seconds until its first prompt."""
    import pty

    begin = time.perf_counter()
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execv(LAB[0], LAB)
    text = b""
    while PROMPT.encode() not in text:
        text += os.read(terminal, 4096)
    seconds = time.perf_counter() - begin
    os.kill(pid, signal.SIGKILL)
    usage = os.wait4(pid, 0)[2]
    os.close(terminal)
    return seconds, usage.ru_utime + usage.ru_stime


def _whole(command: list[str]) -> tuple[float, float]:
    """Run a command; return its (wall, CPU) seconds."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tempfile.gettempdir())
    usage = os.wait4(process.pid, 0)[2]
    return time.perf_counter() - begin, usage.ru_utime + usage.ru_stime


def _make_runs(folder: Path) -> None:
    for number in range(RUNS):
        run = folder / "checkpoints" / f"run-{number}"
        (run / "model").mkdir(parents=True)
        (run / "model" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
        facts = {"name": run.name, "stage": "pretrain", "status": "done", "created_at": 1.7e9 + number}
        (run / "run.json").write_text(json.dumps({**facts, "results": {"step": 100, "eval_loss": 1.5}}))
