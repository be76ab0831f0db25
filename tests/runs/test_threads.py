"""A run on a CPU uses as many threads as there are free cores, and keeps this number."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_recipe, write_text

from llm_lab.events import Notice
from llm_lab.runner import run
from llm_lab.runs import processes
from llm_lab.runs.folder import RunFolder


@pytest.mark.parametrize(
    ("cores", "busy", "threads"),
    [(2, 0.0, 2), (2, 0.2, 2), (2, 1.0, 1), (2, 2.0, 1), (1, 1.0, 1), (16, 0.3, 16), (16, 3.1, 13), (8, 9.5, 1)],
)
def test_a_busy_core_gets_no_thread(cores, busy, threads):
    assert processes.free_threads(cores, busy) == threads


def test_the_cores_in_use_are_measured():
    assert 0 <= processes.busy_cores() <= len(os.sched_getaffinity(0))


PROGRAM = """
import ctypes, sys
from importlib.machinery import PathFinder

class Torch:
    def find_spec(name, path=None, target=None):
        if name == "torch":  # the first import of it: only its OpenMP is loaded
            home = PathFinder.find_spec("torch").submodule_search_locations[0]
            ctypes.CDLL(home + "/lib/libgomp.so.1")
            raise SystemExit

sys.meta_path.insert(0, Torch)
import llm_lab
from llm_lab.runs import processes

processes.busy_cores = lambda: {busy}
{start}
"""
COMMAND = "from llm_lab.cli import main; main(['run', 'recipe.yaml'])"
WIZARD = "from llm_lab.commands.recipe_commands import start_run; start_run('recipe.yaml', show_plan=False)"
PYTHON = "llm_lab.run('recipe.yaml')"
IMPORT = "import torch"


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch has another OpenMP here")
@pytest.mark.parametrize(
    ("busy", "sleeps", "start", "environment"),
    [
        pytest.param(1.0, True, COMMAND, {}, marks=pytest.mark.slow),
        pytest.param(1.0, True, WIZARD, {}, marks=pytest.mark.slow),
        pytest.param(1.0, True, PYTHON, {}, marks=pytest.mark.slow),
        (0.0, False, IMPORT, {}),
        (1.0, False, IMPORT, {"GOMP_SPINCOUNT": "300000"}),
    ],
    ids=["command", "wizard", "python", "idle", "set-by-hand"],
)
def test_threads_on_a_busy_machine_sleep_while_they_wait_for_each_other(busy, sleeps, start, environment, in_tmp_path):
    write_text("text.txt")
    Path("recipe.yaml").write_text(json.dumps(tiny_recipe()))
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(busy=busy, start=start)],
        env=clean | {"OMP_DISPLAY_ENV": "verbose"} | environment,
        capture_output=True,
        text=True,
    )
    assert f"GOMP_SPINCOUNT = '{0 if sleeps else 300000}'" in found.stderr, found.stderr


def test_a_process_that_starts_later_looks_at_the_cores_itself(monkeypatch):
    for name in (*processes.WAITING, "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")  # so that it is restored at the end
        monkeypatch.delenv(name)
    monkeypatch.setattr(processes, "busy_cores", lambda: 1.0)
    monkeypatch.setattr(processes, "_sleeps", False)
    processes.sleep_where_busy()
    assert os.environ[processes.WAITING[0]] == "passive"
    assert processes.WAITING[0] not in processes.environment_of(1)


def test_a_run_whose_threads_sleep_reports_that(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    said = []
    for threads in (torch.get_num_threads() + 1, 1):
        with processes.using_threads(threads, None, lambda notice: said.append(notice.text)):
            pass
    assert [text.partition(", ")[2] for text in said] == [
        "which sleep while they wait for each other (train.threads sets the number)"
    ]


def test_a_run_records_its_threads_and_is_resumed_with_the_same_number(in_tmp_path, monkeypatch):
    write_text("text.txt")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(processes, "busy_cores", lambda: 100.0)
    said: list[str] = []
    steps = {"scheduler": {}, "train.max_steps": 2, "train.eval_steps": 1, "train.save_steps": 1}
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        facts = run(tiny_recipe(**steps), listener=lambda e: said.append(e.text) if isinstance(e, Notice) else None)
        assert facts["threads"] == 1
        assert any(text.startswith("training with 1 thread: ") and "cores are busy" in text for text in said)
        assert torch.get_num_threads() == before + 1
        assert "OMP_NUM_THREADS" not in os.environ

        folder = RunFolder(Path(facts["path"]))
        folder.update(status="stopped", threads=before + 2)
        monkeypatch.setattr(processes, "busy_cores", lambda: 0.0)
        seen = []
        run(
            str(folder.recipe_path),
            resume=True,
            resume_from=1,
            listener=lambda event: seen.append(torch.get_num_threads()),
        )
        assert set(seen[len(seen) // 2 :]) == {before + 2}
    finally:
        torch.set_num_threads(before)
