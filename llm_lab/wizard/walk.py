"""A walk through a flow: the answers so far, the way back, kept drafts, and remembered results."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, ParamSpec, TypeVar

from llm_lab.runs.disk import write_atomically
from llm_lab.runs.folder import ROOT

from .questions import Answer, BackTo, Effect, Flow, Next, Question, Wait, same

P = ParamSpec("P")
T = TypeVar("T")
DRAFTS = ROOT / ".drafts.json"
_memories: list[dict[str, Any]] = []


def remember(look: Callable[P, T]) -> Callable[P, T]:
    """Cache what a function found until forget_looks is called, so that a flow that runs again is instant.

    Errors are not cached.
    """
    found: dict[str, Any] = {}
    _memories.append(found)

    @functools.wraps(look)
    def again(*args: P.args, **options: P.kwargs) -> T:
        key = repr((args, sorted(options.items())))
        if (value := found.get(key, found)) is found:  # one lookup: another thread may clear this
            found[key] = value = look(*args, **options)
        return value

    return again


def forget_looks() -> None:
    """Clear the cached results: files may have changed."""
    for found in _memories:
        found.clear()


def write_drafts(drafts: Mapping[str, Next]) -> None:
    """Write the flows that were left, with their answers; without any, the file is removed."""
    if not drafts:
        DRAFTS.unlink(missing_ok=True)
        return
    write_atomically(DRAFTS, json.dumps({name: asdict(draft) for name, draft in drafts.items()}, indent=2) + "\n")


def read_drafts() -> dict[str, Next]:
    """Read the flows that were left; {} if there are none or the file is not readable."""
    try:
        kept = json.loads(DRAFTS.read_text(encoding="utf-8"))
        return {
            name: Next(
                draft["flow"],
                draft["arguments"],
                tuple(Answer(**answer) for answer in draft["answers"]),
                title=draft.get("title", name),
            )
            for name, draft in kept.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


class Walk:
    """A flow and the answers given so far. item: the question to ask or the effect to execute now."""

    def __init__(self, make: Callable[[], Flow[Next | None]], answers: Iterable[Answer] = ()):
        self.make = make
        self.item: Any = None
        self.answers: list[Answer] = []
        self.ended = False
        self.result: Next | None = None
        self._undone: dict[str, Answer] = {}
        forget_looks()
        self._run(list(answers))

    @property
    def question(self) -> Question:
        """The question to ask now; an answer that was undone before is its default, or fills the page."""
        undone = self._undone.get(self.item.key)
        if undone is not None and self.item.form is not None:
            page = self.item.form.fill(undone.value["changes"])
            return replace(page, form=replace(page.form, at=undone.value.get("at", undone.value["action"])))
        if undone is None or undone.is_default or self.item.problem(undone.value):
            return self.item
        return replace(self.item, default=undone.value)

    @property
    def kept(self) -> list[Answer]:
        """The answers so far, including the changes to the page that is shown now."""
        page = self._undone.get(self.item.key) if isinstance(self.item, Question) and self.item.form else None
        return [*self.answers, *([replace(page, is_open=True)] if page else [])]

    @property
    def kept_without_last(self) -> list[Answer]:
        """The answers so far without the last one, which left the flow; of a page, its changes are kept."""
        if not self.kept:
            return []
        *before, last = self.kept
        if not isinstance(last.value, Mapping) or "changes" not in last.value:
            return before
        is_at = {"at": last.value["at"]} if "at" in last.value else {}
        page = {"changes": last.value["changes"], "action": None, **is_at}
        return [*before, replace(last, value=page, is_open=True)]

    def answer(self, value: Any) -> None:
        """Answer the question and go to the next item."""
        self._undone.pop(self.item.key, None)
        # Without a default, Enter takes the first choice, which may be a different one next time.
        is_default = self.item.form is None and self.item.default is not None and same(value, self.item.suggested)
        self._take(Answer(self.item.key, value, is_default=is_default))
        self._follow()

    def keep(self, page: Question) -> None:
        """Keep the changes of the page that is shown now: for when the user returns to it, and for a draft."""
        assert page.form is not None
        if page.form.changes or page.key in self._undone:
            self._undone[page.key] = Answer(page.key, page.form.answer(None, page.form.at))

    def finish(self) -> None:
        """Take the defaults of this and all further questions, up to the first action of the next page."""
        has_ended = False
        while not has_ended and isinstance(self.item, Question):
            question = self.question
            if question.problem(question.suggested):
                return
            has_ended = question.form is not None
            self.answer(question.suggested)
            while isinstance(self.item, Wait) and not has_ended:
                self.finish_effect(None)

    def finish_effect(self, result: Any) -> None:
        """Send the result of an effect into the flow."""
        if isinstance(self.item, Wait):
            self._advance(None)
        else:
            forget_looks()
            self._take(Answer(type(self.item).__name__, result, is_effect=True))
        self._follow()

    def back(self) -> bool:
        """Go back to the last question; False if this is the first one."""
        asked = [number for number, answer in enumerate(self.answers) if not answer.is_effect]
        if not asked:
            return False
        self._undone[self.answers[asked[-1]].key] = self.answers[asked[-1]]
        self._run(self.answers[: asked[-1]])
        return True

    def _run(self, answers: Sequence[Answer]) -> None:
        """Run the flow from its beginning with these answers, as far as they fit."""
        self._flow, self.answers, self.ended, self.result = self.make(), [], False, None
        self._advance(None)
        for answer in answers:
            while isinstance(self.item, Wait):
                self._advance(None)
            if answer.is_open:
                self._undone[answer.key] = answer
            if answer.is_open or not self._fits(answer):
                break
            self._take(answer)
        self._follow()

    def _fits(self, answer: Answer) -> bool:
        if isinstance(self.item, Question):
            is_checked = answer.is_default and same(answer.value, self.item.suggested)
            return self.item.key == answer.key and (is_checked or self.item.problem(answer.value) is None)
        return isinstance(self.item, Effect) and type(self.item).__name__ == answer.key

    def _take(self, answer: Answer) -> None:
        self.answers.append(answer)
        self._advance(answer.value)

    def _advance(self, value: Any) -> None:
        try:
            self.item = self._flow.send(value)
        except StopIteration as end:
            self.item, self.result, self.ended = None, end.value, True

    def _follow(self) -> None:
        """Go back if the flow says so; if a page is shown again, drop the answers that were given from within it."""
        if isinstance(self.item, Question) and self.item.form is not None:
            asked = [number for number, answer in enumerate(self.answers) if answer.key == self.item.key]
            if asked:
                ended = self.answers[asked[-1]].value
                del self.answers[asked[0] :]
                again = self.item.form.answer(ended["action"], ended.get("at"))
                self._undone[self.item.key] = Answer(self.item.key, again)
        if isinstance(self.item, BackTo):
            at = max(number for number, answer in enumerate(self.answers) if answer.key == self.item.key)
            known = [answer for answer in self.answers[at:] if not answer.is_effect]
            # The last answer led back here, and is asked for again; those before it are offered as defaults.
            self._undone |= {answer.key: answer for answer in known[1:-1]} | {self.item.key: known[0]}
            self._run(self.answers[:at])
