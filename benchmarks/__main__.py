"""`make bench`, or `python -m benchmarks NAME ... [--full]`: run benchmarks and print Markdown tables for RESULTS.md.

Candidates of a comparison alternate in one run (A B A B ...). Figures are medians with the range in brackets.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Callable

from . import chatting, optimizers, reading, rollouts, shakespeare, start, step
from .gpu import summary

BENCHES: dict[str, Callable[[bool], None]] = {
    "step": step.bench,
    "memory": step.bench_memory,
    "shakespeare": shakespeare.bench,
    "optimizers": optimizers.bench,
    "reading": reading.bench,
    "start": start.bench,
    "chat": chatting.bench,
    "rollouts": rollouts.bench,
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
    """Run the benchmarks that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHES)} (default: all)")
    parser.add_argument("--full", action="store_true", help="longer runs, for figures worth recording")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(BENCHES))
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}; choose from {', '.join(BENCHES)}")
    print(describe_machine(), flush=True)
    for name in arguments.names or BENCHES:
        print(f"\n## {name}\n", flush=True)
        BENCHES[name](arguments.full)


if __name__ == "__main__":
    main()
