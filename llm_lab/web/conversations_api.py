"""Saved conversations of the page: files in conversations/, which `/save` and `/load` of `llm-lab chat` also use."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llm_lab.chat.conversation_files import MessagesLostError, are_messages, read_conversation, write_conversation
from llm_lab.chat.conversation_turns import turns_from
from llm_lab.chat.decoding import SETTINGS, ChatSettings
from llm_lab.errors import Problem, UserError
from llm_lab.runs.folder import slug
from llm_lab.safe_text import shorten

from .addresses import inside
from .responses import answer, body_of

FOLDER = Path("conversations")
SHOWN = 200
LARGEST = 8 * 1024 * 1024  # bytes; the page does not write larger files


def list_conversations(request: Request) -> Response:
    """Return the names, first words, models and times of the saved conversations, newest first."""
    files = [file for file in FOLDER.glob("*.json") if file.is_file() and file.stat().st_size <= LARGEST]
    rows = []
    for file in sorted(files, key=lambda one: -one.stat().st_mtime)[:SHOWN]:
        try:
            found = read_conversation(_file(file.stem))
        except (UserError, HTTPException):
            continue
        prompts = _prompts(found)
        first = next(iter(prompts), "")
        against = found["against"] and found["against"]["model"]
        rows.append(
            {
                "name": file.stem,
                "title": shorten(" ".join(first.split()), 80) or file.stem,
                "model": found["model"],
                "against": against,
                "turns": len(prompts),
                "time": file.stat().st_mtime,
            }
        )
    return answer({"conversations": rows, "folder": str(FOLDER)})


async def save(request: Request) -> Response:
    """Write a conversation; name: the file that it replaces, or null for a new one. Returns the name.

    A file with messages that this conversation does not have is kept: the conversation gets a new file.
    """
    body = await body_of(request)
    sides = [body, *([body["against"]] if body.get("against") else [])]
    for side in sides:
        if not isinstance(side, dict) or side.get("mode") not in ("chat", "completion"):
            raise UserError(Problem("conversation", "it has no mode"))
        if not are_messages(side.get("messages")) or not isinstance(side.get("model"), str):
            raise UserError(Problem("conversation", "these are not the messages of a conversation"))
    turns = turns_from(body.get("turns") or [])
    if turns is None:
        raise UserError(Problem("conversation", "these are not the turns of a conversation"))
    settings, system = settings_of(body.get("settings")), body.get("system")

    def write(name: Any) -> Response:
        file = _file(name)
        FOLDER.mkdir(exist_ok=True)
        write_conversation(
            file,
            body["mode"],
            body["model"],
            settings,
            system if isinstance(system, str) and system else None,
            body["messages"],
            against={key: sides[1][key] for key in ("mode", "model", "messages")} if len(sides) > 1 else None,
            turns=turns,
        )
        return answer({"name": name, "file": str(file)})

    new_name = _new_name([turn.text for turn in turns] or [message["content"] for message in body["messages"]])
    try:
        return write(body.get("name") or new_name)
    except MessagesLostError:
        return write(new_name)


def read(request: Request) -> Response:
    """Return a conversation; if one of its settings is not allowed, it gets the defaults."""
    found = read_conversation(_existing(request))
    try:
        found["settings"] = vars(settings_of(found["settings"]))
    except UserError:
        found["settings"] = vars(ChatSettings())
    return answer(found)


def download(request: Request) -> Response:
    """Return the file of a conversation."""
    file = _existing(request)
    read_conversation(file)
    headers = {"content-disposition": f'attachment; filename="{slug(file.stem, "conversation")}.json"'}
    return Response(file.read_bytes(), media_type="application/json", headers=headers)


def delete(request: Request) -> Response:
    """Delete a conversation, but not a file that contains anything else."""
    file = _existing(request)
    read_conversation(file, why="it is not a saved conversation, so it is not deleted")
    file.unlink()
    return answer({})


def settings_of(values: Any) -> ChatSettings:
    """Return the sampling settings of a request. Raises UserError if one is not allowed."""
    known = values if isinstance(values, dict) else {}
    return ChatSettings(**{name: known[name] for name in SETTINGS if name in known})


def _file(name: Any) -> Path:
    if not isinstance(name, str) or "/" in name or name.startswith("."):
        raise HTTPException(404, f"There is nothing of that name in {FOLDER}/.")
    return inside(FOLDER, f"{name}.json")


def _existing(request: Request) -> Path:
    file = _file(request.path_params["name"])
    if not file.is_file():
        raise HTTPException(404, f"There is no conversation of that name in {FOLDER}/.")
    return file


def _prompts(conversation: dict[str, Any]) -> list[str]:
    """Return the messages of the user."""
    if conversation["turns"]:
        return [turn["text"] for turn in conversation["turns"]]
    return [message["content"] for message in conversation["messages"][::2]]


def _new_name(prompts: list[str]) -> str:
    first = slug(prompts[0][:50] if prompts else "", "conversation").lower()
    names = itertools.chain([first], (f"{first}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not (FOLDER / f"{name}.json").exists())


ROUTES = [
    Route("/api/chat/conversations", list_conversations),
    Route("/api/chat/conversations", save, methods=["POST"]),
    Route("/api/chat/conversations/{name}", read),
    Route("/api/chat/conversations/{name}", delete, methods=["DELETE"]),
    Route("/api/chat/conversations/{name}/file", download),
]
