"""The most memory that was held at once: on a GPU by tensors, on a CPU by the whole process."""

from __future__ import annotations

import contextlib
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak_memory(device: str) -> None:
    """Begin to watch anew, so that an earlier stage's peak is not taken for this one's."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")  # Linux: sets the high-water mark to what is held now


def peak_memory_bytes(device: str) -> int:
    """Return the peak since the last forget_peak_memory (where the system can't forget: of the process)."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError, StopIteration):
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import psutil

    process = psutil.Process().memory_info()
    return getattr(process, "peak_wset", process.rss)
