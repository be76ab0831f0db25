"""Verifiable rewards: plain functions of the text of answers, f(completions, **columns) -> one number each.

`columns` are the other columns of the data, with one value for each completion. A reward of None means that the
function does not apply to a completion.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from llm_lab.errors import Problem
from llm_lab.limits import time_limit

from .answer_parsing import find_number, find_words

Rewards = list[float | None]
PATTERN_SECONDS = 5


def exact_number(completions: Sequence[str], *, answer: Sequence[Any], **columns: Any) -> Rewards:
    r"""1 if the final number of a completion equals the answer; None if no answer is known.

    Both are parsed as in `find_number`: GSM8K's "#### 1,234", "\boxed{}", "the answer is", or the last number.

    >>> exact_number(["2 + 3 = 5", "It costs $1,200.50.", "six"], answer=["#### 5", 1200.5, "6"])
    [1.0, 1.0, 0.0]
    """
    return [
        None if wanted is None else float(find_number(text) == answer_number(wanted))
        for text, wanted in zip(completions, answer, strict=True)
    ]


def answer_number(answer: Any) -> Fraction:
    """Return the number in an answer from the data. Raises ValueError if it has none."""
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        # repr() gives exactly one tenth for 0.1; the float itself differs slightly.
        return Fraction(repr(answer))
    found = find_number(str(answer))
    if found is None:
        raise ValueError("has no number")
    return found


def exact_match(completions: Sequence[str], *, answer: Sequence[Any], **columns: Any) -> Rewards:
    """1 if the answer in a completion is the correct one, or one of several, as normalized text.

    Both are parsed as in `find_words`: an <answer> tag, the text after ####, or the whole text. Capitals, spaces and
    surrounding punctuation are ignored.

    >>> exact_match(["<answer>The Nile.</answer>", "Danube"], answer=["the nile", ["Rhine", "danube"]])
    [1.0, 1.0]
    """
    return [
        None if wanted is None else float(find_words(text) in answer_words(wanted))
        for text, wanted in zip(completions, answer, strict=True)
    ]


def answer_words(answer: Any) -> set[str]:
    """Return the correct texts. Raises ValueError for an empty one, which would reward an empty answer."""
    right = {find_words(str(one)) for one in (answer if _is_list(answer) else [answer])}
    if not all(right):
        raise ValueError("is empty")
    return right


def _matches(match: Callable[..., Any], pattern: str, text: str) -> bool:
    """Return whether a pattern matches. Raises UserError if that takes too long: some patterns are exponential."""
    why = f"it takes more than {PATTERN_SECONDS} seconds on {text[:80]!r}"
    fix = "Avoid a repetition inside a repetition, as in (a+)+."
    with time_limit(PATTERN_SECONDS, Problem("rewards.pattern", why, value=pattern, fix=fix)):
        return match(pattern, text, re.DOTALL) is not None


def regex(completions: Sequence[str], *, pattern: str, **columns: Any) -> Rewards:
    """1 if the regular expression is found in a completion; a dot also matches a line break.

    >>> regex(["so: <b>4</b>", "4"], pattern="<b>.*</b>")
    [1.0, 0.0]
    """
    return [float(_matches(re.search, pattern, text)) for text in completions]


def format(completions: Sequence[str], *, pattern: str, **columns: Any) -> Rewards:
    """1 if the whole completion, without surrounding spaces, matches the regular expression.

    >>> format(["<think>2 + 2</think> 4", "well, <think>2 + 2</think> 4"], pattern="<think>.*</think>.*")
    [1.0, 0.0]
    """
    return [float(_matches(re.fullmatch, pattern, text.strip())) for text in completions]


def length(completions: Sequence[str], *, length: int, **columns: Any) -> Rewards:
    """From 1 for an empty text down to 0 for `length` characters or more.

    >>> length(["", "four", "fourteen letters"], length=8)
    [1.0, 0.5, 0.0]
    """
    return [max(0.0, 1.0 - len(text) / length) for text in completions]


def repetition(completions: Sequence[str], *, ngram: int = 3, **columns: Any) -> Rewards:
    """Minus the share of repeated n-grams of `ngram` words: 0 without repetition, toward -1 for a loop.

    Punctuation marks count as words. Yeo et al. 2025 (https://arxiv.org/abs/2502.03373), over words.

    >>> repetition(["one two three", "go go go go go"], ngram=2)
    [0.0, -0.75]
    """
    found: Rewards = []
    for text in completions:
        words = re.findall(r"\w+|[^\w\s]", text.casefold())
        runs = [tuple(words[start : start + ngram]) for start in range(len(words) - ngram + 1)]
        found.append(len(set(runs)) / len(runs) - 1.0 if runs else 0.0)
    return found


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


@dataclass(frozen=True)
class RewardFunction:
    """A reward function: the keys of a reward term that it accepts, and the columns of the data that it reads."""

    function: Callable[..., Rewards]
    keys: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    read_answer: Callable[[Any], Any] | None = None  # raises ValueError for an unusable answer in the data


FUNCTIONS: Mapping[str, RewardFunction] = {
    "exact_number": RewardFunction(exact_number, columns=("answer",), read_answer=answer_number),
    "exact_match": RewardFunction(exact_match, columns=("answer",), read_answer=answer_words),
    "regex": RewardFunction(regex, keys=("pattern",)),
    "format": RewardFunction(format, keys=("pattern",)),
    "length": RewardFunction(length, keys=("length",)),
    "repetition": RewardFunction(repetition, keys=("ngram",)),
}
