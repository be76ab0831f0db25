"""Find where each answer of a conversation starts and ends in the text that the chat template renders.

An answer starts where the prompt at inference ends, and ends with the control token that the template writes after it
at this place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .rendering import REASONING, Marked, Message, Properties, Refused, mark, properties, reasoning_of, render

NO_REASONING = "the reasoning is not trained: the chat template has no place for it"
EMPTY = "an empty answer"
NO_PROMPT = "the assistant has the first message, so its answer can't be separated from the text before it"
NO_END = "the template has no end-of-turn token for the assistant, so a model would never learn to stop"
NO_OPENING = "the prompt at inference lacks text that the template writes before this answer"
CHANGED = (
    "the template writes the text before an answer differently once the answer is there, so the prompt at inference "
    "would not match training"
)
# A tag that a template opens at the end of the prompt, and that the answer has to close: <think>.
_OPENED = re.compile(r"<(\w+)>\s*\Z")
_BEGINS_WITH_REASONING = re.compile(r"\s*<(\w+)>(.*?)</\1>\s*", re.DOTALL)


@dataclass(frozen=True)
class Turn:
    """An answer as the model must generate it: the prompt at inference, then the text with its end of turn.

    whole: the conversation up to this answer, which starts with both and may have more after the end of the turn.
    """

    prompt: str
    text: str
    whole: str
    remarks: tuple[str, ...]

    @property
    def end(self) -> int:
        return len(self.prompt) + len(self.text)


@dataclass(frozen=True)
class Talk:
    """A conversation with its answers. prompts: {position of an answer: the text before it}, if it can be rendered."""

    tokenizer: Any
    marked: Marked
    known: Properties
    prompts: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, tokenizer: Any, messages: Sequence[Message]) -> Talk:
        talk = cls(tokenizer, mark(tokenizer, messages), properties(tokenizer))
        for number, message in enumerate(talk.marked.messages):
            if number and message["role"] == "assistant":
                try:
                    talk.prompts[number] = talk.render(number, prompt=True)
                except Refused:  # no prompt before this answer; reported if it should be trained
                    continue
        return talk

    def render(self, count: int, *, prompt: bool = False, then: Sequence[Message] = ()) -> str:
        """Return the text of the first `count` messages, followed by others."""
        return render(self.tokenizer, [*self.marked.messages[:count], *then], prompt=prompt)


def is_trained(message: Message) -> bool:
    """Return whether a message is an answer that is trained on: its data may exclude it with train: false."""
    return message["role"] == "assistant" and message.get("train", True) is not False


def read_turn(talk: Talk, number: int) -> Turn:
    """Return the answer at a position. Raises Refused if the template does not render it after its prompt."""
    messages = talk.marked.messages
    message = messages[number]
    if not number:
        raise Refused(NO_PROMPT)
    if not _said(message):
        raise Refused(EMPTY)
    prompt = talk.prompts.get(number) or talk.render(number, prompt=True)
    shorter = without_reasoning(message)
    for tried in (message, shorter) if shorter is not None else (message,):
        whole = talk.render(number, then=[tried])
        text = _continuation(prompt, whole, tried)
        if text is not None and talk.known.opening and text.lstrip().startswith(talk.known.opening):
            raise Refused(NO_OPENING)
        if text is None or not holds(talk, tried, _opened(prompt) + text):
            continue
        turn_text, rest = _up_to_its_end(talk, number, prompt, text)
        whole = prompt + turn_text + rest
        held = holds(talk, message, _opened(prompt) + turn_text, with_reasoning=True)
        return Turn(prompt, turn_text, whole, () if held else (NO_REASONING,))
    if text is not None:
        raise Refused("the template leaves out part of an answer")
    raise Refused(CHANGED)


def without_reasoning(message: Message) -> dict[str, Any] | None:
    """Return an answer without its reasoning; None if it has no reasoning, or nothing else."""
    content = message.get("content") or ""
    shorter = {key: value for key, value in message.items() if key not in REASONING}
    if isinstance(content, str) and (begins := _BEGINS_WITH_REASONING.match(content)):
        shorter["content"] = content[begins.end() :]
    return shorter if shorter != message and _said(shorter) else None


def _said(message: Message) -> bool:
    return bool(str(message.get("content") or "").strip() or message.get("tool_calls"))


def _opened(prompt: str) -> str:
    """Return the tag that a prompt has opened for the answer, or ""."""
    found = _OPENED.search(prompt)
    return found[0] if found else ""


def _continuation(prompt: str, whole: str, message: Message) -> str | None:
    """Return what follows the prompt in an answered conversation, or None if it is not the prompt's continuation."""
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    bare = prompt.rstrip()
    if whole.startswith(bare):  # the answered conversation lacks the prompt's last white space
        return whole[len(bare) :].lstrip()
    tag = _OPENED.search(prompt)
    if tag and whole.startswith(prompt[: tag.start()]):
        # The prompt opens the reasoning, which the answered conversation leaves out.
        begins = _BEGINS_WITH_REASONING.match(str(message.get("content") or ""))
        reasoning = (reasoning_of(message) or (begins[2] if begins and begins[1] == tag[1] else "")).strip("\n")
        newline = "" if tag[0].endswith("\n") else "\n"
        return f"{newline}{reasoning}\n</{tag[1]}>\n\n{whole[tag.start() :].lstrip()}"
    return None


def holds(talk: Talk, message: Message, text: str, *, with_reasoning: bool = False) -> bool:
    """Return whether a text contains all of a message, ignoring white space. Its reasoning only counts if requested."""
    content = str(message.get("content") or "")
    begins = _BEGINS_WITH_REASONING.match(content) if message["role"] == "assistant" else None
    parts = [content[begins.end() :] if begins else content, *_strings(message.get("tool_calls"))]
    if with_reasoning:
        parts += [begins[2] if begins else "", reasoning_of(message)]
    squashed = _squash(talk.marked.plain(text))
    for part in parts:
        plain = talk.marked.plain(part)
        forms = (_squash(plain), _squash(json.dumps(plain, ensure_ascii=False)[1:-1]))
        at, form = max((squashed.rfind(form), form) for form in forms)
        if at < 0:
            return False
        squashed = squashed[:at] + "\0" + squashed[at + len(form) :]
    return True


def _strings(calls: Any) -> Iterator[str]:
    """Yield the names and the values of the arguments of tool calls."""
    if isinstance(calls, str):
        yield calls
    elif isinstance(calls, Mapping):
        for key, value in calls.items():
            if key not in ("id", "type"):
                yield from _strings(value)
    elif isinstance(calls, list | tuple):
        for value in calls:
            yield from _strings(value)


def _squash(text: str) -> str:
    return "".join(text.split())


def control_tokens(talk: Talk, text: str, start: int = 0) -> list[re.Match[str]]:
    """Return the control tokens that the template wrote, in order."""
    opening, closing = talk.marked.marks
    pattern = re.compile(f"{opening}.*?{closing}|({talk.known.control_tokens.pattern})", re.DOTALL)
    return [found for found in pattern.finditer(text, start) if found[1]]


def _tail(talk: Talk, text: str) -> list[re.Match[str]]:
    """Return the control tokens at the end of a text, with at most white space between and after them."""
    tail: list[re.Match[str]] = []
    end = len(text.rstrip())
    for found in reversed(control_tokens(talk, text)):
        if found.end() != end:
            break
        tail.insert(0, found)
        end = len(text[: found.start()].rstrip())
    return tail


def _up_to_its_end(talk: Talk, number: int, prompt: str, text: str) -> tuple[str, str]:
    """Return the text of an answer with its end of turn, and the rest after it.

    The end is the control token that the template writes after the answer at this place. If it writes none, it is the
    token that begins the next message, at which such a model stops. Raises Refused if there is neither.
    """
    tail = _tail(talk, text)
    if len(tail) == 1:
        return text[: tail[0].end()], text[tail[0].end() :]
    said = text[: tail[0].start()] if tail else text
    after = _text_after(talk, number, prompt, said)
    if not tail:
        start = re.match(rf"\s*(?:{talk.known.control_tokens.pattern})", after or "")
        if not start or not start[0].strip():
            raise Refused(NO_END)
        return text + start[0], ""
    following = [found[0] for found in control_tokens(talk, after or "")]
    same = next((i for i, (a, b) in enumerate(zip(tail, following, strict=False)) if a[0] != b), len(following))
    end = tail[min(max(same, 1), len(tail)) - 1] if after is not None else tail[-1]
    return text[: end.end()], text[end.end() :]


def _text_after(talk: Talk, number: int, prompt: str, said: str) -> str | None:
    """Return what the template writes after an answer if another message follows, or None if it is not found."""
    messages = talk.marked.messages
    following = messages[number + 1] if number + 1 < len(messages) else {"role": "user"}
    keys = ("role", "name", "tool_call_id")
    try:
        text = talk.render(
            number + 1, then=[{key: following[key] for key in keys if key in following} | {"content": "?"}]
        )
    except Refused:
        return None
    if text.startswith(prompt + said):
        return text[len(prompt + said) :]
    # Before another message, a template may leave out the reasoning, but not the end of the answer.
    ends = (said.rstrip()[-length:] for length in (80, 40, 20, 10, 5, 2))
    return next((text[text.rindex(end) + len(end) :] for end in ends if end in text), None)
