"""Convert a row of a dataset to an example: a conversation, a preference, a prompt or a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .formats import NAMES, UNSUPPORTED, Format
from .messages import (
    Message,
    Unreadable,
    Unusable,
    check_turns,
    is_dialogue,
    is_single_message,
    parse_list,
    read_dialogue,
    read_messages,
    read_text,
    written_messages,
)

TRUNCATED = "messages after the last answer removed"


@dataclass(frozen=True)
class Example:
    """One training example; the fields that are set depend on its kind.

    conversation: prompt (all messages before the last answer), completion (the last answer) and about (the other keys
    of its message, such as reasoning_content), or only text.
    preference: prompt, chosen and rejected. prompt: prompt and, if available, answer (the reference for rewards).
    columns: other plain values of the row (prompts only).
    """

    prompt: tuple[Message, ...] = ()
    completion: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    answer: str | None = None
    text: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def messages(self) -> list[Message]:
        """The whole conversation: the prompt and, if there is one, the last answer."""
        last = [] if self.completion is None else [{**_message("assistant", self.completion), **self.about}]
        return [*self.prompt, *last]

    @property
    def opening(self) -> str:
        """The text that must not be in both training and validation: examples that share it go to the same side.

        In a conversation: everything before the first answer that is trained on. Else the prompt.
        """
        if self.text is not None:
            return self.text
        until = len(self.prompt)
        if self.completion is not None:
            until = next((i for i, message in enumerate(self.prompt) if _is_trained(message)), until)
        return "\0".join(
            part for message in self.prompt[:until] for part in (message["role"], message["content"].strip())
        )

    def describe(self) -> str:
        """Return the whole example as text, with roles."""
        if self.text is not None:
            return self.text
        parts = [f"{message['role']}: {message['content']}" for message in self.messages]
        named = {"chosen": self.chosen, "rejected": self.rejected}
        named |= {"answer": self.answer} if self.completion is None else {}
        return "\n".join([*parts, *(f"{name}: {text}" for name, text in named.items() if text is not None)])


def read_example(row: Mapping[str, Any], form: Format) -> tuple[Example, str | None]:
    """Return a row as an example, and a description of what was removed from it, or None.

    Raises Unusable, with the reason, if the row has nothing to train on, and Unreadable if its format is wrong.
    """
    if form.layout == ("text",):
        text = read_text(row.get(form.fields["text"]), _column(form, "text"))
        if not text.strip():
            raise Unusable("no text")
        return Example(text=text), None
    for column in UNSUPPORTED:
        if column not in form.fields.values() and _is_in_use(row.get(column)):
            raise Unusable(f"column {column!r} is not supported")
    if form.layout == ("chosen", "rejected"):
        return _read_preference(row, form), None
    if form.layout == ("messages",):
        column = form.fields["messages"]
        messages = read_messages(row.get(column) or [], _column(form, "messages"))
        # Some datasets repeat the system message in a column.
        messages = [*(one for one in _system(row, form) if one not in messages[:1]), *messages]
    else:
        messages = _prompt(row, form)
        if "completion" in form.fields:
            messages += _answers(row, form, "completion")
    return _from_messages(messages, row, form)


def _from_messages(messages: list[Message], row: Mapping[str, Any], form: Format) -> tuple[Example, str | None]:
    asked = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)
    answered = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
    if asked < 0:
        raise Unusable("no question" if messages else "no messages")
    answer = _answer(row, form)
    if form.kind == "prompt":
        prompt = messages[: asked + 1]
        check_turns(prompt)
        if answer is None and answered > asked:
            answer = messages[answered]["content"]
        return Example(tuple(prompt), answer=answer, columns=_others(row, form)), None
    if answered < 0:
        raise Unusable("no answer")
    kept = messages[: answered + 1]
    check_turns(kept)
    if not any(map(_is_trained, kept)):
        raise Unusable("no answer with weight 1")
    remark = TRUNCATED if len(kept) < len(messages) else None
    *prompt, last = kept
    return Example(tuple(prompt), completion=last["content"], answer=answer, about=_about(last)), remark


def _read_preference(row: Mapping[str, Any], form: Format) -> Example:
    chosen, rejected = (_answers(row, form, field) for field in ("chosen", "rejected"))
    before = _shared(chosen, rejected)
    shared, chosen, rejected = chosen[:before], chosen[before:], rejected[before:]
    if "prompt" in form.fields and (not shared or row.get(form.fields["prompt"])):
        prompt = _joined(_prompt(row, form), shared)
    elif shared:
        prompt = _with_system(_system(row, form), shared)
    else:
        prompt, chosen, rejected = _split_strings(chosen, rejected)
        prompt = [*_system(row, form), *prompt]
    if [message["role"] for message in (*chosen, *rejected)] != ["assistant", "assistant"]:
        raise Unusable("chosen and rejected differ before the last answer")
    if not any(message["role"] == "user" for message in prompt):
        raise Unusable("no question")
    check_turns([*prompt, *chosen])
    check_turns([*prompt, *rejected])
    better, worse = chosen[0]["content"], rejected[0]["content"]
    if form.kind == "conversation":
        return Example(tuple(prompt), completion=better, answer=_answer(row, form), about=_about(chosen[0]))
    if form.kind == "prompt":
        return Example(tuple(prompt), answer=_answer(row, form), columns=_others(row, form))
    if _about(chosen[0]) or _about(rejected[0]):
        raise Unusable("answers with reasoning or a weight, which preferences do not support")
    if better.strip() == worse.strip():
        raise Unusable("chosen and rejected are the same")
    return Example(tuple(prompt), chosen=better, rejected=worse, answer=_answer(row, form))


def _joined(prompt: list[Message], shared: list[Message]) -> list[Message]:
    """Return the prompt column followed by the messages that both answers begin with, which may repeat it."""
    system = [message for message in prompt if message["role"] == "system"]
    asked, repeated = ([_said(one) for one in turns if one["role"] != "system"] for turns in (prompt, shared))
    places = range(len(repeated) - len(asked) + 1)
    is_repeated = any(repeated[at : at + len(asked)] == asked for at in places) or asked[: len(repeated)] == repeated
    # The prompt column may also contain the question after a chat template was applied to it.
    is_written = len(asked) == 1 and any(role == "user" and text in asked[0][1] for role, text in repeated if text)
    if shared and (is_repeated or is_written):
        return _with_system(system, shared)
    if asked and repeated and asked[-1][0] == repeated[0][0]:
        raise Unusable("the prompt column differs from the prompt in the answers")
    return [*prompt, *shared]


def _said(message: Message) -> tuple[str, str]:
    return message["role"], message["content"].strip()


def _with_system(system: list[Message], messages: list[Message]) -> list[Message]:
    return messages if messages[0]["role"] == "system" else [*system, *messages]


def _shared(chosen: list[Message], rejected: list[Message]) -> int:
    """Return the number of messages shared at the start, not counting the last message of each."""
    count = 0
    for first, second in zip(chosen[:-1], rejected[:-1], strict=False):
        if first != second:
            break
        count += 1
    return count


def _split_strings(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], ...]:
    """Separate the prompt from two strings that start with it: all complete lines that both share at the start."""
    if len(chosen) != 1 or len(rejected) != 1:
        return [], chosen, rejected
    better, worse = chosen[0]["content"], rejected[0]["content"]
    end = next((i for i, (a, b) in enumerate(zip(better, worse, strict=False)) if a != b), min(len(better), len(worse)))
    cut = better.rfind("\n", 0, end) + 1
    if not better[:cut].strip():
        raise Unusable("no question")
    prompt = [_message("user", better[:cut].strip())]
    return prompt, [_message("assistant", better[cut:])], [_message("assistant", worse[cut:])]


def _prompt(row: Mapping[str, Any], form: Format) -> list[Message]:
    """Return the messages of the prompt column, which is a question, a list of messages, or a dialogue."""
    value, what = row.get(form.fields["prompt"]), _column(form, "prompt")
    if value is None:
        raise Unusable("no question")
    if is_dialogue(value):
        messages = read_dialogue(value)
        if messages[-1] == _message("assistant", ""):
            messages.pop()
    elif isinstance(value, str) and (messages := written_messages(value, what) or []) == []:
        question = read_text(value, what)
        more = read_text(row.get(form.fields["input"]), _column(form, "input")) if "input" in form.fields else ""
        # The question may already contain its context.
        known = more.strip() in question and form.fields["input"] == "context" if more.strip() else True
        messages = [_message("user", question if known else f"{question}\n\n{more}")]
    else:
        messages = read_messages(value, what)
    if "completion" in form.layout:
        # As in TRL, answers inside a prompt are context and not trained on.
        messages = [{**one, "train": False} if _is_trained(one) else one for one in messages]
    first = int(messages[0]["role"] == "system") if messages else 0
    return [*_system(row, form), *messages[:first], *_history(row, form), *messages[first:]]


def _answers(row: Mapping[str, Any], form: Format, field: str) -> list[Message]:
    value, what = row.get(form.fields[field]), _column(form, field)
    if value is None:
        raise Unusable("no answer")
    if is_dialogue(value):
        return read_dialogue(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [_message("assistant", str(value))]
    if isinstance(value, str) and written_messages(value, what) is None:
        return [_message("assistant", read_text(value, what))]
    return read_messages([value] if is_single_message(value) else value, what)


def _history(row: Mapping[str, Any], form: Format) -> list[Message]:
    """Return the turns before the prompt: messages, or pairs of question and answer as in LLaMA-Factory."""
    if "history" not in form.fields:
        return []
    value, what = row.get(form.fields["history"]), _column(form, "history")
    if isinstance(value, str) and value.strip().startswith("["):
        value = parse_list(value)
        if value is None:
            raise Unreadable(f"{what} is a string that is not valid JSON")
    if not value:
        return []
    if isinstance(value, list) and all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in value):
        sides = ("user", "assistant")
        return [_message(role, read_text(said, what)) for turn in value for role, said in zip(sides, turn, strict=True)]
    return read_messages(value, what)


def _is_in_use(value: Any) -> bool:
    """Return whether a cell contains tools, images or the like: it is not empty, and not a plain value."""
    if isinstance(value, str):
        return value.strip().startswith(("[", "{")) and value.strip() not in ("[]", "{}")
    return bool(value) and not isinstance(value, bool | int | float)


def _is_trained(message: Message) -> bool:
    return message["role"] == "assistant" and message.get("train") is not False


def _system(row: Mapping[str, Any], form: Format) -> list[Message]:
    if "system" not in form.fields:
        return []
    text = read_text(row.get(form.fields["system"]), _column(form, "system"))
    return [_message("system", text)] if text.strip() else []


def _answer(row: Mapping[str, Any], form: Format) -> str | None:
    """Return the reference answer for rewards: the whole cell, as text."""
    value = row.get(form.fields["answer"]) if "answer" in form.fields else None
    if isinstance(value, str):
        return read_text(value, _column(form, "answer"))
    if isinstance(value, bool | int | float):
        return str(value)
    if value is None or form.kind != "prompt":  # only prompts require it
        return None
    if form.fields["answer"] in NAMES["completion"]:
        messages = read_messages(value, _column(form, "answer"))
        return messages[-1]["content"] if messages else None
    raise Unreadable(f"{_column(form, 'answer')} is {type(value).__name__}, not text or a number")


def _others(row: Mapping[str, Any], form: Format) -> dict[str, Any]:
    used = set(form.fields.values())
    return {k: v for k, v in row.items() if k not in used and isinstance(v, str | bool | int | float)}


def _column(form: Format, field: str) -> str:
    return f"column {form.fields[field]!r}"


def _about(message: Message) -> Message:
    """Return the keys of a message other than role and content."""
    return {key: value for key, value in message.items() if key not in ("role", "content")}


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
