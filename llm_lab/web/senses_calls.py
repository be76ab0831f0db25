"""Calls that the workers of search and voice answer. Bytes are base64 in both directions."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from llm_lab.chat import text_to_speech, web_search
from llm_lab.chat.speech_to_text import Transcriber


def search(query: str, backend: str) -> list[dict[str, Any]]:
    """Return search results, numbered from 1."""
    hits = web_search.search(query, backend=backend)
    return [{"n": number, **dataclasses.asdict(hit)} for number, hit in enumerate(hits, 1)]


def listen(wav: str, model: str) -> str:
    """Return the text that is spoken in a recording."""
    return _transcriber(model).transcribe(base64.b64decode(wav))


@lru_cache(maxsize=1)
def _transcriber(model: str) -> Transcriber:
    return Transcriber(model)


def speak(text: str, stop: Callable[[], bool]) -> str:
    """Return a text as speech; end early if the caller has left."""
    return base64.b64encode(text_to_speech.synthesize(text, stop=stop)).decode()


CALLS = {"search": search, "listen": listen, "speak": speak}
