"""Questions about rewards: built-in functions, reward models, the user's Python functions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_lab.errors import LabError
from llm_lab.recipe.scoring import FINAL, REWARD_OPTIONS, REWARDS, RewardTerm, describe_term

from .draft import Draft
from .model_questions import ANOTHER_REWARD_MODEL, REWARD_WHY, pick_run, reward_models
from .questions import BackTo, Choice, Flow, Question, yes_no

Term = dict[str, Any]
WHY = (
    "The reward is a weighted sum. A reward that checks the answer (exact_number, exact_match) is hard to exploit; a "
    "reward model is not, so watch the held-out score too. Small terms for format or length keep the answers short "
    f"and well-formed. {FINAL}."
)
PYTHON_WHY = (
    "def polite(completions, **columns): return a list of numbers, one for each completion; columns holds the other "
    "columns of the data, as lists. The training process runs the file with your permissions."
)
DEFAULTS = {"pattern": "The answer is -?[0-9]+", "length": "200", "ngram": ""}
QUESTIONS = {
    "pattern": "Which regular expression?",
    "length": "At how many characters does the reward reach 0?",
    "ngram": "Words per n-gram (empty: 3)?",
}
DONE = "done"
WAYS = {"name": "a built-in function", "model": "a reward model", "python": "your own Python function"}


def ask_rewards(draft: Draft, path: str = "rewards") -> Flow[Draft]:
    """Ask for the terms of the reward: add, change, remove, until the user is done."""
    terms = [_written(term) for term in draft.value(path) or ()]
    before = list(terms)
    while (picked := (yield _terms_question(draft, path, terms))) != DONE:
        draft = draft.with_notice("")
        if picked.isdigit():
            terms = yield from _change(draft, path, terms, int(picked))
        else:
            term = yield from _new_term(draft, path, picked)
            terms = [*terms, (yield from _weigh(draft, path, term))]
    return draft.with_notice("") if terms == before else draft.with_answer(path, terms)


def _terms_question(draft: Draft, path: str, terms: list[Term]) -> Question:
    choices = [Choice(DONE, "Done, use these", None if terms else "add at least one")]
    choices += [
        Choice(str(number), describe_term(term), effect=f"Enter changes or removes it. {_about(term)}")
        for number, term in enumerate(terms)
    ]
    choices += [Choice(way, f"Add {text}") for way, text in WAYS.items()]
    return draft.ask(path, "How are outputs scored?", choices=tuple(choices), default=DONE,
                     help=f"{path}: the terms of the reward", why=WHY)  # fmt: skip


def _written(term: Mapping[str, Any]) -> Term:
    return {key: value for key, value in term.items() if value is not None and (key, value) != ("weight", 1.0)}


def _about(term: Mapping[str, Any]) -> str:
    if term.get("name"):
        return f"{REWARDS[term['name']]}."
    return "A reward model." if term.get("model") else "Your own Python function."


def _change(draft: Draft, path: str, terms: list[Term], number: int) -> Flow[list[Term]]:
    term = terms[number]
    choices = [Choice("weight", "Change its weight")]
    choices += [Choice("options", "Change its settings")] if _keys_of(term) else []
    choices.append(Choice("remove", "Remove it"))
    picked = yield draft.ask(f"{path}.{number}", "What would you like to do with it?", choices=tuple(choices), why=WHY,
                             help=f"{describe_term(term)}: {_about(term)}")  # fmt: skip
    if picked == "remove":
        return [*terms[:number], *terms[number + 1 :]]
    changed = yield from (_weigh if picked == "weight" else _ask_options)(draft, path, term)
    return [*terms[:number], changed, *terms[number + 1 :]]


def _keys_of(term: Mapping[str, Any]) -> list[str]:
    return [key for key, (owners, _) in REWARD_OPTIONS.items() if term.get("name") in owners]


def _new_term(draft: Draft, path: str, way: str) -> Flow[Term]:
    help_line = f"{path}: add {WAYS[way]}"
    if way == "name":
        width = max(map(len, REWARDS)) + 2
        choices = tuple(Choice(name, f"{name:<{width}}{text}") for name, text in REWARDS.items())
        name = yield draft.ask(f"{path}.name", "Which function?", choices=choices, help=help_line, why=WHY)
        return (yield from _ask_options(draft, path, {"name": name}))
    if way == "model":
        question = draft.ask(f"{path}.model", "Which reward model?", help=help_line, why=REWARD_WHY)
        none = "none yet; train one with the menu entry Reward model"
        return {"model": (yield from pick_run(question, reward_models(), none, another=ANOTHER_REWARD_MODEL))}
    return {"python": (yield from _ask_python(draft, path))}


def _ask_options(draft: Draft, path: str, term: Term) -> Flow[Term]:
    for key in _keys_of(term):
        about, required = RewardTerm.model_fields[key].description, REWARD_OPTIONS[key][1]
        text = (
            yield draft.ask(
                f"{path}.{key}",
                QUESTIONS[key],
                kind="text",
                default=str(term.get(key, DEFAULTS[key])),
                help=f"{term['name']}: {REWARDS[term['name']]}",
                why=about or "",
                allowed=f"Allowed: {'a regular expression' if key == 'pattern' else 'a whole number of at least 1'}.",
                check=lambda text, key=key, required=required: _why_not_option(key, text, required),
            )
        ).strip()
        term = {**term, key: text if key == "pattern" else int(text)} if text else _without(term, key)
    return term


def _without(term: Term, key: str) -> Term:
    return {other: value for other, value in term.items() if other != key}


def _why_not_option(key: str, text: str, required: bool) -> str | None:
    text = text.strip()
    if not text:
        return "This setting is required." if required else None
    if key != "pattern":
        return None if text.isdigit() and int(text) >= 1 else f'"{text}" is not a whole number of at least 1.'
    try:
        re.compile(text)
    except re.error as error:
        return f"This is not a valid regular expression: {error}."
    return None


def _weigh(draft: Draft, path: str, term: Term) -> Flow[Term]:
    """Ask for the weight of a term; 1 is left out of the recipe."""
    name = describe_term(_without(term, "weight")).rpartition(" ×")[0]
    text = yield draft.ask(
        f"{path}.weight",
        f"Weight of {name}?",
        kind="text",
        default=f"{term.get('weight', 1.0):g}",
        help=f"{name}: {_about(term)}",
        why="The reward is the sum of all terms, each times its weight. A negative weight makes it a penalty.",
        allowed="Allowed: a number other than 0.",
        check=lambda text: None if _is_weight(text) else f'"{text}" is not a number other than 0.',
    )
    weighed = _without(term, "weight")
    return weighed if float(text) == 1 else {**weighed, "weight": float(text)}


def _is_weight(text: str) -> bool:
    try:
        return 0 < abs(float(text)) < float("inf")
    except ValueError:
        return False


def _ask_python(draft: Draft, path: str) -> Flow[str]:
    text = (
        yield draft.ask(
            f"{path}.python",
            "Which Python file?",
            kind="path",
            default="",
            help=f"python: {RewardTerm.model_fields['python'].description}",
            why=PYTHON_WHY,
            allowed="A Python file, or a function in it: my_rewards.py:polite. Tab completes paths.",
            check=_why_no_function,
            look_for="python",
        )
    ).strip()
    if text.endswith(".py"):
        text = f"{text}:{(yield from _ask_function(draft, path, text))}"
    file, _, name = text.rpartition(":")
    trusted = yield yes_no(
        f"{path}.python.trusted",
        f"Run this file with your permissions, to use its function {name}?",
        default=False,
        yes="Yes, I wrote it or have read it",
        help=str(Path(file).expanduser().resolve()),
        why=PYTHON_WHY,
        screen=draft.screen,
    )
    if not trusted:
        yield BackTo(f"{path}.python")
    return text


def _ask_function(draft: Draft, path: str, file: str) -> Flow[str]:
    """Ask for a function of a Python file, if it has several."""
    from llm_lab.rewards.build import functions_in

    found = functions_in(Path(file).expanduser())
    if len(found) == 1:
        return next(iter(found))
    choices = tuple(Choice(name, name, why_not) for name, why_not in found.items())
    return (yield draft.ask(f"{path}.python.function", "Which function?", choices=choices, help=file, why=PYTHON_WHY))


def _why_no_function(text: str) -> str | None:
    """Look at the user's Python file, or a function in it as file.py:function, without running it."""
    from llm_lab.rewards.build import find_function, functions_in

    text = text.strip()
    if not text:
        return "A file is required."
    try:
        if not text.endswith(".py"):
            find_function(text)
            return None
        found = functions_in(Path(text).expanduser())
        if found and None in found.values():
            return None
        find_function(f"{text}:{next(iter(found))}") if found else None
    except LabError as error:
        return "\n".join(str(problem) for problem in error.problems)
    return f"{text} defines no function. Write one: {PYTHON_WHY.partition(';')[0]}."
