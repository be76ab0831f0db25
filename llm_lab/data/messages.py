"""The messages of a conversation, as public datasets write them."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

# role and content; answers may have reasoning_content, and train: False if they are not trained on.
Message = dict[str, Any]

# Role names in public datasets. Others (developer) are not supported: training on them as messages of the user would be
# wrong, so they are errors. Conversations with tools are skipped.
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
_TOOLS = ("tool", "function", "function_call", "observation", "tool_call", "tool_response")
_OTHER_ROLES = (*_TOOLS, "developer", "ipython")
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names used by models and services
_LIST = re.compile(r"\s*\[\s*\{")
_MESSAGES = re.compile(r"""\s*\[\s*\{\s*['"](?:role|from|content|value)['"]\s*:""")
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


class Unusable(Exception):
    """A row that is skipped and counted under this reason."""


class Unreadable(Exception):
    """A row that does not have the format that was recognized for the dataset."""


def is_dialogue(value: Any) -> bool:
    """Return whether a value is a dialogue as in Anthropic's HH datasets: '\\n\\nHuman: ...\\n\\nAssistant: ...'."""
    return isinstance(value, str) and value.lstrip().startswith("Human:")


def read_dialogue(text: str) -> list[Message]:
    """Return the messages of a dialogue; answers may have any number of paragraphs."""
    parts = _TURN.split(text.strip() + "\n")
    return [
        {"role": _SPEAKERS[speaker], "content": content.strip()}
        for speaker, content in zip(parts[1::2], parts[2::2], strict=True)
    ]


def read_messages(value: Any, what: str) -> list[Message]:
    """Return a list of messages as [{"role", "content"}], without blank system messages.

    value: a list, or its JSON. Raises Unreadable, naming it `what`, for anything else.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parse_list(value)
        if value is None:
            raise Unreadable(f"{what} is a string that is not valid JSON")
    if isinstance(value, Mapping) and value and all(isinstance(cells, list) for cells in value.values()):
        # The datasets library converts some lists of objects to an object of lists.
        if len({len(cells) for cells in value.values()}) > 1:
            raise Unreadable(f"{what} is an object of lists of different lengths")
        value = [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise Unreadable(f"{what} is {type(value).__name__}, not a list of messages")
    messages = [_message(turn, f"message {number} of {what}") for number, turn in enumerate(value, 1)]
    return [message for message in messages if message["role"] != "system" or message["content"].strip()]


def written_messages(text: str, what: str) -> Any | None:
    """Return the messages that a text contains as a list in JSON or Python notation; None for any other text.

    A list of other objects is an answer, for example extracted data. Raises Unreadable for broken messages.
    """
    if not _LIST.match(text):
        return None
    value = parse_list(text)
    if value is None and _MESSAGES.match(text):
        raise Unreadable(f"{what} looks like a list of messages, but is not valid JSON")
    if isinstance(value, list) and all(_is_message(turn) for turn in value):
        return value
    return None


def is_single_message(value: Any) -> bool:
    """Return whether a value is a single message, as in LLaMA-Factory's preferences, not a list of messages."""
    return _is_message(value) and not any(isinstance(cell, list) for cell in value.values())


def is_question(turn: Any) -> bool:
    """Return whether a value is a message from the user."""
    return _is_message(turn) and ROLES.get(turn.get("role", turn.get("from"))) == "user"


def _is_message(turn: Any) -> bool:
    pair = next((pair for pair in _KEYS if set(pair) <= turn.keys()), None) if isinstance(turn, Mapping) else None
    return pair is not None and isinstance(turn[pair[0]], str) and turn[pair[0]] in {*ROLES, *_OTHER_ROLES}


def parse_list(text: str) -> Any | None:
    """Return a list written as JSON, or as pandas writes lists into CSV files; None if it is neither.

    The result contains only what JSON allows: keys are strings, and there are no sets or bytes.
    """
    for parse in (json.loads, lambda text: json.loads(json.dumps(ast.literal_eval(text)))):
        try:
            with warnings.catch_warnings(action="ignore"):  # Python's parser warns about backslashes in strings
                return parse(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return None


def read_text(value: Any, what: str) -> str:
    """Return a string, '' for None. Raises Unreadable for other types and for invalid Unicode."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Unreadable(f"{what} is {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unreadable(
            f"{what} contains an unpaired surrogate (\\ud800 to \\udfff), which is not valid text"
        ) from None
    return value


def check_turns(messages: Sequence[Message]) -> None:
    """Raise Unusable unless user and assistant alternate, the user is first, and no turn is empty."""
    turns = [message for message in messages if message["role"] != "system"]
    if turns and turns[0]["role"] == "assistant":
        raise Unusable("the first message is from the assistant")
    for turn, before in zip(turns, [None, *turns], strict=False):
        if before is not None and before["role"] == turn["role"]:
            raise Unusable(f"two {turn['role']} messages in a row")
        if not turn["content"].strip():
            raise Unusable("an empty answer" if turn["role"] == "assistant" else "an empty question")


def _message(turn: Any, what: str) -> Message:
    if not isinstance(turn, Mapping):
        raise Unreadable(f"{what} is {type(turn).__name__}, not an object with role and content")
    if turn.get("tool_calls") or turn.get("function_call") or turn.get("role", turn.get("from")) in _TOOLS:
        raise Unusable("tool calls, which are not supported")
    keys = next((pair for pair in _KEYS if pair[0] in turn and pair[1] in turn), None)
    if keys is None:
        raise Unreadable(f"{what} has no role and content (or from and value); it has {', '.join(turn) or 'no keys'}")
    role, content = turn[keys[0]], turn[keys[1]]
    if not isinstance(role, str) or role not in ROLES:
        raise Unreadable(f"{what} has the role {role!r}, which is not supported; supported: {', '.join(ROLES)}")
    message: Message = {"role": ROLES[role], "content": _content(content, what)}
    return message | _about_answer(turn, what) if message["role"] == "assistant" else message


def _about_answer(turn: Mapping[str, Any], what: str) -> Message:
    """Return the reasoning of an answer, and train: False if its data excludes it from training."""
    found: Message = {}
    named = next((name for name in _REASONING if isinstance(turn.get(name), str) and turn[name].strip()), None)
    if named:
        found["reasoning_content"] = read_text(turn[named], f"{named} of {what}")
    for key in ("weight", "train"):
        value = turn.get(key)
        if value is not None and value not in (0, 1):
            raise Unreadable(f"{what} has {key} = {value!r}; only 0 (not trained) and 1 are supported")
        if value is not None and not value:
            found["train"] = False
    return found


def _content(content: Any, what: str) -> str:
    if not isinstance(content, list):
        return read_text(content, what)
    texts = []
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            raise Unreadable(f"{what} has a part that is not text")
        texts.append(read_text(part.get("text"), what))
    return "".join(texts)
