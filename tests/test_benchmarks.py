"""The benchmarks: each can be run by anyone, and says what it could not measure."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import shakespeare, step
from benchmarks.__main__ import BENCHES
from benchmarks.candidates import NAMES, VOCABULARY, llama_config
from benchmarks.gpt import Gpt
from llm_lab.estimate.machine import find_machine

ROOT = Path(__file__).resolve().parent.parent


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_an_unknown_benchmark_is_told_with_those_there_are():
    done = command("benchmarks", "stepp")
    assert done.returncode == 2
    assert "stepp" in done.stderr
    assert all(name in done.stderr for name in BENCHES)


@pytest.mark.skipif(find_machine().cuda_problem is None, reason="there is a GPU to measure")
def test_without_a_gpu_its_part_says_that_it_was_not_measured():
    done = command("benchmarks", "gpu")
    assert done.returncode == 0
    assert "not measured" in done.stdout
    assert "torch" in done.stdout.splitlines()[0]


def test_without_the_text_shakespeare_says_that_it_was_not_measured(monkeypatch, capsys):
    monkeypatch.setattr(shakespeare, "find_text", lambda: None)
    shakespeare.bench(False)
    assert "Not measured" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_every_contender_trains_and_tells_time_and_memory(name):
    done = command("benchmarks.candidates", name, "40")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["seconds"]) >= 2
    assert all(seconds > 0 for seconds in found["seconds"])
    assert found["peak_bytes"] > found["training_bytes"] > 0
    assert found["parameters"] == pytest.approx(800_000, rel=0.06)


def test_the_gpt_of_the_comparison_sees_no_later_token_and_learns():
    torch.manual_seed(0)
    model = Gpt(61, 16, 2, 32, 2)
    ids = torch.randint(0, 61, (4, 17))
    x, y = ids[:, :-1], ids[:, 1:]
    changed = x.clone()
    changed[:, 9:] = 0
    early = y.clone()
    early[:, 9:] = -100
    torch.testing.assert_close(model.loss(changed, early), model.loss(x, early))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = model.loss(x, y).item()
    for _ in range(10):
        optimizer.zero_grad()
        model.loss(x, y).backward()
        optimizer.step()
    assert model.loss(x, y).item() < first - 0.5


def test_our_training_step_holds_no_more_tensors_than_the_librarys():
    from transformers import LlamaForCausalLM

    from llm_lab.hf.load import build_from_config
    from llm_lab.training.cpu import speed_up_products
    from llm_lab.training.pretrain_trainer import next_token_loss

    ids = torch.randint(0, VOCABULARY, (4, 65))
    x, y = ids[:, :-1], ids[:, 1:].contiguous()
    ours, stock = build_from_config(llama_config()).train(), LlamaForCausalLM(llama_config()).train()
    speed_up_products(ours, "AMD")
    mine = step.largest_memory(lambda: next_token_loss(ours, x, y, "cpu", "float32"))
    theirs = step.largest_memory(lambda: stock(input_ids=x, labels=x, shift_labels=y).loss)
    assert mine <= 1.01 * theirs
