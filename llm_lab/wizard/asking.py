"""Questions made from recipe keys: the schema says what is asked, offered, allowed and explained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from llm_lab.errors import UserError
from llm_lab.estimate.formatting import count, size
from llm_lab.recipe.fields import Key
from llm_lab.recipe.files import format_value, parse_yaml
from llm_lab.recipe.resolve import Resolved
from llm_lab.terminal.console import make_console
from llm_lab.terminal.prompts import Back, Option, choose, type_in

from .draft import Draft

Show = Callable[[Draft], None]
Step = Callable[[Draft], Draft]
OFFERED = 9  # numbers in a list, so that panel and list fit 24 lines
OTHER = "another number ..."


class _Derive:
    """Picked to take an answer back, so that the key follows the others again."""


DERIVE = _Derive()


def ask_key(draft: Draft, path: str, *, show: Show) -> Draft:
    """Ask one key and return the draft with the answer. `show` draws the screen above the question.

    Raises Back.
    """
    key = draft.key(path)
    assert key is not None, path
    begin_question(draft, f"{path}: {key.help}", show=show)
    value = _ask_value(draft, path, key)
    draft = draft.with_notice("")
    if value is DERIVE:
        return draft.with_answer(path, None)
    # Enter on a default or derived value leaves it one: it goes on following the other answers.
    return draft if value == draft.value(path) and not draft.is_answered(path) else draft.with_answer(path, value)


def begin_question(draft: Draft, help_line: str, *, show: Show) -> None:
    """Draw what stands above a question: the screen, what the last answer brought with it, the help line."""
    from rich.text import Text

    show(draft)
    console = make_console()
    if draft.notice:
        console.print(Text(draft.notice, style="warn"))
    console.print(Text(help_line, style="help"))


def _ask_value(draft: Draft, path: str, key: Key) -> Any:
    message = key.question or f"{path}?"
    now = draft.value(path)
    why = "\n".join(part for part in (key.help[:1].upper() + key.help[1:] + ".", key.why or "") if part)
    if key.kind == "bool" or key.choices:
        options = _left_open(key, now) + _choices(draft, path, key) + _way_back(draft, path, key)
        return choose(message, options, default=DERIVE if now is None else now, why=why)
    if key.meta.get("candidates"):
        options = [*_numbers(draft, path, key, now), Option(OTHER, OTHER, about=_allowed(key))]
        picked = choose(message, options + _way_back(draft, path, key), default=now, why=why)
        if picked != OTHER:
            return picked
    return _type_value(draft, path, key, message, why)


def _choices(draft: Draft, path: str, key: Key) -> list[Option]:
    if key.kind == "bool":
        return [_option(draft, path, value, name) for value, name in ((True, "yes"), (False, "no"))]
    width = max(len(str(choice)) for choice in key.choices) + 2
    now = draft.value(path)  # several of a key that takes a list too are written in the file, and kept by Enter
    several = [_option(draft, path, now, ", ".join(now))] if isinstance(now, list | tuple) else []
    return several + [
        _option(draft, path, choice, f"{choice!s:<{width}}", text) for choice, text in key.choices.items()
    ]


def _option(draft: Draft, path: str, value: Any, name: str, text: str = "") -> Option:
    why_not = draft.why_not(path, value)
    if why_not:
        return Option(value, name, why_not)
    resolved, _ = draft.with_answer(path, value).look()
    return Option(value, name + text, about=effect(resolved))


def effect(resolved: Resolved | None) -> str:
    """Return in a line what an answer would lead to: size, memory, work."""
    if resolved is None or not resolved.estimate.parameters or "train" not in resolved.values:
        return ""
    cost, shape = resolved.estimate, resolved.shape
    words = f"→ {count(cost.parameters)} parameters, {size(cost.memory_bytes)} of memory to train"
    if shape is not None:
        flops = shape.training_flops_per_token(resolved.values["train"]["max_length"])
        words += f", {count(flops)}FLOPs a token"
    return words + ("" if cost.fits else "; does not fit into memory")


def _way_back(draft: Draft, path: str, key: Key) -> list[Option]:
    if not key.derived or not draft.is_answered(path):
        return []
    return [Option(DERIVE, "take the answer back", about=f"Derived again: {key.derived}.")]


def _left_open(key: Key, now: Any) -> list[Option]:
    """What is derived only when the run begins has no value yet, and Enter leaves it so."""
    if now is not None or not _is_optional(key):
        return []
    return [Option(DERIVE, "leave it open", about=f"Derived: {key.derived}." if key.derived else "")]


def _numbers(draft: Draft, path: str, key: Key, now: Any) -> list[Option]:
    """Offer numbers near the present one; impossible ones stay visible, with the reason."""
    numbers = sorted({*key.meta["candidates"], *([now] if isinstance(now, int) else [])})
    centre = min(range(len(numbers)), key=lambda i: abs(numbers[i] - (now or numbers[0])))
    start = max(0, min(centre - OFFERED // 2, len(numbers) - OFFERED))
    width = max(len(f"{n:,}") for n in numbers) + 2
    resolved, _ = draft.look()
    origin = resolved.origins.get(path) if resolved else None
    options = []
    for number in numbers[start : start + OFFERED]:
        remark = str(origin) if number == now and origin and origin.kind == "derived" else ""
        options.append(_option(draft, path, number, f"{number:<{width},}", remark))
    return options


def _allowed(key: Key) -> str:
    example = ' Written like ["Once", "The"].' if key.kind == "list" and not key.entries else ""
    example = " Written like [0.9, 0.95]." if key.kind == "list" and key.entries else example
    empty = f" Empty: derived, {key.derived}." if key.derived else " Empty: none." if _is_optional(key) else ""
    pattern = _pattern(key)
    letters = "letters, digits, '.', '_' and '-'"
    named = f"owner/name, of {letters}" if pattern and "/" in pattern else letters.capitalize()
    text = named if pattern else key.allowed().removesuffix(", or null")
    return f"Allowed: {text}.{example}{empty}"


def _is_optional(key: Key) -> bool:
    return not key.required and key.default is None


def _pattern(key: Key) -> str | None:
    return next((item.pattern for item in key.info.metadata if getattr(item, "pattern", None)), None)


def _type_value(draft: Draft, path: str, key: Key, message: str, why: str) -> Any:
    now, optional = draft.value(path), _is_optional(key)

    def parse(text: str) -> Any:
        if not text.strip():
            return DERIVE if optional else now
        value = text.strip() if key.kind == "text" else parse_yaml(text)
        return DERIVE if value is None and optional else value

    def validate(text: str) -> str | None:
        try:
            value = parse(text)
        except UserError:
            return f"{text} can't be read."
        if value is DERIVE:
            return None
        if _is_wrong_type(key, value):
            return f"{format_value(value)} is not allowed here."
        why_not = draft.why_not(path, value)
        return f"{format_value(value)}: {why_not}." if why_not else None

    shown = "" if now is None else str(now) if key.kind == "text" else format_value(now)
    return parse(type_in(message, default=shown, why=why, about=_allowed(key), validate=validate))


def _is_wrong_type(key: Key, value: Any) -> bool:
    """Check one value against its key alone."""
    from pydantic import TypeAdapter, ValidationError

    annotation = key.info.annotation
    for item in key.info.metadata:
        annotation = Annotated[annotation, item]
    try:
        TypeAdapter(annotation).validate_python(tuple(value) if isinstance(value, list) else value)
    except ValidationError:
        return True
    return False


def ask_keys(draft: Draft, paths: Sequence[str], *, show: Show) -> Draft:
    """Ask several keys one after the other; Escape goes to the one before. Raises Back at the first."""

    def step(path: str) -> Step:
        return lambda draft: ask_key(draft, path, show=show) if draft.applies(path) else skip(draft)

    return run_steps([step(path) for path in paths], draft)


class Skipped(Exception):
    """A question that has nothing to ask now; Escape goes past it."""


def skip(draft: Draft) -> Draft:
    raise Skipped


def run_steps(
    steps: Sequence[Step], draft: Draft, *, first: int = 0, keep: Callable[[Draft], None] = lambda draft: None
) -> Draft:
    """Run questions one after the other; Back goes to the one before, and out of the first.

    first: where to begin. keep: takes the draft before each question, with the number of the question.
    """
    position, direction = max(0, min(first, len(steps) - 1)), 1
    while position < len(steps):
        try:
            keep(draft.at_step(position))
            draft, direction = steps[position](draft), 1
        except Skipped:
            pass
        except Back:
            direction = -1
        position += direction
        if position < 0:
            raise Back
    return draft
