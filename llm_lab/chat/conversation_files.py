"""Saved conversations: one JSON file each."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from llm_lab.errors import LabError, Problem, UserError
from llm_lab.limits import parse_json
from llm_lab.runs.disk import write_atomically

from .decoding import ChatSettings
from .search_results import are_sources

KIND = "llm-lab conversation"
Messages = list[dict[str, Any]]


def write_conversation(
    file: Path,
    mode: str,
    model: str,
    settings: ChatSettings,
    system: str | None,
    messages: Messages,
    *,
    against: dict[str, Any] | None = None,
) -> None:
    """Write a conversation. Raises UserError if the file holds something else or can't be written.

    against: the mode, model and messages of a second model that got the same prompts.
    """
    conversation = {
        "kind": KIND,
        "mode": mode,
        "model": model,
        "settings": dataclasses.asdict(settings),
        "system": system,
        "messages": messages,
        **({"against": against} if against else {}),
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
    """Return the mode, model, settings, system and messages of a saved conversation, and what is `against` it.

    Raises UserError if it is not one.
    """
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(Problem(str(file), f"it can't be read: {error.strerror}")) from None
    except ValueError:  # neither UTF-8 nor JSON
        raise UserError(Problem(str(file), why)) from None
    system = found.get("system", 0) if isinstance(found, dict) and found.get("kind") == KIND else 0
    if not isinstance(system, str | None) or not _is_valid(found):
        raise UserError(Problem(str(file), why))
    settings, against = found.get("settings"), found.get("against")
    return {
        **_side(found),
        "settings": settings if isinstance(settings, dict) else {},
        "system": system,
        "against": _side(against) if isinstance(against, dict) and _is_valid(against) else None,
    }


def _side(found: dict[str, Any]) -> dict[str, Any]:
    kept = ("role", "content", "ended", "sources")
    messages = [{key: message[key] for key in kept if key in message} for message in found["messages"]]
    return {"mode": found["mode"], "model": str(found.get("model") or ""), "messages": messages}


def _is_valid(found: dict[str, Any]) -> bool:
    return found.get("mode") in ("chat", "completion") and are_messages(found.get("messages"))


def are_messages(messages: Any) -> bool:
    """Return whether a value from elsewhere is a list of messages: of the user and the assistant in turn."""
    return (
        isinstance(messages, list)
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
