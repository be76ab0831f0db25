"""How answers are scored: reward terms, and the held-out prompts that are scored at every evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from llm_lab.errors import Problem, one_of
from llm_lab.estimate.parameters import ModelShape

from .fields import Float, Group, Int, OneOf, option
from .stage import PartialRecipe, Rule, Stage, Values

REWARDS = {
    "exact_number": "1 if the final number equals that of the reference answer",
    "exact_match": "1 if the final answer equals the reference answer, apart from capitals",
    "regex": "1 if `pattern` is found in the output",
    "format": "1 if the whole output matches `pattern`",
    "length": "from 1 down to 0 as the output grows to `length` characters",
    "repetition": "minus the share of repeated n-grams of `ngram` words",
}
# {option of a reward term: (the reward functions that have it, whether they require it)}
REWARD_OPTIONS: dict[str, tuple[tuple[str, ...], bool]] = {
    "pattern": (("regex", "format"), True),
    "length": (("length",), True),
    "ngram": (("repetition",), False),
}
# What rewards.answer_parsing finds.
FINAL = (
    "The final number or answer is what the output marks with `\\boxed{}`, `####`, `<answer>` or, for numbers, "
    "`answer is`; without a mark, the last number or the whole output"
)
ANSWER_LENGTH = 256
SUMS = ("builtin:sums", "builtin:word-problems")  # their answers are numbers, at the end of a calculation


class Columns(Group):
    """Which column is what. Only needed for columns that are not recognized."""

    messages: str | None = option(help="column with a list of messages", min_length=1)
    prompt: str | None = option(help="column with the prompt", min_length=1)
    completion: str | None = option(help="column with the answer to train on", min_length=1)
    chosen: str | None = option(help="column with the better answer", min_length=1)
    rejected: str | None = option(help="column with the worse answer", min_length=1)
    answer: str | None = option(help="column with the reference answer that rewards compare with", min_length=1)
    text: str | None = option(help="column with plain text", min_length=1)


class RewardTerm(Group):
    """One term of the reward: a built-in function, a reward model, or your own Python function."""

    name: Annotated[str, OneOf(REWARDS)] | None = option(help=f"a built-in reward function. {FINAL}", choices=REWARDS)
    model: str | None = option(
        help="a reward model: a run, a folder, or a name on the Hub", min_length=1, names="model"
    )
    python: str | None = option(help="your own function, as file.py:function", min_length=1, names="function")
    weight: Float = option(1.0, help="weight of the term in the sum")
    pattern: str | None = option(help="regex and format: a regular expression", min_length=1)
    length: Int | None = option(help="length: number of characters at which the reward is 0", ge=1)
    ngram: Int | None = option(help="repetition: words per n-gram; default 3", ge=1)


class Score(Group):
    """Held-out prompts that are answered and scored at every evaluation."""

    path: str | None = option(
        help="where the prompts come from: a file, folder or glob, builtin:NAME, or a Hub name",
        question="Prompts to score on (empty: the held-out part of the data)?",
        derived="the held-out part of the stage's own data",
        min_length=1,
    )
    subset: str | None = option(help="configuration of a Hub dataset", min_length=1)
    split: str | None = option(
        help="split of a Hub or built-in dataset, or of a folder with splits",
        derived="test, where there are splits",
        min_length=1,
    )
    columns: Columns | None = option(
        help="which column is what; only for columns that are not recognized", derived="recognized from the first rows"
    )
    prompts: Int = option(100, help="number of prompts", question="How many prompts?", ge=1)
    max_completion_length: Int | None = option(
        help="maximum length of an output, in tokens",
        question="Maximum length of an output, in tokens?",
        derived="the stage's own, else 256, at most half of the context",
        ge=1,
    )
    rewards: tuple[RewardTerm, ...] | None = option(
        help="the terms of the reward that an output gets",
        derived="the stage's own rewards, else exact_match (exact_number for builtin:sums and builtin:word-problems)",
    )


def derive_score(stage: Stage, recipe: PartialRecipe, shape: ModelShape | None) -> None:
    """Fill in how held-out prompts are scored, if the recipe scores any."""
    if recipe.get("score") is None:
        return
    key = f"{stage.name}.max_completion_length"
    recipe.fill("score.max_completion_length", recipe.get(key), key)
    longest = (shape and shape.max_position_embeddings) or ANSWER_LENGTH * 2
    recipe.fill("score.max_completion_length", min(ANSWER_LENGTH, longest // 2), "at most half the context")
    if recipe.get("score.rewards") is None:
        rewards, exact = recipe.get("rewards"), "exact_match"
        if (recipe.get("score.path") or _only_set(recipe)) in SUMS:
            exact = "exact_number"
        recipe.set(
            "score.rewards",
            rewards or ({"name": exact, "weight": 1.0},),
            "the stage's own" if rewards else "there are reference answers to compare with",
        )


def _only_set(recipe: PartialRecipe) -> str | None:
    """Return the path of the data if it is a single set, else None."""
    data: Sequence[Any] = recipe.get("data") or ()
    return data[0]["path"] if len(data) == 1 else None


def _reward_terms_are_complete(values: Values) -> Iterator[Problem]:
    own, score = values.get("rewards"), values.get("score")
    scored = score.get("rewards") if isinstance(score, Mapping) else None
    for group, terms in (("rewards", own), ("score.rewards", None if scored == own else scored)):
        for index, term in enumerate(terms or ()):
            yield from _term_problems(f"{group}.{index}", term)


def _term_problems(key: str, term: Mapping[str, Any]) -> Iterator[Problem]:
    given = [way for way in ("name", "model", "python") if term.get(way) is not None]
    if len(given) != 1:
        why = f"a reward term has one of name, model and python; this one has {', '.join(given) or 'none'}"
        fix = (
            "Write a separate term for each." if given else f"Add a name: {one_of([*REWARDS])}. Or add model or python."
        )
        yield Problem(key, why, fix=fix)
        return
    name = term.get("name")
    for setting, (owners, required) in REWARD_OPTIONS.items():
        if name in owners and required and term.get(setting) is None:
            allowed = "a regular expression" if setting == "pattern" else "a whole number of at least 1"
            yield Problem(f"{key}.{setting}", f"the reward {name} requires it", allowed=allowed)
        elif name not in owners and term.get(setting) is not None:
            fix = f"Leave it out; it belongs to {' and '.join(owners)}."
            yield Problem(f"{key}.{setting}", f"has no effect on {name or given[0]}", value=term[setting], fix=fix)


def describe_term(term: Mapping[str, Any]) -> str:
    """Return a term of a reward in a few words: length (length 200) × 0.5."""
    name = term.get("name") or term.get("model") or term.get("python")
    given = [f"{key} {term[key]}" for key in REWARD_OPTIONS if term.get(key) is not None]
    return f"{name}{' (' + ', '.join(given) + ')' if given else ''} × {term.get('weight', 1.0):g}"


def prompts_must_be_named(stage: str) -> Rule:
    """Return a rule for a stage whose data has no prompts: score.path is required."""

    def prompts_are_named(values: Values) -> Iterator[Problem]:
        score = values.get("score")
        if isinstance(score, Mapping) and not score.get("path"):
            why = f"the data of {stage} contains no prompts to hold out"
            yield Problem("score.path", why, fix="Set score.path to a dataset with prompts, or leave score out.")

    return prompts_are_named


def prompts_are_held_out(values: Values) -> Iterator[Problem]:
    """Yield a problem if the prompts to score on come from the data and none of it is held out."""
    score = values.get("score")
    if isinstance(score, Mapping) and not score.get("path") and not (values.get("validation") or {}).get("fraction"):
        why = "with validation.fraction = 0, no prompts are held out for scoring"
        yield Problem("score.path", why, fix="Set score.path, set a validation.fraction above 0, or set score: null.")


REWARD_RULES: tuple[Rule, ...] = (_reward_terms_are_complete,)
