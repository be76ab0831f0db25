"""Real speech: a human recording and Piper's voice become text with real Whisper weights; noise does not."""

import re

import numpy as np
import pytest
from support.sounds import RATE, noise, tone, wav_of
from support.spoken import needs_voice, piper_environment, recording, write_whisper

from llm_lab.chat.speech_to_text import Transcriber, is_silent, read_wav
from llm_lab.chat.text_to_speech import synthesize

pytestmark = [pytest.mark.slow, needs_voice]


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return Transcriber(str(write_whisper(tmp_path_factory.mktemp("whisper"))))


def words_of(text):
    return re.findall(r"[a-z]+", text.lower())


def test_a_human_recording_is_transcribed(whisper):
    words = words_of(whisper.transcribe(recording("beckett.wav")))
    assert " ".join(words) == "ever tried ever failed no matter try again fail again fail better"


def test_a_recording_longer_than_the_window_loses_no_part(whisper):
    said = " ".join(words_of(whisper.transcribe(recording("two_cities.wav"))))
    assert said.startswith("it was the best of times it was the worst of times")
    for part in ("season of darkness", "spring of hope", "winter of despair"):
        assert part in said, said


def test_speech_by_piper_is_transcribed_correctly(whisper, monkeypatch):
    for name, value in piper_environment().items():
        monkeypatch.setenv(name, value)
    speech = synthesize("What is the weather in Paris today?")
    assert " ".join(words_of(whisper.transcribe(_as_heard(speech)))) == "what is the weather in paris today"


@pytest.mark.parametrize("level", [0.0, 0.001, 0.003, 0.01, 0.05])
def test_noise_gives_no_text(whisper, level):
    assert whisper.transcribe(wav_of(noise(5, level))) == ""


def test_a_hum_gives_no_text(whisper):
    assert whisper.transcribe(wav_of(tone(5, 0.1))) == ""


def test_quiet_speech_is_transcribed(whisper):
    samples = read_wav(recording("beckett.wav"))
    quiet = samples * (0.03 / np.abs(samples).max())
    assert not is_silent(quiet)
    assert "ever failed" in " ".join(words_of(whisper.transcribe(wav_of(quiet))))


def _as_heard(speech):
    """Return speech of another rate at 16 kHz, as the page resamples it."""
    import io
    import wave

    with wave.open(io.BytesIO(speech)) as file:
        rate = file.getframerate()
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2") / 32768
    times = np.arange(int(len(samples) * RATE / rate)) / RATE
    return wav_of(np.interp(times, np.arange(len(samples)) / rate, samples))
