"""Speech to text: which recordings are accepted, what counts as silence, and how long ones are cut."""

import io
import json

import numpy as np
import pytest
from support.sounds import RATE, noise, tone, wav_of

from llm_lab.chat.speech_to_text import Transcriber, default_whisper, is_silent, read_wav, split
from llm_lab.errors import UserError


def test_a_recording_is_read_as_numbers_between_minus_one_and_one():
    samples = read_wav(wav_of([0.0, 0.5, -1.0]))
    assert samples.dtype == np.float32
    assert samples == pytest.approx([0, 0.5, -1], abs=1e-4)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (wav_of(tone(0.1), rate=44_100), "44,100 samples per second.*16,000"),
        (wav_of(tone(0.1), channels=2), "2 channels"),
        (wav_of(tone(0.1), width=4), "32 bits"),
        (b"", "not a WAV file"),
        (b"\x1aE\xdf\xa3 webm", "not a WAV file"),
        (wav_of(tone(0.1))[:30], "not a WAV file"),
        (wav_of(np.zeros(121 * RATE)), "too long.*at most 120 seconds"),
    ],
)
def test_other_recordings_are_refused_with_what_is_allowed(data, why):
    with pytest.raises(UserError, match=why):
        read_wav(data)


def test_a_header_that_promises_more_samples_than_there_are_gives_the_existing_ones():
    data = bytearray(wav_of(tone(0.5)))
    data[40:44] = (2**31).to_bytes(4, "little")
    assert len(read_wav(bytes(data))) == RATE // 2


@pytest.mark.parametrize("level", [0.0, 0.0005, 0.003])
def test_silence_and_faint_noise_give_no_text_and_load_no_model(level):
    whisper = Transcriber("there is no such model")
    assert whisper.transcribe(wav_of(noise(3, level))) == ""
    assert whisper.transcribe(wav_of(noise(3, level) + 0.2)) == "", "a microphone with an offset"
    assert whisper.transcribe(wav_of([])) == ""


def test_one_word_in_a_long_silence_is_not_treated_as_silence():
    samples = noise(20, 0.001)
    samples[5 * RATE : 5 * RATE + RATE // 3] += tone(1, 0.05)[: RATE // 3]
    assert not is_silent(samples)


def test_a_long_recording_is_cut_at_quiet_points_and_loses_nothing():
    samples = tone(70, 0.3)
    for pause in (25, 50):
        samples[pause * RATE : pause * RATE + RATE // 2] = 0
    pieces = split(samples)
    assert np.array_equal(np.concatenate(pieces), samples)
    assert [round(len(piece) / RATE) for piece in pieces] == [25, 25, 20]
    assert [len(piece) for piece in split(tone(30))] == [30 * RATE]


def test_a_model_that_is_not_a_whisper_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match=r"its type is gpt2.*openai/whisper-tiny"):
        Transcriber(str(tmp_path)).transcribe(wav_of(tone(1)))


def test_a_missing_whisper_model_is_named_in_the_error(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="whisper = /nowhere/whisper"):
        Transcriber("/nowhere/whisper").transcribe(wav_of(tone(1)))


def test_the_default_whisper_model_is_the_one_in_the_environment(monkeypatch):
    monkeypatch.delenv("LLM_LAB_WHISPER", raising=False)
    assert default_whisper() == "openai/whisper-tiny"
    monkeypatch.setenv("LLM_LAB_WHISPER", "/models/whisper")
    assert Transcriber().name == "/models/whisper"


def test_a_window_of_a_multilingual_model_is_transcribed_in_the_language_that_it_detects():
    """The weights are random, so the text is meaningless, but every step of the real path runs."""
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    from llm_lab.chat.speech_to_text import _text_of

    torch.manual_seed(0)
    shape = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    shape |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": 40}
    tokens = {"decoder_start_token_id": 30, "eos_token_id": 31, "pad_token_id": 31, "bos_token_id": 31}
    model = WhisperForConditionalGeneration(WhisperConfig(**shape, **tokens)).eval()
    model.generation_config = GenerationConfig(
        **tokens,
        lang_to_id={"<|en|>": 32, "<|de|>": 33},
        task_to_id={"transcribe": 34, "translate": 35},
        no_timestamps_token_id=37,
        is_multilingual=True,
        max_length=448,
    )

    class Processor:
        feature_extractor = WhisperFeatureExtractor()

        class tokenizer:
            @staticmethod
            def decode(ids, skip_special_tokens):
                return f" {[int(token) for token in ids]} "

    prompts = []
    model.model.decoder.register_forward_pre_hook(
        lambda _, arguments, options: prompts.append(options["input_ids"][0].tolist()), with_kwargs=True
    )
    said = _text_of(model, Processor, tone(1).astype(np.float32))
    start, language, task, no_timestamps = next(prompt for prompt in prompts if len(prompt) > 1)
    assert (start, task, no_timestamps) == (30, 34, 37)
    assert language in (32, 33)
    ids = json.loads(said)
    assert ids
    assert all(0 <= token < 40 for token in ids)


def test_samples_are_little_endian_on_every_machine():
    data = io.BytesIO(wav_of([0.25]))
    assert data.getvalue()[-2:] == (8191).to_bytes(2, "little")
    assert read_wav(data.getvalue())[0] == pytest.approx(0.25, abs=1e-4)
