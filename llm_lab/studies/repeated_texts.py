"""Texts in which only repetition can be predicted: random letters, repeated several times in each text."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from llm_lab.runs.disk import write_atomically

CHARACTERS = "abcdefghijklmnopqrstuvwxyz"  # each is one byte, and therefore one token


def repeated_texts(count: int, *, shortest: int, longest: int, times: int, seed: int) -> Iterator[str]:
    """Yield texts of a random chunk, repeated `times` times. No character occurs twice in a chunk.

    The length of the chunk differs from text to text, so that the next character can't be found at a fixed distance.
    """
    draw = random.Random(seed)
    for _ in range(count):
        yield "".join(draw.sample(CHARACTERS, draw.randint(shortest, longest))) * times


def write_texts(path: Path, texts: Iterator[str]) -> None:
    """Write texts as lines of JSON; a file that already has them is not changed."""
    text = "".join(json.dumps({"text": each}) + "\n" for each in texts)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_atomically(path, text)
