"""Reward terms of a recipe made into functions: loading models and the user's own files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError

from .combine import Columns, Prompt, Rewards, Term
from .functions import FUNCTIONS
from .python_file import describe, find_function, load_function


def build_rewards(
    terms: Sequence[Mapping[str, Any]],
    *,
    device: str = "cpu",
    batch_size: int = 16,
    find_model: Callable[[str], str] = str,
    key: str = "rewards",
) -> Rewards:
    """Build the reward of a recipe's terms, loading models and running the user's files.

    terms: `{name | model | python: ..., weight: ..., and the function's own keys}`, None where a key is left out.
    find_model: turns the name of a run into the folder of its model.
    UserError with the problems of all terms.
    """
    built, problems = [], []
    for index, term in enumerate(terms):
        given = {name: value for name, value in term.items() if value is not None}
        weight = float(given.pop("weight", 1.0))
        try:
            built.append(_build_term(given, weight, f"{key}.{index}", device, batch_size, find_model))
        except UserError as error:
            problems.extend(error.problems)
    if problems:
        raise UserError(*problems)
    return Rewards(tuple(_with_names_of_their_own(built)))


def check_files(terms: Sequence[Mapping[str, Any]], *, key: str = "rewards") -> list[Problem]:
    """Return what is wrong with the terms' own Python files. Reads them, runs nothing."""
    problems = []
    for index, term in enumerate(terms):
        if term.get("python"):
            try:
                find_function(term["python"], key=f"{key}.{index}.python")
            except UserError as error:
                problems.extend(error.problems)
    return problems


def _build_term(
    given: dict[str, Any], weight: float, key: str, device: str, batch_size: int, find_model: Callable[[str], str]
) -> Term:
    if "model" in given:
        from .models import load_reward_model

        name = given["model"]
        judge = load_reward_model(find_model(name), device=device, batch_size=batch_size, key=f"{key}.model")
        label = Path(name).name or name
        return Term(label, weight, f"{key}.model", lambda p, c, _: judge(p, c), about=judge.about)
    if "python" in given:
        spec = given["python"]
        score = _guarded(load_function(spec, key=f"{key}.python"), spec, f"{key}.python")
        return Term(spec.rpartition(":")[2], weight, f"{key}.python", score, about=f"runs {spec}")
    known = FUNCTIONS[given["name"]]
    options = {option: value for option, value in given.items() if option in known.keys}

    def score(prompts: Sequence[Prompt], texts: Sequence[str], columns: Columns) -> Sequence[Any]:
        # Only what it reads: the data may have a column called `length` of its own.
        return known.function(texts, **{name: columns[name] for name in known.columns}, **options)

    return Term(given["name"], weight, key, score, columns=known.columns, read_answer=known.read_answer)


def _guarded(function: Callable[..., Any], spec: str, key: str) -> Callable[..., Sequence[Any]]:
    """Call a user's function; where it fails, find out at which completion."""
    path = Path(spec.rpartition(":")[0]).expanduser()

    def call(prompts: Sequence[Prompt], texts: Sequence[str], columns: Columns) -> Sequence[Any]:
        # A column of the data may have one of our names.
        own = {name: values for name, values in columns.items() if name not in ("prompts", "completions")}
        try:
            return function(completions=list(texts), prompts=list(prompts), **own)
        except Exception as error:
            together = error
        for index, text in enumerate(texts):
            row = {name: [values[index]] for name, values in own.items()}
            try:
                function(completions=[text], prompts=[prompts[index]], **row)
            except Exception as error:
                where = f"at completion {index + 1} of {len(texts)}, {text[:80]!r}"
                raise UserError(Problem(key, f"it failed {where}: {describe(error, path)}", value=spec)) from error
        where = f"with all {len(texts)} completions, though with none alone"
        raise UserError(Problem(key, f"it failed {where}: {describe(together, path)}", value=spec)) from together

    return call


def _with_names_of_their_own(terms: Sequence[Term]) -> list[Term]:
    """Give terms of the same name numbers: the log has a column for each."""
    counts: dict[str, int] = {}
    found = []
    for term in terms:
        counts[term.name] = counts.get(term.name, 0) + 1
        found.append(replace(term, name=f"{term.name}_{counts[term.name]}") if counts[term.name] > 1 else term)
    return found
