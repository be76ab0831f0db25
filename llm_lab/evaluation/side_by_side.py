"""What other models answer to the same conversation: another checkpoint, the base alone, every step of a run."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from typing import Any

from llm_lab.chat.session import ChatSession
from llm_lab.errors import Problem, UserError
from llm_lab.events import Listener, Notice
from llm_lab.hf.adapter import is_adapter
from llm_lab.hf.load import switch_adapter_off
from llm_lab.runs.comparison import Answer, Compared, Comparison
from llm_lab.runs.folder import find_checkpoint

from .answers import describe_drawing, release, take_answer
from .candidates import find_contender, find_steps, require_loadable

BASE = "base"


@dataclasses.dataclass(frozen=True)
class _Turn:
    """What is asked, and all that was said before it."""

    text: str
    before: list[dict[str, Any]]


class SideBySide:
    """Others beside a conversation. The last one that was named is kept loaded.

    open_session: loads a checkpoint as a session.
    """

    def __init__(self, open_session: Callable[[str], ChatSession], *, trust_remote_code: bool = False):
        self._open = open_session
        self._trust = trust_remote_code
        self._other: tuple[str, ChatSession] | None = None

    def compare(self, session: ChatSession, name: str, text: str, listener: Listener) -> Comparison:
        """Return the session's answer and another model's: to `text`, which the conversation goes on with, or to the
        last message. name: a checkpoint, or "base" for the model without its adapter. UserError, with nothing
        changed, where the other can't be asked."""
        if not text:
            _last_turn(session)
        off = nullcontext()
        if name == BASE and is_adapter(folder := find_checkpoint(session.name)):
            off = switch_adapter_off(session.model, folder)
            with switch_adapter_off(session.model, folder) as tokenizer:
                other = ChatSession(session.model, tokenizer, name=f"{session.name}, adapter off")
        else:
            other = self._session(session, name, listener)
        with _seeded(session) if text else nullcontext():
            if text:
                listener(Notice(f"{session.name} answers ..."))
                take_answer(session, text)
            turn, first = _last_turn(session)
            listener(Notice(f"{other.name} answers ..."))
            with off:
                second, remarks = _answer_like(session, other, turn)
            models = (_compared(session, first), _compared(other, second))
            return Comparison((turn.text,), models, describe_drawing(session.settings), remarks=tuple(remarks))

    def over_time(self, session: ChatSession, text: str, listener: Listener) -> Comparison:
        """Return what every checkpoint of the session's run answers to `text`, else to the last message; the
        conversation stays as it is. UserError where the run has kept too few."""
        candidates, remarks = find_steps(session.name)
        require_loadable(candidates, trust_remote_code=self._trust)
        turn = _Turn(text, session.messages) if text else _last_turn(session)[0]
        models = []
        with _seeded(session):
            for number, candidate in enumerate(candidates, 1):
                listener(Notice(f"{candidate.name} ({number} of {len(candidates)}) ..."))
                answer, mode = self._answer_of(candidate.folder, session, turn)
                models.append(Compared(candidate.name, candidate.folder, mode, (answer,), candidate.numbers))
                release()
            drawn = describe_drawing(session.settings)
        return Comparison((turn.text,), tuple(models), drawn, over_time=True, remarks=tuple(remarks))

    def _answer_of(self, folder: str, session: ChatSession, turn: _Turn) -> tuple[Answer, str]:
        other = self._open(folder)
        return _answer_like(session, other, turn)[0], other.mode

    def _session(self, session: ChatSession, name: str, listener: Listener) -> ChatSession:
        try:
            candidate = find_contender(name)
        except UserError:
            if name == BASE:
                raise UserError(Problem(BASE, f"{session.name} has no adapter, and there is no such model")) from None
            raise
        if candidate.folder == find_checkpoint(session.name):
            fix = f"/compare {BASE}: without its adapter." if is_adapter(candidate.folder) else "Name another."
            raise UserError(Problem(name, "it is the model that you talk to", fix=fix))
        if self._other is None or self._other[0] != candidate.folder:
            require_loadable([candidate], trust_remote_code=self._trust)
            self._other = None
            release()
            listener(Notice(f"loading {name} ..."))
            self._other = (candidate.folder, self._open(candidate.folder))
            self._other[1].name = candidate.name
        return self._other[1]


def _last_turn(session: ChatSession) -> tuple[_Turn, Answer]:
    """Return the last message, and what the session answered. UserError where nothing was said."""
    if not session.messages:
        raise UserError(Problem("message", "nothing was said yet", fix="Write it after the command."))
    *before, asked, answered = session.messages
    stats = session.last_stats
    if stats is None:  # taken up from a file
        ids = session.tokenizer(answered["content"], add_special_tokens=False)["input_ids"]
        return _Turn(asked["content"], before), Answer(answered["content"], len(ids))
    return _Turn(asked["content"], before), Answer(answered["content"], stats.tokens, stats.stop)


def _answer_like(session: ChatSession, other: ChatSession, turn: _Turn) -> tuple[Answer, list[str]]:
    """Return what another session answers to the same turn, settings and conversation, and what it could not take."""
    remarks = []
    other.settings = session.settings
    other.reset()
    other.system = None
    if other.mode == session.mode:
        other.messages = [dict(message) for message in turn.before]
    elif turn.before or session.system:
        what = "continues texts" if other.mode == "completion" else "is a chat model"
        remarks.append(f"{other.name} {what}: it is given the last message alone.")
    try:
        if session.system and other.mode == "chat":
            other.set_system(session.system)
        return take_answer(other, turn.text), remarks
    except UserError as error:
        return Answer("", problem=str(error)), remarks


@contextmanager
def _seeded(session: ChatSession) -> Any:
    """Draw the answers of all by the same dice, where they are drawn and no seed is set."""
    before = session.settings
    if before.temperature > 0 and before.seed is None:
        session.settings = dataclasses.replace(before, seed=random.randrange(2**32))
    try:
        yield
    finally:
        session.settings = before


def _compared(session: ChatSession, answer: Answer) -> Compared:
    return Compared(session.name, session.name, session.mode, (answer,), {})
