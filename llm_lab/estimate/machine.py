"""What this machine has, found without torch so that the menu stands at once."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass

# Dense bf16 peaks in FLOP/s by a word in the GPU's name, from the makers' data sheets.
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


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU."""

    name: str
    memory_bytes: int
    compute_capability: tuple[int, int]

    @property
    def does_bf16(self) -> bool:
        """Ampere and later do bf16 in hardware."""
        return self.compute_capability >= (8, 0)

    @property
    def bf16_peak_flops(self) -> float | None:
        return next((peak for word, peak in BF16_PEAKS.items() if word in self.name), None)


@dataclass(frozen=True)
class Machine:
    """What there is to train on."""

    gpus: tuple[Gpu, ...]
    cpu_name: str
    cpu_cores: int
    memory_bytes: int
    has_compiler: bool  # a C++ compiler, which torch.compile needs on a CPU
    cpu_bf16_is_fast: bool  # AMX or AVX-512 BF16: bf16 products in hardware
    processes: int = 1  # that train together, one a GPU (run --nproc)
    has_flash_attention: bool = False  # the package flash-attn
    has_bitsandbytes: bool = False

    @property
    def cuda_problem(self) -> str | None:
        """Why `device: cuda` can't be had here, or None."""
        if not self.gpus:
            return "no NVIDIA GPU was found"
        if not self.gpus[0].does_bf16:
            major, minor = self.gpus[0].compute_capability
            return (
                f"{self.gpus[0].name} (compute capability {major}.{minor}) has no bf16; it takes 8.0 (Ampere) or later"
            )
        return None

    @property
    def best_device(self) -> str:
        return "cpu" if self.cuda_problem else "cuda"

    def describe(self) -> str:
        """Return one line for people."""
        memory = f"{self.memory_bytes / 2**30:.0f} GiB"
        cpu = f"{self.cpu_cores} CPU cores, {memory}"
        if not self.gpus:
            return f"no GPU, {cpu}"
        first = self.gpus[0]
        many = f"{len(self.gpus)} × " if len(self.gpus) > 1 else ""
        bf16 = "bf16" if first.does_bf16 else "no bf16"
        return f"{many}{first.name} ({first.memory_bytes / 2**30:.0f} GiB, {bf16}), {cpu}"


@functools.lru_cache(maxsize=1)
def find_machine() -> Machine:
    """Look at this machine. Takes a few milliseconds; nothing heavy is imported."""
    import psutil

    return Machine(
        gpus=_find_gpus(),
        cpu_name=_cpu_name(),
        cpu_cores=_usable_cores(),
        memory_bytes=psutil.virtual_memory().total,
        has_compiler=any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "g++", "clang++")),
        processes=int(os.environ.get("WORLD_SIZE", "1")),
        has_flash_attention=importlib.util.find_spec("flash_attn") is not None,
        has_bitsandbytes=importlib.util.find_spec("bitsandbytes") is not None,
        cpu_bf16_is_fast=any(flag in _cpu_flags().split() for flag in ("amx_bf16", "avx512_bf16")),
    )


def _find_gpus() -> tuple[Gpu, ...]:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        return ()  # no driver, so no NVIDIA GPU that could be used
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            name = pynvml.nvmlDeviceGetName(handle)
            found.append(
                Gpu(
                    name=name.decode() if isinstance(name, bytes) else name,
                    memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                    compute_capability=tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
                )
            )
        return _visible(found)
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def _visible(gpus: list[Gpu]) -> tuple[Gpu, ...]:
    """Keep what CUDA_VISIBLE_DEVICES leaves, as torch will see it."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return tuple(gpus)
    picked = []
    for word in wanted.split(","):
        if word.strip().isdigit() and int(word) < len(gpus):
            picked.append(gpus[int(word)])
        elif word.strip().startswith(("GPU-", "MIG-")):
            picked.append(gpus[0])
        else:
            break
    return tuple(picked)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
