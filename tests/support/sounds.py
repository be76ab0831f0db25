"""WAV files made from numbers, and real speech if its packages are installed."""

import io
import wave

import numpy as np

RATE = 16_000


def wav_of(samples, *, rate=RATE, channels=1, width=2):
    """Return samples from -1 to 1 as a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(width)
        writer.setframerate(rate)
        writer.writeframes((np.asarray(samples) * (2 ** (8 * width - 1) - 1)).astype(f"<i{width}").tobytes())
    return file.getvalue()


def noise(seconds, level, *, seed=0):
    """Return white noise with a root mean square of `level`."""
    return np.random.default_rng(seed).normal(0, level, int(seconds * RATE))


def tone(seconds, level=0.3):
    return level * np.sin(2 * np.pi * 220 * np.arange(int(seconds * RATE)) / RATE)
