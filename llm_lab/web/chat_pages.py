"""The chat page: any model, or two side by side. The page holds the conversation and sends it with each message."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llm_lab.chat.decoding import SETTINGS, ChatSettings
from llm_lab.errors import MachineError, Problem, UserError

from . import conversations_api
from .chat_models import describe_model, newest_model, offered_models
from .conversations_api import settings_of
from .lab import Lab, lab_of
from .responses import answer, body_of, lines, page
from .workers import WorkerEnded

CALLS = "llm_lab.web.chat_calls"
SLOTS = ("a", "b")  # a worker with one model for each
IDLE_SECONDS = 15 * 60.0


def chat_page(request: Request) -> Response:
    """Show the chat: ?model=NAME&step=N&against=NAME."""
    asked = request.query_params
    defaults = asdict(ChatSettings())
    settings = [
        {
            "name": name,
            "whole": setting.kind is int,
            "minimum": setting.minimum,
            "maximum": setting.maximum,
            "allowed": setting.allowed,
            "help": setting.help,
            "default": defaults[name],
        }
        for name, setting in SETTINGS.items()
    ]
    data = {
        "model": asked.get("model"),
        "newest": newest_model(),
        "step": asked.get("step"),
        "against": asked.get("against"),
        "settings": settings,
        "idle_minutes": IDLE_SECONDS / 60,
    }
    return page(request, "chat.html", title="Chat", data=data)


def models(request: Request) -> Response:
    """Return the models to choose from."""
    return answer({"models": offered_models()})


async def model(request: Request) -> Response:
    """Return what is known about a model before it is loaded."""
    return answer(await run_in_threadpool(describe_model, _text(await body_of(request), "model")))


async def load(request: Request) -> Response:
    """Load a model into a slot; send lines with the progress, then {"result": its description}."""
    body = await body_of(request)
    arguments = {"model": _text(body, "model"), "trust": body.get("trust") is True}
    return lines(_call(lab_of(request), body, "load", arguments))


async def reply(request: Request) -> Response:
    """Answer a message; send lines with the pieces, then {"result": the whole reply and its numbers}."""
    body = await body_of(request)
    text, system = body.get("text"), body.get("system")
    arguments = {
        "model": _text(body, "model"),
        "text": text if isinstance(text, str) else "",
        "messages": body.get("messages"),
        "settings": asdict(settings_of(body.get("settings"))),
        "system": system if isinstance(system, str) and system.strip() else None,
        "hits": body["hits"] if isinstance(body.get("hits"), list) else [],
        "trust": body.get("trust") is True,
    }
    return lines(_call(lab_of(request), body, "reply", arguments))


async def unload(request: Request) -> Response:
    """End the process of a slot, which frees its memory."""
    await lab_of(request).workers.end(f"chat-{_slot(await body_of(request))}")
    return answer({})


async def _call(lab: Lab, body: dict[str, Any], call: str, arguments: dict[str, Any]) -> AsyncIterator[Any]:
    worker = lab.workers.get(f"chat-{_slot(body)}", CALLS, idle_seconds=IDLE_SECONDS)
    if worker.is_busy:
        yield {"waiting": True}
    try:
        async for piece in worker.stream(call, **arguments):
            yield piece
    except WorkerEnded:
        why = "the process of this model ended unexpectedly: it crashed, or the system stopped it to free memory"
        raise MachineError(
            Problem(arguments["model"], why, fix="Send the message again: this restarts the process.")
        ) from None
    except RuntimeError as error:
        why = f"an error in LLM Lab: {error}"
        fix = "The terminal of llm-lab web shows the details."
        raise MachineError(Problem(arguments["model"], why, fix=fix)) from None


def _slot(body: dict[str, Any]) -> str:
    slot = body.get("slot")
    if slot not in SLOTS:
        raise UserError(Problem("slot", "no such slot", value=slot, allowed=", ".join(SLOTS)))
    return str(slot)


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UserError(Problem(name, "it is empty", fix="Choose a model."))
    return value.strip()


ROUTES = [
    Route("/chat", chat_page),
    Route("/api/chat/models", models),
    Route("/api/chat/model", model, methods=["POST"]),
    Route("/api/chat/load", load, methods=["POST"]),
    Route("/api/chat/reply", reply, methods=["POST"]),
    Route("/api/chat/unload", unload, methods=["POST"]),
    *conversations_api.ROUTES,
]
