"""The process of a worker: reads calls as lines of JSON, answers them with the functions of one module.

`python -m llm_lab.web.worker llm_lab.web.data_calls` answers with the functions in `CALLS` of that module. A function
gets the call's arguments by name; if it has a parameter `stop`, it also gets a function that says whether the caller
has left. It returns a value that JSON can hold; the pieces of a generator are sent as they are produced.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from types import GeneratorType
from typing import Any, TextIO

from llm_lab.errors import LabError, MachineError, Problem, file_error

Call = Callable[..., Any]


def main() -> None:
    """Answer calls until the other end closes."""
    # Only answers go to the pipe; the output of libraries goes to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    module = importlib.import_module(sys.argv[1])
    stops: dict[int, threading.Event] = {}
    waiting: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(stops, waiting), daemon=True).start()
    while True:
        message = waiting.get()
        _answer(message, module.CALLS, stops[message["id"]], answers)
        del stops[message["id"]]


def _listen(stops: dict[int, threading.Event], waiting: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        message = json.loads(line)
        if message.get("stop"):
            if event := stops.get(message["id"]):
                event.set()
        else:
            stops[message["id"]] = threading.Event()
            waiting.put(message)
    os._exit(0)  # the server has ended, so nobody waits for an answer


def _answer(message: Mapping[str, Any], calls: Mapping[str, Call], stop: threading.Event, answers: TextIO) -> None:
    def say(kind: str, value: Any) -> None:
        answers.write(json.dumps({"id": message["id"], "kind": kind, "value": value}) + "\n")
        answers.flush()

    try:
        call = calls[message["call"]]
        more = {"stop": stop.is_set} if "stop" in inspect.signature(call).parameters else {}
        result = call(**message["arguments"], **more)
        if isinstance(result, GeneratorType):
            result = _drain(result, stop, say)
        say("result", result)
    except Exception as error:
        say("error", _described(error))


def _drain(pieces: GeneratorType, stop: threading.Event, say: Callable[[str, Any], None]) -> Any:
    """Send the pieces of a generator until it ends or the caller leaves; return its result."""
    while not stop.is_set():
        try:
            say("piece", next(pieces))
        except StopIteration as end:
            return end.value
    pieces.close()
    return None


def _described(error: Exception) -> dict[str, Any]:
    known = error if isinstance(error, LabError) else file_error(error)
    if known is None:
        import traceback

        traceback.print_exception(error)
        return {"kind": "internal", "problems": [], "text": f"{type(error).__name__}: {error}"}
    kind = "machine" if isinstance(known, MachineError) else "user"
    problems = [problem if isinstance(problem, str) else _plain(problem) for problem in known.problems]
    return {"kind": kind, "problems": problems, "text": str(known)}


def _plain(problem: Problem) -> Any:
    """Return a problem for JSON: its parts, or its text if JSON can't hold its value."""
    if problem.has_value and not isinstance(problem.value, str | int | float | bool | None):
        return str(problem)
    parts = {name: getattr(problem, name) for name in ("key", "why", "allowed", "fix")}
    return {**parts, **({"value": problem.value} if problem.has_value else {})}


if __name__ == "__main__":
    main()
