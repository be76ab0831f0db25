"""What an answer is scored by: functions that ship with LLM Lab, reward models, functions of the user's own."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llm_lab.errors import LabError
from llm_lab.recipe.scoring import REWARD_OPTIONS, REWARDS, RewardTerm
from llm_lab.terminal.plan_panel import describe_term
from llm_lab.terminal.prompts import Back, Option, choose, confirm, type_in

from .actions import Actions
from .asking import Show, begin_question
from .draft import Draft
from .sources import why_no_model
from .start_model import REWARD_WHY, pick_run, reward_models

Term = dict[str, Any]
WHY = (
    "The reward is a weighted sum. A checkable one (exact_number, exact_match) can't be fooled; a reward model can, so "
    "watch the held-out score beside it. Small terms for form or length keep answers tidy."
)
PYTHON_WHY = (
    "def polite(completions, **columns): return a list of numbers, one for each completion; columns holds the data's "
    "other columns, as lists. The file is run by the training process, as you."
)
DEFAULTS = {"pattern": "The answer is -?[0-9]+", "length": "200", "ngram": ""}


def ask_rewards(draft: Draft, actions: Actions, *, show: Show, path: str = "rewards") -> Draft:
    """Ask for the terms of the reward: add, change, remove, until they are right. Raises Back."""
    terms = [_written(term) for term in draft.value(path) or ()]
    at: Any = "done"
    while True:
        begin_question(draft, f"{path}: what an answer is scored by", show=show)
        none = None if terms else "there is none yet"
        options = [Option("done", "these are all" if terms else "that is all", none)]
        options += [
            Option(number, f"{describe_term(term)}", about=f"Enter changes or removes it. {about_term(term)}")
            for number, term in enumerate(terms)
        ]
        options += [Option(way, f"add {text}") for way, text in WAYS.items()]
        at = choose("What is an answer scored by?", options, default=at, why=WHY)
        if at == "done":
            return _answered(draft, path, terms)
        with contextlib.suppress(Back):
            if isinstance(at, int):
                terms = _change(draft, terms, at, show=show)
            else:
                terms = [*terms, _weigh(_new_term(draft, at, actions, show=show))]
            at = "done"


WAYS = {
    "name": "a function that ships with LLM Lab",
    "model": "a reward model",
    "python": "a Python function of yours",
}


def _written(term: Mapping[str, Any]) -> Term:
    return {key: value for key, value in term.items() if value is not None and (key, value) != ("weight", 1.0)}


def _answered(draft: Draft, path: str, terms: list[Term]) -> Draft:
    same = [_written(term) for term in draft.value(path) or ()] == terms
    return draft.with_notice("") if same else draft.with_answer(path, terms)


def about_term(term: Mapping[str, Any]) -> str:
    """Return what a term does, in words."""
    if term.get("name"):
        return f"{REWARDS[term['name']]}."
    return "A reward model." if term.get("model") else "A function of yours."


def _change(draft: Draft, terms: list[Term], number: int, *, show: Show) -> list[Term]:
    term = terms[number]
    begin_question(draft, f"{describe_term(term)}: {about_term(term)}", show=show)
    options = [Option("weight", "change its weight")]
    options += [Option("options", "change its settings")] if _keys_of(term) else []
    options += [Option("remove", "remove it", None)]
    picked = choose("What with it?", options, why=WHY)
    if picked == "remove":
        return [*terms[:number], *terms[number + 1 :]]
    changed = _weigh(term) if picked == "weight" else _ask_options(term)
    return [*terms[:number], changed, *terms[number + 1 :]]


def _keys_of(term: Mapping[str, Any]) -> list[str]:
    return [key for key, (owners, _) in REWARD_OPTIONS.items() if term.get("name") in owners]


def _new_term(draft: Draft, way: str, actions: Actions, *, show: Show) -> Term:
    if way == "name":
        width = max(map(len, REWARDS)) + 2
        options = [Option(name, f"{name:<{width}}{text}") for name, text in REWARDS.items()]
        return _ask_options({"name": choose("Which function?", options, why=WHY)})
    if way == "model":
        none = "none yet: the entry Reward model trains one"
        return {"model": pick_run("Which reward model?", reward_models(), none, "", REWARD_WHY, why_no_model)}
    return {"python": _ask_python(draft, actions, show=show)}


def _ask_options(term: Term) -> Term:
    for key in _keys_of(term):
        info, needed = RewardTerm.model_fields[key], REWARD_OPTIONS[key][1]
        text = type_in(
            f"{key.capitalize()}?",
            default=str(term.get(key, DEFAULTS[key])),
            why=info.description or "",
            about=f"{key}: {info.description}.",
            validate=lambda text, key=key, needed=needed: _why_no_value(key, text, needed),
        )
        term = {**term, key: text if key == "pattern" else int(text)} if text else _without(term, key)
    return term


def _without(term: Term, key: str) -> Term:
    return {other: value for other, value in term.items() if other != key}


def _why_no_value(key: str, text: str, needed: bool) -> str | None:
    text = text.strip()
    if not text:
        return f"A {key} is needed." if needed else None
    if key != "pattern":
        return None if text.isdigit() and int(text) >= 1 else f"{text!r} is no whole number of at least 1."
    try:
        re.compile(text)
    except re.error as error:
        return f"This is no regular expression: {error}."
    return None


def _weigh(term: Term) -> Term:
    """Ask what a term counts; 1 is left out of the recipe."""
    text = type_in(
        f"Weight of {describe_term(_without(term, 'weight')).rpartition(' ×')[0]}?",
        default=f"{term.get('weight', 1.0):g}",
        why="The reward is the sum of every term times its weight. A negative weight punishes.",
        about="Allowed: a number but 0; 1 counts as it is.",
        validate=lambda text: None if _is_weight(text) else f"{text!r} is no weight: a number but 0.",
    )
    weighed = _without(term, "weight")
    return weighed if float(text) == 1 else {**weighed, "weight": float(text)}


def _is_weight(text: str) -> bool:
    try:
        return 0 < abs(float(text)) < float("inf")
    except ValueError:
        return False


def _ask_python(draft: Draft, actions: Actions, *, show: Show) -> str:
    check: Callable[[str], str | None] = lambda text: _why_no_function(text, actions)  # noqa: E731
    text = ""
    while True:
        begin_question(draft, f"python: {RewardTerm.model_fields['python'].description}", show=show)
        about = "As file.py:function, for example my_rewards.py:polite. Tab completes paths."
        text = type_in("Which function?", default=text, why=PYTHON_WHY, about=about, validate=check, paths=True)
        file, _, name = text.rpartition(":")
        begin_question(draft, f"{Path(file).expanduser().resolve()}", show=show)
        question = f"Run this file with your rights, for its function {name}?"
        with contextlib.suppress(Back):
            if confirm(question, default=False, yes="yes, it is mine or I have read it", no="no", why=PYTHON_WHY):
                return text


def _why_no_function(text: str, actions: Actions) -> str | None:
    if not text.strip():
        return "A file and a function are needed."
    try:
        actions.check_function(text.strip())
    except LabError as error:
        return "\n".join(str(problem) for problem in error.problems)
    return None
