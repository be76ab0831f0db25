"""A conversation with a model: what it said, what it may see, and the next reply."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError
from llm_lab.hf.conversations import encode_prompt, render_conversation
from llm_lab.hf.load import context_of

from .conversation_files import read_conversation, write_conversation
from .decoding import REPLACEMENT, Predictor, TextOfTokens, end_tokens, make_picker
from .settings import ChatSettings

__all__ = ["ChatSession", "ChatSettings", "ReplyStats"]

CONTEXT_FOR_TEXT = 16  # tokens before a continuation that its text is decoded with


@dataclass(frozen=True)
class ReplyStats:
    """What a reply took, and why it stopped: end, length, context or stopped."""

    tokens: int
    prompt_tokens: int
    seconds_to_first_token: float | None
    tokens_per_second: float | None
    stop: str


@dataclass(frozen=True)
class _Written:
    """The tokens that a text is made of: bytes that are no characters are lost in the text itself."""

    text: str
    ids: list[int]
    stream: TextOfTokens
    ended: bool


class ChatSession:
    """A model, its tokenizer, and what was said so far.

    With a chat template it is a chat of turns; without one, the model continues the text so far, until it
    ends it: what is said next begins another.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str, settings: ChatSettings | None = None):
        self.name = name
        self.settings = settings or ChatSettings()
        self.mode = "chat" if getattr(tokenizer, "chat_template", None) else "completion"
        self.messages: list[dict[str, Any]] = []
        self.system: str | None = None
        self.notice: str | None = None  # what the last reply could not see, in words
        self.last_stats: ReplyStats | None = None
        self._written: _Written | None = None
        self.model = model
        self._tokenizer = tokenizer
        self._predictor = Predictor(model)
        self._end_tokens = end_tokens(model, tokenizer)
        self.context_length = context_of(model)
        embeddings = model.get_input_embeddings().weight.shape[0]
        if len(tokenizer) > embeddings:
            why = f"it has {len(tokenizer):,} tokens and the model knows {embeddings:,}: it is another model's"
            raise UserError(Problem("tokenizer", why))

    def reply(self, text: str) -> Iterator[str]:
        """Yield the pieces of a reply as they are generated; then both turns stand in `messages`.

        Closing the iterator stops the reply, and what was said so far stays. UserError, with nothing changed,
        where the text can't be answered.
        """
        settings = self.settings
        ids = self._prompt(text)
        prompt_tokens = len(ids)
        room = settings.max_new_tokens
        if self.context_length:
            room = min(room, self.context_length - prompt_tokens)
        pick = make_picker(
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            repetition_penalty=settings.repetition_penalty,
            # Another number each turn: the same one would draw every reply by the same dice.
            seed=None if settings.seed is None else settings.seed + len(self.messages) // 2,
        )
        new_text = self._text_after(ids, text)
        pieces: list[str] = []
        times = [time.monotonic()]
        stop = "stopped"
        try:
            while len(times) <= room:
                token = pick(ids, self._predictor.logits(ids))
                if token in self._end_tokens:
                    stop = "end"
                    break
                times.append(time.monotonic())
                ids.append(token)
                if piece := new_text.push(token):
                    pieces.append(piece)
                    yield piece
            else:
                stop = "length" if room == settings.max_new_tokens else "context"
            if stop == "end" and (piece := new_text.rest()):
                pieces.append(piece)
                yield piece
        finally:
            self.last_stats = _stats(times, prompt_tokens, stop)
            if pieces or stop != "stopped":
                self.messages.append({"role": "user", "content": text})
                self.messages.append({"role": "assistant", "content": "".join(pieces)})
                if stop == "end" and self.mode == "completion":
                    self.messages[-1]["ended"] = True
                self._written = _Written(self._so_far(), ids, new_text, stop == "end")

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    @property
    def last_ids(self) -> list[int]:
        """The tokens of the last prompt and its reply; [] before the first."""
        return self._written.ids if self._written else []

    def reset(self) -> None:
        """Forget what was said; the system prompt and the settings stay."""
        self.messages = []
        self.notice = None

    def set_system(self, text: str) -> None:
        """Set the system prompt, or take it away with an empty text. UserError where the model has none."""
        text = text.strip()
        if self.mode == "completion":
            raise UserError(
                Problem(
                    "system",
                    "a base model has no system prompt",
                    fix="Begin the text with what it should heed.",
                )
            )
        if text:
            asked = [{"role": "system", "content": text}, {"role": "user", "content": "."}]
            shown = render_conversation(self._tokenizer, asked)
            if text not in shown:
                raise UserError(Problem("system", "this model's chat template leaves the system prompt out"))
        self.system = text or None

    def change_setting(self, name: str, text: str) -> None:
        """Change one setting, given as text. UserError, with nothing changed, where it is wrong."""
        self.settings = self.settings.changed(name, text)

    def save(self, path: str | Path) -> Path:
        """Write the conversation as JSON; a file that is no conversation is not replaced."""
        file = Path(path).expanduser()
        write_conversation(file, self.mode, self.name, self.settings, self.system, self.messages)
        return file

    def load(self, path: str | Path) -> None:
        """Take up a saved conversation in place of this one; settings stay. UserError where it is none."""
        conversation = read_conversation(Path(path).expanduser())
        if conversation["mode"] != self.mode:
            why = f"it was made in {conversation['mode']} mode, and {self.name} is in {self.mode} mode"
            raise UserError(Problem(str(path), why))
        if conversation["system"]:
            self.set_system(conversation["system"])
        else:
            self.system = None
        self.reset()
        self.last_stats = None
        self.messages = conversation["messages"]

    def _prompt(self, text: str) -> list[int]:
        """Return the tokens of all that the model shall see, cut to what its context holds."""
        self.notice = None
        limit = self.context_length
        # Half of the context at most is kept free: a reply may want more, but the past is worth as much.
        most = limit - min(self.settings.max_new_tokens, limit // 2) if limit else None
        return self._chat_prompt(text, most) if self.mode == "chat" else self._text_prompt(text, most)

    def _chat_prompt(self, text: str, most: int | None) -> list[int]:
        if not text.strip():
            raise UserError(Problem("message", "there is nothing in it"))
        system = [{"role": "system", "content": self.system}] if self.system else []
        last = {"role": "user", "content": text}
        for dropped in range(0, len(self.messages) + 1, 2):
            # The same function as in training: the model is asked as it was taught.
            ids = encode_prompt(self._tokenizer, [*system, *self.messages[dropped:], last])
            if most is None or len(ids) <= most:
                break
        else:
            self._require_room(len(ids))
        if dropped:
            self._tell_full(f"the first {dropped} messages")
        return ids

    def _text_prompt(self, text: str, most: int | None) -> list[int]:
        so_far, written = self._so_far(), self._written_so_far()
        if written and (not text or REPLACEMENT in so_far):
            ids = written.ids + self._encode(text, special=False)
        else:
            ids = self._encode(so_far + text, special=True)
        if not ids:
            begin = [self._tokenizer.bos_token_id, self._tokenizer.eos_token_id]
            ids = [token for token in begin if token is not None][:1]
        if not ids:
            why = "this tokenizer has no token to begin a text with"
            raise UserError(Problem("prompt", why, fix="Write a few words."))
        if most is not None and len(ids) > most:
            new = len(self._encode(text, special=False))
            self._require_room(new)
            if len(ids) > max(most, new):
                ids = ids[-max(most, new) :]
                self._tell_full("the beginning of the text")
        return ids

    def _tell_full(self, unseen: str) -> None:
        self.notice = f"The context of {self.context_length:,} tokens is full: the model no longer sees {unseen}."

    def _so_far(self) -> str:
        """The text that a base model continues: all since it last ended one."""
        ended = [index for index, message in enumerate(self.messages) if message.get("ended")]
        return "".join(message["content"] for message in self.messages[ended[-1] + 1 if ended else 0 :])

    def _written_so_far(self) -> _Written | None:
        """What the tokens of the text so far are, where this session wrote its end."""
        written = self._written
        return written if written and not written.ended and written.text == self._so_far() else None

    def _text_after(self, ids: list[int], text: str) -> TextOfTokens:
        """Return what turns the reply's tokens into text."""
        if self.mode == "chat":
            return TextOfTokens(self._tokenizer)
        written = self._written_so_far()
        if written and not text:
            return written.stream  # it may hold the first bytes of a character
        return TextOfTokens(self._tokenizer, ids[-CONTEXT_FOR_TEXT:])

    def _require_room(self, tokens: int) -> None:
        if self.context_length and tokens >= self.context_length:
            why = f"it takes {tokens:,} tokens, and the model's context holds {self.context_length:,}"
            raise UserError(Problem("message", why, fix="Send less at once."))

    def _encode(self, text: str, *, special: bool) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def _stats(times: list[float], prompt_tokens: int, stop: str) -> ReplyStats:
    tokens = len(times) - 1
    first = times[1] - times[0] if tokens else None
    later = times[-1] - times[1] if tokens > 1 else 0.0
    return ReplyStats(tokens, prompt_tokens, first, (tokens - 1) / later if later > 0 else None, stop)
