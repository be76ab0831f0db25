"""Send a list of answers through a flow, as a front end does, without a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from llm_lab.wizard.home import AFTER
from llm_lab.wizard.menu import flow_named
from llm_lab.wizard.questions import UNSET, Effect, Leave, Next, Question, Row, Wait, same
from llm_lab.wizard.walk import Walk


@dataclass(frozen=True)
class Move:
    """A move instead of an answer: take the default, or go back."""

    name: str


ENTER, BACK, STAY = Move("enter"), Move("back"), Move("stay")


@dataclass(frozen=True)
class Fill:
    """Answers to rows of a page, and what ends it: an action, the key of a row with its own flow, or its first action.

    STAY: the page is not ended.
    """

    answers: Mapping[str, Any]
    action: Any = ENTER


@dataclass(frozen=True)
class Refused:
    """An answer that must not be accepted, with a part of the reason."""

    answer: Any
    reason: str


@dataclass
class Visit:
    """The record of a walk through a flow. questions: as they were asked; effects: as they were executed."""

    walk: Walk
    questions: list[Question] = field(default_factory=list)
    effects: list[Any] = field(default_factory=list)
    left: bool = False

    @property
    def keys(self) -> list[str]:
        return [question.key for question in self.questions]

    @property
    def result(self) -> Any:
        assert self.walk.ended, f"the flow still asks {self.walk.item}"
        return self.walk.result

    @property
    def question(self) -> Question:
        """The question that is asked now."""
        return self.walk.question

    def texts(self) -> str:
        """Return everything that was shown, as one text."""
        parts: list[str] = []
        for question in self.questions:
            parts += [question.text, question.help, question.notice, *(line.text for line in question.screen.lines)]
            choices = (*question.choices, *(question.form.actions if question.form else ()))
            parts += [f"{choice.text} ({choice.why_not}) {choice.effect}" for choice in choices]
            parts += [f"{row.key} {row.value} {row.origin} {row.reason}" for row in rows_of(question)]
        return "\n".join(parts)


def answers(
    flow: Callable[[], Any], given: Iterable[Any], *, execute: Callable[[Effect], Any] = lambda effect: True
) -> Visit:
    """Walk through a flow with these answers; all of them must be used. The flow may still be asking at the end.

    A choice is answered by its value or by a part of its text. execute: returns the results of effects.
    """
    visit = Visit(Walk(flow))
    _execute_effects(visit, execute)
    for answer in given:
        assert isinstance(visit.walk.item, Question), f"{answer!r} is left, and nothing is asked any more"
        visit.questions.append(visit.walk.question)
        _give(visit, answer)
        _execute_effects(visit, execute)
    if isinstance(visit.walk.item, Question):
        visit.questions.append(visit.walk.question)
    return visit


def rows_of(question: Question) -> list[Row]:
    """The rows of a page."""
    return [*question.form.essentials, *question.form.rows] if question.form else []


def _give(visit: Visit, answer: Any) -> None:
    question = visit.walk.question
    if isinstance(answer, Fill):
        for key, given in answer.answers.items():
            question = _fill(question, key, given)
            visit.walk.keep(question)
            visit.questions.append(question)
        if answer.action is STAY:
            return
        answer = answer.action
    if answer is BACK:
        assert visit.walk.back(), f"nothing to go back to from {question.text}"
    elif isinstance(answer, Refused):
        problem = question.problem(_value(question, answer.answer))
        assert problem is not None, f"{question.text} accepts {answer.answer!r}"
        assert answer.reason in problem, f"{question.text} {problem}"
    else:
        value = question.suggested if answer is ENTER else _value(question, answer)
        problem = question.problem(value)
        assert problem is None, f"{question.text} refuses {value!r}: {problem}"
        visit.walk.answer(value)


def _fill(page: Question, key: str, answer: Any) -> Question:
    row = page.form.row(key)
    assert row is not None, f"no row {key}"
    assert row.question is not None, f"{key} is asked in a flow of its own"
    question = row.question()
    if isinstance(answer, Refused):
        problem = question.problem(_value(question, answer.answer))
        assert answer.reason in (problem or ""), f"{key}: {problem}"
        return page
    value = _value(question, answer)
    problem = None if value == UNSET else question.problem(value)
    assert problem is None, f"{key} refuses {value!r}: {problem}"
    return page.form.change(key, value)


def _value(question: Question, answer: Any) -> Any:
    if question.form is not None:
        if isinstance(answer, dict):
            return answer
        named = [choice.value for choice in question.form.actions if str(answer) in (choice.value, choice.text)]
        return question.form.answer(named[0] if named else answer)
    if answer == UNSET:
        return answer
    if question.kind != "choice" or any(same(choice.value, answer) for choice in question.choices):
        return answer
    found = [choice.value for choice in question.choices if str(answer) in choice.text]
    assert found, f"{question.text} has no choice {answer!r}: {[choice.text for choice in question.choices]}"
    return found[0]


def _execute_effects(visit: Visit, execute: Callable[[Effect], Any]) -> None:
    while isinstance(visit.walk.item, Effect):
        effect = visit.walk.item
        if not isinstance(effect, Wait):
            visit.effects.append(effect)
        visit.walk.finish_effect(True if isinstance(effect, Wait) else execute(effect))
    visit.left = isinstance(visit.walk.item, Leave)


def follow(upcoming: Next, given: Iterable[Any], **options: Any) -> Visit:
    """Walk through the next flow; known answers are given first."""
    walk = partial(flow_named(upcoming.flow), **upcoming.arguments)
    if upcoming.flow == AFTER and "name" in upcoming.arguments:  # it leads to the page of a folder
        return follow(answers(walk, []).result, given, **options)
    return answers(walk, [*(answer.value for answer in upcoming.answers), *given], **options)


def ask(draft: Any, asker: Callable[..., Any], given: Iterable[Any], **options: Any) -> tuple[Any, Visit]:
    """Answer the questions of an asker; return (the draft with the answers, the visit)."""
    visit = answers(lambda: asker(draft, **options), given)
    return visit.result, visit
