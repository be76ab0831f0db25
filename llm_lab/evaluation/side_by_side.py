"""Other models' answers in a chat: another checkpoint, the base without the adapter, every step of a run."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from llm_lab.chat.session import ChatSession
from llm_lab.chat.web_search import Hit, hits_from
from llm_lab.errors import Problem, UserError
from llm_lab.events import Listener, Notice
from llm_lab.hf.adapter import is_adapter
from llm_lab.hf.load import without_adapter
from llm_lab.runs.comparison import Answer, Compared, Comparison
from llm_lab.runs.folder import find_checkpoint

from .candidates import find_candidate, find_steps, require_loadable
from .compare import collect_answer, describe_sampling, release_memory

BASE = "base"


@dataclasses.dataclass(frozen=True)
class _Turn:
    """A message, the messages before it, and its search results."""

    text: str
    before: list[dict[str, Any]]
    hits: tuple[Hit, ...] = ()


class SideBySide:
    """Compares a chat session with other models. The model named last stays loaded.

    open_session: loads a checkpoint as a session. Code that comes with another model never runs here.
    """

    def __init__(self, open_session: Callable[[str], ChatSession]):
        self._open = open_session
        self._other: tuple[str, ChatSession] | None = None

    def compare(self, session: ChatSession, name: str, text: str, listener: Listener) -> Comparison:
        """Return the answers of the session and another model to `text`, or to the last message if it is empty.

        A given text becomes the next turn of the conversation. name: a checkpoint, or "base" for the model without its
        adapter. Raises UserError, and changes nothing, if the other model can't answer.
        """
        if not text:
            _last_turn(session)
        off: AbstractContextManager[Any] = nullcontext()
        if name == BASE and is_adapter(folder := find_checkpoint(session.name)):
            off = without_adapter(session.model, folder)
            with without_adapter(session.model, folder) as tokenizer:
                other = ChatSession(session.model, tokenizer, name=f"{session.name}, adapter off")
        else:
            other = self._find_session(session, name, listener)
        with _shared_seed(session) if text else nullcontext():
            if text:
                listener(Notice(f"{session.name} generates ..."))
                collect_answer(session, text)
            turn, first = _last_turn(session)
            listener(Notice(f"{other.name} generates ..."))
            with off:
                second, remarks = _answer_turn(session, other, turn)
            models = (_as_compared(session, first), _as_compared(other, second))
            return Comparison((turn.text,), models, describe_sampling(session.settings), remarks=tuple(remarks))

    def over_time(self, session: ChatSession, text: str, listener: Listener) -> Comparison:
        """Return the answers of every checkpoint of the session's run to `text`, or to the last message.

        The conversation does not change. Raises UserError if the run has fewer than two checkpoints.
        """
        candidates, remarks = find_steps(session.name)
        require_loadable(candidates)
        turn = _Turn(text, session.messages) if text else _last_turn(session)[0]
        models = []
        with _shared_seed(session):
            for number, candidate in enumerate(candidates, 1):
                listener(Notice(f"{candidate.name} ({number} of {len(candidates)}) ..."))
                answer, mode = self._answer_of(candidate.folder, session, turn)
                models.append(Compared(candidate.name, candidate.folder, mode, (answer,), candidate.numbers))
                release_memory()
            drawn = describe_sampling(session.settings)
        return Comparison((turn.text,), tuple(models), drawn, over_time=True, remarks=tuple(remarks))

    def _answer_of(self, folder: str, session: ChatSession, turn: _Turn) -> tuple[Answer, str]:
        # A separate function, so that the model can be freed when it returns.
        other = self._open(folder)
        return _answer_turn(session, other, turn)[0], other.mode

    def _find_session(self, session: ChatSession, name: str, listener: Listener) -> ChatSession:
        try:
            candidate = find_candidate(name)
        except UserError:
            if name == BASE:
                why = f"{session.name} has no adapter, and there is no model with this name"
                raise UserError(Problem(BASE, why)) from None
            raise
        if candidate.folder == find_checkpoint(session.name):
            fix = f"Use /compare {BASE} for the model without its adapter." if is_adapter(candidate.folder) else None
            raise UserError(Problem(name, "this is the model of this chat", fix=fix or "Name another model."))
        if self._other is None or self._other[0] != candidate.folder:
            require_loadable([candidate])
            self._other = None
            release_memory()
            listener(Notice(f"loading {name} ..."))
            self._other = (candidate.folder, self._open(candidate.folder))
            self._other[1].name = candidate.name
        return self._other[1]


def _last_turn(session: ChatSession) -> tuple[_Turn, Answer]:
    """Return the last message and the session's answer to it. Raises UserError if there is none."""
    if not session.messages:
        raise UserError(Problem("message", "the conversation is empty", fix="Write a message after the command."))
    *before, asked, answered = session.messages
    turn = _Turn(asked["content"], before, tuple(hits_from(asked.get("sources", ()))))
    stats = session.last_stats
    if stats is None:  # the conversation was loaded from a file
        ids = session.tokenizer(answered["content"], add_special_tokens=False)["input_ids"]
        stop = next((why for why, key in (("stopped", "stopped"), ("end", "ended")) if answered.get(key)), "")
        return turn, Answer(answered["content"], len(ids), stop)
    return turn, Answer(answered["content"], stats.tokens, stats.stop)


def _answer_turn(session: ChatSession, other: ChatSession, turn: _Turn) -> tuple[Answer, list[str]]:
    """Return another session's answer to the same turn with the same settings, and remarks on differences."""
    remarks = []
    other.settings = session.settings
    other.reset()
    other.system = None
    if other.mode == session.mode:
        other.messages = [dict(message) for message in turn.before]
    elif turn.before or session.system:
        what = "is a base model" if other.mode == "completion" else "is a chat model"
        remarks.append(f"{other.name} {what}: it gets only the last message.")
    try:
        if session.system and other.mode == "chat":
            other.set_system(session.system)
        return collect_answer(other, turn.text, turn.hits if other.mode == "chat" else ()), remarks
    except UserError as error:
        return Answer("", problem=str(error)), remarks


@contextmanager
def _shared_seed(session: ChatSession) -> Iterator[None]:
    """Let all models sample with the same seed, if they sample and no seed is set."""
    before = session.settings
    if before.temperature > 0 and before.seed is None:
        session.settings = dataclasses.replace(before, seed=random.randrange(2**32))
    try:
        yield
    finally:
        session.settings = before


def _as_compared(session: ChatSession, answer: Answer) -> Compared:
    return Compared(session.name, session.name, session.mode, (answer,), {})
