"""Rules across the keys of an evaluation; rules.py tells them with the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llm_lab.errors import Problem

from .evaluation import measures_itself

Values = Mapping[str, Any]
# Which keys of `eval` belong to which groups: without one of them they do nothing.
OWNERS = {
    "max_tokens": ("data",),
    "max_length": ("data", "tasks"),
    "per_device_eval_batch_size": ("data", "tasks"),
    "text_scores": ("score",),
}


def _what_is_set_is_measured(values: Values) -> Iterator[Problem]:
    if values.get("stage") != "eval" or measures_itself(values):
        return
    for key, owners in OWNERS.items():
        value = (values.get("eval") or {}).get(key)
        if value and not any(values.get(owner) for owner in owners):
            why, fix = f"does nothing without {' or '.join(owners)}", f"Leave it out, or name {owners[0]}."
            if key == "text_scores":
                why, fix = "there are no answers to compare with references", "Name prompts in score.path."
            yield Problem(
                f"eval.{key}", why, value=", ".join(value) if isinstance(value, tuple | list) else value, fix=fix
            )


def _tasks_are_named_once(values: Values) -> Iterator[Problem]:
    names = list((values.get("tasks") or {}).get("names") or ())
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield Problem("tasks.names", "a task stands here twice", value=name, fix="Name it once.")


EVALUATION_RULES: tuple[Callable[[Values], Iterator[Problem]], ...] = (
    _what_is_set_is_measured,
    _tasks_are_named_once,
)
