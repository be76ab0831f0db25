"""Arithmetic word problems for every stage, generated from a seed, with answers that can be checked.

One generator makes texts for pretraining, questions with worked solutions for SFT, prompts with answers for
reinforcement learning, pairs of correct and wrong solutions for DPO, and a test set that shares no problem with
the others. Every question has exactly one correct answer, so the best possible score is known.

The same problems exist in plain wording (always "First he finds ...") and in varied wording, in which questions are
asked in several ways, so a model does not learn a single phrase only.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from .stories import Draw

_SEED = 20_260_101
_HIGHEST = 30
_HIGHEST_START = 20
_HIGHEST_CHANGE = 9
_STEPS = (1, 2, 2, 3, 3)
_SHARE_COUNTED_AFTER = 0.6
_SHARE_ASKED = 0.25
_SHARE_OF_SLIPS = 0.3
_SHARE_WONDERED = 0.5
_BUCKETS = 16
_WORDING = 5_000_000  # added to a problem's seed, it is the seed of the wording

PEOPLE = (
    ("Tom", "he"), ("Ben", "he"), ("Max", "he"), ("Sam", "he"),
    ("Mia", "she"), ("Lily", "she"), ("Anna", "she"), ("Rosa", "she"),
)  # fmt: skip
THINGS = ("apples", "shells", "nuts", "eggs", "coins", "plums")
MORE = ("finds {n} more", "gets {n} from {friend}", "buys {n} more")
FEWER = ("loses {n}", "gives {n} to {friend}", "sells {n}")
ORDER = ("First ", "Then ", "After that, ")
ASK = "How many {things} does {name} have now?"

# Varied wording: how an event begins, and how the question is asked.
FIRST_BEGINNINGS = ("First {he} ", "Then {he} ", "After that, {he} ", "{He} ")
NEXT_BEGINNINGS = ("Then {he} ", "Next {he} ", "After that, {he} ", "{He} ")
QUESTIONS = (ASK, ASK, "How many {things} does {name} have?", "How many?")


@dataclass(frozen=True)
class WorldSet:
    """Number of rows of a dataset, and the buckets of problems that belong to it."""

    rows: int
    buckets: tuple[int, ...]


TEXTS = WorldSet(24_000, (0, 1, 2, 3, 4))
# By (kind of example, split). The test splits of all kinds share their questions; no other split has them.
EXAMPLES = {
    ("conversation", "train"): WorldSet(2_000, (5, 6, 7)),
    # The same questions, but some solutions contain a mistake: a model that imitates them repeats the mistakes.
    ("conversation", "homework"): WorldSet(2_000, (5, 6, 7)),
    ("preference", "train"): WorldSet(2_000, (8, 9, 10)),
    ("prompt", "train"): WorldSet(2_000, (11, 12, 13)),
    ("conversation", "test"): WorldSet(1_000, (14, 15)),
    ("preference", "test"): WorldSet(1_000, (14, 15)),
    ("prompt", "test"): WorldSet(1_000, (14, 15)),
}


@dataclass(frozen=True)
class Question:
    """A person has `numbers[0]` things; each further number is added (positive) or taken (negative).

    events: sentences, one per change. asked: the question at the end.
    """

    numbers: tuple[int, ...]
    name: str
    things: str
    events: tuple[str, ...]
    asked: str

    @property
    def totals(self) -> tuple[int, ...]:
        """The total at the start and after each change."""
        return tuple(sum(self.numbers[: count + 1]) for count in range(len(self.numbers)))

    @property
    def answer(self) -> str:
        return str(self.totals[-1])

    @property
    def prompt(self) -> str:
        return f"{self._story()} {self.asked}"

    @property
    def completion(self) -> str:
        return work_out(self.numbers)

    def document(self, draw: Draw) -> str:
        """Return the problem as a text, solved step by step or at the end; the last line states or asks the result."""
        counted_after, asked = draw.chance(_SHARE_COUNTED_AFTER), draw.chance(_SHARE_ASKED)
        end = (
            f"{self.asked} The answer is {self.answer}."
            if asked
            else f"Now {self.name} has {self.answer} {self.things}."
        )
        if counted_after:
            # A sentence in between, so that a model must find the numbers instead of copying them from a fixed
            # distance.
            wondered = (
                f" Let us see how many {self.things} {self.name} has now." if draw.chance(_SHARE_WONDERED) else ""
            )
            return f"{self._story()}{wondered}\nSo {_steps(self.numbers)} {end}"
        lines = [self._start()]
        for sentence, before, change in zip(self.events, self.totals, self.numbers[1:], strict=False):
            lines += [sentence, _step(before, change)]
        return " ".join([*lines, end])

    def _story(self) -> str:
        return " ".join([self._start(), *self.events])

    def _start(self) -> str:
        return f"{self.name} has {self.numbers[0]} {self.things}."


def work_out(numbers: tuple[int, ...]) -> str:
    """Return the solution of a problem, one step per change, and its answer."""
    return f"So {_steps(numbers)} The answer is {sum(numbers)}."


def world_documents(*, varied: bool = False) -> Iterator[str]:
    """Yield the texts for pretraining, the same on every machine. varied: the same problems in varied wording."""
    for draw, question in _questions(TEXTS, varied):
        yield question.document(draw)


def world_examples(kind: str, split: str, *, varied: bool = False) -> Iterator[dict[str, str]]:
    """Yield rows with prompt and answer; conversations also have completion, preferences chosen and rejected.

    kind: conversation, preference or prompt. split: train or test, for conversations also homework, in which
    30 % of the completions contain a mistake. varied: the same problems in varied wording. Raises KeyError for any
    other combination.
    """
    if (kind, split) not in EXAMPLES:
        raise KeyError(", ".join(sorted({known for of, known in EXAMPLES if of == kind})))
    return _rows(kind, split, EXAMPLES[kind, split], varied)


def _rows(kind: str, split: str, chosen: WorldSet, varied: bool) -> Iterator[dict[str, str]]:
    for draw, question in _questions(chosen, varied):
        row = {"prompt": question.prompt}
        if kind == "conversation":
            slips = split == "homework" and draw.chance(_SHARE_OF_SLIPS)
            row["completion"] = _wrong_solution(draw, question.numbers) if slips else question.completion
        elif kind == "preference":
            row |= {"chosen": question.completion, "rejected": _wrong_solution(draw, question.numbers)}
        yield row | {"answer": question.answer}


def bucket_of(numbers: tuple[int, ...]) -> int:
    """Return the bucket of a problem. Datasets with different buckets may share a sum, never a problem."""
    return zlib.crc32(" ".join(map(str, numbers)).encode()) % _BUCKETS


def _questions(chosen: WorldSet, varied: bool) -> Iterator[tuple[Draw, Question]]:
    """Yield the questions of a dataset, from its own buckets only. Except in texts, no problem occurs twice."""
    seen: set[tuple[int, ...]] = set()
    seed = _SEED + 10_000_000 * chosen.buckets[0]
    for _ in range(chosen.rows):
        numbers = None
        while numbers is None or bucket_of(numbers) not in chosen.buckets or (numbers in seen and chosen != TEXTS):
            # One generator per question, so a change in one question does not affect the others.
            draw = Draw(seed)
            seed += 1
            numbers = _numbers(draw)
        seen.add(numbers)
        # The wording has its own generator: the problems are the same in both wordings.
        yield draw, _question_about(draw, numbers, Draw(seed + _WORDING) if varied else None)


def _numbers(draw: Draw) -> tuple[int, ...]:
    numbers = [draw.number(2, _HIGHEST_START)]
    for _ in range(draw.pick(_STEPS)):
        have = sum(numbers)
        # At least one thing is left, and no total exceeds the maximum.
        takes = have > 1 and (draw.chance(0.5) or have == _HIGHEST)
        room = have - 1 if takes else _HIGHEST - have
        change = draw.number(1, min(room, _HIGHEST_CHANGE))
        numbers.append(-change if takes else change)
    return tuple(numbers)


def _question_about(draw: Draw, numbers: tuple[int, ...], wording: Draw | None) -> Question:
    name, he = draw.pick(PEOPLE)
    words = {"name": name, "he": he, "He": he.capitalize(), "things": draw.pick(THINGS)}
    events = []
    for count, change in enumerate(numbers[1:]):
        friend = draw.pick([other for other, _ in PEOPLE if other != name])
        event = draw.pick(MORE if change > 0 else FEWER).format(n=abs(change), friend=friend)
        beginning = ORDER[count] + "{he} "
        if wording:
            beginning = wording.pick(NEXT_BEGINNINGS if count else FIRST_BEGINNINGS)
        events.append(f"{beginning.format(**words)}{event}.")
    asked = (wording.pick(QUESTIONS) if wording else ASK).format(**words)
    return Question(numbers, name, words["things"], tuple(events), asked)


def _step(before: int, change: int, after: int | None = None) -> str:
    sign = "+" if change > 0 else "-"
    return f"{before} {sign} {abs(change)} = {before + change if after is None else after}."


def _steps(numbers: tuple[int, ...]) -> str:
    totals = [sum(numbers[: count + 1]) for count in range(len(numbers))]
    return " ".join(_step(before, change) for before, change in zip(totals, numbers[1:], strict=False))


def _wrong_solution(draw: Draw, numbers: tuple[int, ...]) -> str:
    """Return a solution with one plausible mistake, which leads to a wrong answer."""
    mistakes = (_miscounted, _wrong_sign, _misread, _left_out)
    while True:
        working = draw.pick(mistakes)(draw, numbers)
        if working is not None and not working.endswith(f"The answer is {sum(numbers)}."):
            return working


def _miscounted(draw: Draw, numbers: tuple[int, ...]) -> str | None:
    """Return a solution in which one step is off by 1, 2 or 10; the next steps continue from the wrong result."""
    wrong, slip = draw.number(1, len(numbers) - 1), draw.pick((-10, -2, -1, 1, 2, 10))
    have, lines = numbers[0], []
    for count, change in enumerate(numbers[1:], 1):
        after = have + change + (slip if count == wrong else 0)
        lines.append(_step(have, change, after))
        have = after
        if not 0 <= have <= _HIGHEST:
            return None
    return " ".join(["So", *lines, f"The answer is {have}."])


def _wrong_sign(draw: Draw, numbers: tuple[int, ...]) -> str | None:
    """Return a solution in which one change has the wrong sign."""
    wrong = draw.number(1, len(numbers) - 1)
    return _work_out_wrong((*numbers[:wrong], -numbers[wrong], *numbers[wrong + 1 :]))


def _misread(draw: Draw, numbers: tuple[int, ...]) -> str | None:
    """Return a solution in which one number is off by 1 or 2."""
    wrong, slip = draw.number(0, len(numbers) - 1), draw.pick((-2, -1, 1, 2))
    return _work_out_wrong((*numbers[:wrong], numbers[wrong] + slip, *numbers[wrong + 1 :]))


def _left_out(draw: Draw, numbers: tuple[int, ...]) -> str | None:
    """Return a solution without one of several changes."""
    wrong = draw.number(1, len(numbers) - 1)
    return _work_out_wrong((*numbers[:wrong], *numbers[wrong + 1 :])) if len(numbers) > 2 else None


def _work_out_wrong(numbers: tuple[int, ...]) -> str | None:
    """Return the solution for these numbers, or None if no problem could have them."""
    totals = [sum(numbers[: count + 1]) for count in range(len(numbers))]
    return work_out(numbers) if 0 not in numbers and all(0 <= total <= _HIGHEST for total in totals) else None
