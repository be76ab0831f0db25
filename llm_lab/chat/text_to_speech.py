"""Text to speech with Piper, run as a separate program, because its license (GPL) rules out importing it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from llm_lab.errors import LabError, MachineError, Problem, UserError
from llm_lab.safe_text import printable, shorten, valid_text

KEY = "piper"
PROGRAM_VARIABLE = "LLM_LAB_PIPER"
VOICE_VARIABLE = "LLM_LAB_PIPER_VOICE"
LONGEST_TEXT = 5_000  # characters: about six minutes of speech
LARGEST_SPEECH = 64 * 1024 * 1024  # bytes
SECONDS = 120.0
GET_A_VOICE = (
    f"Set {VOICE_VARIABLE} to the .onnx file of a voice, with its .onnx.json next to it. "
    "Get one with: python -m piper.download_voices en_US-lessac-medium"
)


def default_voice() -> Path | None:
    """Return the voice in LLM_LAB_PIPER_VOICE, or None."""
    path = os.environ.get(VOICE_VARIABLE, "").strip()
    return Path(path).expanduser() if path else None


def why_no_piper() -> str | None:
    """Return why Piper can't speak here, or None if it can."""
    try:
        _command(), _require_voice(default_voice())
    except LabError as error:
        return str(error)
    return None


def synthesize(
    text: str, voice: Path | None = None, *, seconds: float = SECONDS, stop: Callable[[], bool] = lambda: False
) -> bytes:
    """Return a text as speech: a WAV file of 16 bits and one channel, with the voice's rate.

    voice: a Piper voice (.onnx); by default that in LLM_LAB_PIPER_VOICE. stop: called ten times a second; returns
    whether to give up. Raises MachineError without Piper, UserError without a voice, or if Piper fails or takes longer
    than `seconds`.
    """
    text = printable(valid_text(text)).strip()
    if not text:
        raise UserError(Problem("text", "there is nothing to say"))
    if len(text) > LONGEST_TEXT:
        raise UserError(Problem("text", f"it has {len(text):,} characters", allowed=f"at most {LONGEST_TEXT:,}"))
    command, voice = _command(), _require_voice(voice or default_voice())
    with tempfile.TemporaryDirectory(prefix="llm-lab-piper-") as folder:
        file, said = Path(folder) / "speech.wav", Path(folder) / "errors.txt"
        with said.open("wb") as errors:
            process = subprocess.Popen(
                [*command, "--model", str(voice.resolve()), "--output-file", str(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                cwd=folder,
                env={**os.environ, "PYTHONUTF8": "1"},  # it would read the text in the system's encoding
            )
            try:
                _wait(process, text, seconds, stop)
            finally:
                process.kill()
                process.wait()
        if process.returncode or not file.exists():
            raise _failed(process.returncode, said.read_text("utf-8", "replace"))
        if file.stat().st_size > LARGEST_SPEECH:
            raise UserError(Problem("text", "its speech is too long", fix="Say a shorter text."))
        return file.read_bytes()


def _wait(process: subprocess.Popen[bytes], text: str, seconds: float, stop: Callable[[], bool]) -> None:
    """Give Piper the text, and wait until it ends. Raises UserError if it takes too long or the caller has left."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:  # it has ended, and its output says why
        process.stdin.write(text.encode())
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
            return
        if stop():
            raise UserError(Problem(KEY, "stopped"))
        if time.monotonic() > until:
            raise UserError(Problem(KEY, f"it did not end within {seconds:g} seconds", fix="Say a shorter text."))


def _command() -> list[str]:
    """Return the command that starts Piper: the one in LLM_LAB_PIPER, or that of the extra `voice`."""
    given = shlex.split(os.environ.get(PROGRAM_VARIABLE, ""))
    if given:
        if not shutil.which(given[0]):
            fix = f"Set {PROGRAM_VARIABLE} to the program of Piper."
            raise MachineError(Problem(PROGRAM_VARIABLE, "there is no such program", value=given[0], fix=fix))
        return given
    if importlib.util.find_spec("piper") is None:
        raise MachineError(Problem(KEY, "it is not installed", fix="pip install 'llm-lab[voice]'"))
    return [sys.executable, "-m", "piper"]


def _require_voice(voice: Path | None) -> Path:
    if voice is None:
        raise UserError(Problem(KEY, "no voice is set", fix=GET_A_VOICE))
    for file in (voice, Path(f"{voice}.json")):
        if not file.is_file():
            raise UserError(Problem(str(file), "this file of Piper's voice does not exist", fix=GET_A_VOICE))
    return voice


def _failed(code: int, errors: str) -> LabError:
    last = next((line for line in reversed(errors.splitlines()) if line.strip()), "it gave no reason")
    return UserError(Problem(KEY, f"it failed (exit code {code}): {shorten(printable(last.strip()), 200)}"))
