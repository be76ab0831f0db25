"""Recognize the format of a dataset: its text column, the columns of its examples, and its message format."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_lab.errors import Problem, UserError, did_you_mean, one_of

PREFERRED = ("text", "content", "body", "document", "story")
_CLEARLY_LONGER = 3.0


def string_columns(columns: Sequence[str], sample: Sequence[Mapping[str, Any]], *, typed: bool = True) -> list[str]:
    """Return the columns that contain text in every sampled row that has a value.

    In an untyped table (CSV), a column that contains only numbers is not text.
    """
    found = []
    for name in columns:
        values = [row[name] for row in sample if row.get(name) is not None]
        if not values or not all(isinstance(value, str) for value in values):
            continue
        if typed or not all(_is_number(value) for value in values):
            found.append(name)
    return found


def pick_column(
    key: str,
    path: str,
    columns: Sequence[str],
    strings: Sequence[str],
    sample: Sequence[Mapping[str, Any]],
    wanted: str | None,
) -> str:
    """Return the column to read: the requested one, or the one that is clearly the text.

    Raises UserError, under `key`.text_column, if it is missing, not text, or ambiguous.
    """
    if wanted is not None:
        return _check_wanted(key, columns, strings, wanted)
    for name in PREFERRED:
        if name in strings:
            return name
    if len(strings) == 1:
        return strings[0]
    lengths = {name: _mean_length(name, sample) for name in strings}
    longest = sorted(strings, key=lambda name: -lengths[name])
    if len(longest) > 1 and lengths[longest[0]] >= _CLEARLY_LONGER * lengths[longest[1]]:
        return longest[0]
    chats = [name for name in columns if name in ("messages", "conversations")]
    if not strings:
        fix = "Add a column of strings."
        if chats:
            fix = f"Column {chats[0]!r} looks like conversations: use stage sft for those."
        raise UserError(
            Problem(f"{key}.path", f"No column contains text. Columns: {one_of(columns)}", value=path, fix=fix)
        )
    raise UserError(
        Problem(
            f"{key}.text_column",
            f"The text column of {path} is ambiguous. Columns: {one_of(columns)}",
            allowed=one_of(strings),
            fix=f"Set text_column, for example text_column: {longest[0]}",
        )
    )


def _check_wanted(key: str, columns: Sequence[str], strings: Sequence[str], wanted: str) -> str:
    if wanted not in columns:
        raise UserError(
            Problem(
                f"{key}.text_column",
                "There is no such column",
                value=wanted,
                allowed=one_of(columns),
                fix=did_you_mean(wanted, columns),
            )
        )
    if wanted not in strings:
        raise UserError(
            Problem(
                f"{key}.text_column",
                "This column does not contain text",
                value=wanted,
                allowed=one_of(strings) if strings else None,
                fix="Name a column of strings.",
            )
        )
    return wanted


def _mean_length(name: str, sample: Sequence[Mapping[str, Any]]) -> float:
    return sum(len(row.get(name) or "") for row in sample) / max(1, len(sample))


def _is_number(text: str) -> bool:
    try:
        float(text or "0")
    except ValueError:
        return False
    return True


Message = dict[str, str]

# Role names in public datasets. Others (tool, function, developer) are not supported: training on them as if the
# user had said them would be wrong, so they are errors.
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
    """A row that is skipped and counted under this reason."""


class Unreadable(Exception):
    """A row in an unexpected format: the format of the dataset was recognized wrongly."""


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
        try:
            value = json.loads(value)
        except ValueError:
            raise Unreadable(f"{what} is a string that is not valid JSON") from None
    if isinstance(value, Mapping) and value and all(isinstance(cells, list) for cells in value.values()):
        # The datasets library converts some lists of objects to an object of lists.
        value = [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=False)]
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise Unreadable(f"{what} is {type(value).__name__}, not a list of messages")
    messages = [_message(turn, f"message {number} of {what}") for number, turn in enumerate(value, 1)]
    return [message for message in messages if message["role"] != "system" or message["content"].strip()]


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
    keys = next((pair for pair in _KEYS if pair[0] in turn and pair[1] in turn), None)
    if keys is None:
        raise Unreadable(f"{what} has no role and content (or from and value), only {', '.join(turn) or 'nothing'}")
    role, content = turn[keys[0]], turn[keys[1]]
    if role not in ROLES:
        raise Unreadable(f"{what} has the role {role!r}, which is not supported; supported: {', '.join(ROLES)}")
    if turn.get("tool_calls"):
        raise Unreadable(f"{what} is a tool call, which is not supported")
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


# Column names in public datasets, by field. The first one that exists is used.
NAMES = {
    "messages": ("messages", "conversations", "conversation"),
    "prompt": ("prompt", "instruction", "question", "problem", "query"),
    "completion": ("completion", "response", "output", "solution", "answer"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "answer": ("answer", "solution", "target", "ground_truth", "completion", "response", "output"),
    "text": ("text",),
    "input": ("input", "context"),
    "system": ("system", "system_prompt"),
}
NAMEABLE = ("messages", "prompt", "completion", "chosen", "rejected", "answer", "text")
# Required fields by kind of example; the first layout that fits is used. ALSO lists the optional fields.
LAYOUTS = {
    "conversation": (("messages",), ("prompt", "completion"), ("chosen", "rejected"), ("text",)),
    "preference": (("chosen", "rejected"),),
    "prompt": (("prompt",), ("messages",), ("chosen", "rejected")),
}
ALSO = {
    ("messages",): ("system", "answer"),
    ("prompt", "completion"): ("input", "system", "answer"),
    ("chosen", "rejected"): ("prompt", "input", "system", "answer"),
    ("prompt",): ("input", "system", "answer"),
    ("text",): (),
}
KNOWN = {
    "conversation": "messages; conversations (ShareGPT); prompt and completion; instruction, input and output; "
    "question and answer; chosen and rejected; text",
    "preference": "prompt, chosen and rejected; chosen and rejected with the prompt in both",
    "prompt": "prompt, question, problem or instruction, with or without answer, solution or target; messages; "
    "chosen and rejected",
}
_EXAMPLES = {
    "conversation": ("prompt", "completion"),
    "preference": ("prompt", "chosen", "rejected"),
    "prompt": ("prompt", "answer"),
}


@dataclass(frozen=True)
class Format:
    """A recognized format. `fields`: the column of each field."""

    kind: str
    name: str
    layout: tuple[str, ...]
    fields: Mapping[str, str]

    def describe(self) -> str:
        """Return the name and the columns that are read."""
        return f"{self.name} (columns: {', '.join(dict.fromkeys(self.fields.values()))})"


def recognize(
    kind: str,
    columns: Sequence[str],
    sample: Sequence[Mapping[str, Any]],
    *,
    key: str,
    path: str,
    named: Mapping[str, str] | None = None,
) -> Format:
    """Return the format of a table, recognized by its column names and first rows.

    named: {field: column} for columns named in the recipe. Raises UserError, under `key`.columns, if a named
    column does not exist or the format is not recognized.
    """
    named = {field: column for field, column in (named or {}).items() if column is not None}
    _check_named(named, columns, key, kind)
    # Named columns decide: {text: body} means text, whatever other columns exist.
    layouts = sorted(LAYOUTS[kind], key=lambda layout: -sum(field in named for field in layout))
    for layout in layouts:
        fields = _fields(layout, named, columns)
        if fields is not None:
            return Format(kind, _name(layout, fields, sample), layout, fields)
    example = ", ".join(
        f"{field}: {column}" for field, column in zip(_EXAMPLES[kind], [*columns, *"abc"], strict=False)
    )
    raise UserError(
        Problem(
            f"{key}.columns",
            f"The columns of {path} are not recognized: {one_of(columns) or 'it has none'}",
            allowed=KNOWN[kind],
            fix=f"Name the columns, for example columns: {{{example}}}",
        )
    )


def _check_named(named: Mapping[str, str], columns: Sequence[str], key: str, kind: str) -> None:
    problems = []
    read = [name for name in NAMEABLE if any(name in (*layout, *ALSO[layout]) for layout in LAYOUTS[kind])]
    for field, column in named.items():
        if field not in NAMEABLE:
            why, known = "Unknown field", NAMEABLE
            problems.append(Problem(f"{key}.columns.{field}", why, value=column, allowed=one_of(known)))
        elif field not in read:
            why = f"Not used for {kind} examples"
            problems.append(Problem(f"{key}.columns.{field}", why, value=column, allowed=one_of(read)))
        elif column not in columns:
            problems.append(
                Problem(
                    f"{key}.columns.{field}",
                    "There is no such column",
                    value=column,
                    allowed=one_of(columns),
                    fix=did_you_mean(column, columns),
                )
            )
    if problems:
        raise UserError(*problems)


def _fields(layout: tuple[str, ...], named: Mapping[str, str], columns: Sequence[str]) -> dict[str, str] | None:
    """Return the columns of a layout, or None if a required one is missing."""
    fields: dict[str, str] = {}
    for field in (*layout, *ALSO[layout]):
        # Only answer (checked by rewards) and completion (trained) may share a column.
        taken = {column for other, column in {**named, **fields}.items() if {field, other} != {"answer", "completion"}}
        found = [name for name in NAMES[field] if name in columns and name not in taken]
        if field in named:
            fields[field] = named[field]
        elif found:
            fields[field] = found[0]
        elif field in layout:
            return None
    # A column named "input" belongs to the prompt only in instruction datasets.
    if fields.get("prompt") != "instruction":
        fields.pop("input", None)
    return fields


def _name(layout: tuple[str, ...], fields: Mapping[str, str], sample: Sequence[Mapping[str, Any]]) -> str:
    def first(field: str) -> Any:
        return next((row[fields[field]] for row in sample if row.get(fields[field])), None)

    if layout == ("messages",):
        turns = first("messages")
        turn = turns[0] if isinstance(turns, list) and turns else {}
        return "sharegpt" if isinstance(turn, Mapping) and "from" in turn else "messages"
    if layout == ("chosen", "rejected"):
        if is_dialogue(first("chosen")):
            return "hh dialogue"
        return "prompt/chosen/rejected" if "prompt" in fields else "chosen/rejected"
    if layout == ("prompt", "completion"):
        return "instruction" if fields["prompt"] == "instruction" else f"{fields['prompt']}/{fields['completion']}"
    if layout == ("prompt",):
        return f"{fields['prompt']}/{fields['answer']}" if "answer" in fields else fields["prompt"]
    return "text"
