"""What this machine can do, found out by trying."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from .machine import Machine, find_machine

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


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. status: good, warn or bad; fix: what to do about it."""

    name: str
    status: str
    text: str
    fix: str = ""


def examine() -> list[Finding]:
    """Look at device, memory, kernels, compiler, disk, Hub and versions."""
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

    yield Finding("CPU", "good", f"{machine.cpu_name}, {machine.cpu_cores} cores, {torch.get_num_threads()} threads")
    yield Finding("memory", "good", f"{machine.memory_bytes / 2**30:.0f} GiB")
    for gpu in machine.gpus:
        major, minor = gpu.compute_capability
        text = f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB, compute capability {major}.{minor}"
        yield Finding("GPU", "good" if gpu.does_bf16 else "bad", text)
    if machine.cuda_problem:
        yield Finding(
            "bf16 CUDA", "warn", machine.cuda_problem, "Runs here are the CPU rehearsal: device=cpu or device=auto."
        )
    elif not torch.cuda.is_available():
        yield Finding(
            "bf16 CUDA",
            "bad",
            f"there is a GPU, but this torch ({torch.__version__}) can't use it",
            "Install a CUDA build of torch that fits the driver.",
        )
    else:
        yield Finding("bf16 CUDA", "good", f"yes, CUDA {torch.version.cuda}")
    if machine.cuda_problem:
        fast = "fast (in hardware)" if machine.cpu_bf16_is_fast else "not in hardware: float32 is the faster"
        yield Finding("bf16 on the CPU", "good", fast)


def _compiler(machine: Machine) -> Iterator[Finding]:
    if machine.has_compiler:
        yield Finding("torch.compile", "good", "a C++ compiler is there")
    else:
        yield Finding("torch.compile", "warn", "no C++ compiler: CPU runs are not compiled", "Install g++ or clang.")


def _attention(machine: Machine) -> Iterator[Finding]:
    kernels = ["sdpa", "eager"]
    if not machine.cuda_problem:
        kernels.append("flex_attention")
        if machine.has_flash_attention:
            kernels.append("flash_attention_2")
    taken = "flash_attention_2 where the parts allow it" if "flash_attention_2" in kernels else "sdpa"
    yield Finding("attention kernels", "good", f"{', '.join(kernels)}; taken unless a recipe says otherwise: {taken}")


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(os.getcwd()).free
    status = "good" if free > 5 * 2**30 else "warn"
    yield Finding(
        "free disk here", status, f"{free / 2**30:.0f} GiB", "" if status == "good" else "Checkpoints need room."
    )


def _hub() -> Iterator[Finding]:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield Finding("Hugging Face Hub", "warn", "switched off by HF_HUB_OFFLINE")
        return
    import socket
    from urllib.parse import urlparse

    from huggingface_hub import constants, get_token

    host = urlparse(constants.ENDPOINT).hostname or ""
    try:
        socket.create_connection((host, 443), timeout=HUB_SECONDS).close()
    except OSError:
        yield Finding("Hugging Face Hub", "warn", "not reachable", "Local files, folders and builtin:stories work.")
        return
    signed_in = "signed in" if get_token() else "not signed in (hf auth login), which gated models and sets need"
    yield Finding("Hugging Face Hub", "good", f"reachable, {signed_in}")


def _versions() -> Iterator[Finding]:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} -")
    yield Finding("versions", "good", ", ".join(found))
