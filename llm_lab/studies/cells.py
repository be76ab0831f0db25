"""Run the cells of a sweep: each in a process of its own, one after the other or several at a time.

All state is in the folder. The command that works on a cell holds its lock in `.claims`, so that several commands, on
several machines with a shared disk, can share the cells of one sweep; a run that was killed is resumed by the next.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_lab.errors import LabError
from llm_lab.estimate.adapter_base import read_object
from llm_lab.estimate.machine import find_machine
from llm_lab.runs import lock
from llm_lab.runs.folder import RunFolder, now

from .child_run import BUSY, start_child, stop_child
from .measures import rows_of, value_of
from .sweep import Cell, Sweep

POLL_SECONDS, REPORT_SECONDS = 0.1, 0.5
CLAIMS = ".claims"  # the folder of a sweep for the locks of the commands that work on it
PATIENCE_SECONDS = 60.0  # for a process to save its work after the command that started it is gone
OVER = ("done", "failed")
START_SECONDS = 12  # until the second step of configs/duels/nano.yaml, on two idle cores: 11.9, 11.9


@dataclass(frozen=True)
class CellState:
    """The progress of a cell. status: that of its run, or waiting. value: that of the measure, once it is done."""

    cell: Cell
    status: str
    step: int = 0
    max_steps: int | None = None
    loss: float | None = None
    value: float | None = None
    seconds: float | None = None
    error: str = ""


@dataclass
class Outcome:
    """How a command ended: how many of its cells are done, failed, or in progress elsewhere."""

    states: list[CellState] = field(default_factory=list)
    stopped: bool = False

    def count(self, *statuses: str) -> int:
        """Return how many cells have one of these statuses."""
        return sum(state.status in statuses for state in self.states)


Watcher = Callable[[Sequence[CellState], float | None], None]


def state_of(cell: Cell, measure: str) -> CellState:
    """Return the progress of a cell, from its folder."""
    run = RunFolder(cell.folder)
    if not run.run_json.is_file():
        return CellState(cell, "waiting")
    facts, rows, status = run.facts(), rows_of(run), run.status()
    last = rows[-1] if rows else {}
    recipe = facts.get("recipe") or {}
    stages = [stage for stage in recipe.get("stages") or [recipe] if stage.get("train")]
    loss = next((row["loss"] for row in reversed(rows) if "loss" in row), None)
    seconds = (facts.get("results") or {}).get("wall_seconds", last.get("wall_seconds"))
    return CellState(
        cell,
        status,
        step=last.get("step", 0),
        max_steps=facts.get("max_steps") or (stages[-1]["train"].get("max_steps") if stages else None),
        loss=loss,
        value=value_of(run, measure),
        seconds=seconds,
        error=str(facts.get("error") or "") if status == "failed" else "",
    )


def run_seconds(sweep: Sweep, name: str) -> float:
    """Return the seconds that a run of a configuration takes, including its start; 0 if not known."""
    job = sweep.jobs.get(name)
    seconds = sum(one.estimate.wall_seconds or 0.0 for one in job.stages) if job else 0.0
    return seconds and seconds + START_SECONDS


def seconds_left(sweep: Sweep, state: CellState, since_start: float = 0.0) -> float:
    """Return the seconds that the rest of a run takes, including its start; 0 if not known.

    since_start: the seconds since its process was started.
    """
    whole = run_seconds(sweep, state.cell.configuration.name)
    if not whole:
        return 0.0
    start = max(0.0, START_SECONDS - since_start)
    return start + (whole - START_SECONDS) * (1 - state.step / state.max_steps if state.max_steps else 1.0)


def commands_at_work(folder: Path) -> dict[Path, dict[str, Any]]:
    """Return the processes of the commands working on a sweep (pid, host, start), by the folder of their lock."""
    found = {file.parent: read_object(file) for file in folder.glob(f"{CLAIMS}/*/{lock.NAME}")}
    return {place: process for place, process in found.items() if process and lock.is_at_work(place, process)}


def run_cells(
    sweep: Sweep,
    cells: Sequence[Cell],
    *,
    jobs: int = 1,
    retry_failed: bool = False,
    watch: Watcher = lambda states, seconds_left: None,
    on_stop: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run the cells in a list that are not done; return how all of them ended."""
    work = _Work(sweep, cells, jobs, retry_failed)
    try:
        while work.step():
            work.report(watch)
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        on_stop()
        work.stop()
        return Outcome(work.states(), stopped=True)
    finally:
        work.close()
    work.report(watch, at_once=True)
    return Outcome(work.states())


@dataclass
class _Running:
    process: subprocess.Popen[str]
    claim: ExitStack
    log: Path
    slot: int
    since: float
    predicted: float  # seconds


class _Work:
    """The cells of one command: those to start, those in progress, and how long they took."""

    def __init__(self, sweep: Sweep, cells: Sequence[Cell], jobs: int, retry_failed: bool):
        self.sweep, self.cells, self.jobs = sweep, list(cells), max(1, jobs)
        # A failed cell counts as tried, so that a cell that failed in another command is not repeated in the same pass.
        tried = () if retry_failed else ("failed",)
        self._known = {cell.name: state_of(cell, sweep.measure) for cell in self.cells}
        self._left = [cell for cell in self.cells if self._known[cell.name].status not in ("done", *tried)]
        self._retry = {cell.name for cell in self._left if self._known[cell.name].status == "failed"}
        self._running: dict[str, _Running] = {}
        self._busy_since: dict[str, float] = {}
        self._reported = 0.0
        self._took, self._predicted = 0.0, 0.0  # for the cells that this command has completed
        self._gpus = _gpus() if self.jobs > 1 else []

    def step(self) -> bool:
        """Start what can be started, and record what has ended; False when nothing is left."""
        for cell in list(self.cells):
            if cell.name in self._running and self._running[cell.name].process.poll() is not None:
                self._end(cell)
        for cell in list(self._left):
            if len(self._running) >= self.jobs:
                break
            if cell.name not in self._running:
                self._try(cell)
        return bool(self._left or self._running)

    def _try(self, cell: Cell) -> None:
        """Start a cell, unless it is done by now or another command works on it."""
        status = RunFolder(cell.folder).status()
        if status == "done" or (status == "failed" and cell.name not in self._retry):
            self._left.remove(cell)
            return
        claim = self._claim(cell) if status != "running" else None
        if claim is None:
            if self._has_waited(cell) or self._is_claimed(cell):
                self._left.remove(cell)
            return
        self._left.remove(cell)
        predicted = seconds_left(self.sweep, state_of(cell, self.sweep.measure))
        logs = self.sweep.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        log = logs / f"{cell.name}.log"
        slot = next(n for n in range(self.jobs) if n not in {one.slot for one in self._running.values()})
        gpu = self._gpus[slot % len(self._gpus)] if self._gpus else None
        with open(log, "w", encoding="utf-8") as output:
            process = start_child(cell.recipe, cell.folder, output, jobs=self.jobs, gpu=gpu)
        self._running[cell.name] = _Running(process, claim, log, slot, time.monotonic(), predicted)

    def _claim(self, cell: Cell) -> ExitStack | None:
        """Take the lock of a cell; None if another command has it."""
        place, claim = self._place(cell), ExitStack()
        try:
            place.mkdir(parents=True, exist_ok=True)
            claim.enter_context(lock.hold(place, read_object(place / lock.NAME)))
        except (LabError, FileNotFoundError):  # the command that had it has just removed it
            return None
        return claim

    def _has_waited(self, cell: Cell) -> bool:
        """Return whether a cell has been in progress elsewhere for longer than it takes to save and end."""
        return time.monotonic() - self._busy_since.setdefault(cell.name, time.monotonic()) > PATIENCE_SECONDS

    def _place(self, cell: Cell) -> Path:
        return self.sweep.folder / CLAIMS / cell.name

    def _is_claimed(self, cell: Cell) -> bool:
        return lock.is_at_work(self._place(cell), read_object(self._place(cell) / lock.NAME) or {})

    def _end(self, cell: Cell) -> None:
        """Record how a cell ended."""
        running = self._running.pop(cell.name)
        code, run = running.process.returncode, RunFolder(cell.folder)
        if running.process.stdin:
            running.process.stdin.close()
        status = run.status()
        if code == BUSY or status == "running":  # a process that is saving its work, or one that was started by hand
            if not self._has_waited(cell):
                self._left.append(cell)
        elif code > 0 and status not in ("failed", "stopped"):
            self._record_failure(run, code, running.log)
        elif status == "done":
            with suppress(OSError):
                running.log.unlink()
            self._took += time.monotonic() - running.since
            self._predicted += running.predicted
        running.claim.close()
        with suppress(OSError):
            self._place(cell).rmdir()

    def _record_failure(self, run: RunFolder, code: int, log: Path) -> None:
        """Record the failure of a process that ended too early to do so itself. One that was killed is resumed."""
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
        reason = lines[-1][:500] if lines else f"the process ended with code {code}"
        first = {} if run.has_started() else {"name": run.path.name, "created_at": now()}
        run.update(**first, status="failed", error=reason, ended_at=now())

    def stop(self) -> None:
        """Stop the cells in progress; their work is saved. A second Ctrl-C stops them at once."""
        for running in self._running.values():
            stop_child(running.process)
        try:
            for running in self._running.values():
                running.process.wait()
        except KeyboardInterrupt:
            for running in self._running.values():
                running.process.kill()

    def close(self) -> None:
        """Release the locks and files; remaining children save their work, because their parent no longer listens."""
        for running in self._running.values():
            if running.process.stdin:
                with suppress(OSError):
                    running.process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                running.process.wait(PATIENCE_SECONDS)
            running.claim.close()

    def states(self) -> list[CellState]:
        """Return the state of every cell."""
        for cell in self.cells:
            if self._known[cell.name].status not in OVER or cell.name in self._retry:
                self._known[cell.name] = state_of(cell, self.sweep.measure)
        return [self._known[cell.name] for cell in self.cells]

    def report(self, watch: Watcher, *, at_once: bool = False) -> None:
        """Pass the states to `watch`, about twice a second."""
        if at_once or time.monotonic() - self._reported >= REPORT_SECONDS:
            self._reported = time.monotonic()
            states = self.states()
            watch(states, self._seconds_left(states))

    def _seconds_left(self, states: Sequence[CellState]) -> float | None:
        """Return the time that the remaining cells will take, from the estimates and how accurate they were so far."""
        seconds = 0.0
        for state in states:
            if state.status not in OVER or state.cell in self._left:
                running = self._running.get(state.cell.name)
                seconds += seconds_left(self.sweep, state, time.monotonic() - running.since if running else 0.0)
        right = self._took / self._predicted if self._predicted else 1.0
        return seconds * right / self.jobs if seconds else None


def _gpus() -> list[str]:
    """Return the GPUs of this machine as CUDA_VISIBLE_DEVICES names them, if there are several."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = len(find_machine().gpus)
    names = visible.split(",") if visible else [str(number) for number in range(count)]
    return names if count > 1 else []
