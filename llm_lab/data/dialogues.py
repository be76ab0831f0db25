"""Messages out of the forms in which public sets write them: role and content, from and value, "Human: ..."."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, str]

# Names of roles, as sets write them. Others (tool, function, developer) mean something that is not taught here, and
# to pass them off as the user's words would teach nonsense: they are errors.
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
_KEYS = (("role", "content"), ("from", "value"), ("role", "value"), ("from", "content"), ("role", "text"))
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


class Unusable(Exception):
    """A row that is left out, and counted under this reason."""


class Unreadable(Exception):
    """A row whose form is wrong: the set is not what it was taken for."""


def is_dialogue(value: Any) -> bool:
    """Whether a string is a dialogue in the manner of Anthropic's HH sets: '\\n\\nHuman: ...\\n\\nAssistant: ...'."""
    return isinstance(value, str) and value.lstrip().startswith("Human:")


def read_dialogue(text: str) -> list[Message]:
    """Return the turns of a dialogue; answers may have any number of paragraphs."""
    parts = _TURN.split(text.strip() + "\n")
    return [
        {"role": _SPEAKERS[speaker], "content": content.strip()}
        for speaker, content in zip(parts[1::2], parts[2::2], strict=True)
    ]


def read_messages(value: Any, what: str) -> list[Message]:
    """Return a list of messages as [{"role", "content"}], blank system messages left out.

    value: a list, or its JSON. Unreadable, under the name `what`, where it is something else.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            raise Unreadable(f"{what} is a string that is no JSON") from None
    if isinstance(value, Mapping) and value and all(isinstance(cells, list) for cells in value.values()):
        # The datasets library turns some lists of objects into an object of lists.
        value = [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=False)]
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise Unreadable(f"{what} holds {type(value).__name__}, not a list of messages")
    messages = [_message(turn, f"message {number} of {what}") for number, turn in enumerate(value, 1)]
    return [message for message in messages if message["role"] != "system" or message["content"].strip()]


def read_text(value: Any, what: str) -> str:
    """Return a string, '' where there is none. Unreadable where it is something else, or no text."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Unreadable(f"{what} holds {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unreadable(f"{what} has half of a surrogate pair (\\ud800 to \\udfff): no text") from None
    return value


def check_turns(messages: Sequence[Message]) -> None:
    """Demand that user and assistant take turns, the user first, and that nobody says nothing. Unusable if not."""
    turns = [message for message in messages if message["role"] != "system"]
    if turns and turns[0]["role"] == "assistant":
        raise Unusable("the assistant speaks first")
    for turn, before in zip(turns, [None, *turns], strict=False):
        if before is not None and before["role"] == turn["role"]:
            raise Unusable(f"two turns of the {turn['role']} in a row")
        if not turn["content"].strip():
            raise Unusable("an empty answer" if turn["role"] == "assistant" else "an empty question")


def _message(turn: Any, what: str) -> Message:
    if not isinstance(turn, Mapping):
        raise Unreadable(f"{what} is {type(turn).__name__}, not an object with role and content")
    keys = next((pair for pair in _KEYS if pair[0] in turn and pair[1] in turn), None)
    if keys is None:
        raise Unreadable(f"{what} has no role and content (or from and value), only {', '.join(turn) or 'nothing'}")
    role, content = turn[keys[0]], turn[keys[1]]
    if role not in ROLES:
        raise Unreadable(f"{what} has the role {role!r}, which is not taught; known are {', '.join(ROLES)}")
    if turn.get("tool_calls"):
        raise Unreadable(f"{what} calls a tool, which is not taught")
    return {"role": ROLES[role], "content": _content(content, what)}


def _content(content: Any, what: str) -> str:
    if not isinstance(content, list):
        return read_text(content, what)
    texts = []
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            raise Unreadable(f"{what} has a part that is not text")
        texts.append(read_text(part.get("text"), what))
    return "".join(texts)
