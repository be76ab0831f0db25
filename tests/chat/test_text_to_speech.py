"""Text to speech: Piper runs as its own program; missing parts and failures are reported."""

import sys
import time

import pytest

from llm_lab.chat.text_to_speech import synthesize, why_no_piper
from llm_lab.errors import MachineError, UserError

# A program with Piper's command line.
PROGRAM = """
import argparse, sys, time, wave
parser = argparse.ArgumentParser()
parser.add_argument("--model"), parser.add_argument("--output-file")
arguments = parser.parse_args()
text = sys.stdin.read()
if "wait" in text:
    time.sleep(30)
if "fail" in text:
    print("Traceback ...", file=sys.stderr)
    sys.exit("ValueError: \\x1b[31mbad voice")
with wave.open(arguments.output_file, "wb") as file:
    file.setnchannels(1), file.setsampwidth(2), file.setframerate(22050)
    file.writeframes((arguments.model + "|" + text).encode("utf-16-le"))
"""


@pytest.fixture
def piper(tmp_path, monkeypatch):
    (tmp_path / "program.py").write_text(PROGRAM)
    voice = tmp_path / "my voice.onnx"
    for file in (voice, tmp_path / "my voice.onnx.json"):
        file.write_text("{}")
    monkeypatch.setenv("LLM_LAB_PIPER", f"{sys.executable} {tmp_path / 'program.py'}")
    monkeypatch.setenv("LLM_LAB_PIPER_VOICE", str(voice))
    return voice


def test_a_text_is_given_to_piper_as_data_and_its_speech_returned(piper):
    assert why_no_piper() is None
    speech = synthesize("--help; $(touch x) „Grüße\u201c\x1b[2J\nSecond line.")
    assert speech.startswith(b"RIFF")
    said = speech[44:].decode("utf-16-le")
    assert said == f"{piper}|--help; $(touch x) „Grüße\u201c\N{SYMBOL FOR ESCAPE}[2J\nSecond line."
    assert "piper" not in sys.modules


def test_a_failure_of_piper_shows_its_last_line_without_control_characters(piper):
    with pytest.raises(UserError, match=r"exit code 1\): ValueError: ␛\[31mbad voice"):
        synthesize("fail")


def test_a_piper_that_does_not_end_is_stopped(piper):
    began = time.monotonic()
    with pytest.raises(UserError, match=r"did not end within 0\.2 seconds"):
        synthesize("wait", seconds=0.2)
    with pytest.raises(UserError, match="stopped"):
        synthesize("wait", stop=lambda: True)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(("text", "why"), [(" \n", "nothing to say"), ("x" * 5001, "5,001 characters")])
def test_a_text_that_cannot_be_spoken_is_refused(piper, text, why):
    with pytest.raises(UserError, match=why):
        synthesize(text)


def test_a_missing_program_or_voice_is_named_with_how_to_get_it(piper, monkeypatch):
    piper.with_suffix(".onnx.json").unlink()
    assert "my voice.onnx.json: this file" in why_no_piper()
    monkeypatch.delenv("LLM_LAB_PIPER_VOICE")
    with pytest.raises(UserError, match=r"Set LLM_LAB_PIPER_VOICE.*piper\.download_voices"):
        synthesize("hello")
    monkeypatch.setenv("LLM_LAB_PIPER", "no-such-program")
    assert "no-such-program" in why_no_piper()
    monkeypatch.delenv("LLM_LAB_PIPER")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"pip install 'llm-lab\[voice\]'"):
        synthesize("hello")
