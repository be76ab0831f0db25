"""Child processes for what the server must not do itself: import torch, hold a model, read large files.

A worker is a Python process that answers calls, one at a time, as lines of JSON. It ends when the server does; ending
it frees its memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

from llm_lab.errors import LabError, MachineError, Problem, UserError

LONGEST_LINE = 256 * 1024 * 1024  # bytes of one answer
ERRORS: dict[str, type[LabError]] = {"user": UserError, "machine": MachineError}


class WorkerEnded(MachineError):
    """A worker ended unexpectedly: it crashed, or the system stopped it to free memory."""


class Worker:
    """One child process. calls: the module whose `CALLS` it answers, such as llm_lab.web.data_calls.

    idle_seconds: the process ends after this time without a call, and starts again with the next one.
    """

    def __init__(self, calls: str, *, idle_seconds: float | None = None) -> None:
        self.calls = calls
        self.idle_seconds = idle_seconds
        self._idle: asyncio.TimerHandle | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._stopping: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def is_busy(self) -> bool:
        return self._turn.locked()

    async def call(self, name: str, /, **arguments: Any) -> Any:
        """Return the result of a call. A UserError or MachineError of the worker is raised here."""
        result = None
        async for kind, value in self._exchange(name, arguments):
            if kind == "result":
                result = value
        return result

    async def stream(self, name: str, /, **arguments: Any) -> AsyncIterator[Any]:
        """Yield what a call yields, then its result as {"result": ...}. Leaving the loop early stops the call."""
        async for kind, value in self._exchange(name, arguments):
            yield {"result": value} if kind == "result" else value

    async def close(self) -> None:
        """End the process now."""
        if process := self._kill():
            await process.wait()

    def _kill(self) -> asyncio.subprocess.Process | None:
        if self._idle is not None:
            self._idle.cancel()
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return None
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        return process

    async def _exchange(self, name: str, arguments: dict[str, Any]) -> AsyncIterator[tuple[str, Any]]:
        await self._turn.acquire()
        number, ended = next(self._numbers), True
        try:
            if self._idle is not None:
                self._idle.cancel()
            process = await self._start()
            assert process.stdout is not None
            ended = False
            _write(process, {"id": number, "call": name, "arguments": arguments})
            while not ended:
                line = await process.stdout.readline()
                if not line:
                    ended = True
                    why = f"the process of the model or the data ended (exit code {await process.wait()})"
                    raise WorkerEnded(Problem(name, why, fix="Try again; if it ran out of memory, free some."))
                answer = json.loads(line)
                if answer["id"] != number:
                    continue
                ended = answer["kind"] in ("result", "error")
                if answer["kind"] == "error":
                    raise _error_of(answer["value"])
                yield answer["kind"], answer["value"]
        finally:
            if ended:
                self._end_turn()
            else:  # The caller has left. A separate task does this, because this one may be canceled at every await.
                self._stopping = asyncio.create_task(self._stop(process, number))
                self._stopping.add_done_callback(lambda _: self._end_turn())

    def _end_turn(self) -> None:
        self._turn.release()
        if self.idle_seconds is not None:
            self._idle = asyncio.get_running_loop().call_later(self.idle_seconds, self._kill)

    async def _stop(self, process: asyncio.subprocess.Process, number: int) -> None:
        """Stop a call and read its remaining output, so that the next call finds an empty pipe."""
        assert process.stdout is not None
        with contextlib.suppress(OSError, RuntimeError):
            _write(process, {"id": number, "stop": True})
        while line := await process.stdout.readline():
            answer = json.loads(line)
            if answer["id"] == number and answer["kind"] in ("result", "error"):
                return

    async def _start(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "llm_lab.web.worker",
                self.calls,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,  # Ctrl-C in the terminal is for the server only
                limit=LONGEST_LINE,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        return self._process


def _write(process: asyncio.subprocess.Process, message: dict[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(message).encode() + b"\n")


def _error_of(value: dict[str, Any]) -> Exception:
    problems = [problem if isinstance(problem, str) else Problem(**problem) for problem in value["problems"]]
    kind = ERRORS.get(value["kind"])
    return kind(*problems) if kind else RuntimeError(value["text"])


class Workers:
    """The workers of a server, by name. `get` starts one if there is none; `close` ends them all."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}

    def get(self, name: str, calls: str, *, idle_seconds: float | None = None) -> Worker:
        """Return the worker with a name; calls, idle_seconds: see Worker."""
        worker = self._workers.get(name)
        if worker is None:
            worker = self._workers[name] = Worker(calls, idle_seconds=idle_seconds)
        return worker

    def names(self) -> list[str]:
        """Return the names of the workers whose process is running."""
        return [name for name, worker in self._workers.items() if worker.is_running]

    async def end(self, name: str) -> None:
        """End one worker and free its memory; the next call starts it again."""
        if worker := self._workers.pop(name, None):
            await worker.close()

    async def close(self) -> None:
        """End all workers."""
        await asyncio.gather(*(self.end(name) for name in list(self._workers)))
