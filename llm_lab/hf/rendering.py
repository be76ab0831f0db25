"""Render conversations as text with a tokenizer's chat template, and find its control tokens.

A control token that is spelled out in a message is text: such places are marked before the template is rendered.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from llm_lab.errors import Problem, UserError, one_of
from llm_lab.estimate.adapter_base import read_object
from llm_lab.limits import memory_limit, time_limit

Message = Mapping[str, Any]
# Names of the reasoning of an answer in messages. Templates use one or another.
REASONING = ("reasoning_content", "thinking", "reasoning")
DATE = "template_date"  # in tokenizer_config.json: the date of a template that reads the clock
# Unicode noncharacters, which valid text does not contain. Two of them mark control tokens in messages.
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
_CLOCK = re.compile(r"\bstrftime_now\b")
_DIRECTIVES = [*(f"%{letter}" for letter in "aAbBcdHIjmMpSuUwWxXyYG"), *(f"%-{letter}" for letter in "dHIjmMSyU")]
_GENERATION = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")  # transformers' own tags
_WORD = "qzxjq"  # a word that no template contains
_KEY = "chat_template"
RENDER_SECONDS = 10
RENDER_BYTES = 2**30


class Refused(UserError):
    """A conversation that a chat template can't render. reason: why, without the key."""

    def __init__(self, reason: str):
        self.reason = reason
        fix = "Leave such rows out, or set chat_template: chatml, which replaces the model's own format."
        super().__init__(Problem(_KEY, reason, fix=fix))


@dataclass(frozen=True)
class Marked:
    """Messages with marks around the control tokens that they spell out, and the two marks."""

    messages: list[dict[str, Any]]
    marks: tuple[str, str]

    def plain(self, text: str) -> str:
        """Return a text without marks."""
        return re.sub(f"[{''.join(self.marks)}]", "", text)


@dataclass(frozen=True)
class Properties:
    """Properties of a tokenizer and its template, determined once.

    in_parts: the template reads content as parts. opening: what it writes before an answer, which ends a prompt.
    """

    control_tokens: re.Pattern[str]
    control_ids: frozenset[int]
    begins_with_space: bool
    in_parts: bool
    opening: str


def mark(tokenizer: Any, messages: Sequence[Message]) -> Marked:
    """Prepare messages for a template: mark control tokens in their texts, add reasoning under the usual names.

    Raises UserError for text that contains nearly all noncharacters.
    """
    known = properties(tokenizer)
    texts = "".join(text for message in messages for text in _texts(message))
    free = [character for character in _MARKS if character not in texts][:2]
    if len(free) < 2:
        raise UserError(
            Problem("messages", "they contain nearly all Unicode noncharacters, so they are probably not text")
        )
    start, end = free
    written = [_with_reasoning(message) for message in messages]
    if known.control_tokens.search(texts):
        written = [_replace(message, known.control_tokens, rf"{start}\g<0>{end}") for message in written]
    return Marked(written, (start, end))


def reasoning_of(message: Message) -> str:
    """Return a message's reasoning, if it is separate from its content, else ""."""
    return next((str(message[name]) for name in REASONING if message.get(name)), "")


def _with_reasoning(message: Message) -> dict[str, Any]:
    reasoning = reasoning_of(message)
    return {**message, **(dict.fromkeys(REASONING[:2], reasoning) if reasoning else {})}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key != "role":
                yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _replace(value: Any, pattern: re.Pattern[str], new: str) -> Any:
    if isinstance(value, str):
        return pattern.sub(new, value)
    if isinstance(value, Mapping):
        return {key: item if key == "role" else _replace(item, pattern, new) for key, item in value.items()}
    return [_replace(item, pattern, new) for item in value] if isinstance(value, list | tuple) else value


def render(tokenizer: Any, messages: Sequence[Message], *, prompt: bool = False) -> str:
    """Return the text that the template makes of marked messages; with `prompt`, up to where an answer starts.

    Raises Refused if the template does not accept them, UserError if there is no template or it is broken.
    """
    if properties(tokenizer).in_parts:
        messages = [_in_parts(message) for message in messages]
    return _render(tokenizer, messages, prompt=prompt)


def _in_parts(message: Message) -> dict[str, Any]:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else dict(message)


def _render(tokenizer: Any, messages: Sequence[Message], *, prompt: bool = False) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    template = _with_pinned_date(template_of(tokenizer), date_of(tokenizer))
    options = {"add_generation_prompt": prompt, **tokenizer.special_tokens_map}
    try:
        with _limits():
            texts, _ = render_jinja_template([list(messages)], chat_template=template, **options)
    except UserError:
        raise
    except Exception as error:  # a template is a program and may raise anything
        require_sound(tokenizer)
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise Refused(f"the template does not accept this conversation: {first[:200]}") from None
    return str(texts[0])


@contextmanager
def _limits() -> Iterator[None]:
    """Stop a template that never ends, or that produces endless text."""
    why = f"the tokenizer's chat template takes more than {RENDER_SECONDS} seconds for one conversation"
    too_long = Problem(_KEY, why, fix="Set chat_template: chatml, which replaces it.")
    with time_limit(RENDER_SECONDS, too_long), memory_limit(RENDER_BYTES):
        yield


def renderer_of(folder: Path) -> Callable[[Sequence[Message], bool], str] | None:
    """Return a function that renders messages, or a prompt, with the chat template of a model's folder.

    For plans: it needs neither PyTorch nor transformers, and raises whatever the template raises. Returns None if the
    folder has no valid template.
    """
    settings = read_object(folder / "tokenizer_config.json") or {}
    file, template = folder / "chat_template.jinja", settings.get("chat_template")
    if file.is_file():
        template = file.read_text(encoding="utf-8", errors="replace")
    if not isinstance(template, str):
        return None
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(why: str) -> None:
        raise ValueError(why)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": refuse, "strftime_now": datetime.datetime.now().strftime}
    tokens = {name: settings.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    tokens = {name: token.get("content") if isinstance(token, dict) else token for name, token in tokens.items()}
    try:
        with _limits():
            compiled = environment.from_string(_GENERATION.sub("", template))
    except Exception:  # the run reports what is wrong with it
        return None

    def render_for_a_plan(messages: Sequence[Message], prompt: bool) -> str:
        with _limits():
            return compiled.render(messages=messages, add_generation_prompt=prompt, **tokens)

    return render_for_a_plan


def template_of(tokenizer: Any) -> str:
    """Return the chat template. Raises UserError if there is none, or several without a default."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping) and "default" in template:
        template = template["default"]
    if isinstance(template, Mapping) and template:
        why = f"this tokenizer has several chat templates ({one_of(list(template))}), and none of them is the default"
        raise UserError(Problem(_KEY, why, fix="Set chat_template: chatml, or rename one of them to default."))
    if not template:
        why = "this tokenizer has no chat template, which conversations require"
        raise UserError(Problem(_KEY, why, fix="Set chat_template: chatml, or use a model tuned for chat."))
    return str(template)


def require_sound(tokenizer: Any) -> None:
    """Raise UserError if the chat template is not valid Jinja, with the line of the error."""
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        with _limits():
            render_jinja_template([[]], chat_template=template_of(tokenizer))
    except TemplateSyntaxError as error:
        why = f"the tokenizer's chat template has an error in line {error.lineno}: {error.message}"
        raise UserError(Problem(_KEY, why, fix="Correct the template, or set chat_template: chatml.")) from None
    except UserError:
        raise
    except Exception:  # it may not accept an empty conversation
        return


# Dates


def reads_the_clock(tokenizer: Any) -> bool:
    """Return whether the chat template writes the current date or time."""
    template = getattr(tokenizer, "chat_template", None)
    return bool(template) and bool(_CLOCK.search(template_of(tokenizer)))


def date_of(tokenizer: Any) -> str | None:
    """Return the date (2026-11-28) that a template which reads the clock gets; None: the current date."""
    return getattr(tokenizer, "init_kwargs", {}).get(DATE)


def pin_date(tokenizer: Any, date: str | None = None) -> str | None:
    """Fix the date of a template that reads the clock, and return it; it is saved with the tokenizer.

    date: default: the one it already has, or else the current date. Returns None for other templates.
    """
    if not reads_the_clock(tokenizer):
        return None
    tokenizer.init_kwargs[DATE] = date or date_of(tokenizer) or datetime.date.today().isoformat()
    return date_of(tokenizer)


def _with_pinned_date(template: str, date: str | None) -> str:
    """Return a template in which strftime_now returns a fixed date: transformers can't pass functions to a template."""
    if date is None or not _CLOCK.search(template):
        return template
    day = datetime.datetime.fromisoformat(date)
    filters = "".join(f" | replace({code!r}, {day.strftime(code)!r})" for code in _DIRECTIVES if code in template)
    return "{%- macro strftime_now(format) -%}{{- format" + filters + " -}}{%- endmacro -%}\n" + template


_KNOWN: WeakKeyDictionary[Any, tuple[Any, Properties]] = WeakKeyDictionary()


def properties(tokenizer: Any) -> Properties:
    """Return the properties of a tokenizer with its present template and special tokens."""
    state = (str(tokenizer.chat_template), len(tokenizer), tuple(tokenizer.special_tokens_map.items()))
    known = _KNOWN.get(tokenizer)
    if known is None or known[0] != state:
        _KNOWN[tokenizer] = known = (state, _look_up(tokenizer))
    return known[1]


def _look_up(tokenizer: Any) -> Properties:
    special = {token.content: id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    longest_first = sorted(filter(None, special), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
    first = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"][:1])
    begins_with_space = bool(first) and first[0].startswith(("\u2581", "\u0120"))
    question = [{"role": "user", "content": _WORD}]
    # Templates of models for text and images expect content as a list of parts, and ignore or reject a string.
    in_parts = not _shows(tokenizer, question) and _shows(tokenizer, [_in_parts(message) for message in question])
    return Properties(pattern, frozenset(special.values()), begins_with_space, in_parts, _opening(tokenizer, in_parts))


def _opening(tokenizer: Any, in_parts: bool) -> str:
    question: dict[str, Any] = {"role": "user", "content": _WORD}
    messages = [_in_parts(question) if in_parts else question]
    try:
        before, prompt = _render(tokenizer, messages), _render(tokenizer, messages, prompt=True)
    except UserError:  # reported when a conversation is rendered
        return ""
    return prompt[len(before) :].strip() if prompt.startswith(before) else ""


def _shows(tokenizer: Any, messages: Sequence[Message]) -> bool:
    try:
        return _WORD in _render(tokenizer, messages, prompt=True)
    except UserError:  # reported when a conversation is rendered
        return False
