"""Saved conversations: one JSON file each."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from llm_lab.errors import LabError, Problem, UserError
from llm_lab.runs.disk import write_atomically

from .decoding import ChatSettings
from .search_results import are_sources

KIND = "llm-lab conversation"
Messages = list[dict[str, Any]]


def write_conversation(
    file: Path, mode: str, model: str, settings: ChatSettings, system: str | None, messages: Messages
) -> None:
    """Write a conversation. Raises UserError if the file holds something else or can't be written."""
    conversation = {
        "kind": KIND,
        "mode": mode,
        "model": model,
        "settings": dataclasses.asdict(settings),
        "system": system,
        "messages": messages,
    }
    try:
        if file.exists():
            read_conversation(file, why="the file exists and is not a saved conversation, so it is not replaced")
        write_atomically(file, json.dumps(conversation, indent=2, ensure_ascii=False) + "\n")
    except LabError:
        raise
    except OSError as error:
        raise UserError(Problem(str(file), f"it can't be written: {error.strerror}")) from None
    except ValueError as error:  # no name of a file, such as one with a NUL character
        raise UserError(Problem(str(file), f"it can't be written: {error}")) from None


def read_conversation(file: Path, *, why: str = "this is not a saved conversation") -> dict[str, Any]:
    """Return the mode, system and messages of a saved conversation. Raises UserError if it is not one."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(Problem(str(file), f"it can't be read: {error.strerror}")) from None
    except ValueError:  # neither UTF-8 nor JSON
        raise UserError(Problem(str(file), why)) from None
    if not isinstance(found, dict) or found.get("kind") != KIND or not _is_valid(found):
        raise UserError(Problem(str(file), why))
    kept = ("role", "content", "ended", "sources")
    messages = [{key: message[key] for key in kept if key in message} for message in found["messages"]]
    return {"mode": found["mode"], "system": found["system"], "messages": messages}


def _is_valid(found: dict[str, Any]) -> bool:
    messages = found.get("messages")
    return (
        found.get("mode") in ("chat", "completion")
        and isinstance(found.get("system", 0), str | None)
        and isinstance(messages, list)
        and len(messages) % 2 == 0
        and all(
            isinstance(message, dict)
            and message.get("role") == ("assistant" if index % 2 else "user")
            and isinstance(message.get("content"), str)
            and isinstance(message.get("ended", True), bool)
            and are_sources(message.get("sources", []))
            for index, message in enumerate(messages)
        )
    )
