"""Code that recipes name: reward functions and task files, and the user's permission to run it.

A recipe that the user names runs its code. A recipe that is found in a run's folder, which may be someone else's, runs
only code that the user has allowed: now, or earlier by running the same file on this machine. That record is in the
user's own state folder and contains digests of the files, so that no file in a run's folder can forge it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError

FIRST_LINES = 8
YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Code:
    """Code that a recipe names. function: None for a task file, which can import anything next to it."""

    key: str
    spec: str
    path: Path
    function: str | None

    @property
    def digest(self) -> str | None:
        """The SHA-256 of the file; None for a folder, and for a file that can't be read."""
        try:
            return hashlib.sha256(self.path.read_bytes()).hexdigest()
        except OSError:
            return None

    def first_lines(self) -> list[str]:
        """Return the first lines of the file, to show to the user."""
        try:
            with open(self.path, encoding="utf-8", errors="replace") as file:
                return [line.rstrip("\n")[:100] for _, line in zip(range(FIRST_LINES), file, strict=False)]
        except OSError:
            return []


class UntrustedCode(UserError):
    """A recipe from a run's folder names code that the user has not allowed."""

    def __init__(self, codes: Iterable[Code]):
        self.codes = tuple(codes)
        super().__init__(*map(_problem, self.codes))


def _problem(code: Code) -> Problem:
    why = f"the recipe comes from a run's folder and names code that you have not allowed: {code.path}"
    if code.digest:
        why += f" (SHA-256 {code.digest[:16]})"
    if lines := [line.strip() for line in code.first_lines() if line.strip()]:
        why += f", which begins with `{' ⏎ '.join(lines[:3])[:160]}`"
    return Problem(code.key, why, value=code.spec, fix="Review it, then run it with --trust-recipe.")


_allowed: ContextVar[frozenset[tuple[Path, str | None]]] = ContextVar("allowed", default=frozenset())
_all_allowed: ContextVar[bool] = ContextVar("all_allowed", default=False)


def code_in(values: Mapping[str, Any]) -> Iterator[Code]:
    """Yield the code that a recipe names, whether it exists or not."""
    from .registry import named_in

    for key, spec in named_in(values, "function"):
        file, _, function = spec.rpartition(":")
        yield Code(key, spec, Path(file).expanduser().resolve(), function)
    for name in (values.get("tasks") or {}).get("names") or ():
        if is_task_path(name):
            yield Code("tasks.names", name, Path(name).expanduser().resolve(), None)


def is_task_path(name: str) -> bool:
    """Return whether a task is named by a file or folder, not by a name of the harness."""
    return name.endswith(YAML) or "/" in name or Path(name).expanduser().is_dir()


def allow(codes: Iterable[Code]) -> None:
    """Allow code to run in this process: the user has named it or confirmed it."""
    _allowed.set(_allowed.get() | {(code.path, code.function) for code in codes})


@contextmanager
def trusting_recipes(yes: bool) -> Iterator[None]:
    """Allow all code that recipes name, while a command runs (`--trust-recipe`)."""
    token = _all_allowed.set(yes or _all_allowed.get())
    try:
        yield
    finally:
        _all_allowed.reset(token)


def require_allowed(codes: Iterable[Code], source: bytes | None = None) -> None:
    """Raise UntrustedCode for code that the user has not allowed; remember the functions that the user has allowed.

    source: the bytes of the file that will run; None if it does not run yet.
    """
    refused = []
    for code in codes:
        digest = hashlib.sha256(source).hexdigest() if source is not None else code.digest
        record = _record(digest, code.function) if digest and code.function else None
        if _all_allowed.get() or (code.path, code.function) in _allowed.get():
            if record is not None and source is not None:
                _remember(record, code)
        elif record is None or not record.is_file():
            refused.append(code)
    if refused:
        raise UntrustedCode(refused)


def _record(digest: str, function: str) -> Path:
    """Return the file that exists if the user has allowed this function of a file with this content."""
    shared = os.environ.get("XDG_STATE_HOME")
    home = Path(shared) if shared else Path.home() / ".local" / "state"
    return home / "llm-lab" / "trusted" / f"{digest}-{function}.json"


def _remember(record: Path, code: Code) -> None:
    with suppress(OSError):  # without a home folder, the user is asked each time
        record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        record.write_text(json.dumps({"path": str(code.path), "time": time.time()}) + "\n", encoding="utf-8")
