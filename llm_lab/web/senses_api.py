"""Requests for web search and voice, each handled by a worker of its own."""

from __future__ import annotations

import base64
import importlib.util
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llm_lab.chat.speech_to_text import LARGEST_WAV, default_whisper, too_long
from llm_lab.chat.text_to_speech import default_voice, why_no_piper
from llm_lab.chat.web_search import INSTALL, check_backend, default_backend, describe_privacy, search_reason
from llm_lab.estimate.cached_models import cached_folder

from .lab import lab_of
from .responses import answer, body_of
from .workers import Worker

CALLS = "llm_lab.web.senses_calls"


async def describe_search(request: Request) -> Response:
    """Return which backend a search uses, where the question is sent, and whether ddgs is installed."""
    backend = check_backend(_text_of(await body_of(request), "backend") or default_backend())
    has_ddgs = importlib.util.find_spec("ddgs") is not None
    values = {"backend": backend, "privacy": describe_privacy(backend), "ddgs": has_ddgs, "install": INSTALL}
    return answer(values)


async def search(request: Request) -> Response:
    """Search the web: {query, backend} -> {hits: [{n, title, url, snippet}], backend}."""
    body = await body_of(request)
    backend = check_backend(_text_of(body, "backend") or default_backend())
    hits = await _worker(request, "search").call("search", query=_text_of(body, "query"), backend=backend)
    return answer({"hits": hits, "backend": backend})


async def reason(request: Request) -> Response:
    """Return the word because of which a message needs a search, or null."""
    return answer({"reason": search_reason(_text_of(await body_of(request), "text"))})


def describe_voice(request: Request) -> Response:
    """Return the Whisper model and whether it is downloaded, and the voice of Piper or why there is none."""
    voice, whisper = default_voice(), request.query_params.get("model") or default_whisper()
    downloaded = Path(whisper).expanduser().exists() or cached_folder(whisper) is not None
    piper = {"voice": voice and voice.stem, "why": why_no_piper()}
    return answer({"whisper": whisper, "downloaded": downloaded, "piper": piper})


async def listen(request: Request) -> Response:
    """Return the text of a recording: the body is a WAV file, and the query may name another Whisper model."""
    wav = bytearray()
    async for part in request.stream():
        wav += part
        if len(wav) > LARGEST_WAV:
            raise too_long()
    model = request.query_params.get("model") or default_whisper()
    encoded = base64.b64encode(wav).decode()
    return answer({"text": await _worker(request, "listen").call("listen", wav=encoded, model=model)})


async def speak(request: Request) -> Response:
    """Return a text as speech by Piper, in a WAV file."""
    text = _text_of(await body_of(request), "text")
    wav = base64.b64decode(await _worker(request, "speak").call("speak", text=text))
    return Response(wav, media_type="audio/wav")


def _text_of(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    return value if isinstance(value, str) else ""


def _worker(request: Request, name: str) -> Worker:
    return lab_of(request).workers.get(name, CALLS)


ROUTES = [
    Route("/api/search/describe", describe_search, methods=["POST"]),
    Route("/api/search/reason", reason, methods=["POST"]),
    Route("/api/search", search, methods=["POST"]),
    Route("/api/voice", describe_voice),
    Route("/api/voice/listen", listen, methods=["POST"]),
    Route("/api/voice/speak", speak, methods=["POST"]),
]
