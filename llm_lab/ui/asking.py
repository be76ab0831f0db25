"""Questions made from recipe keys: the schema says what is asked, offered, allowed and explained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from llm_lab.plan.hardware import Machine
from llm_lab.plan.resolve import Resolved, diagnose
from llm_lab.recipe.errors import Problem
from llm_lab.recipe.fields import Key
from llm_lab.recipe.files import format_value, parse_yaml
from llm_lab.recipe.rules import applies
from llm_lab.recipe.validate import find_key, stage_schema

from .prompts import Back, Option, choose, type_in

OFFERED = 9  # numbers in a list, so that panel and list fit 24 lines
OTHER = "other"


@dataclass
class Draft:
    """A recipe being answered: what the user said, and what follows from it."""

    raw: dict[str, Any]
    machine: Machine
    name: str = "run"
    _memory: dict[str, tuple[Resolved | None, list[Problem]]] = field(default_factory=dict, repr=False)

    def look(self) -> tuple[Resolved | None, list[Problem]]:
        """Resolve the draft as far as it goes."""
        signature = repr(self.raw)
        if signature not in self._memory:
            self._memory = {signature: diagnose(self.raw, machine=self.machine, name=self.name)}
        return self._memory[signature]

    def with_answer(self, path: str, value: Any) -> Draft:
        """Return the draft with one key answered (None: left out, so that it is derived)."""
        raw = copy.deepcopy(self.raw)
        node: Any = raw
        *parents, last = path.split(".")
        for step in parents:
            node = node[int(step)] if isinstance(node, list) else node.setdefault(step, {})
        if value is None:
            node.pop(last, None)
        else:
            node[last] = value
        return Draft(raw, self.machine, self.name)

    def value(self, path: str) -> Any:
        """Return what a key is now: answered, derived or default."""
        resolved, _ = self.look()
        node: Any = resolved.values if resolved else self.raw
        for step in path.split("."):
            if isinstance(node, list | tuple) and step.isdigit() and int(step) < len(node):
                node = node[int(step)]
            elif isinstance(node, dict):
                node = node.get(step)
            else:
                return None
        return node

    def key(self, path: str) -> Key | None:
        resolved, _ = self.look()
        return find_key(stage_schema(self.raw), path, resolved.values if resolved else self.raw)

    def applies(self, path: str) -> bool:
        resolved, _ = self.look()
        return applies(path, resolved.values if resolved else self.raw)

    def why_not(self, path: str, value: Any) -> str | None:
        """Return why a value can't be taken here, the other answers being what they are, or None."""
        before = {str(problem) for problem in self.look()[1]}
        for problem in self.with_answer(path, value).look()[1]:
            about_this = isinstance(problem, Problem) and problem.key.split(".")[0] == path.split(".")[0]
            if str(problem) not in before and about_this:
                return problem.why if problem.key == path else f"{problem.key.rsplit('.', 1)[-1]}: {problem.why}"
        return None


def ask_key(draft: Draft, path: str, *, show: Callable[[Draft], None]) -> Draft:
    """Ask one key and return the draft with the answer. `show` draws the screen above the question.

    Raises Back.
    """
    key = draft.key(path)
    assert key is not None, path
    trouble = ""
    while True:
        show(draft)
        _say(f"{path}: {key.help}", "help")
        if trouble:
            _say(trouble, "bad")
        value = _ask_value(draft, path, key)
        why_not = draft.why_not(path, value) if value is not None else None
        if why_not is None:
            # Enter on a default or derived value leaves it one: it goes on following the other answers.
            taken = value == draft.value(path) and not _written(draft.raw, path)
            return draft if taken else draft.with_answer(path, value)
        trouble = f"{path} = {format_value(value)}: {why_not}."


def _say(text: str, style: str) -> None:
    from .console import make_console

    make_console().print(text, style=style)


def _ask_value(draft: Draft, path: str, key: Key) -> Any:
    message = key.question or f"{path}: {key.help}?"
    now = draft.value(path)
    why = "\n".join(part for part in (key.help[:1].upper() + key.help[1:] + ".", key.why or "") if part)
    if key.kind == "bool":
        return choose(message, [Option(True, "yes"), Option(False, "no")], default=now, why=why)
    if key.choices:
        width = max(len(str(choice)) for choice in key.choices) + 2
        options = [
            Option(choice, f"{choice!s:<{width}}{meaning}", draft.why_not(path, choice))
            for choice, meaning in key.choices.items()
        ]
        return choose(message, options, default=now, why=why)
    if key.meta.get("candidates"):
        picked = choose(message, _numbers(draft, path, key, now), default=now, why=why)
        if picked != OTHER:
            return picked
    return _type_value(message, key, now, why)


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
        options.append(Option(number, f"{number:<{width},}{remark}", draft.why_not(path, number)))
    return [*options, Option(OTHER, "another number ...")]


def _type_value(message: str, key: Key, now: Any, why: str) -> Any:
    optional = not key.required and key.default is None

    def parse(text: str) -> Any:
        if not text.strip():
            return None if optional else now
        return text.strip() if key.kind == "text" else parse_yaml(text)

    def validate(text: str) -> str | None:
        value = parse(text)
        if value is None:
            return None if optional else f"Allowed: {key.allowed()}."
        return _wrong_type(key, value)

    shown = "" if now is None else str(now) if key.kind == "text" else format_value(now)
    return parse(type_in(message, default=shown, why=f"{why}\nAllowed: {key.allowed()}.", validate=validate))


def _wrong_type(key: Key, value: Any) -> str | None:
    """Check one value against its key alone."""
    from pydantic import TypeAdapter, ValidationError

    annotation = key.info.annotation
    for item in key.info.metadata:
        annotation = Annotated[annotation, item]
    try:
        TypeAdapter(annotation).validate_python(tuple(value) if isinstance(value, list) else value)
    except ValidationError:
        return f"{format_value(value)} is not allowed here. Allowed: {key.allowed()}."
    return None


def ask_keys(draft: Draft, paths: Sequence[str], *, show: Callable[[Draft], None]) -> Draft:
    """Ask several keys one after the other; Escape goes to the one before. Raises Back at the first."""
    asked: list[int] = []
    position = 0
    while position < len(paths):
        path = paths[position]
        if not draft.applies(path):
            # An answer that does nothing any more (another choice was made above) must not stay behind.
            draft = draft.with_answer(path, None) if _written(draft.raw, path) else draft
            position += 1
            continue
        try:
            draft = ask_key(draft, path, show=show)
        except Back:
            if not asked:
                raise
            position = asked.pop()
            continue
        asked.append(position)
        position += 1
    return draft


def _written(raw: dict[str, Any], path: str) -> bool:
    node: Any = raw
    for step in path.split("."):
        if not isinstance(node, dict) or step not in node:
            return False
        node = node[step]
    return True
