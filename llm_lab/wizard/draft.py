"""A recipe being answered: what the user said, and what follows from it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from llm_lab.errors import Problem
from llm_lab.estimate.machine import Machine
from llm_lab.recipe.fields import Key, flatten, groups_of
from llm_lab.recipe.files import format_value
from llm_lab.recipe.resolve import Resolved, diagnose
from llm_lab.recipe.validate import applies, find_key, stage_schema

# A choice that can't stand alone brings what it needs; taken back, it takes that along.
BRINGS = {
    ("lora.preset", "custom"): ("lora.target_modules", ["q_proj", "v_proj"]),
    ("dpo.loss_type", "robust"): ("dpo.label_smoothing", 0.1),
}


@dataclass
class Draft:
    """Answers so far. Never changed in place: each answer gives a new draft."""

    raw: dict[str, Any]
    machine: Machine
    name: str = "run"
    step: int = 0  # the question that was being asked, to go on from after a Ctrl-C
    notice: str = ""  # what the last answer brought with it, told above the next question
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
        if self._is_another_kind(path, value):
            # Another optimizer has other keys, and its own scale of learning rates.
            _set(raw, path.rpartition(".")[0], {})
        brought = _bring(raw, path, value)
        _set(raw, path, value)
        dropped = _drop_idle_answers(raw, path, value)
        notice = f"Left out, for it does nothing now: {', '.join(dropped)}." if dropped else brought
        return Draft(raw, self.machine, self.name, self.step, notice)

    def with_none(self, path: str) -> Draft:
        """Return the draft with a group at the top level switched off, whatever its default."""
        return Draft({**copy.deepcopy(self.raw), path: None}, self.machine, self.name, self.step)

    def _is_another_kind(self, path: str, value: Any) -> bool:
        group, _, last = path.rpartition(".")
        key = find_key(stage_schema(self.raw), group) if group and last == "name" else None
        return key is not None and len(groups_of(key.info)) > 1 and value != self.value(path)

    def at_step(self, step: int) -> Draft:
        return replace(self, step=step)

    def with_notice(self, notice: str) -> Draft:
        return replace(self, notice=notice)

    def value(self, path: str) -> Any:
        """Return what a key is now: answered, derived or default."""
        resolved, _ = self.look()
        return _at(resolved.values if resolved else self.raw, path)

    def is_answered(self, path: str) -> bool:
        return _at(self.raw, path) is not None

    def key(self, path: str) -> Key | None:
        resolved, _ = self.look()
        return find_key(stage_schema(self.raw), path, resolved.values if resolved else self.raw)

    def applies(self, path: str) -> bool:
        resolved, _ = self.look()
        return applies(path, resolved.values if resolved else self.raw)

    def _optimizers(self) -> list[str]:
        info = stage_schema(self.raw).model_fields["optimizer"]
        return [group.model_fields["name"].default for group in groups_of(info)]

    def why_not(self, path: str, value: Any) -> str | None:
        """Return why a value can't be taken here, the other answers being what they are, or None."""
        if path == "optimizer.name" and value not in self._optimizers():
            return "it works in pretraining only"
        before = {str(problem) for problem in self.look()[1]}
        for problem in self.with_answer(path, value).look()[1]:
            about_this = isinstance(problem, Problem) and problem.key.split(".")[0] == path.split(".")[0]
            if str(problem) not in before and about_this:
                return problem.why if problem.key == path else f"{problem.key.rsplit('.', 1)[-1]}: {problem.why}"
        return None


def _at(node: Any, path: str) -> Any:
    for step in path.split("."):
        if isinstance(node, list | tuple) and step.isdigit() and int(step) < len(node):
            node = node[int(step)]
        elif isinstance(node, Mapping):
            node = node.get(step)
        else:
            return None
    return node


def _set(node: Any, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for step in parents:
        node = node[int(step)] if isinstance(node, list) else node.setdefault(step, {})
    if value is None:
        node.pop(last, None)
    else:
        node[last] = value


def _bring(raw: dict[str, Any], path: str, value: Any) -> str:
    """Add what a choice needs beside it, and take out what the choice before had brought; says what was added."""
    before = BRINGS.get((path, str(_at(raw, path))))
    if before and _at(raw, before[0]) == before[1] and _at(raw, path) != value:
        _set(raw, before[0], None)
    needed = BRINGS.get((path, str(value)))
    if needed is None or _at(raw, needed[0]) is not None:
        return ""
    _set(raw, needed[0], copy.deepcopy(needed[1]))
    return f"{value} needs {needed[0]}; it is {format_value(needed[1])} for now."


def _drop_idle_answers(raw: dict[str, Any], path: str, value: Any) -> list[str]:
    """Take out answers that belong to another choice of `path`; returns them in words.

    They would stand in the way of every choice but the one they were given for.
    """
    dropped = []
    for other, answer in list(flatten(raw)):
        key = find_key(stage_schema(raw), other, raw)
        wanted = key.when.get(path) if key else None
        if wanted and value is not None and value not in wanted:
            _set(raw, other, None)
            dropped.append(f"{other} = {format_value(answer)}")
    return dropped
