"""Speech to text with Whisper, through transformers. Silence and faint noise give an empty text."""

from __future__ import annotations

import io
import os
import wave
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_lab.errors import Problem, UserError
from llm_lab.safe_text import valid_text

if TYPE_CHECKING:
    import numpy as np

KEY = "whisper"
MODEL_VARIABLE = "LLM_LAB_WHISPER"
DEFAULT_MODEL = "openai/whisper-tiny"
RATE = 16_000  # samples per second
LONGEST_SECONDS = 120
LARGEST_WAV = LONGEST_SECONDS * RATE * 2 + 4096  # bytes; the extra ones are for the header
WINDOW_SECONDS = 30  # what Whisper processes at once
FRAME = RATE // 10
# Speech is at least -40 dB of full scale, the noise of an open microphone below -50. Whisper invents a "Thank you" for
# noise, so noise is not passed to it.
SILENCE = 0.004
NO_SPEECH = 0.6  # the probability from which OpenAI's own code treats a window as silence
MAX_NEW_TOKENS = 224  # for one window; half of what Whisper's decoder can hold


def default_whisper() -> str:
    """Return the folder or Hub name in LLM_LAB_WHISPER, or openai/whisper-tiny."""
    return os.environ.get(MODEL_VARIABLE, "").strip() or DEFAULT_MODEL


def too_long() -> UserError:
    """Return the error for a recording above the limit."""
    return UserError(Problem("recording", "it is too long", allowed=f"at most {LONGEST_SECONDS} seconds"))


def read_wav(data: bytes) -> np.ndarray:
    """Return the samples of a WAV file: float32 from -1 to 1, shape (samples,), 16 kHz.

    Raises UserError if it does not have 16 bits, one channel and 16 kHz, or is too long.
    """
    import numpy as np

    if len(data) > LARGEST_WAV:
        raise too_long()
    try:
        with wave.open(io.BytesIO(data)) as file:
            found = (file.getnchannels(), file.getsampwidth() * 8, file.getframerate())
            frames = file.readframes(LONGEST_SECONDS * RATE + 1)
    except (wave.Error, EOFError, ValueError) as error:
        why = f"it is not a WAV file: {error}".rstrip(": ")
        raise UserError(Problem("recording", why)) from None
    if found != (1, 16, RATE):
        channels, bits, rate = found
        why = f"it has {channels} channels, {bits} bits and {rate:,} samples per second"
        allowed = f"a WAV file with 1 channel, 16 bits and {RATE:,} samples per second"
        raise UserError(Problem("recording", why, allowed=allowed))
    samples = np.frombuffer(frames[: len(frames) // 2 * 2], dtype="<i2").astype(np.float32) / 32768
    if len(samples) > LONGEST_SECONDS * RATE:
        raise too_long()
    return samples


def is_silent(samples: np.ndarray) -> bool:
    """Return whether every tenth of a second is quieter than speech."""
    return bool((_loudness(samples) < SILENCE).all())


def split(samples: np.ndarray) -> list[np.ndarray]:
    """Return a recording in windows that Whisper can process, cut at the quietest point of their last third."""
    import numpy as np

    window = WINDOW_SECONDS * RATE
    pieces = []
    while len(samples) > window:
        late = window * 2 // 3
        quietest = late + int(np.argmin(_loudness(samples[late:window]))) * FRAME + FRAME // 2
        pieces.append(samples[:quietest])
        samples = samples[quietest:]
    return [*pieces, samples]


def _loudness(samples: np.ndarray) -> np.ndarray:
    """Return the root mean square of each tenth of a second minus the mean, because a microphone may have an offset."""
    import numpy as np

    frames = np.pad(samples, (0, -len(samples) % FRAME)).reshape(-1, FRAME)
    return frames.std(axis=1)


class Transcriber:
    """A Whisper model. The first recording that is not silent loads it.

    name: a folder or a Hub name. Raises UserError if it can't be loaded or is not a Whisper model.
    """

    def __init__(self, name: str | None = None, *, device: str = "cpu"):
        self.name = name or default_whisper()
        self._device = device
        self._loaded: tuple[Any, Any] | None = None

    def transcribe(self, wav: bytes) -> str:
        """Return the text spoken in a WAV file (see read_wav), in its own language; "" for silence and noise."""
        samples = read_wav(wav)
        if is_silent(samples):
            return ""
        model, processor = self._loaded = self._loaded or self._load()
        pieces = [_text_of(model, processor, piece) for piece in split(samples) if not is_silent(piece)]
        return " ".join(filter(None, pieces))

    def _load(self) -> tuple[Any, Any]:
        """Return the model and its processor."""
        from transformers import WhisperForConditionalGeneration, WhisperProcessor

        from llm_lab.hf.configs import read_config
        from llm_lab.hf.hub import files_of
        from llm_lab.hf.load import first_names, quiet_libraries

        quiet_libraries()
        path = Path(self.name).expanduser()
        name = str(path) if path.exists() else self.name
        config = read_config(name, key=KEY)
        if config.model_type != "whisper":
            why, fix = f"its type is {config.model_type}", f"Use {DEFAULT_MODEL}, or another Whisper model."
            raise UserError(Problem(KEY, why, value=name, fix=fix))
        with files_of(name, key=KEY):
            processor = WhisperProcessor.from_pretrained(name)
            model, found = WhisperForConditionalGeneration.from_pretrained(
                name, config=config, dtype="float32", use_safetensors=True, output_loading_info=True
            )
        if missing := sorted(found["missing_keys"]):
            raise UserError(Problem(KEY, f"weights are missing: {first_names(missing)}", value=name))
        return model.to(self._device).eval(), processor


def _text_of(model: Any, processor: Any, samples: np.ndarray) -> str:
    """Return the text spoken in a window; "" if it is not speech."""
    import torch

    features = processor.feature_extractor(samples, sampling_rate=RATE, return_tensors="pt").input_features
    with torch.inference_mode():
        encoded = model.get_encoder()(features.to(model.device))
        # Whisper's own estimate: the probability of its <|nospeech|> token, which precedes <|notimestamps|> in the
        # vocabulary.
        start = torch.tensor([[model.config.decoder_start_token_id]], device=model.device)
        logits = model(encoder_outputs=encoded, decoder_input_ids=start).logits[0, 0]
        if logits.softmax(-1)[model.generation_config.no_timestamps_token_id - 1] > NO_SPEECH:
            return ""
        # Without a task, a multilingual model may translate; an English-only model refuses the option.
        multilingual = getattr(model.generation_config, "is_multilingual", False)
        more = {"task": "transcribe"} if multilingual else {}
        ids = model.generate(encoder_outputs=encoded, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, **more)
    text: str = processor.tokenizer.decode(ids[0], skip_special_tokens=True)
    return " ".join(valid_text(text).split())
