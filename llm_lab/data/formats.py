"""What a table of examples holds: which of its columns are the question, the answer, the better and the worse one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_lab.errors import Problem, UserError, did_you_mean, one_of

from .dialogues import is_dialogue

# What is looked for, by the names that columns have in public sets; the first that is there is taken.
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
BY_HAND = ("messages", "prompt", "completion", "chosen", "rejected", "answer", "text")
# Kind: what a row needs, the first that is there. The rest of the fields are taken along where they are there.
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
    """A recognised form. `fields` says which column holds what."""

    kind: str
    name: str
    layout: tuple[str, ...]
    fields: Mapping[str, str]

    def describe(self) -> str:
        """Return the name, and the columns that are read."""
        return f"{self.name} (columns: {', '.join(dict.fromkeys(self.fields.values()))})"


def recognise(
    kind: str,
    columns: Sequence[str],
    sample: Sequence[Mapping[str, Any]],
    *,
    key: str,
    path: str,
    by_hand: Mapping[str, str] | None = None,
) -> Format:
    """Return what the columns of a table hold, from their names and its first rows.

    by_hand: {field: column} for those that are not found by looking. UserError, under `key`.columns, where a named
    column is not there or the form can't be told.
    """
    by_hand = {field: column for field, column in (by_hand or {}).items() if column is not None}
    _check_by_hand(by_hand, columns, key, kind)
    # What is named by hand decides: {text: body} is text, whatever else there is.
    layouts = sorted(LAYOUTS[kind], key=lambda layout: -sum(field in by_hand for field in layout))
    for layout in layouts:
        fields = _fields(layout, by_hand, columns)
        if fields is not None:
            return Format(kind, _name(layout, fields, sample), layout, fields)
    example = ", ".join(
        f"{field}: {column}" for field, column in zip(_EXAMPLES[kind], [*columns, *"abc"], strict=False)
    )
    raise UserError(
        Problem(
            f"{key}.columns",
            f"What the columns of {path} hold can't be told: {one_of(columns) or 'there are none'}",
            allowed=KNOWN[kind],
            fix=f"Say which column holds what, for example columns: {{{example}}}",
        )
    )


def _check_by_hand(by_hand: Mapping[str, str], columns: Sequence[str], key: str, kind: str) -> None:
    problems = []
    read = [name for name in BY_HAND if any(name in (*layout, *ALSO[layout]) for layout in LAYOUTS[kind])]
    for field, column in by_hand.items():
        if field not in BY_HAND:
            why, known = "A column can't be named for this", BY_HAND
            problems.append(Problem(f"{key}.columns.{field}", why, value=column, allowed=one_of(known)))
        elif field not in read:
            why = f"In a set of {kind}s this is not read"
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


def _fields(layout: tuple[str, ...], by_hand: Mapping[str, str], columns: Sequence[str]) -> dict[str, str] | None:
    """Return the columns of a layout, or None where one that it needs is not there."""
    fields: dict[str, str] = {}
    for field in (*layout, *ALSO[layout]):
        # One column may hold both what is learnt and what is checked, but no other two things.
        taken = {
            column for other, column in {**by_hand, **fields}.items() if {field, other} != {"answer", "completion"}
        }
        found = [name for name in NAMES[field] if name in columns and name not in taken]
        if field in by_hand:
            fields[field] = by_hand[field]
        elif found:
            fields[field] = found[0]
        elif field in layout:
            return None
    # A column named input beside anything but an instruction is another thing in every set there is.
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
