"""The screen of a program in a terminal: it runs in a pseudo-terminal, and pyte interprets its output.

A snapshot is a screen as text in tests/terminal/snapshots/. UPDATE_SNAPSHOTS=1 writes it again; check the difference.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pexpect
import pyte

SNAPSHOTS = Path(__file__).parent.parent / "terminal" / "snapshots"
LAB = (sys.executable, "-m", "llm_lab")
QUIET_SECONDS = 0.25  # a screen that has not changed for this time is complete
LONGEST_WAIT = 60.0


class Terminal:
    """A program in a terminal of a given size. Use it in a with statement, which kills the program at its end."""

    def __init__(self, argv: Sequence[str] = LAB, *, columns: int = 80, rows: int = 24, **environment: str):
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.Stream(self._screen)
        env = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color", "COLORTERM": "", **environment}
        env.pop("COLUMNS", None)
        env.pop("LINES", None)
        self.child = pexpect.spawn(
            argv[0], list(argv[1:]), dimensions=(rows, columns), encoding="utf-8", env=env, timeout=LONGEST_WAIT
        )
        self.child.delaybeforesend = None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.child.isalive():  # pexpect gives a program too little time to end on a busy machine
            self.child.kill(signal.SIGKILL)
            self.child.wait()
        self.child.close()

    @property
    def lines(self) -> list[str]:
        """The lines of the screen now, without spaces at their ends and empty lines at the end."""
        lines = [line.rstrip() for line in self._screen.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def press(self, *keys: str) -> None:
        """Press keys, as a person does: each after the screen has been drawn."""
        for key in keys:
            self.child.send(key)
            self.settle()

    def wait_for(self, text: str, seconds: float = LONGEST_WAIT) -> None:
        """Wait until a text is on the screen."""
        end = time.monotonic() + seconds
        while text not in "\n".join(self.lines):
            assert time.monotonic() < end, f"{text!r} did not appear in:\n" + "\n".join(self.lines)
            if not self._read(0.1) and not self.child.isalive():
                raise AssertionError(f"The program ended before {text!r}:\n" + "\n".join(self.lines))
        self.settle()

    def settle(self) -> None:
        """Read until nothing changes."""
        end = time.monotonic() + LONGEST_WAIT
        while self._read(QUIET_SECONDS):
            assert time.monotonic() < end, "the screen never stops changing"

    def _read(self, seconds: float) -> bool:
        try:
            text = self.child.read_nonblocking(65536, timeout=seconds)
        except pexpect.TIMEOUT:
            return False
        except pexpect.EOF:
            return False
        self._stream.feed(text)
        return True


def assert_matches_snapshot(name: str, lines: Sequence[str]) -> None:
    """Compare a screen with its snapshot; UPDATE_SNAPSHOTS=1 writes it instead."""
    path, text = SNAPSHOTS / f"{name}.txt", "\n".join(line.rstrip() for line in lines) + "\n"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.exists(), f"no snapshot {name}; run the test with UPDATE_SNAPSHOTS=1 and look at the file"
    expected = path.read_text(encoding="utf-8")
    assert text == expected, f"the screen differs from {path.name} (UPDATE_SNAPSHOTS=1 writes it again)"
