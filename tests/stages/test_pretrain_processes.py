"""Several processes in one run: the same losses, one folder, one checkpoint, one stop."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import tiny_recipe, write_text
from support.pretrain_runs import losses, weights

from llm_lab.runner import run
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.processes import start_processes

pytestmark = pytest.mark.slow
TINY = RunFolder(Path("checkpoints/tiny"))


@pytest.fixture(autouse=True)
def _text(in_tmp_path):
    write_text("text.txt")


PROGRAM = """
import sys
from llm_lab.runs.processes import start_processes
sys.exit(start_processes(sys.argv[1:], 2))
"""


def start(raw: dict, *words: str) -> subprocess.Popen:
    """Start two processes of one run."""
    Path("recipe.yaml").write_text(json.dumps(raw))
    command = [sys.executable, "-c", PROGRAM, sys.executable, "-m", "llm_lab.cli", "run", "recipe.yaml", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run_with_two(raw: dict, *words: str) -> dict:
    process = start(raw, *words)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    folder = RunFolder(Path("checkpoints") / raw["name"])
    return {**folder.facts(), "path": str(folder.path)}


def test_two_processes_give_the_losses_of_one_with_twice_the_batch():
    raw = tiny_recipe(tokenizer={"bpe": 280})
    two = run_with_two(raw)
    assert two["status"] == "done"
    assert [path.name for path in Path("checkpoints").iterdir()] == ["tiny"]
    assert two["results"]["train_tokens"] == 20 * 2 * 4 * 16
    one = run({**raw, "name": "one", "train": {**raw["train"], "per_device_train_batch_size": 8}})
    assert len(losses(two)) == len(losses(one))
    for mine, other in zip(losses(two), losses(one), strict=True):
        assert dict(mine) == pytest.approx(dict(other), rel=1e-3)
    theirs = weights(one)
    assert all(torch.allclose(tensor, theirs[name], atol=5e-3) for name, tensor in weights(two).items())

    # A run resumed from the middle ends the same.
    kept, rows = weights(two), losses(two)
    for folder in (TINY.steps_path / "checkpoint-20", TINY.model_path):
        folder.rename(folder.with_name("gone"))
    resumed = run_with_two(raw, "--resume")
    assert losses(resumed) == rows
    assert all(torch.equal(tensor, kept[name]) for name, tensor in weights(resumed).items())
    assert sorted(file.name for file in (TINY.steps_path / "checkpoint-20").glob("rng_state*")) == [
        "rng_state_0.pth",
        "rng_state_1.pth",
    ]


def launched(*words: str) -> list[str]:
    return [sys.executable, *words, "llm_lab.cli", "run", "recipe.yaml"]


def test_two_connected_machines_run_the_same_program_as_nproc():
    """Two agents of torchrun that meet at an address, as on two machines."""
    theirs = weights(run_with_two(tiny_recipe(name="two")))
    Path("recipe.yaml").write_text(json.dumps(tiny_recipe()))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", address, "--rdzv-id", "lab", "--nnodes", "2"]
    command = launched("-m", "torch.distributed.run", *meeting, "--nproc-per-node", "1", "-m")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    agents = [subprocess.Popen(command, **pipes) for _ in range(2)]
    outputs = [agent.communicate(timeout=240)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert TINY.facts()["processes"] == 2
    found = weights({**TINY.facts(), "path": str(TINY.path)})
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in found.items())


def test_the_settings_of_accelerate_launch_change_nothing():
    one = run(tiny_recipe(name="one"))
    Path("recipe.yaml").write_text(json.dumps(tiny_recipe()))
    settings = ["--num_processes", "1", "--cpu", "--mixed_precision", "bf16", "--dynamo_backend", "no"]
    command = launched("-m", "accelerate.commands.launch", *settings, "--module")
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    assert losses({**TINY.facts(), "path": str(TINY.path)}) == losses(one)


def test_two_processes_run_all_stages_of_a_pipeline():
    second = tiny_recipe(name="second")
    del second["model"]
    process = start({"name": "both", "device": "cpu", "stages": [tiny_recipe(name="first"), second]})
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    outer = RunFolder(Path("checkpoints/both"))
    assert [stage.facts()["status"] for stage in outer.stages()] == ["done", "done"]


def test_ctrl_c_stops_both_at_the_same_step():
    process = start(tiny_recipe(**{"train.max_steps": 20_000, "train.save_steps": 20_000, "train.eval_steps": 20_000}))
    end = time.monotonic() + 120
    while not [row for row in TINY.metrics() if row["step"] >= 10]:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert TINY.status() == "stopped"
    ((step, folder),) = TINY.checkpoints()
    assert 10 <= step < 20_000
    assert len(list(folder.glob("rng_state_*.pth"))) == 2


def test_if_one_process_fails_the_others_are_stopped():
    program = "import os, sys, time; sys.exit(3) if os.environ['RANK'] == '1' else time.sleep(100)"
    started = time.monotonic()
    assert start_processes([sys.executable, "-c", program], 2) in (3, -9)
    assert time.monotonic() - started < 60


def test_two_processes_read_a_stream_as_one_would_and_stop_together():
    text = Path("text.txt").read_text().splitlines()
    Path("rows.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in text))
    data = [{"path": "rows.jsonl", "streaming": True, "weight": 2.0}, {"path": "text.txt"}]
    raw = tiny_recipe(data=data, validation={"stream_documents": 30}, **{"train.save_steps": 5})
    two = run_with_two(raw)
    one = run({**raw, "name": "one", "train": {**raw["train"], "per_device_train_batch_size": 8}})
    for mine, other in zip(losses(two), losses(one), strict=True):
        mine, other = dict(mine), dict(other)
        assert mine.pop("mix", None) == other.pop("mix", None)
        assert mine.pop("epochs", None) == other.pop("epochs", None)
        assert mine == pytest.approx(other, rel=1e-3)

    kept, rows = weights(two), losses(two)
    for folder in (TINY.steps_path / "checkpoint-20", TINY.model_path):
        folder.rename(folder.with_name(f"gone-{folder.name}"))
    resumed = run_with_two(raw, "--resume")
    assert losses(resumed) == rows
    assert all(torch.equal(tensor, kept[name]) for name, tensor in weights(resumed).items())

    ended = run_with_two(
        {**raw, "name": "tiny", "when_exhausted": "stop", "train": {**raw["train"], "max_steps": 400}}, "--overwrite"
    )
    assert ended["status"] == "done"
    assert ended["exhausted"]["path"] == "rows.jsonl"
    assert ended["results"]["step"] < 400
