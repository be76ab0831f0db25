"""The doctor shows what this machine can do."""

from dataclasses import replace

import pytest

from llm_lab.estimate import machine as doctor
from llm_lab.estimate.machine import Gpu, find_machine

H100 = Gpu("NVIDIA H100 80GB HBM3", 80 * 2**30, (9, 0))


@pytest.mark.parametrize(
    ("gpus", "flash", "text"),
    [
        ((), False, "sdpa, eager; default: sdpa"),
        ((), True, "sdpa, eager; default: sdpa"),
        ((H100,), False, "sdpa, eager, flex_attention; default: sdpa"),
        ((H100,), True, "flash_attention_2; default: flash_attention_2 where it supports the parts"),
    ],
)
def test_doctor_lists_the_kernels_that_the_plan_chooses_from(gpus, flash, text):
    machine = replace(find_machine(), gpus=gpus, has_flash_attention=flash)
    (finding,) = doctor._attention(machine)
    assert text in finding.text


def test_doctor_checks_everything_and_explains_each_finding():
    findings = doctor.examine()
    assert {"CPU", "memory", "bf16 CUDA", "torch.compile", "attention kernels", "versions"} <= {
        f.name for f in findings
    }
    assert all(finding.text and finding.status in ("good", "warn", "bad") for finding in findings)
    assert all(finding.fix for finding in findings if finding.status == "bad")
