"""How answers are scored: reward terms, and the held-out prompts that are scored at every evaluation."""

from __future__ import annotations

from typing import Literal

from .fields import Float, Group, Int, option

REWARDS = {
    "exact_number": "1 where the last number of the answer is the right one",
    "exact_match": "1 where the answer's text is the right one",
    "regex": "1 where `pattern` is found in the answer",
    "format": "1 where the whole answer has the form of `pattern`",
    "length": "from 1 down to 0 as the answer grows to `length` characters",
    "repetition": "minus the share of repeated runs of `ngram` words",
}


class Columns(Group):
    """Which column holds what; only those that are not found by looking."""

    messages: str | None = option(help="column with a list of messages", min_length=1)
    prompt: str | None = option(help="column with the question", min_length=1)
    completion: str | None = option(help="column with the answer to learn", min_length=1)
    chosen: str | None = option(help="column with the better answer", min_length=1)
    rejected: str | None = option(help="column with the worse answer", min_length=1)
    answer: str | None = option(help="column with what a checkable reward compares with", min_length=1)
    text: str | None = option(help="column with plain text", min_length=1)


class RewardTerm(Group):
    """One part of the reward: a function by name, a reward model, or a Python function of yours."""

    name: Literal[tuple(REWARDS)] | None = option(help="a function that ships with LLM Lab", choices=REWARDS)
    model: str | None = option(help="a reward model: a run, a folder, or a name on the Hub", min_length=1)
    python: str | None = option(help="a function of yours, as file.py:function", min_length=1)
    weight: Float = option(1.0, help="what it counts in the sum")
    pattern: str | None = option(help="for regex and format: a regular expression", min_length=1)
    length: Int | None = option(help="for length: characters at which the reward is 0", ge=1)
    ngram: Int | None = option(help="for repetition: words in a run; left out: 3", ge=1)


class Score(Group):
    """Held-out prompts that are answered and scored at every evaluation."""

    path: str | None = option(
        help="where the prompts come from: a file, builtin:NAME, or a Hub name",
        question="Prompts to score on (empty: the held-out part of the data)?",
        derived="the held-out part of the stage's own data",
        min_length=1,
    )
    subset: str | None = option(help="the Hub dataset's configuration", min_length=1)
    split: str | None = option(
        help="the split of a Hub dataset or of a built-in one", derived="test; files have none", min_length=1
    )
    columns: Columns | None = option(help="which column holds what", derived="found by looking at the first rows")
    prompts: Int = option(100, help="how many prompts", question="How many prompts?", ge=1)
    max_completion_length: Int | None = option(
        help="length of an answer, in tokens, at most",
        question="Length of an answer, in tokens?",
        derived="the stage's own, else 256, within the context",
        ge=1,
    )
    rewards: tuple[RewardTerm, ...] | None = option(
        help="what an answer is scored by",
        derived="the stage's own rewards, else exact_match (exact_number for builtin:sums)",
    )
