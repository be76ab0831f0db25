"""Questions made from recipe keys: the schema has the question, what is offered and allowed, and the explanation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from llm_lab.errors import UserError
from llm_lab.estimate.formatting import count, size
from llm_lab.recipe.fields import LARGEST_INT, Key
from llm_lab.recipe.files import format_value, parse_yaml
from llm_lab.recipe.parts import SIZES
from llm_lab.recipe.resolve import Resolved
from llm_lab.recipe.validate import too_long
from llm_lab.safe_text import shorten

from .draft import Draft
from .questions import UNSET, Choice, Flow, Question

LONGEST_SHOWN = 60  # characters of a refused text
OFFERED = 9  # numbers in a list, so that panel and list fit 24 lines


def ask_key(draft: Draft, path: str) -> Flow[Draft]:
    """Ask one key; return the draft with the answer. A key without an effect is skipped."""
    if not draft.applies(path):
        return draft
    return answer_key(draft, path, (yield key_question(draft, path)))


def key_question(draft: Draft, path: str) -> Question:
    """Return the question of a key: a choice, or a text whose choices are suggestions."""
    key = draft.key(path)
    assert key is not None, path
    now = draft.run_name if path == "name" else draft.value(path)
    question = draft.ask(path, key.question or f"{path}?", help=f"{path}: {key.shown_help}", why=key.why or "")
    if key.kind == "bool" or key.choices:
        choices = [*_left_open(key, now), *_choices(draft, path, key), *_derive_again(draft, path, key)]
        return replace(question, choices=tuple(choices), default=UNSET if now is None else now)
    return replace(
        question,
        kind="text",
        choices=tuple(_numbers(draft, path, key, now)) if key.meta.get("candidates") else (),
        default="" if now is None else str(now) if key.kind == "text" else format_value(now),
        allowed=f"{allowed(key, empty=False)}{_if_empty(draft, path, key)}",
        check=partial(_why_not_text, draft, path, key),
    )


def answer_key(draft: Draft, path: str, answer: Any) -> Draft:
    """Return the draft with the answer to a key's question. UNSET or an empty text removes the key's answer."""
    key = draft.key(path)
    assert key is not None, path
    if isinstance(answer, str) and not (key.kind == "bool" or key.choices):
        answer = _parse(key, answer)
    draft = draft.with_notice("")
    if answer == UNSET:
        return draft.set_back(path)
    # Enter on a default or derived value leaves it one: it continues to follow the other answers.
    return draft if is_value(draft, path, answer) and not draft.is_answered(path) else draft.with_answer(path, answer)


def is_value(draft: Draft, path: str, answer: Any) -> bool:
    """Whether an answer equals the value that the key has without an answer."""
    now = draft.value(path)
    return answer == (list(now) if isinstance(now, tuple) else now)


def _why_not_text(draft: Draft, path: str, key: Key, text: str) -> str | None:
    try:
        value = _parse(key, text)
    except UserError:
        return f"{text} can't be read."
    if value == UNSET:
        return "A value is required." if key.required else None
    if (wrong := _type_problem(key, value)) is not None:
        return wrong
    why_not = draft.why_not(path, value)
    return f"{format_value(value)}: {why_not}." if why_not else None


def _parse(key: Key, text: str) -> Any:
    """Return the value of a typed text, UNSET if it is left open. UserError if it is not YAML."""
    text = text.strip()
    if not text:
        return UNSET
    value = text if key.kind == "text" else parse_yaml(text)
    if key.kind == "int" and isinstance(value, float) and value.is_integer() and "e" in text.lower():
        value = int(value)  # 1e6
    return UNSET if value is None else value


def _if_empty(draft: Draft, path: str, key: Key) -> str:
    """Return the value of a key without an answer."""
    if key.required:
        return ""
    open_ = draft.set_back(path)
    value, origin = open_.run_name if path == "name" else open_.value(path), ": ".join(filter(None, open_.origin(path)))
    if value is None:
        return f" Empty: derived ({key.derived})." if key.derived else " Empty: none."
    shown = value if key.kind == "text" else format_value(value)
    return f" Empty: {shown} ({origin})."


def _choices(draft: Draft, path: str, key: Key) -> list[Choice]:
    if key.kind == "bool":
        return [_choice(draft, path, value, name) for value, name in ((True, "yes"), (False, "no"))]
    names = key.choices or {}
    width = max(len(str(choice)) for choice in names) + 2
    now = draft.value(path)
    # A list that was written in a file can be kept.
    several = [_choice(draft, path, list(now), ", ".join(now))] if isinstance(now, list | tuple) else []
    return several + [_choice(draft, path, choice, f"{choice!s:<{width}}", text) for choice, text in names.items()]


def _choice(draft: Draft, path: str, value: Any, name: str, text: str = "") -> Choice:
    why_not = draft.why_not(path, value)
    if why_not:
        return Choice(value, name, why_not)
    resolved, _ = draft.with_answer(path, value).look()
    shape = resolved.shape if resolved else None
    if path == "model.size" and shape is not None:  # its own number, instead of the round one of the size
        text = f"{shape.describe_parameters()} parameters: {SIZES[value].about}"
    return Choice(value, name + text, effect=effect(resolved, draft.look()[0]))


def effect(resolved: Resolved | None, now: Resolved | None = None) -> str:
    """Return the result of an answer on one line: parameters, memory, FLOPs. now: what it is compared with."""
    if resolved is None or not resolved.estimate.parameters or "train" not in resolved.values:
        return ""
    cost, shape = resolved.estimate, resolved.shape
    parameters = shape.describe_parameters() if shape is not None else count(cost.parameters or 0)
    memory = cost.comparable_memory_bytes(now.estimate if now else cost)
    text = f"→ {parameters} parameters, {size(memory)} of memory to train"
    if shape is not None:
        flops = shape.training_flops_per_token(resolved.values["train"]["max_length"])
        text += f", {count(flops)}FLOPs per token"
    return text + ("" if cost.fits else "; does not fit in memory")


def _derive_again(draft: Draft, path: str, key: Key) -> list[Choice]:
    if not key.derived or not draft.is_answered(path):
        return []
    return [Choice(UNSET, "use the derived value again", effect=f"Derived: {key.derived}.")]


def _left_open(key: Key, now: Any) -> list[Choice]:
    """Offer to leave a key unset: a value that is derived only when the run starts is None until then."""
    if now is not None or not _is_optional(key):
        return []
    return [Choice(UNSET, "leave unset", effect=f"Derived: {key.derived}." if key.derived else "")]


def _numbers(draft: Draft, path: str, key: Key, now: Any) -> list[Choice]:
    """Offer numbers near the current one, as texts; impossible ones are shown with the reason."""
    numbers = sorted({*key.meta["candidates"], *([now] if isinstance(now, int) else [])})
    center = min(range(len(numbers)), key=lambda i: abs(numbers[i] - (now or numbers[0])))
    start = max(0, min(center - OFFERED // 2, len(numbers) - OFFERED))
    return [
        replace(_choice(draft, path, number, f"{number:,}"), value=format_value(number))
        for number in numbers[start : start + OFFERED]
    ]


def allowed(key: Key, *, empty: bool = True) -> str:
    """Return what may be typed for a key, and what an empty answer means."""
    example = ""
    if key.kind == "list":
        example = (
            " Written as a list, for example [0.9, 0.95]."
            if key.entries
            else ' Written as a list: ["first", "second"].'
        )
    words = f"Allowed: {key.allowed().removesuffix(', or null')}.{example}"
    if not empty:
        return words
    return words + (
        f" Empty: derived ({key.derived})." if key.derived else " Empty: none." if _is_optional(key) else ""
    )


def _is_optional(key: Key) -> bool:
    return not key.required and key.default is None


def _type_problem(key: Key, value: Any) -> str | None:
    """Check a value against the type of its key alone."""
    from pydantic import TypeAdapter, ValidationError

    annotation: Any = key.info.annotation
    for item in key.info.metadata:
        annotation = Annotated[annotation, item]
    try:
        TypeAdapter(annotation).validate_python(tuple(value) if isinstance(value, list) else value)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "string_too_long":
            return f"{too_long(value, first)}."
        shown = f'"{shorten(value, LONGEST_SHOWN)}"' if isinstance(value, str) else format_value(value)
        if key.kind == "int" and not isinstance(value, int):
            return f"{shown} is not a whole number."
        if isinstance(value, int) and abs(value) > LARGEST_INT:
            return f"{shown} is too large: at most {LARGEST_INT:,}."
        return (
            f"{shown} is not a number."
            if key.kind == "float" and isinstance(value, str)
            else f"{shown} is not allowed."
        )
    return None
