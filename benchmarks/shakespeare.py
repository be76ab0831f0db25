"""Time to a validation loss of 1.886 nats per byte on tiny Shakespeare: a shipped recipe against 2,000 steps of a
GPT-2-shaped model in a bare loop."""

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

from .candidates import train_in_process

RECIPE = Path(__file__).resolve().parent.parent / "configs" / "shakespeare-fast.yaml"
GOAL_NATS, LOOP_STEPS, MEASURED_STEPS, ROUNDS = 1.886, 2000, 120, 3
LONGEST_SECONDS = 600


def find_text() -> Path | None:
    """Return the path of tiny Shakespeare ($TINY_SHAKESPEARE or ./input.txt), or None if there is no such file."""
    path = Path(os.environ.get("TINY_SHAKESPEARE", "input.txt"))
    return path.resolve() if path.is_file() else None


def run_until(goal: float, text: Path) -> tuple[float, float, float]:
    """Run the recipe from the command line, with an empty cache, until an evaluation reaches the goal.

    Returns (loss, seconds since the process started, wall_seconds of the training as logged by the run).
    """
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder, "checkpoints", RECIPE.stem, "metrics.jsonl")
        command = [sys.executable, "-m", "llm_lab", "run", str(RECIPE), f"data.0.path={text}", "device=cpu"]
        start = time.perf_counter()
        with open(Path(folder, "output"), "w+") as output:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, "LLM_LAB_CACHE": folder, "PYTHONPATH": str(RECIPE.parent.parent)},
                stdout=output,
                stderr=output,
            )
            try:
                while time.perf_counter() - start < LONGEST_SECONDS:
                    time.sleep(0.05)
                    ended = process.poll() is not None
                    rows = metrics.read_text().splitlines() if metrics.exists() else []
                    for row in map(json.loads, (line for line in rows if line.endswith("}"))):
                        if row.get("eval_loss", goal + 1) <= goal:
                            return row["eval_loss"], time.perf_counter() - start, row["wall_seconds"]
                    if ended:
                        break
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
                    process.wait()
            output.seek(0)
            raise SystemExit(f"{RECIPE.name} did not reach {goal}:\n{output.read()[-2000:]}")


def bench(full: bool) -> None:
    """Print the time of the loop and of the recipe, measured in turn."""
    print(f"Tiny Shakespeare to {GOAL_NATS} nats per byte, {RECIPE.name}, on the CPU:\n")
    text = find_text()
    if text is None:
        print("Not measured: save tiny Shakespeare as ./input.txt or set $TINY_SHAKESPEARE to its path.")
        return
    steps: list[float] = []
    runs = []
    for _ in range(ROUNDS * (2 if full else 1)):
        steps += train_in_process("gpt-loop", MEASURED_STEPS).seconds
        runs.append(run_until(GOAL_NATS, text))
    steps += train_in_process("gpt-loop", MEASURED_STEPS).seconds
    loop = LOOP_STEPS * statistics.median(steps)
    print("| what | seconds | share of the loop's | goal |\n| --- | --- | --- | --- |")
    print(
        f"| GPT-2-shaped loop: {LOOP_STEPS:,} steps of {1e3 * statistics.median(steps):.1f} ms "
        f"({1e3 * min(steps):.1f} to {1e3 * max(steps):.1f}) | {loop:.1f} | | |"
    )
    for index, words, target in (
        (2, "the recipe's training up to the evaluation that passes", "0.20"),
        (1, "the same including start-up and reading data", "0.30"),
    ):
        seconds = [run[index] for run in runs]
        spread = f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
        print(f"| {words} | {spread} | {statistics.median(seconds) / loop:.2f} | at most {target} |")
    print(f"\nLosses at that evaluation: {', '.join(f'{run[0]:.4f}' for run in runs)}")
