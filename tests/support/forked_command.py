"""`llm-lab` in a fork of the test's process, which has imported everything: a new process needs four seconds for it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import traceback
from typing import Any


class ForkedCommand(subprocess.Popen):
    """A subprocess.Popen that runs `llm-lab WORDS...` in a fork.

    options: stdout, stderr, text, cwd, env, start_new_session. prepare: called in the fork before the command.
    """

    def __init__(self, *words: str, prepare: Any = None, **options: Any):
        self._prepare = prepare
        super().__init__(words, **options)

    def _execute_child(self, words, executable, preexec, close_fds, pass_fds, cwd, env, *others):
        _, _, _, *pipes = others[:9]
        stdin, _, _, stdout, _, stderr = pipes
        new_session = others[-2]
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            self._work(words, (stdin, stdout, stderr), cwd, env, new_session)
        self._child_created = True
        self._close_pipe_fds(*pipes)

    def _work(self, words, files, cwd, env, new_session) -> None:
        code = 1
        try:
            if new_session:
                os.setsid()
            for number, file in enumerate(files):
                if file != -1:
                    os.dup2(file, number)
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            for number, name in enumerate(("stdin", "stdout", "stderr")):
                # As in a new process, output to a file or a pipe is buffered, and errors are buffered by line.
                opened = open(number, "w" if number else "r", buffering=1 if number == 2 else -1, closefd=False)  # noqa: SIM115
                setattr(sys, name, opened)
                setattr(sys, f"__{name}__", opened)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            asyncio.events._set_running_loop(None)  # Playwright's loop in the test's process
            if cwd is not None:
                os.chdir(cwd)
            if env is not None:
                os.environ.clear()
                os.environ.update(env)
            code = self._run(words)
        except BaseException:
            traceback.print_exc()
        finally:
            for file in (sys.stdout, sys.stderr):
                try:
                    file.flush()
                except OSError:
                    code = code or 120
            os._exit(code)

    def _run(self, words) -> int:
        from llm_lab.cli import main

        if self._prepare is not None:
            self._prepare()
        try:
            return main(list(words))
        except SystemExit as exit:
            return exit.code if isinstance(exit.code, int) else int(exit.code is not None)


def run_forked(*words: str, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess:
    """Do what subprocess.run does, in a fork."""
    with ForkedCommand(*words, **options) as process:
        try:
            out, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(words, process.returncode, out, errors)
