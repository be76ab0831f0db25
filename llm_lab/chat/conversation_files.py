"""Saved conversations: one JSON file each."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_lab.errors import LabError, Problem, UserError
from llm_lab.limits import parse_json
from llm_lab.runs.disk import write_atomically

from .conversation_turns import Turn, turns_from
from .decoding import ChatSettings
from .search_results import are_sources

KIND = "llm-lab conversation"
Messages = list[dict[str, Any]]


class MessagesLostError(UserError):
    """A file was not replaced, because it has messages that the new conversation does not have."""


def write_conversation(
    file: Path,
    mode: str,
    model: str,
    settings: ChatSettings,
    system: str | None,
    messages: Messages,
    *,
    against: dict[str, Any] | None = None,
    turns: Sequence[Turn] | None = None,
) -> None:
    """Write a conversation. Raises UserError if the file holds something else or can't be written.

    Raises MessagesLostError if the file has messages that this conversation does not have; then it is not changed.

    against: the mode, model and messages of a second model that got the same prompts. turns: the prompts with all
    answers of both models, if the messages don't contain everything.
    """
    conversation = {
        "kind": KIND,
        "mode": mode,
        "model": model,
        "settings": dataclasses.asdict(settings),
        "system": system,
        "messages": messages,
        **({"against": against} if against else {}),
        **({"turns": [turn.model_dump(exclude_defaults=True) for turn in turns]} if turns else {}),
    }
    try:
        if file.is_dir():
            fix = f"Name a file in it, such as {file / 'chat.json'}."
            raise UserError(Problem(str(file), "it can't be written: this is a folder", fix=fix))
        if file.exists():
            why = "the file exists and is not a saved conversation, so it is not replaced"
            before = read_conversation(file, why=why)
            if _said(before) - _said(conversation):
                why = "the file has messages that this conversation lacks, so it is not replaced"
                raise MessagesLostError(Problem(str(file), why, fix="Save under another name."))
        write_atomically(file, json.dumps(conversation, indent=2, ensure_ascii=False) + "\n")
    except LabError:
        raise
    except OSError as error:
        raise UserError(Problem(str(file), f"it can't be written: {error.strerror}")) from None
    except ValueError as error:  # not a valid file name, such as one with a NUL character
        raise UserError(Problem(str(file), f"it can't be written: {error}")) from None


def read_conversation(file: Path, *, why: str = "this is not a saved conversation") -> dict[str, Any]:
    """Return the mode, model, settings, system, messages and `against` of a saved conversation.

    turns: the prompts with all answers, or None if the file has only messages. Raises UserError if it is not one.
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
    turns = turns_from(found.get("turns"))
    return {
        **_side(found),
        "settings": settings if isinstance(settings, dict) else {},
        "system": system,
        "against": _side(against) if isinstance(against, dict) and _is_valid(against) else None,
        "turns": None if turns is None else [turn.model_dump() for turn in turns],
    }


def _side(found: dict[str, Any]) -> dict[str, Any]:
    kept = ("role", "content", "ended", "stopped", "sources")
    messages = [{key: message[key] for key in kept if key in message} for message in found["messages"]]
    return {"mode": found["mode"], "model": str(found.get("model") or ""), "messages": messages}


def _said(conversation: Mapping[str, Any]) -> Counter[tuple[str, ...]]:
    """Return how often each prompt, and each answer of each model to it, occurs in a conversation."""
    said: Counter[tuple[str, ...]] = Counter()
    for key, side in (("a", conversation), ("b", conversation.get("against") or {"messages": []})):
        texts = [message["content"] for message in side["messages"]]
        pairs = list(zip(texts[::2], texts[1::2], strict=True))
        said |= Counter([(asked,) for asked, _ in pairs] + [(key, *pair) for pair in pairs])
    in_turns: Counter[tuple[str, ...]] = Counter()
    for turn in conversation.get("turns") or ():
        in_turns[(turn["text"],)] += 1
        for key, answers in turn.get("answers", {}).items():
            in_turns.update((key, turn["text"], one["text"]) for one in answers["variants"] if one["text"])
    return said | in_turns


def _is_valid(found: dict[str, Any]) -> bool:
    return found.get("mode") in ("chat", "completion") and are_messages(found.get("messages"))


def are_messages(messages: Any) -> bool:
    """Return whether an unchecked value is a list of messages in which user and assistant alternate."""
    return (
        isinstance(messages, list)
        and len(messages) % 2 == 0
        and all(
            isinstance(message, dict)
            and message.get("role") == ("assistant" if index % 2 else "user")
            and isinstance(message.get("content"), str)
            and isinstance(message.get("ended", True), bool)
            and isinstance(message.get("stopped", True), bool)
            and are_sources(message.get("sources", []))
            for index, message in enumerate(messages)
        )
    )
