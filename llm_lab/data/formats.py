"""Recognize the format of a dataset: its text column, the columns of its examples, and its message format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_lab.errors import Problem, UserError, did_you_mean, one_of

from .messages import is_dialogue, is_question, written_messages

_LISTED = 8  # maximum number of column names in one line
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
    "history": ("history",),
}
# Names that may also mean something else: they are the prompt only if no other column is.
_LAST_NAMES = {"prompt": ("input", *NAMES["messages"])}
# Columns whose use is not supported: rows that have a value in them are dropped and counted.
UNSUPPORTED = ("tools", "functions", "images", "image", "videos", "audios")
_CHANGE_PROMPTS = {name for field in ("prompt", "input", "system", "history") for name in NAMES[field]} | {*UNSUPPORTED}
NAMEABLE = ("messages", "prompt", "completion", "chosen", "rejected", "answer", "text")
# Required fields by kind of example; the first layout whose fields exist is used. ALSO lists the optional fields.
LAYOUTS = {
    "conversation": (("messages",), ("prompt", "completion"), ("chosen", "rejected"), ("text",)),
    "preference": (("chosen", "rejected"),),
    "prompt": (("prompt",), ("messages",), ("chosen", "rejected")),
}
ALSO = {
    ("messages",): ("system", "answer"),
    ("prompt", "completion"): ("input", "system", "history", "answer"),
    ("chosen", "rejected"): ("prompt", "input", "system", "history", "answer"),
    ("prompt",): ("input", "system", "history", "answer"),
    ("text",): (),
}
KNOWN = {
    "conversation": "messages; conversations (ShareGPT); prompt and completion; instruction, input and output; "
    "question and answer; input and output; chosen and rejected; text",
    "preference": "prompt, chosen and rejected; chosen and rejected with the prompt in both",
    "prompt": "prompt, question, problem or instruction, with or without answer, solution or target; messages; "
    "chosen and rejected",
}
_EXAMPLES = {
    "conversation": ("prompt", "completion"),
    "preference": ("prompt", "chosen", "rejected"),
    "prompt": ("prompt", "answer"),
}
YOUR_COLUMN = "YOUR_COLUMN"


@dataclass(frozen=True)
class Format:
    """A recognized format. `fields`: the column of each field."""

    kind: str
    name: str
    layout: tuple[str, ...]
    fields: Mapping[str, str]

    def describe(self, unread: Sequence[str] = ()) -> str:
        """Return the name, the columns that are read, and those that are not."""
        columns = ", ".join(dict.fromkeys(self.fields.values()))
        return f"{self.name} (columns: {columns}{f'; not read: {list_columns(unread)}' if unread else ''})"

    def ignores(self, column: str) -> bool:
        """Return whether a column is not read. In prompts, rewards get all other columns with plain values."""
        if column in self.fields.values():
            return False
        return self.kind != "prompt" or column in _CHANGE_PROMPTS


def list_columns(names: Sequence[str]) -> str:
    """Return column names in one line; only the first ones if there are many."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def recognize(
    kind: str,
    columns: Sequence[str],
    sample: Sequence[Mapping[str, Any]],
    *,
    key: str,
    path: str,
    named: Mapping[str, str] | None = None,
    late: Sequence[str] = (),
) -> Format:
    """Return the format of a table, recognized by its column names and first rows.

    named: {field: column} for columns named in the recipe. late: columns whose first value comes after the sampled
    rows; they can only be optional fields. Raises UserError, under `key`.columns, if a named column does not exist, the
    format is not recognized, or the prompt of preferences may be in an unrecognized column.
    """
    named = {field: column for field, column in (named or {}).items() if column is not None}
    _check_named(named, [*columns, *late], key, kind)
    # Columns named in the recipe decide: {text: body} means text, whatever other columns exist.
    layouts = sorted(LAYOUTS[kind], key=lambda layout: -sum(field in named for field in layout))
    for last_names in (False, True):
        for layout in layouts:
            fields = _fields(layout, named, columns, sample, late, last_names=last_names)
            if fields is not None:
                _require_prompt(key, path, fields, named, columns, sample)
                return Format(kind, _name(layout, fields, sample), layout, fields)
    raise UserError(
        Problem(
            f"{key}.columns",
            f"The columns of {path} are not recognized: {one_of(columns) or 'it has none'}",
            allowed=KNOWN[kind],
            fix=_how_to_name(kind, named, columns),
        )
    )


def _how_to_name(kind: str, named: Mapping[str, str], columns: Sequence[str]) -> str:
    """Explain how to name the columns of a table, with those that it has."""
    fields = _EXAMPLES[kind]
    if kind == "conversation" and len(columns) == 1:
        fields = ("text",)
    free = iter([column for column in columns if column not in named.values()])
    chosen = {field: named.get(field) or next(free, YOUR_COLUMN) for field in fields}
    if chosen.get("answer") == YOUR_COLUMN:  # optional
        del chosen["answer"]
    example = ", ".join(f"{field}: {column}" for field, column in chosen.items())
    few = kind == "preference" and 0 < len(columns) < len(fields)
    needs = f"A prompt with two answers needs 3 columns, and the file has {len(columns)}. " if few else ""
    return f"{needs}Name the columns, for example columns: {{{example}}}"


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


def _fields(
    layout: tuple[str, ...],
    named: Mapping[str, str],
    columns: Sequence[str],
    sample: Sequence[Mapping[str, Any]],
    late: Sequence[str],
    *,
    last_names: bool,
) -> dict[str, str] | None:
    """Return the columns of a layout, or None if a required one is missing."""
    fields: dict[str, str] = {}
    for field in (*layout, *ALSO[layout]):
        # Only answer (checked by rewards) and completion (trained) may share a column.
        taken = {column for other, column in {**named, **fields}.items() if {field, other} != {"answer", "completion"}}
        optional = field not in layout
        names = NAMES[field] + (_LAST_NAMES.get(field, ()) if optional or last_names else ())
        # A column `input` is only used with an `instruction`; a `context` is used with any question that is text.
        if field == "input" and fields.get("prompt") != "instruction":
            names = ("context",) if isinstance(_first(sample, fields.get("prompt")), str) else ()
        found = [name for name in names if name in columns and name not in taken]
        found = found or [name for name in names if optional and name in late and name not in taken]
        if field in named:
            fields[field] = named[field]
        elif found:
            fields[field] = found[0]
        elif not optional:
            return None
    return fields


def _require_prompt(
    key: str,
    path: str,
    fields: Mapping[str, str],
    named: Mapping[str, str],
    columns: Sequence[str],
    sample: Sequence[Mapping[str, Any]],
) -> None:
    """Raise UserError if the answers don't contain the question and it may be in another column.

    If the recipe names chosen and rejected but no prompt, the question is the start that both share.
    """
    if "chosen" not in fields or "prompt" in fields or {"chosen", "rejected"} <= named.keys():
        return
    if _holds_question(_first(sample, fields["chosen"])):
        return
    left = [name for name in columns if name not in fields.values() and _may_be_question(name, sample)]
    if left:
        raise UserError(
            Problem(
                f"{key}.columns",
                f"The answers of {path} don't contain the question, and no column is recognized as the prompt. "
                f"Candidates: {one_of(left)}",
                fix=f"Name it, for example columns: {{prompt: {left[0]}}}. If both answers begin with the question, "
                f"name them instead: columns: {{chosen: {fields['chosen']}, rejected: {fields['rejected']}}}",
            )
        )


def _holds_question(answer: Any) -> bool:
    if is_dialogue(answer):
        return True
    turns = written_messages(answer, "chosen") if isinstance(answer, str) else answer
    return isinstance(turns, list) and any(map(is_question, turns))


def _may_be_question(name: str, sample: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a column contains texts of several words that differ from row to row."""
    values = [row[name] for row in sample if isinstance(row.get(name), str) and row[name].strip()]
    several = [value for value in values if len(value.split()) > 1]
    return len(several) > len(values) / 2 and (len(set(values)) > 1 or len(sample) == 1)


def _first(sample: Sequence[Mapping[str, Any]], column: str | None) -> Any:
    return next((row[column] for row in sample if column is not None and row.get(column)), None)


def _name(layout: tuple[str, ...], fields: Mapping[str, str], sample: Sequence[Mapping[str, Any]]) -> str:
    def first(field: str) -> Any:
        return _first(sample, fields[field])

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
