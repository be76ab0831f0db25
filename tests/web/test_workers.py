"""Workers answer calls, pass on errors, stop when the caller has left, and are restarted after a crash."""

import asyncio
import sys

import psutil
import pytest
from support.web_server import run_apart

from llm_lab.errors import UserError
from llm_lab.web.workers import Worker, WorkerEnded

CALLS = """
import os, time
from llm_lab.errors import Problem, UserError

stopped = []

def add(a, b):
    print("noise on standard output")
    return a + b

def refuse():
    raise UserError(Problem("train.max_steps", "it is negative", value=-1, allowed="1 or more"))

def ask():
    raise UserError(Problem("trust_remote_code", "it has code", fix="Review it."))

def count(to):
    for number in range(to):
        yield number
        time.sleep(0.01)
    return "end"

def wait(stop):
    while not stop():
        time.sleep(0.01)
    stopped.append(True)

def was_stopped():
    return len(stopped)

CALLS = {"add": add, "ask": ask, "refuse": refuse, "count": count, "wait": wait, "was_stopped": was_stopped,
         "crash": lambda: os._exit(9), "pid": os.getpid}
"""


@pytest.fixture
def with_worker(tmp_path, monkeypatch):
    (tmp_path / "worker_calls.py").write_text(CALLS)
    monkeypatch.setenv("PYTHONPATH", ":".join([str(tmp_path), *sys.path]))

    def run(use):
        async def main():
            worker = Worker("worker_calls")
            try:
                return await asyncio.wait_for(use(worker), 60)
            finally:
                await worker.close()

        return run_apart(main())

    return run


def test_a_worker_answers_and_passes_on_errors_and_pieces(with_worker):
    async def use(worker):
        assert await worker.call("add", a=1, b=2) == 3
        with pytest.raises(UserError) as caught:
            await worker.call("refuse")
        assert str(caught.value) == "train.max_steps = -1: it is negative. Allowed: 1 or more."
        assert caught.value.problems[0].key == "train.max_steps"
        with pytest.raises(UserError) as caught:
            await worker.call("ask")
        assert (str(caught.value), caught.value.problems[0].key) == (
            "trust_remote_code: it has code. Review it.",
            "trust_remote_code",
        )
        assert [piece async for piece in worker.stream("count", to=3)] == [0, 1, 2, {"result": "end"}]

    with_worker(use)


def test_a_call_whose_caller_leaves_is_stopped_and_the_next_one_is_answered(with_worker):
    async def use(worker):
        pieces = worker.stream("count", to=100_000)
        assert await anext(pieces) == 0
        await pieces.aclose()
        task = asyncio.create_task(worker.call("wait"))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await worker.call("was_stopped") == 1

    with_worker(use)


def test_a_caller_that_is_canceled_twice_reads_nothing_of_the_next_call(with_worker):
    async def use(worker):
        task = asyncio.create_task(worker.call("wait"))
        await asyncio.sleep(0.2)
        for _ in range(5):  # as the server does with a request whose browser has left
            task.cancel()
            await asyncio.sleep(0)
        assert await worker.call("add", a=1, b=2) == 3
        assert await worker.call("was_stopped") == 1

    with_worker(use)


def test_a_worker_that_crashed_is_an_error_and_is_started_again(with_worker):
    async def use(worker):
        first = await worker.call("pid")
        with pytest.raises(WorkerEnded, match="exit code 9"):
            await worker.call("crash")
        assert await worker.call("pid") != first

    with_worker(use)


def test_a_worker_that_is_not_used_ends_and_starts_again_with_the_next_call(with_worker):
    async def use(worker):
        worker.idle_seconds = 0.2
        first = await worker.call("pid")
        for _ in range(100):
            if not psutil.pid_exists(first):
                break
            await asyncio.sleep(0.05)
        assert not psutil.pid_exists(first)
        assert not worker.is_running
        assert await worker.call("pid") != first

    with_worker(use)


def test_a_call_that_takes_longer_than_the_idle_time_is_not_cut(with_worker):
    async def use(worker):
        worker.idle_seconds = 0.05
        await worker.call("pid")
        assert [piece async for piece in worker.stream("count", to=30)][-1] == {"result": "end"}

    with_worker(use)
