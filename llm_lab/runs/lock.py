"""The lock of a run folder: one process at a time works in it, and others can see whether it still does.

The process holds a flock on .lock in the folder, which the system releases however it ends. The file names the process
and its host, and its modification time is a heartbeat, for shared disks that do not share locks between hosts.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from llm_lab.errors import Problem, UserError
from llm_lab.estimate.adapter_base import read_object

try:
    import fcntl
except ImportError:  # Windows has no flock; there, process and heartbeat decide
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
HEARTBEAT_SECONDS = 30.0
DEAD_AFTER_SECONDS = 300.0
_WAIT_SECONDS = 1.0  # another process may be checking the lock, or may not have written its name yet
FREE, HELD, UNKNOWN = "free", "held", "unknown"


def this_process() -> dict[str, Any]:
    """Return what identifies this process, so that others can check whether it is still running."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": _start_time(os.getpid())}


def is_at_work(folder: Path, process: Mapping[str, Any]) -> bool:
    """Return whether a process works in a run folder. process: the one in run.json."""
    try:
        with open(folder / NAME, encoding="utf-8") as file:
            state = _lock(file, fcntl.LOCK_SH if fcntl else 0)
    except OSError:  # an older version had no lock
        state = UNKNOWN
    return state == HELD or _outlives_the_lock(process, state, _seconds_since_heartbeat(folder))


@contextmanager
def hold(folder: Path, process: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Hold the lock of a run folder. UserError if another process works in it.

    process: the working process in run.json. It counts if a lock is not conclusive: on another host, or in an older
    version.
    """
    file = _acquire(folder, process)
    stop = threading.Event()
    heart = threading.Thread(target=_beat, args=(file, stop), name=f"heartbeat of {folder}", daemon=True)
    heart.start()
    try:
        yield
    finally:
        stop.set()
        heart.join()
        _release(file, folder / NAME)


def _acquire(folder: Path, process: Mapping[str, Any] | None) -> IO[str]:
    """Return the locked file, with this process recorded in it."""
    path, until = folder / NAME, time.monotonic() + _WAIT_SECONDS
    silent, was_there = _seconds_since_heartbeat(folder), path.exists()
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (held for the run's life)
        state = _lock(file, fcntl.LOCK_EX if fcntl else 0)
        if state != HELD and _is_still(file, path):
            break
        file.close()
        if time.monotonic() > until:
            raise in_progress(folder, process or {})
        time.sleep(0.02)
    if process and _outlives_the_lock(process, state if was_there else UNKNOWN, silent):
        file.close()
        raise in_progress(folder, process)
    file.truncate(0)
    file.write(json.dumps(this_process()) + "\n")
    file.flush()
    return file


def _release(file: IO[str], path: Path) -> None:
    # On a full disk, the record may not say how the run ended. The free lock then shows that it did.
    ended = (read_object(path.with_name("run.json")) or {}).get("status") != "running"
    with suppress(OSError):
        if ended and _is_still(file, path):  # not if the folder was replaced
            path.unlink()  # while it is held, so that no other process can have taken it
    file.close()


def _outlives_the_lock(process: Mapping[str, Any], state: str, silent: float) -> bool:
    """Return whether a process may be at work although no process here holds the lock.

    state: that of the lock, FREE or UNKNOWN. silent: seconds since its heartbeat.
    """
    if process.get("host") != socket.gethostname():
        return silent < DEAD_AFTER_SECONDS
    return state == UNKNOWN and exists(process)


def _lock(file: IO[str], kind: int) -> str:
    """Take the lock of an open file; HELD if another process has it, UNKNOWN if there are no locks."""
    if fcntl is None:
        return UNKNOWN
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return HELD
    except OSError:
        return UNKNOWN  # this file system has no locks
    return FREE


def _is_still(file: IO[str], path: Path) -> bool:
    """Return whether a path still leads to an open file, because its holder deletes it at the end."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _beat(file: IO[str], stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with suppress(OSError):
            os.utime(file.fileno())


def _seconds_since_heartbeat(folder: Path) -> float:
    """Return the age of the heartbeat; for a run of an older version, that of the last change of its record."""
    times = [_changed_at(folder / name) for name in (NAME, "metrics.jsonl", "run.json")]
    return time.time() - max(times)


def _changed_at(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def in_progress(folder: Path, process: Mapping[str, Any]) -> UserError:
    """Return the error for a run in which a process works, with what to do. process: the one in run.json."""
    owner = read_object(folder / NAME) or process
    pid, host = owner.get("pid", "unknown"), owner.get("host", "an unknown host")
    if host == socket.gethostname():
        fix = f"Wait until it ends, or stop it first: kill -INT {pid} (it saves a checkpoint)."
    else:
        last = datetime.fromtimestamp(time.time() - _seconds_since_heartbeat(folder))
        fix = (
            f"Stop it on {host}. If that host no longer runs: its last heartbeat was at {last:%H:%M:%S}, and the run "
            f"can be resumed here {DEAD_AFTER_SECONDS / 60:.0f} minutes after that."
        )
    return UserError(Problem(str(folder), f"this run is in progress (process {pid} on {host})", fix=fix))


def _start_time(pid: Any) -> float | None:
    import psutil

    try:
        return psutil.Process(pid).create_time()
    except (psutil.Error, TypeError, ValueError, OverflowError):
        return None


def exists(process: Mapping[str, Any]) -> bool:
    """Return whether a process on this host is still the recorded one, not another one that reuses its id."""
    started, then = _start_time(process.get("pid")), process.get("started")
    return started is not None and isinstance(then, int | float) and abs(started - then) < 2.0


def is_holder(folder: Path, process: Mapping[str, Any]) -> bool:
    """Return whether a process on this host is the recorded one, and has the lock file of a run folder open.

    A record alone may name any process, because a run folder may come from elsewhere. Other processes open this file
    only for a moment.
    """
    import psutil

    pid = process.get("pid")
    if process.get("host") != socket.gethostname() or type(pid) is not int or pid in (1, os.getpid()):
        return False
    try:
        there = os.lstat(folder / NAME)
        files = psutil.Process(pid).open_files() if stat.S_ISREG(there.st_mode) and exists(process) else []
        return any(os.path.samestat(os.stat(file.path), there) for file in files if Path(file.path).name == NAME)
    except (OSError, psutil.Error, ValueError, OverflowError):
        return False
