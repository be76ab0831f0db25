"""Combine reward terms: the values of each term, and their weighted sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_lab.errors import Problem, UserError

Prompt = str | Sequence[Mapping[str, Any]]
Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Term:
    """One part of the reward. `score` takes (prompts, texts of the completions, columns)."""

    name: str
    weight: float
    key: str
    score: Callable[[Sequence[Prompt], Sequence[str], Columns], Sequence[Any]]
    columns: tuple[str, ...] = ()
    read_answer: Callable[[Any], Any] | None = None  # raises ValueError for an unusable answer in the data
    about: str | None = None  # one line for the user

    def values(self, prompts: Sequence[Prompt], texts: Sequence[str], columns: Columns) -> list[float]:
        """Return one float per completion, NaN where the term does not apply. Raises UserError if the term fails."""
        return self._numbers(self.score(prompts, texts, columns), len(texts))

    def _numbers(self, found: Any, count: int) -> list[float]:
        if isinstance(found, str | Mapping) or not hasattr(found, "__iter__"):
            why = f"it returned {_describe(found)} instead of a list of {count} numbers"
            raise UserError(Problem(self.key, why, value=self.name))
        values = list(found)
        if len(values) != count:
            why = f"it returned {len(values)} numbers for {count} completions"
            raise UserError(
                Problem(self.key, why, value=self.name, fix="Return one number for each completion, in order.")
            )
        numbers = []
        for index, value in enumerate(values):
            try:
                # float() would accept text, but a score that is text is a mistake.
                number = math.nan if value is None else float("no number" if isinstance(value, str) else value)
            except (TypeError, ValueError):
                where = f"completion {index + 1} of {count}"
                why = f"it returned {_describe(value)} for {where} instead of a number (or None)"
                raise UserError(Problem(self.key, why, value=self.name)) from None
            if math.isinf(number):
                why = f"it returned {number} for completion {index + 1} of {count}; rewards must be finite"
                raise UserError(Problem(self.key, why, value=self.name))
            numbers.append(number)
        return numbers


@dataclass(frozen=True)
class Scores:
    """The scores of some completions.

    values: for each term, one float per completion, NaN where the term does not apply. totals: the weighted sums over
    the terms that apply, NaN where none does.
    """

    names: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    totals: tuple[float, ...]

    def means(self) -> dict[str, float]:
        """Return {"reward": mean total, "rewards/<term>": mean value}, without NaN values."""
        rows = {"reward": self.totals}
        rows |= {f"rewards/{name}": values for name, values in zip(self.names, self.values, strict=True)}
        known = {key: [value for value in values if not math.isnan(value)] for key, values in rows.items()}
        return {key: sum(values) / len(values) for key, values in known.items() if values}


@dataclass(frozen=True)
class Rewards:
    """The reward of a recipe, as a function of prompts, completions and the data's columns."""

    terms: tuple[Term, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(term.name for term in self.terms)

    @property
    def weights(self) -> list[float]:
        return [term.weight for term in self.terms]

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Prompt], columns: Columns | None = None
    ) -> Scores:
        """Score completions (text, or messages as in TRL). Raises UserError if a term fails."""
        texts = [text_of(completion) for completion in completions]
        rows = [term.values(prompts, texts, columns or {}) for term in self.terms]
        return Scores(self.names, tuple(map(tuple, rows)), tuple(self._sum(row) for row in zip(*rows, strict=True)))

    def _sum(self, values: Sequence[float]) -> float:
        known = [w * v for w, v in zip(self.weights, values, strict=True) if not math.isnan(v)]
        return sum(known) if known else math.nan

    def trl_functions(self) -> list[Callable[..., list[float | None]]]:
        """Return the terms as TRL's `reward_funcs`; `weights` are the `reward_weights`."""
        return [_trl_function(term) for term in self.terms]

    def check_columns(self, columns: Columns) -> None:
        """Check before a run that the data can be scored. Raises UserError with all problems.

        columns: the complete columns of the data; every row is checked.
        """
        problems = [
            Problem(
                term.key,
                f"`{term.name}` needs the column `{name}`, which the data does not have",
                fix=f"Set data.N.columns.{name}; the columns are: {', '.join(columns) or 'none'}.",
            )
            for term in self.terms
            for name in term.columns
            if name not in columns
        ]
        if problems:
            raise UserError(*problems)
        for term in self.terms:
            for name in term.columns:
                empty = sum(value is None for value in columns[name])
                if empty and all(name in other.columns for other in self.terms):
                    why = f"{empty:,} of {len(columns[name]):,} rows have no `{name}`, so they can't be scored"
                    problems.append(
                        Problem(term.key, why, fix="Remove these rows, or add a term that does not need it.")
                    )
            if term.read_answer is not None:
                problems.extend(_unreadable(term, columns["answer"]))
        if problems:
            raise UserError(*problems)


def _unreadable(term: Term, answers: Sequence[Any]) -> list[Problem]:
    bad = []
    for row, answer in enumerate(answers):
        try:
            if answer is not None and term.read_answer is not None:
                term.read_answer(answer)
        except ValueError as error:
            bad.append((row, answer, str(error)))
    if not bad:
        return []
    row, answer, reason = bad[0]
    why = f"{len(bad):,} of {len(answers):,} answers are unusable; row {row + 1} {reason}: {str(answer)[:60]!r}"
    fix = "Use exact_match for answers in words." if term.name.startswith("exact_number") else "Fix these rows."
    return [Problem(term.key, why, value=term.name, fix=fix)]


def _trl_function(term: Term) -> Callable[..., list[float | None]]:
    def score(
        prompts: Sequence[Prompt], completions: Sequence[Prompt], completion_ids: Any = None, **extra: Any
    ) -> list[float | None]:
        # TRL adds the trainer state and its loggers to the columns.
        columns = {k: v for k, v in extra.items() if isinstance(v, list) and len(v) == len(completions)}
        values = term.values(prompts, [text_of(completion) for completion in completions], columns)
        return [None if math.isnan(value) else value for value in values]

    score.__name__ = term.name
    return score


def text_of(completion: Prompt) -> str:
    """Return the text of a completion: itself, or the contents of its messages."""
    if isinstance(completion, str):
        return completion
    return "\n".join(content_of(message) for message in completion)


def content_of(message: Mapping[str, Any]) -> str:
    """Return the text of a message; content parts are joined."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)


def _describe(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"
