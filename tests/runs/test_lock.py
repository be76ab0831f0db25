"""One process at a time works in a run folder, and `list`, `show` and --resume know whether one does."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_lab.errors import UserError
from llm_lab.runs import lock
from llm_lab.runs.folder import RunFolder, create_run
from llm_lab.runs.lock import DEAD_AFTER_SECONDS, NAME, this_process

HOLDER = """
import sys, time
from pathlib import Path
from llm_lab.runs.folder import RunFolder
with RunFolder(Path(sys.argv[1])).hold():
    print("held", flush=True)
    sys.stdin.read()
"""
ELSEWHERE = {"pid": 4711, "host": "gpu-box", "started": 1.0}


@pytest.fixture
def run(in_tmp_path) -> RunFolder:
    run = create_run("a")
    run.update(status="running", process=this_process(), created_at=1.0)
    return run


@pytest.fixture
def holder(run):
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    run.update(process={"pid": 1, "host": socket.gethostname(), "started": 1.0})  # from before the resume
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def silent_for(run: RunFolder, seconds: float) -> None:
    """Make all signs of life this old."""
    then = time.time() - seconds
    for file in run.path.iterdir():
        os.utime(file, (then, then))


def test_a_second_process_is_refused_with_the_pid_and_host_of_the_first(run, holder):
    assert run.status() == "running"
    with (
        pytest.raises(UserError, match=f"process {holder.pid} on {socket.gethostname()}.*kill -INT {holder.pid}"),
        run.hold(),
    ):
        pytest.fail("two processes hold the lock")


def test_a_killed_process_releases_the_run_and_a_finished_one_leaves_no_file(run, holder):
    holder.kill()
    holder.wait()
    assert (run.path / NAME).exists()
    assert run.status() == "interrupted"
    with run.hold():
        assert json.loads((run.path / NAME).read_text()) == this_process()
        assert run.status() == "running"
    assert run.status() == "interrupted", "where a full disk kept it from being recorded as ended"
    with run.hold():
        run.update(status="done")
    assert not (run.path / NAME).exists()


def test_only_one_of_many_gets_the_lock(run):
    run.update(status="stopped")
    program = HOLDER.replace("sys.stdin.read()", "time.sleep(3)")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(run.path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    said = [process.communicate() for process in processes]
    (winner,) = [process.pid for process, (out, _) in zip(processes, said, strict=True) if out == "held\n"]
    refusals = [error for out, error in said if not out]
    assert all(f"process {winner} on {socket.gethostname()}" in error for error in refusals)


def test_another_process_that_reuses_the_pid_is_not_mistaken_for_the_run(run, holder):
    holder.kill()
    holder.wait()
    run.update(process=this_process())  # this very process, but it doesn't hold the lock
    assert run.status() == "interrupted"
    (run.path / NAME).unlink()  # a run of an older version: its process decides
    assert run.status() == "running"
    run.update(process={**this_process(), "started": 1.0})
    assert run.status() == "interrupted"


def test_a_run_on_another_host_is_running_until_its_heartbeat_stops(run):
    (run.path / NAME).write_text(json.dumps(ELSEWHERE))
    run.update(process=ELSEWHERE)
    assert run.status() == "running"
    with (
        pytest.raises(UserError, match=r"process 4711 on gpu-box.*If that host no longer runs.*5 minutes after"),
        run.hold(),
    ):
        pytest.fail("the other host may still be at work")
    assert json.loads((run.path / NAME).read_text()) == ELSEWHERE
    silent_for(run, DEAD_AFTER_SECONDS + 10)
    assert run.status() == "interrupted"
    with run.hold():
        assert run.status() == "running"


def test_the_heartbeat_updates_the_modification_time_of_the_file(run, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.02)
    run.update(status="stopped")
    with run.hold():
        silent_for(run, 1000)
        end = time.monotonic() + 10
        while (run.path / NAME).stat().st_mtime < time.time() - 500:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_file_system_without_locks_can_be_used(run, monkeypatch):
    def refuse(*_):
        raise OSError("no locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with pytest.raises(UserError, match="in progress"), run.hold():
        pytest.fail("the recorded process exists")
    run.update(process={**this_process(), "started": 1.0})
    with run.hold():
        pass
    assert run.status() == "interrupted"


def test_the_lock_of_a_new_run_in_the_same_place_is_left_alone(run):
    run.update(status="stopped")
    with run.hold():
        os.rename(run.path, "old")
        os.mkdir(run.path)
        (run.path / NAME).write_text("of the new run")
    assert (Path(run.path) / NAME).read_text() == "of the new run"
