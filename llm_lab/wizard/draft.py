"""A recipe made from the user's answers: what the user said, and what follows from it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem
from llm_lab.estimate.machine import Machine
from llm_lab.recipe.fields import Key, flatten, groups_of, value_at
from llm_lab.recipe.files import format_value
from llm_lab.recipe.merge import MERGE
from llm_lab.recipe.registry import STAGES
from llm_lab.recipe.resolve import Resolved, diagnose
from llm_lab.recipe.validate import applies, find_key, stage_schema
from llm_lab.recipe.what_fits import Fit, fits_in, make_it_fit
from llm_lab.runs.folder import free_name

from .questions import UNSET, DesignNumbers, Flow, Panel, Question, RunNumbers, Screen
from .walk import remember

LONGEST_NAME = 80  # characters, for a run that the user has not named
# A choice that needs another key adds it; when the choice is undone, that key is removed too.
BRINGS = {
    ("lora.preset", "custom"): ("lora.target_modules", ["q_proj", "v_proj"]),
    ("dpo.loss_type", "robust"): ("dpo.label_smoothing", 0.1),
}
# A choice that decides other keys: earlier answers to them, as in the recipe of a run, would leave it without effect.
DECIDES = {
    "model.size": (
        "model.hidden_size",
        "model.num_hidden_layers",
        "model.num_attention_heads",
        "model.num_key_value_heads",
        "model.head_dim",
        "model.intermediate_size",
        "model.tie_word_embeddings",
        "model.max_position_embeddings",
        "model.original_max_position_embeddings",
    ),
}


@remember
def _look(raw: dict[str, Any], machine: Machine) -> tuple[Resolved | None, list[Problem | str]]:
    resolved, problems = diagnose(raw, machine=machine)
    return make_it_fit(resolved) if resolved and not problems else resolved, list(problems)


@remember
def _fits(raw: dict[str, Any], machine: Machine) -> dict[str, Fit]:
    resolved, _ = _look(raw, machine)
    return fits_in(resolved) if resolved else {}


@dataclass(frozen=True)
class Draft:
    """The answers so far. Each answer gives a new draft.

    title: that of the screen. is_design: whether a model is designed instead of a run. notice: what the last answer
    changed in addition, shown above the next question. is_complete: whether what must be chosen is chosen, so that the
    defaults can be taken for the rest. automatic: {key: (value, reason)} of answers that the user did not give; they
    are derived as long as they are unchanged, or are defaults if they have no reason.
    """

    raw: dict[str, Any]
    machine: Machine
    title: str
    is_design: bool = False
    notice: str = ""
    is_complete: bool = False
    automatic: Mapping[str, tuple[Any, str]] = field(default_factory=dict)

    def look(self) -> tuple[Resolved | None, list[Problem | str]]:
        """Resolve the draft as far as possible."""
        return _look(self.raw, self.machine)

    def fits(self) -> dict[str, Fit]:
        """Return {method: whether it fits in memory} of the draft; {} if it can't be resolved."""
        return _fits(self.raw, self.machine)

    @property
    def screen(self) -> Screen:
        """What is shown above a question about this draft."""
        resolved, _ = self.look()
        panel: Panel | None = DesignNumbers(resolved) if self.is_design else RunNumbers(resolved)
        if not self.is_design and not STAGES[self.raw["stage"]].from_scratch and not self.raw.get("model"):
            panel = None
        return Screen(self.title, self.run_name, panel)

    @property
    def run_name(self) -> str:
        """The name that the run gets; a number is added to one that is taken."""
        name = self.raw.get("name") or ""
        return name if self.is_design or not name else free_name(name)

    def ask(self, key: str, text: str, **more: Any) -> Question:
        """Return a question about this draft, shown below its numbers and what its last answer changed."""
        shown = {"screen": self.screen, "notice": self.notice, "can_finish": self.is_complete}
        return Question(key, text, **{**shown, **more})

    def with_answer(self, path: str, value: Any) -> Draft:
        """Return the draft with one key answered (None: removed, so that it is derived)."""
        raw = copy.deepcopy(self.raw)
        if self._is_another_kind(path, value):
            # Another optimizer has other keys, and its own scale of learning rates.
            _set(raw, path.rpartition(".")[0], {})
        brought = _bring(raw, path, value)
        _set(raw, path, value)
        dropped = _drop_idle_answers(raw, path, value)
        dropped += _drop_answers(raw, DECIDES.get(path, ())) if value is not None else []
        group = path.split(".")[0]
        field = stage_schema(raw).model_fields.get(group)
        if raw.get(group) == {} and field is not None and field.default is not None and value is None:
            del raw[group]  # an empty group means nothing, except that one that is off by default would be switched on
        notice = f"Removed, because it has no effect now: {', '.join(dropped)}." if dropped else brought
        return replace(self, raw=raw, notice=notice)

    def set_back(self, path: str) -> Draft:
        """Return the draft with a key as it was before the user answered it."""
        value = copy.deepcopy(self.automatic[path][0]) if path in self.automatic else None
        if path == "name" and value is None and not self.is_design:
            value = self._first_name()
        return self.with_answer(path, value)

    def with_none(self, path: str) -> Draft:
        """Return the draft with a top-level group switched off, whatever its default."""
        return replace(self, raw={**copy.deepcopy(self.raw), path: None}, notice="")

    def changes_since(self, start: Draft) -> dict[str, Any]:
        """Return {dotted key: value} of what has changed since an earlier draft; UNSET: no longer answered."""
        return dict(_difference(start.raw, self.raw))

    def with_changes(self, changes: Mapping[str, Any]) -> Draft:
        """Return the draft with what changes_since returned."""
        raw = copy.deepcopy(self.raw)
        for path, value in changes.items():
            _put(raw, path, copy.deepcopy(value))
        return replace(self, raw=raw, notice="")

    def with_notice(self, notice: str) -> Draft:
        """Return the draft with what to show above the next question."""
        return replace(self, notice=notice)

    def value(self, path: str) -> Any:
        """Return the current value of a key: answered, derived or default."""
        resolved, _ = self.look()
        return value_at(resolved.values if resolved else self.raw, path)

    def is_answered(self, path: str) -> bool:
        """Whether the user answered a key."""
        return value_at(self.raw, path) is not None

    def origin(self, path: str) -> tuple[str, str]:
        """Return where a value comes from (yours, default or derived), and the reason for it."""
        if path == "name" and self.run_name != self.raw.get("name", ""):
            kind, reason = self._origin(path)
            return kind, ", ".join(filter(None, (reason, f"{self.raw['name']} is taken")))
        return self._origin(path)

    def _origin(self, path: str) -> tuple[str, str]:
        for start, (value, reason) in self.automatic.items():
            if f"{path}.".startswith(f"{start}.") and value_at(self.raw, start) == value:
                return "derived" if reason else "default", reason
        if path == "name" and not self.is_design and self.raw.get("name") == self._first_name():
            named = not STAGES[self.raw["stage"]].from_scratch and self.raw.get("model")
            return ("derived", "from the model's name") if named else ("default", "")
        resolved, _ = self.look()
        found = resolved.origins.get(path) if resolved else None
        if found is None:
            return self._origin_of_group(path)
        if found.reason and path == "lora.preset" and found.kind == "derived":
            return found.kind, "usual for an adapter instead of all weights"  # the reason found is that of the adapter
        return "yours" if found.kind in ("answer", "override") else found.kind, found.reason

    def _origin_of_group(self, path: str) -> tuple[str, str]:
        """Return where a group comes from: the user, unless all of its answers are automatic."""
        answer, (resolved, _) = value_at(self.raw, path), self.look()
        if answer is not None:
            found = [self.origin(leaf) for leaf, _ in flatten({path: answer}) if leaf != path]
            return found[0] if found and all(kind != "yours" for kind, _ in found) else ("yours", "")
        field = stage_schema(self.raw).model_fields.get(path)
        if resolved and field is not None and field.default is None:  # it is switched on because memory requires it
            reasons = (one.reason for key, one in resolved.origins.items() if key.startswith(f"{path}.") and one.reason)
            return next((("derived", reason) for reason in reasons), ("default", ""))
        return "default", ""

    def key(self, path: str) -> Key | None:
        """Return a recipe key as the schema has it, or None."""
        resolved, _ = self.look()
        return find_key(stage_schema(self.raw), path, resolved.values if resolved else self.raw)

    def help(self, path: str) -> str:
        """Return `path: help`, the line above its question."""
        key = self.key(path)
        return f"{path}: {key.shown_help}" if key else path

    def applies(self, path: str) -> bool:
        """Whether a key has an effect, given the other answers."""
        resolved, _ = self.look()
        return applies(path, resolved.values if resolved else self.raw)

    def why_not(self, path: str, value: Any) -> str | None:
        """Return why a value can't be chosen here, given the other answers, or None."""
        if path == "optimizer.name" and value not in self._optimizers():
            return "for pretraining only"
        before = {str(problem) for problem in self.look()[1]}
        for problem in self.with_answer(path, value).look()[1]:
            about_this = isinstance(problem, Problem) and problem.key.split(".")[0] == path.split(".")[0]
            if isinstance(problem, Problem) and about_this and str(problem) not in before:
                return problem.why if problem.key == path else f"{problem.key.rsplit('.', 1)[-1]}: {problem.why}"
        return None

    def _first_name(self) -> str:
        return first_name(self.raw["stage"], (self.raw.get("model") or {}).get("checkpoint"))

    def _is_another_kind(self, path: str, value: Any) -> bool:
        group, _, last = path.rpartition(".")
        key = find_key(stage_schema(self.raw), group) if group and last == "name" else None
        return key is not None and len(groups_of(key.info)) > 1 and value != self.value(path)

    def _optimizers(self) -> list[str]:
        info = stage_schema(self.raw).model_fields["optimizer"]
        return [group.model_fields["name"].default for group in groups_of(info)]


Ask = Callable[[Draft], Flow[Draft]]


def first_name(stage: str, checkpoint: str | None) -> str:
    """Return the name that a run has before the user gives one: that of its model, and the stage."""
    if STAGES[stage].from_scratch:
        return "my-run"
    ending = "merged" if stage == MERGE.name else stage
    if not checkpoint:
        return f"my-{ending}"
    words = "".join(c if c.isalnum() or c in "._-" else "-" for c in Path(checkpoint).name).strip("-._") or "my"
    return f"{words[:LONGEST_NAME]}-{ending}"


def _difference(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    yield from ((prefix + key, UNSET) for key in before if key not in after)
    for key, value in after.items():
        old = before.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            yield from _difference(old, value, f"{prefix}{key}.")
        elif key not in before or old != value:
            yield prefix + key, value


def _put(node: dict[str, Any], path: str, value: Any) -> None:
    """Set a key to a value as it is, None and {} included; UNSET removes it."""
    step, _, rest = path.partition(".")
    if rest:
        if not isinstance(node.get(step), dict):
            if value == UNSET:
                return
            node[step] = {}
        _put(node[step], rest, value)
    elif value == UNSET:
        node.pop(step, None)
    else:
        node[step] = value


def _set(node: Any, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for step, after in pairwise([*parents, last]):
        key: Any = int(step) if isinstance(node, list) else step
        inside = node[key] if isinstance(node, list) else node.get(key)
        if not isinstance(inside, dict) and not (isinstance(inside, list) and after.isdecimal()):
            if value is None:
                return
            node[key] = inside = {}  # the group was left out, switched off, or not a group
        node = inside
    if value is None:
        node.pop(last, None)
    else:
        node[last] = value


def _bring(raw: dict[str, Any], path: str, value: Any) -> str:
    """Add the key that a choice needs, and remove the one that the previous choice added; describe the addition."""
    before = BRINGS.get((path, str(value_at(raw, path))))
    if before and value_at(raw, before[0]) == before[1] and value_at(raw, path) != value:
        _set(raw, before[0], None)
    needed = BRINGS.get((path, str(value)))
    if needed is None or value_at(raw, needed[0]) is not None:
        return ""
    _set(raw, needed[0], copy.deepcopy(needed[1]))
    return f"{needed[0]} is now {format_value(needed[1])}, because {value} requires it."


def _drop_answers(raw: dict[str, Any], paths: Iterable[str]) -> list[str]:
    """Remove answers; return a description of them."""
    dropped = []
    for path in paths:
        if (answer := value_at(raw, path)) is not None:
            _set(raw, path, None)
            dropped.append(f"{path} = {format_value(answer)}")
    return dropped


def _drop_idle_answers(raw: dict[str, Any], path: str, value: Any) -> list[str]:
    """Remove answers that belong to another choice of `path`; return a description of them.

    They would be problems for every choice except the one they were given for.
    """
    dropped = []
    for other, answer in list(flatten(raw)):
        key = find_key(stage_schema(raw), other, raw)
        wanted = key.when.get(path) if key else None
        if wanted and value is not None and value not in wanted:
            _set(raw, other, None)
            dropped.append(f"{other} = {format_value(answer)}")
    return dropped
