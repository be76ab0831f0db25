"""`make bench`, or `python -m benchmarks NAME ... [--full]`: run benchmarks and print Markdown tables for RESULTS.md.

Candidates of a comparison alternate in one run (A B A B ...). Figures are medians with the range in brackets.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Callable

from . import chatting, fuzz, kills, optimizers, page, plan, reading, rollouts, shakespeare, start, step
from .gpu import summary

BENCHES: dict[str, Callable[..., None]] = {
    "step": step.bench,
    "memory": step.bench_memory,
    "shakespeare": shakespeare.bench,
    "optimizers": optimizers.bench,
    "reading": reading.bench,
    "start": start.bench,
    "chat": chatting.bench,
    "page": page.bench,
    "rollouts": rollouts.bench,
    "plan": plan.bench,
    "kills": kills.bench,
    "fuzz": fuzz.bench,
    "gpu": summary.bench,
}


def describe_machine() -> str:
    """Return the machine, the versions and the commit in one line."""
    from importlib.metadata import version

    from llm_lab.estimate.machine import find_machine

    machine = find_machine()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers"))
    return f"{machine.describe()} ({machine.cpu_name}); {versions}; commit {commit.stdout.strip()}"


def main() -> None:
    """Run the named benchmarks, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHES)} (default: all)")
    parser.add_argument("--full", action="store_true", help="longer runs, for figures worth recording")
    group = parser.add_argument_group("kills and fuzz")
    group.add_argument("--trials", type=int, help="how many runs are disturbed, or cases tried")
    group.add_argument("--seed", type=int, default=0, help="which ones, and how")
    group.add_argument("--only", metavar="NAME,...", help="only these")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(BENCHES))
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}; choose from {', '.join(BENCHES)}")
    print(describe_machine(), flush=True)
    for name in arguments.names or BENCHES:
        print(f"\n## {name}\n", flush=True)
        options = {"trials": arguments.trials, "seed": arguments.seed, "only": arguments.only}
        BENCHES[name](arguments.full, **(options if name in ("kills", "fuzz") else {}))


if __name__ == "__main__":
    main()
