"""Runs of release 0.1.0, unpacked for a test; see tests/fixtures/README.md."""

import functools
import json
import shutil
import tarfile
from pathlib import Path

ARCHIVE = Path(__file__).resolve().parent.parent / "fixtures" / "runs-0.1.0.tar.xz"
# These are measured, so they differ in each run. In that release, bits_per_byte counted the ends of documents and
# average bytes.
VARIES = {"wall_seconds", "tokens_per_second", "memory_bytes", "bits_per_byte"}
PAIRS = {"tiny": 40, "tiny-dpo": 10, "tiny-grpo": 8}  # {run that exists undisturbed and as X-stopped: number of steps}


def unpack(folder: Path) -> Path:
    """Unpack `checkpoints/` and `recipes/` into a folder and return it."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def copy_to(folder: Path, unpacked: Path) -> Path:
    """Copy the unpacked runs into a folder that a test may change."""
    return Path(shutil.copytree(unpacked, folder, dirs_exist_ok=True))


@functools.cache
def computes_same_bits() -> bool:
    """Return whether this machine is expected to compute the recorded numbers to the last bit.

    The runs were made with torch 2.13 on an AMD processor with AVX-512; other processors and other versions of torch
    add up products in a different order.
    """
    import torch  # here, because xdist's own process imports this module too, and runs no test

    cpu = Path("/proc/cpuinfo")
    is_amd = cpu.is_file() and "AuthenticAMD" in cpu.read_text()
    return torch.__version__.startswith("2.13.") and is_amd and torch.backends.cpu.get_cpu_capability() == "AVX512"


def read_metrics(run: Path) -> list[dict]:
    """Return the rows of metrics.jsonl, without the keys that differ from run to run."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in VARIES} for row in rows]


def read_weights(run: Path) -> dict[str, bytes]:
    """Return the bytes of every file of weights in a run's model, by name."""
    return {file.name: file.read_bytes() for file in sorted((run / "model").glob("*.safetensors"))}
