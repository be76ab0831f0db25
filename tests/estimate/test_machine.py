"""The doctor shows what this machine can do."""

import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from llm_lab.estimate import machine as doctor
from llm_lab.estimate.machine import Gpu, find_machine

H100 = Gpu("NVIDIA H100 80GB HBM3", 80 * 2**30, (9, 0))


def nvml_with(uuids: list[str]) -> SimpleNamespace:
    """Return NVIDIA's library as it is on a machine with GPUs called gpu-0, gpu-1 ..."""
    return SimpleNamespace(
        NVMLError=OSError,
        NVML_CLOCK_SM=1,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: len(uuids),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: f"gpu-{handle}".encode(),
        nvmlDeviceGetUUID=lambda handle: uuids[handle],
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=80 * 2**30),
        nvmlDeviceGetCudaComputeCapability=lambda handle: (9, 0),
        nvmlDeviceGetNumGpuCores=lambda handle: 16896,
        nvmlDeviceGetMaxClockInfo=lambda handle, clock: 1980,
    )


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, ["gpu-0", "gpu-1"]),
        ("1", ["gpu-1"]),
        ("1,0", ["gpu-1", "gpu-0"]),
        ("GPU-bbbb-1", ["gpu-1"]),
        ("GPU-b, GPU-aaaa", ["gpu-1", "gpu-0"]),
        ("GPU-", []),  # of more than one GPU
        ("1,-1,0", ["gpu-1"]),
        ("", []),
    ],
)
def test_the_gpus_are_those_that_cuda_visible_devices_shows(monkeypatch, visible, found):
    monkeypatch.setitem(sys.modules, "pynvml", nvml_with(["GPU-aaaa-0", "GPU-bbbb-1"]))
    monkeypatch.setattr(doctor.ctypes, "CDLL", lambda name: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.name for gpu in doctor._find_gpus()] == found


def test_without_a_gpu_a_device_in_the_environment_shows_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", nvml_with([]))
    monkeypatch.setattr(doctor.ctypes, "CDLL", lambda name: None)
    for visible in ("0", "GPU-aaaa", "MIG-aaaa"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert doctor._find_gpus() == ()


@pytest.mark.parametrize(
    ("gpus", "flash", "text"),
    [
        ((), False, "sdpa, eager; default: sdpa"),
        ((), True, "sdpa, eager; default: sdpa"),
        ((H100,), False, "sdpa, eager, flex_attention; default: sdpa"),
        ((H100,), True, "default: flash_attention_2 in pretraining, where it supports the parts; else sdpa"),
    ],
)
def test_doctor_lists_the_kernels_that_the_plan_chooses_from(gpus, flash, text):
    machine = replace(find_machine(), gpus=gpus, has_flash_attention=flash)
    (finding,) = doctor._attention(machine)
    assert text in finding.text


def test_doctor_says_how_many_threads_pytorch_uses_and_why(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert next(doctor._devices(doctor.find_machine())).text.endswith("(OMP_NUM_THREADS)")
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert re.search(r", \d+ cores?; PyTorch uses \d+ threads?$", next(doctor._devices(doctor.find_machine())).text)


def test_doctor_checks_everything_and_explains_each_finding():
    findings = doctor.examine()
    assert {"CPU", "memory", "bf16 CUDA", "torch.compile", "attention kernels", "versions"} <= {
        f.name for f in findings
    }
    assert all(finding.text and finding.status in ("good", "warn", "bad") for finding in findings)
    assert all(finding.fix for finding in findings if finding.status == "bad")
