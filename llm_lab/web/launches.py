"""Start and stop `llm-lab` commands in processes of their own, which continue when the page or the server closes.

The output of a command goes to a log file in the user's state folder. Everything else about it is in its run folder.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from llm_lab.errors import DONE, STOPPED, Problem, UserError
from llm_lab.runs.folder import ROOT, RunFolder
from llm_lab.runs.lock import is_holder
from llm_lab.safe_text import printable

COMMANDS = ("run", "study", "sweep", "duel", "look")
# Every option that a page may pass. Names that begin with - can't become other options, such as --trust-recipe.
PASSED = frozenset(
    "--resume --overwrite --steps --against --prompt --preset --seeds --measure --name --jobs --by".split()
)
CONFIGS = Path("configs")
LOG_LINES = 200
KEPT_LOGS = 50
MAKE_RUNS = ("run", "study", "sweep", "duel")
SAME_START_SECONDS = 15.0  # largest difference between the start of a process and that of its log


def state_folder() -> Path:
    """Return the folder for logs and the key of the cookie: llm-lab/web in $XDG_STATE_HOME or ~/.local/state."""
    shared = os.environ.get("XDG_STATE_HOME")
    folder = (Path(shared) if shared else Path.home() / ".local" / "state") / "llm-lab" / "web"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


@dataclass
class Launch:
    """A command that this server started. run: the name of its folder, if that is known in advance."""

    number: int
    words: tuple[str, ...]
    log: Path
    process: subprocess.Popen[bytes]
    started: float = field(default_factory=time.time)
    run: str | None = None
    dismissed: bool = False  # whether the user has read why it ended
    is_over: bool = False  # whether it has ended, and its output was read after that

    def run_name(self) -> str | None:
        """Return the name of the run folder that its process works in; None until there is one."""
        if self.run is None and not self.is_over:
            self.is_over = self.process.poll() is not None
            for file in filter(self._may_have_written, ROOT.glob("*/run.json")):
                process = RunFolder(file.parent).facts().get("process", {})
                # A study works in a process of its own, whose parent is the command. Process ids are reused.
                is_own = self.process.pid in (process.get("pid"), process.get("parent"))
                if is_own and (process.get("started") or 0) > self.started - SAME_START_SECONDS:
                    self.run = file.parent.name
        return self.run

    def _may_have_written(self, file: Path) -> bool:
        try:
            return file.stat().st_mtime > self.started - SAME_START_SECONDS
        except OSError:  # it was deleted in the meantime
            return False

    def title(self) -> str:
        """Return a name for its run until it has a folder: that of the recipe, or of the experiment."""
        return self.run or (Path(self.words[1]).stem if len(self.words) > 1 else self.words[0])

    def makes_run(self) -> bool:
        """Return whether it creates a run of its own, unlike a report or a command on an existing run."""
        return self.words[0] in MAKE_RUNS and "--resume" not in self.words

    def has_folder(self) -> bool:
        name = self.run_name()
        return name is not None and (ROOT / name).is_dir()

    def error(self) -> str | None:
        """Return why it ended, as text; None while it works, and if it ended as planned or was stopped."""
        code = self.process.poll()
        if code in (None, DONE, STOPPED):
            return None
        return last_error(self.log) or f"The command ended with exit code {code}, and printed nothing."

    def as_json(self) -> dict[str, Any]:
        """Return what a page shows: the command, its exit code (None while it works), its run, its output."""
        return {
            "number": self.number,
            "command": command_text(self.words),
            "exit_code": self.process.poll(),
            "error": self.error(),
            "run": self.run_name(),
            "log": last_lines(self.log),
            "started": self.started,
        }


class Launches:
    """The commands that this server started, with their output and how they ended."""

    def __init__(self) -> None:
        self._launched: dict[int, Launch] = {}
        self._lock = threading.Lock()  # pages start commands in threads

    def start(
        self, words: Sequence[str], *, run: str | None = None, environment: Mapping[str, str] | None = None
    ) -> Launch:
        """Start `llm-lab WORDS` in a session of its own. run: the name of its folder, if that is known.

        UserError for an option that no page uses, and if the system refuses the command, such as one with a very long
        text.
        """
        with self._lock:
            return self._start(words, run, environment)

    def start_once(self, words: Sequence[str]) -> Launch:
        """Start a command, or return one with the same words that is running: a second click does not start another."""
        with self._lock:
            return self.working_on(words) or self._start(words, None, None)

    def working_on(self, words: Sequence[str]) -> Launch | None:
        """Return the running command with these words, or None."""
        same = (one for one in list(self._launched.values()) if one.words == tuple(words))
        return next((one for one in same if one.process.poll() is None), None)

    def at_work(self, command: str) -> int:
        """Return how many commands of a kind are running."""
        return sum(one.words[0] == command and one.process.poll() is None for one in list(self._launched.values()))

    def _start(self, words: Sequence[str], run: str | None, environment: Mapping[str, str] | None) -> Launch:
        assert words[0] in COMMANDS
        if foreign := next((one for one in words if one[:1] == "-" and one.partition("=")[0] not in PASSED), None):
            raise UserError(Problem("command", "a name or value that begins with - can't be used here", value=foreign))
        number = len(self._launched) + 1
        log = _new_log(words[0])
        try:
            with open(log, "wb") as file:
                process = subprocess.Popen(
                    [sys.executable, "-m", "llm_lab.cli", *words],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
                )
        except (OSError, ValueError) as error:  # ValueError: the words contain a NUL character
            log.unlink(missing_ok=True)
            why = f"it can't be started: {getattr(error, 'strerror', None) or error}"
            raise UserError(Problem(f"llm-lab {words[0]}", why)) from None
        log = log.rename(log.with_name(f"{log.stem}-{process.pid}.log"))  # for log_of, after a restart of the server
        self._launched[number] = launch = Launch(number, tuple(words), log, process, run=run)
        return launch

    def get(self, number: int) -> Launch:
        """Return a launch. UserError if this server has none with that number."""
        if number not in self._launched:
            raise UserError(Problem("launch", "this server has not started that command", value=number))
        return self._launched[number]

    def newest_of(self, run: str) -> Launch | None:
        """Return the last command that this server started in a run folder, or None."""
        return next((one for one in reversed(list(self._launched.values())) if one.run_name() == run), None)

    def without_run(self, argument: str, cursor: Any) -> tuple[Any, Any] | None:
        """Return the commands whose run does not exist yet, and those that ended before: a topic (updates.py)."""
        rows = [
            {
                "number": one.number,
                "title": printable(one.title()),
                "run": one.run,
                "command": command_text(one.words),
                "kind": one.words[0],
                "form": form_address(one.words),
                "started": one.started,
                "error": one.error(),
            }
            for one in list(self._launched.values())
            if one.makes_run() and not one.dismissed and (one.error() or one.process.poll() is None)
            if not one.has_folder()
        ]
        return None if rows == cursor else (rows, rows)

    def reap(self) -> list[Launch]:
        """Return the commands that still run; collect the exit codes of those that have ended."""
        return [launch for launch in list(self._launched.values()) if launch.process.poll() is None]


def stop_run(run: RunFolder) -> None:
    """Ask the process of a run to save and stop, as Ctrl-C does. UserError if none works on this machine."""
    process = run.facts().get("process", {})
    if run.status() != "running":
        raise UserError(Problem(str(run.path), f"this run is not running; its status is {run.status()}"))
    host = process.get("host", "another host")
    if host != socket.gethostname():
        raise UserError(Problem(str(run.path), f"its process runs on {host}, not here"))
    if not is_holder(run.path, process):
        why = f"process {process.get('pid', 'unknown')} is recorded for this run, but does not work in this folder"
        raise UserError(Problem(str(run.path), why, fix="Stop it where it was started, with Ctrl-C."))
    os.kill(process["pid"], signal.SIGINT)


def command_text(words: Sequence[str]) -> str:
    """Return the command that a user would type."""
    return shlex.join(["llm-lab", *words])


def form_address(words: Sequence[str]) -> str | None:
    """Return the address of the form of a command, with its answers filled in; None if it has none."""
    if len(words) < 2:
        return None
    command, *rest = words
    if command == "run":
        recipe = Path(rest[0])
        return f"/new?recipe={quote(recipe.stem)}" if recipe.suffix == ".yaml" and recipe.parent == CONFIGS else None
    if command == "study":
        options = dict(word.split("=", 1) for word in rest[1:] if "=" in word and word[:1] != "-")
        return f"/experiments/{quote(rest[0], safe='')}" + (f"?{urlencode(options)}" if options else "")
    if command not in ("sweep", "duel"):
        return None
    asked, words_left = [], iter(rest)
    for word in words_left:
        if word.startswith("--"):
            asked.append((word[2:], next(words_left, "")))
        else:
            asked.append(("key" if "=" in word else "other" if asked else "recipe", word))
    return f"/experiments/{command}?{urlencode(asked)}"


def recorded_command(text: Any) -> str | None:
    """Return the command in a record, quoted so that a shell reads it as one command; None if it is not ours."""
    try:
        words = shlex.split(str(text))
    except ValueError:
        return None
    return printable(command_text(words[1:])) if words[:1] == ["llm-lab"] else None


def log_of(process: Mapping[str, Any]) -> Path | None:
    """Return the output of a run's process, if a server started it. process: as run.json records it."""
    started = process.get("started")
    if process.get("host") != socket.gethostname() or not isinstance(started, int | float):
        return None
    logs = (state_folder() / "logs").glob(f"*-{process.get('pid')}.log")
    # Process ids are reused after a while.
    return next((log for log in logs if abs(_started_at(log) - started) < SAME_START_SECONDS), None)


def _started_at(log: Path) -> float:
    try:
        return time.mktime(time.strptime(log.name[:15], "%Y%m%d-%H%M%S"))
    except ValueError:
        return 0.0


def last_lines(log: Path, most: int = LOG_LINES) -> str:
    """Return the end of what a command printed, without control characters."""
    try:
        text = log.read_bytes()[-most * 400 :].decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(printable(line) for line in text.splitlines()[-most:])


def last_error(log: Path) -> str:
    """Return the last paragraph of a command's output, which is the error if it ended with one."""
    lines = [line.strip() for line in last_lines(log).splitlines() if line.strip()]
    return next((line for line in reversed(lines) if not line.startswith("Add --debug")), "")


def _new_log(command: str) -> Path:
    folder = state_folder() / "logs"
    folder.mkdir(exist_ok=True, mode=0o700)
    for old in sorted(folder.glob("*.log"))[:-KEPT_LOGS]:
        old.unlink(missing_ok=True)
    return folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**9:09d}-{command}.log"
