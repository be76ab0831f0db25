"""`make bench`, or `python -m benchmarks NAME ... [--full]`: what can be measured here, in Markdown for RESULTS.md.

What is compared is measured in one run, in turn (A B A B ...): medians, with the range in brackets.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Callable

from . import chatting, optimizers, reading, shakespeare, start, step
from .gpu import summary

BENCHES: dict[str, Callable[[bool], None]] = {
    "step": step.bench,
    "memory": step.bench_memory,
    "shakespeare": shakespeare.bench,
    "optimizers": optimizers.bench,
    "reading": reading.bench,
    "start": start.bench,
    "chat": chatting.bench,
    "gpu": summary.bench,
}


def describe_machine() -> str:
    """Return machine, versions and commit in a line."""
    from importlib.metadata import version

    from llm_lab.estimate.machine import find_machine

    machine = find_machine()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers"))
    return f"{machine.describe()} ({machine.cpu_name}); {versions}; commit {commit.stdout.strip()}"


def main() -> None:
    """Print the tables that are asked for, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(BENCHES)}; left out: all")
    parser.add_argument("--full", action="store_true", help="longer runs, for numbers to keep")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(BENCHES))
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}: choose from {', '.join(BENCHES)}")
    print(describe_machine(), flush=True)
    for name in arguments.names or BENCHES:
        print(f"\n## {name}\n", flush=True)
        BENCHES[name](arguments.full)


if __name__ == "__main__":
    main()
