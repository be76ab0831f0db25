"""Helpers of the GPU measurements: the check for a GPU, and timing with CUDA events.

python -m benchmarks.gpu.cuda  prints the machine and the versions of the libraries.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("accelerate", "bitsandbytes", "datasets", "flash-attn", "numpy", "peft", "transformers", "triton", "trl")


def require_gpu() -> Any:
    """Return the machine. Without a CUDA GPU that supports bf16, print one line and exit with code 3."""
    from llm_lab.estimate.machine import find_machine

    machine = find_machine()
    if machine.cuda_problem:
        print(f"GPU: not measured ({machine.cuda_problem}).", file=sys.stderr)
        raise SystemExit(3)
    return machine


def time_once(work: Callable[[], object]) -> float:
    """Return the milliseconds that the GPU takes for the work, up to its last kernel."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def median_time(work: Callable[[], object], *, rounds: int = 20, warmup: int = 3) -> float:
    """Return the median of `rounds` timings in milliseconds."""
    for _ in range(warmup):
        work()
    return statistics.median(time_once(work) for _ in range(rounds))


def main() -> None:
    """Print the machine, CUDA and the versions of the libraries."""
    import torch

    from benchmarks.__main__ import describe_machine

    require_gpu()
    print(describe_machine())
    gpu = torch.cuda.get_device_properties(0)
    print(f"{gpu.name}, {gpu.multi_processor_count} SMs, {gpu.total_memory / 2**30:.2f} GiB")
    print(f"Python {sys.version.split()[0]}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    print(", ".join(f"{package} {_version(package)}" for package in PACKAGES))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
