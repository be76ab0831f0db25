"""What hardware this machine has, found without torch, and what works on it, found by trying."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import platform
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .formatting import plural

# Dense bf16 peaks in FLOP/s by a part of the GPU's name, from the data sheets.
BF16_PEAKS = {
    "B200": 2.25e15,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "GH200": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 150e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 6000 Ada": 364e12,
    "RTX A6000": 155e12,
    "RTX 5090": 210e12,
    "RTX 4090": 165e12,
    "RTX 4080": 97e12,
    "RTX 3090": 71e12,
    "RTX 3080": 59e12,
}

# For other GPUs: dense bf16 FLOP per clock and streaming multiprocessor (SM) by compute capability, and cores per SM.
FLOP_PER_CLOCK = {8: 1024, 9: 4096, 10: 8192, 12: 1024}
CORES_PER_SM = 128
A100_CAPABILITY = (8, 0)  # 64 cores per SM, and twice the FLOP per clock of other GPUs of capability 8

PACKAGES = [
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "accelerate",
    "tokenizers",
    "safetensors",
    "pydantic",
    "questionary",
    "rich",
    "lion-pytorch",
    "flash-attn",
    "bitsandbytes",
]
HUB_SECONDS = 3.0
_FINDING = threading.Lock()  # the wizard finds the machine in a thread while it imports other modules


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU."""

    name: str
    memory_bytes: int
    compute_capability: tuple[int, int]
    cores: int = 0  # CUDA cores; 0: not known
    clock_hz: float = 0.0  # the highest clock of the SMs

    @property
    def does_bf16(self) -> bool:
        """Whether the GPU has bf16 in hardware: Ampere and later."""
        return self.compute_capability >= (8, 0)

    @property
    def bf16_peak_flops(self) -> float | None:
        """The dense bf16 peak: from the data sheet, else from the SMs at their highest clock; None if unknown."""
        named = (peak for word, peak in BF16_PEAKS.items() if re.search(rf"{word}(?!\w)", self.name))
        is_as_named = "Laptop" not in self.name and "Max-Q" not in self.name and " MIG " not in self.name
        known = next(named, None) if is_as_named else None
        return known or self._peak_of_cores()

    def _peak_of_cores(self) -> float | None:
        per_clock = FLOP_PER_CLOCK.get(self.compute_capability[0], 0)
        if "GeForce" in self.name or "TITAN" in self.name:
            per_clock //= 2  # float32 accumulation runs at half speed
        cores = CORES_PER_SM
        if self.compute_capability == A100_CAPABILITY:
            per_clock, cores = 2 * per_clock, cores // 2
        return self.cores / cores * per_clock * self.clock_hz or None


@dataclass(frozen=True)
class Machine:
    """The hardware and packages to train with."""

    gpus: tuple[Gpu, ...]
    cpu_name: str
    cpu_cores: int
    memory_bytes: int
    has_compiler: bool  # a C++ compiler, which torch.compile needs on a CPU
    cpu_bf16_is_fast: bool  # AMX or AVX-512 BF16
    processes: int = 1  # processes that train together, one per GPU (run --nproc)
    has_flash_attention: bool = False  # the package flash-attn
    has_bitsandbytes: bool = False

    @property
    def cuda_problem(self) -> str | None:
        """Why `device: cuda` is not available, or None."""
        if not self.gpus:
            return "no NVIDIA GPU was found"
        if not self.gpus[0].does_bf16:
            major, minor = self.gpus[0].compute_capability
            name = f"{self.gpus[0].name} (compute capability {major}.{minor})"
            return f"{name} has no bf16 support, which requires 8.0 (Ampere) or later"
        return None

    @property
    def best_device(self) -> str:
        return "cpu" if self.cuda_problem else "cuda"

    def describe(self) -> str:
        """Return the machine in one line."""
        memory = f"{self.memory_bytes / 2**30:.0f} GiB"
        cpu = f"{self.cpu_cores} CPU cores, {memory}"
        if not self.gpus:
            return f"no GPU, {cpu}"
        first = self.gpus[0]
        many = f"{len(self.gpus)} × " if len(self.gpus) > 1 else ""
        bf16 = "bf16" if first.does_bf16 else "no bf16"
        return f"{many}{first.name} ({first.memory_bytes / 2**30:.0f} GiB, {bf16}), {cpu}"


def find_machine() -> Machine:
    """Return this machine. Takes a few milliseconds, plus the time of the GPU's driver; nothing heavy is imported."""
    with _FINDING:
        found = _find_machine()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return found if found.processes == processes else replace(found, processes=processes)


@functools.lru_cache(maxsize=1)
def _find_machine() -> Machine:
    return Machine(
        gpus=_find_gpus(),
        cpu_name=_cpu_name(),
        cpu_cores=_usable_cores(),
        memory_bytes=_memory_bytes(),
        has_compiler=any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "g++", "clang++")),
        has_flash_attention=importlib.util.find_spec("flash_attn") is not None,
        has_bitsandbytes=importlib.util.find_spec("bitsandbytes") is not None,
        cpu_bf16_is_fast=any(flag in _cpu_flags().split() for flag in ("amx_bf16", "avx512_bf16")),
    )


def _find_gpus() -> tuple[Gpu, ...]:
    try:
        if sys.platform == "linux":
            ctypes.CDLL("libnvidia-ml.so.1")  # without this library, the slow import below is useless
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        return ()  # no driver, so no usable NVIDIA GPU
    try:
        found, uuids = [], []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            name, uuid = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetUUID(handle)
            uuids.append(uuid.decode() if isinstance(uuid, bytes) else uuid)
            found.append(
                Gpu(
                    name=name.decode() if isinstance(name, bytes) else name,
                    memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                    compute_capability=tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
                    cores=_ask(pynvml.nvmlDeviceGetNumGpuCores, handle),
                    clock_hz=1e6 * _ask(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_SM),
                )
            )
        return _visible(found, uuids)
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def _ask(question: Callable[..., int], *about: Any) -> int:
    """Return the driver's answer, or 0 if it has none."""
    import pynvml

    try:
        return int(question(*about))
    except pynvml.NVMLError:
        return 0


def _visible(gpus: list[Gpu], uuids: list[str]) -> tuple[Gpu, ...]:
    """Keep the GPUs that CUDA_VISIBLE_DEVICES shows to torch: it ends at the first entry that is not valid."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return tuple(gpus)
    picked = []
    for word in map(str.strip, wanted.split(",")):
        if word.isdigit() and int(word) < len(gpus):
            picked.append(gpus[int(word)])
        elif word.startswith("GPU-") and (named := [uuid.startswith(word) for uuid in uuids]).count(True) == 1:
            picked.append(gpus[named.index(True)])
        elif word.startswith("MIG-") and gpus:
            picked.append(gpus[0])  # the driver does not say here which GPU it is a part of
        else:
            break
    return tuple(picked)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on every system; psutil takes longer to import
        import psutil

        return psutil.virtual_memory().total


def _cpuinfo(key: str) -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip() == key:
                    return value.strip()
    except OSError:
        pass
    return ""


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> str:
    return _cpuinfo("flags")


# --- doctor


@dataclass(frozen=True)
class Finding:
    """One thing that was checked. status: good, warn or bad; fix: what to do about it."""

    name: str
    status: str
    text: str
    fix: str = ""


def examine() -> list[Finding]:
    """Check device, memory, kernels, compiler, disk, Hub and versions. Imports torch."""
    machine = find_machine()
    return [
        *_devices(machine),
        *_compiler(machine),
        *_attention(machine),
        *_disk(),
        *_hub(),
        *_versions(),
    ]


def _devices(machine: Machine) -> Iterator[Finding]:
    import torch

    cores, threads = plural(machine.cpu_cores, "core"), plural(torch.get_num_threads(), "thread")
    why = " (OMP_NUM_THREADS)" if os.environ.get("OMP_NUM_THREADS") else ""
    yield Finding("CPU", "good", f"{machine.cpu_name}, {cores}; PyTorch uses {threads}{why}")
    yield Finding("memory", "good", f"{machine.memory_bytes / 2**30:.0f} GiB")
    for gpu in machine.gpus:
        major, minor = gpu.compute_capability
        text = f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB, compute capability {major}.{minor}"
        yield Finding("GPU", "good" if gpu.does_bf16 else "bad", text)
    if machine.cuda_problem:
        yield Finding("bf16 CUDA", "warn", machine.cuda_problem, "Use CPU mode: device=cpu or device=auto.")
    elif not torch.cuda.is_available():
        yield Finding(
            "bf16 CUDA",
            "bad",
            f"there is a GPU, but torch {torch.__version__} can't use it",
            "Install a CUDA build of torch that supports the driver.",
        )
    else:
        yield Finding("bf16 CUDA", "good", f"yes, CUDA {torch.version.cuda}")
    if machine.cuda_problem:
        fast = "fast (in hardware)" if machine.cpu_bf16_is_fast else "not in hardware: float32 is faster"
        yield Finding("bf16 on the CPU", "good", fast)


def _compiler(machine: Machine) -> Iterator[Finding]:
    if machine.has_compiler:
        yield Finding("torch.compile", "good", "a C++ compiler is installed")
    else:
        yield Finding("torch.compile", "warn", "no C++ compiler, so CPU runs are not compiled", "Install g++ or clang.")


def _attention(machine: Machine) -> Iterator[Finding]:
    kernels = ["sdpa", "eager"]
    if not machine.cuda_problem:
        kernels.append("flex_attention")
        if machine.has_flash_attention:
            kernels.append("flash_attention_2")
    default = "sdpa"
    if "flash_attention_2" in kernels:
        default = "flash_attention_2 in pretraining, where it supports the parts; else sdpa"
    yield Finding("attention kernels", "good", f"{', '.join(kernels)}; default: {default}")


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(os.getcwd()).free
    status = "good" if free > 5 * 2**30 else "warn"
    yield Finding(
        "free disk space", status, f"{free / 2**30:.0f} GiB", "" if status == "good" else "Checkpoints need disk space."
    )


def _hub() -> Iterator[Finding]:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield Finding("Hugging Face Hub", "warn", "disabled by HF_HUB_OFFLINE")
        return
    import socket
    from urllib.parse import urlparse

    from huggingface_hub import constants, get_token

    host = urlparse(constants.ENDPOINT).hostname or ""
    try:
        socket.create_connection((host, 443), timeout=HUB_SECONDS).close()
    except OSError:
        yield Finding("Hugging Face Hub", "warn", "not reachable", "Local files, folders and built-in data work.")
        return
    signed_in = "signed in" if get_token() else "not signed in (hf auth login), which gated models and datasets require"
    yield Finding("Hugging Face Hub", "good", f"reachable, {signed_in}")


def _versions() -> Iterator[Finding]:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} -")
    yield Finding("versions", "good", ", ".join(found))
