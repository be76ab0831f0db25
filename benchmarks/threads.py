"""Training speed on a CPU next to other work: the threads that a run chooses against the fixed choices.

python -m benchmarks.threads [--rounds N]    (about four minutes a round; on an otherwise idle machine)

Each round runs all variants once, in another order, without and with a process that keeps one core busy. Tokens/s are
those of the run's own log, the median of its last rows; the table has the median and the range over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ALL, SPINS = {"OMP_NUM_THREADS": str(os.cpu_count())}, "GOMP_SPINCOUNT"  # 300,000 unless set: about 3 ms
VARIANTS: dict[str, dict[str, str]] = {
    "chosen by the run": {},
    "all cores, the run chooses how they wait": ALL,
    "all cores, spinning": ALL | {SPINS: "300000"},
    "all cores, spinning shortly": ALL | {SPINS: "1000"},
    "all cores, sleeping": ALL | {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
STEPS = 80
RECIPE = {
    "stage": "pretrain", "name": "threads", "device": "cpu", "model": {"size": "nano"},
    "data": [{"path": "builtin:stories"}], "samples": {"max_new_tokens": 1},
    "train": {"max_steps": STEPS, "eval_steps": STEPS, "save_steps": STEPS, "logging_steps": 10, "compile": False},
}  # fmt: skip


@contextmanager
def busy_process(wanted: bool) -> Iterator[None]:
    """Keep one core busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if wanted else None
    try:
        yield
    finally:
        if process:
            process.kill()
            process.wait()


def speed_of(environment: dict[str, str]) -> float:
    """Return the tokens/s of a run in a process of its own."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    clean["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), clean.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "threads.yaml").write_text(json.dumps(RECIPE))  # JSON is YAML
        command = [sys.executable, "-m", "llm_lab.cli", "run", "threads.yaml"]
        subprocess.run(command, cwd=folder, env=clean | environment, check=True, capture_output=True)
        lines = Path(folder, "checkpoints", "threads", "metrics.jsonl").read_text().splitlines()
        speeds = [row["tokens_per_second"] for row in map(json.loads, lines) if "tokens_per_second" in row]
    return statistics.median(speeds[len(speeds) // 2 :])


def main() -> None:
    """Print a table for the idle machine and one with a busy core."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.threads")
    parser.add_argument("--rounds", type=int, default=1)
    rounds = parser.parse_args().rounds
    found: dict[tuple[str, bool], list[float]] = {}
    for number in range(rounds):
        order = [(name, busy) for name in VARIANTS for busy in (False, True)]
        random.Random(number).shuffle(order)
        for name, busy in order:
            with busy_process(busy):
                found.setdefault((name, busy), []).append(speed_of(VARIANTS[name]))
    print(f"{os.cpu_count()} cores, {rounds} rounds; load at the end: {os.getloadavg()[0]:.1f}\n")
    print("| threads | idle, tokens/s | next to a busy process |\n| --- | --- | --- |")
    for name in VARIANTS:
        speeds = (found[name, busy] for busy in (False, True))
        cells = (f"{statistics.median(some):,.0f} ({min(some):,.0f} to {max(some):,.0f})" for some in speeds)
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
