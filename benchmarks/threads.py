"""Training speed on a CPU next to other work: the threads that a run chooses against the fixed choices.

python -m benchmarks.threads [--rounds N] [--steps N]    (about four minutes a round; on an otherwise idle machine)

Each round runs all variants once, in a different order, without and with a process that keeps one core busy. Tokens/s
are the median of the last rows of the run's own log, printed as soon as they are known. The table has the median and
the range over the rounds, and belongs in RESULTS.md, under "Threads next to other work". A run should reach at least 90
% of the best fixed choice.
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

ALL, SPINS = {"OMP_NUM_THREADS": str(os.cpu_count())}, "GOMP_SPINCOUNT"  # 300,000 by default: about 3 ms
VARIANTS: dict[str, dict[str, str]] = {
    "chosen by the run": {},
    "all cores, the run chooses how they wait": ALL,
    "all cores, spinning": ALL | {SPINS: "300000"},
    "all cores, spinning shortly": ALL | {SPINS: "1000"},
    "all cores, sleeping": ALL | {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
FIXED = ("all cores, spinning", "all cores, sleeping", "one thread")
RECIPE = {
    "stage": "pretrain", "name": "threads", "device": "cpu", "model": {"size": "nano"},
    "data": [{"path": "builtin:stories"}], "samples": {"max_new_tokens": 1}, "scheduler": {"warmup_steps": 0},
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


def speed_of(environment: dict[str, str], steps: int) -> float:
    """Return the tokens/s of a run in a process of its own."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    clean["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), clean.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        train = dict.fromkeys(("max_steps", "eval_steps", "save_steps"), steps) | {
            "logging_steps": 10,
            "compile": False,
        }
        Path(folder, "threads.yaml").write_text(json.dumps(RECIPE | {"train": train}))  # JSON is YAML
        command = [sys.executable, "-m", "llm_lab.cli", "run", "threads.yaml"]
        subprocess.run(command, cwd=folder, env=clean | environment, check=True, stdout=subprocess.DEVNULL)
        lines = Path(folder, "checkpoints", "threads", "metrics.jsonl").read_text().splitlines()
        speeds = [row["tokens_per_second"] for row in map(json.loads, lines) if "tokens_per_second" in row]
    return statistics.median(speeds[len(speeds) // 2 :])


def main() -> None:
    """Print a table for the idle machine and one with a busy core."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.threads")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=80, help="of a run, a multiple of 10; fewer only to try this out")
    arguments = parser.parse_args()
    rounds = arguments.rounds
    found: dict[tuple[str, bool], list[float]] = {}
    for number in range(rounds):
        order = [(name, busy) for name in VARIANTS for busy in (False, True)]
        random.Random(number).shuffle(order)
        for name, busy in order:
            with busy_process(busy):
                speed = speed_of(VARIANTS[name], arguments.steps)
            found.setdefault((name, busy), []).append(speed)
            print(f"{name}, {'next to a busy process' if busy else 'idle'}: {speed:,.0f}", flush=True)
    print(f"\n{os.cpu_count()} cores, {rounds} rounds; load at the end: {os.getloadavg()[0]:.1f}\n")
    print("| threads | idle, tokens/s | next to a busy process |\n| --- | --- | --- |")
    for name in VARIANTS:
        speeds = (found[name, busy] for busy in (False, True))
        cells = (f"{statistics.median(some):,.0f} ({min(some):,.0f} to {max(some):,.0f})" for some in speeds)
        print(f"| {name} | {' | '.join(cells)} |")
    for busy in (False, True):
        chosen, *fixed = (statistics.median(found[name, busy]) for name in ("chosen by the run", *FIXED))
        where = "next to a busy process" if busy else "idle"
        print(f"{where}: the run reaches {100 * chosen / max(fixed):.0f} % of the best fixed choice")


if __name__ == "__main__":
    main()
