"""The benchmarks: everyone can run them, and they report what they could not measure."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import shakespeare, start, step
from benchmarks.__main__ import BENCHES
from benchmarks.candidates import NAMES, VOCABULARY, Clock, llama_config, train_gpt_loop, train_llama_loop, train_stock
from benchmarks.gpt import Gpt
from benchmarks.gpu import pytest_failures
from benchmarks.gpu.muon_resume import resumes_exactly
from llm_lab.estimate.machine import find_machine

ROOT = Path(__file__).resolve().parent.parent
GPU_SCRIPTS = ("attention_kernels", "cuda", "generation", "muon_resume", "peak", "training_step")
without_gpu = pytest.mark.skipif(find_machine().cuda_problem is None, reason="this machine has a GPU")


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("file", sorted(ROOT.glob("benchmarks/**/*.py")), ids=lambda file: file.stem)
def test_everything_that_a_benchmark_imports_exists(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llm_lab"):
            module = importlib.import_module(node.module)
            for name in node.names:
                if not hasattr(module, name.name):
                    importlib.import_module(f"{node.module}.{name.name}")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a Unix terminal")
def test_the_start_up_benchmark_sees_the_first_prompt_and_the_help(tmp_path, monkeypatch):
    monkeypatch.setattr(start, "RUNS", 2)
    start._make_runs(tmp_path)
    for seconds, cpu in (start._to_prompt(str(tmp_path)), start._whole([*start.LAB, "--help"])):
        assert seconds > 0
        assert 0.01 < cpu < 10


def test_an_unknown_benchmark_is_refused_with_a_list_of_all():
    done = command("benchmarks", "stepp")
    assert done.returncode == 2
    assert "stepp" in done.stderr
    assert all(name in done.stderr for name in BENCHES)


@without_gpu
def test_without_a_gpu_the_gpu_benchmark_says_that_it_was_not_measured():
    done = command("benchmarks", "gpu")
    assert done.returncode == 0
    assert "not measured" in done.stdout
    assert "torch" in done.stdout.splitlines()[0]


@without_gpu
@pytest.mark.parametrize("name", GPU_SCRIPTS)
def test_without_a_gpu_each_gpu_script_exits_with_one_line(name, monkeypatch, capsys):
    script = importlib.import_module(f"benchmarks.gpu.{name}")
    monkeypatch.setattr(sys, "argv", [name, "baseline"])
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert stopped.value.code == 3
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("GPU: not measured (")
    assert output.err.count("\n") == 1


@without_gpu
def test_without_a_gpu_the_gpu_session_exits_with_one_line(tmp_path):
    environment = {**os.environ, "OUT": str(tmp_path), "PYTHON": sys.executable, "WHEELS": ""}
    script = ["bash", "benchmarks/gpu/run.sh"]
    done = subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert (done.stdout + done.stderr).startswith("GPU: not measured (")
    assert (done.stdout + done.stderr).count("\n") == 1


def test_the_gpu_session_runs_every_gpu_script_and_the_readme_describes_it():
    for text in ((ROOT / "benchmarks/gpu" / file).read_text() for file in ("run.sh", "README.md")):
        assert all(name in text for name in GPU_SCRIPTS if name != "cuda")


def test_the_wheels_for_a_gpu_machine_have_the_tested_versions():
    listed = (ROOT / "benchmarks/gpu/README.md").read_text().split("lacks these")[1].split("```")[1]
    wheels = dict(re.findall(r"([a-z][\w-]*) +([\d.]+)", listed))
    tested = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert len(wheels) == 17
    assert wheels.keys() - tested.keys() == {"bitsandbytes"}  # from the extra `cuda`
    assert {name: tested.get(name, version) for name, version in wheels.items()} == wheels


def test_muon_makes_the_same_step_after_its_state_was_saved_and_loaded():
    assert resumes_exactly("cpu")


def test_failures_of_gpu_tests_are_written_as_they_happen(tmp_path, monkeypatch):
    monkeypatch.setenv("FAILURES", str(tmp_path / "failures.txt"))
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    for failed in (True, False):
        report = SimpleNamespace(failed=failed, nodeid=f"test_{failed}", when="call", longreprtext="out of memory")
        pytest_failures.pytest_runtest_logreport(report)
    assert (tmp_path / "failures.txt").read_text() == "=== test_True (call)\nout of memory\n\n"


def test_without_its_text_the_shakespeare_benchmark_says_that_it_was_not_measured(monkeypatch, capsys):
    monkeypatch.setattr(shakespeare, "find_text", lambda: None)
    shakespeare.bench(False)
    assert "Not measured" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_implementation_trains_and_reports_time_and_memory(name):
    done = command("benchmarks.candidates", name, "40")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["seconds"]) >= 2
    assert all(seconds > 0 for seconds in found["seconds"])
    assert found["peak_bytes"] > found["training_bytes"] > 0
    assert found["parameters"] == pytest.approx(800_000, rel=0.06)


@pytest.mark.parametrize(
    "train",
    [train_gpt_loop, *(pytest.param(train, marks=pytest.mark.slow) for train in (train_stock, train_llama_loop))],
)
def test_each_implementation_for_comparison_trains_a_model_of_the_same_size_and_is_timed(train):
    clock = Clock()
    assert train(30, clock) == pytest.approx(800_000, rel=0.06)
    assert len(clock.seconds()) == 1
    assert all(seconds > 0 for seconds in clock.seconds())


def test_the_gpt_of_the_comparison_is_causal_and_learns():
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


def test_our_training_step_needs_no_more_memory_than_the_library():
    from transformers import LlamaForCausalLM

    from llm_lab.hf.load import build_from_config
    from llm_lab.training.cpu import speed_up_products
    from llm_lab.training.loss import next_token_loss

    ids = torch.randint(0, VOCABULARY, (4, 65))
    x, y = ids[:, :-1], ids[:, 1:].contiguous()
    ours, stock = build_from_config(llama_config()).train(), LlamaForCausalLM(llama_config()).train()
    speed_up_products(ours, "AMD")
    our_bytes = step.peak_tensor_bytes(lambda: next_token_loss(ours, x, y, "cpu", "float32"))
    their_bytes = step.peak_tensor_bytes(lambda: stock(input_ids=x, labels=x, shift_labels=y).loss)
    assert our_bytes <= 1.01 * their_bytes
