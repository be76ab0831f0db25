"""A conversation with a model: its messages, its settings, and the next reply."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError
from llm_lab.hf.conversations import encode_prompt, render_conversation
from llm_lab.hf.load import context_of
from llm_lab.hf.rendering import Refused
from llm_lab.safe_text import valid_text

from .conversation_files import read_conversation, write_conversation
from .decoding import REPLACEMENT, ChatSettings, Predictor, TextStream, end_tokens, make_sampler
from .search_results import BUDGET, seen, turn_with, with_results
from .web_search import Hit, hits_from

__all__ = ["ChatSession", "ChatSettings", "ReplyStats"]

REPLIES = 4  # replies that fit into the context of a small model at first
DECODED_BEFORE = 16  # tokens in front of a continuation that are decoded together with it


@dataclass(frozen=True)
class ReplyStats:
    """Length and speed of a reply, and why it stopped: end, length, context or stopped."""

    tokens: int
    prompt_tokens: int
    seconds_to_first_token: float | None
    tokens_per_second: float | None
    stop: str


@dataclass(frozen=True)
class _Tokens:
    """The tokens of a text, which are kept because the text loses bytes that are not valid characters."""

    text: str
    ids: list[int]
    stream: TextStream
    ended: bool


class ChatSession:
    """A model, its tokenizer and the messages so far.

    With a chat template the mode is "chat". Without one it is "completion": the model continues the text so far,
    and after an end token the next message starts a new text. Raises UserError if the tokenizer has more tokens than
    the model.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str, settings: ChatSettings | None = None):
        self.name = name
        self.settings = settings or ChatSettings()
        self.mode = "chat" if getattr(tokenizer, "chat_template", None) else "completion"
        self.messages: list[dict[str, Any]] = []
        self.system: str | None = None
        self.unseen: str | None = None  # what did not fit into the context of the last reply
        self.has_unseen_results = False  # whether results of a web search did not fit
        self.last_stats: ReplyStats | None = None
        self._tokens: _Tokens | None = None
        self.model = model
        self._tokenizer = tokenizer
        self._predictor = Predictor(model)
        self._end_tokens = end_tokens(model, tokenizer)
        self.context_length = context_of(model)
        embeddings = model.get_input_embeddings().weight.shape[0]
        if len(tokenizer) > embeddings:
            why = f"it has {len(tokenizer):,} tokens, but the model has {embeddings:,}: it belongs to another model"
            raise UserError(Problem("tokenizer", why))

    @property
    def usual_length(self) -> int:
        """The most tokens of a reply by default; fewer for a small model that continues a text.

        Otherwise a single reply would fill its context.
        """
        most = ChatSettings().max_new_tokens
        if self.mode != "completion" or not self.context_length:
            return most
        return min(most, max(1, self.context_length // REPLIES))

    def leave_room(self) -> None:
        """Shorten the replies of a model that continues a text, if one reply alone would fill its context."""
        self.settings = replace(self.settings, max_new_tokens=min(self.settings.max_new_tokens, self.usual_length))

    def reply(self, text: str, hits: Sequence[Hit] = ()) -> Generator[str, None, None]:
        """Yield the pieces of a reply as they are generated; then add both turns to `messages`.

        hits: search results that the model gets with the message; the message keeps them in `sources`. Closing the
        iterator stops the reply and keeps the text so far. Raises UserError, and changes nothing, if the message can't
        be answered.
        """
        settings = self.settings
        text = valid_text(text)
        sources = self._fitting(text, hits)
        ids = self._prompt(turn_with(text, sources))
        self.has_unseen_results = bool(hits) and not sources
        prompt_tokens = len(ids)
        room = settings.max_new_tokens
        if self.context_length:
            room = min(room, self.context_length - prompt_tokens)
        sample = make_sampler(settings, turn=len(self.messages) // 2)
        new_text = self._text_after(ids, text)
        pieces: list[str] = []
        times = [time.monotonic()]
        stop = "stopped"
        try:
            while len(times) <= room:
                token = sample(ids, self._predictor.logits(ids))
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
                self.messages.append({"role": "user", "content": text, **({"sources": sources} if sources else {})})
                self.messages.append({"role": "assistant", "content": "".join(pieces)})
                if stop == "stopped":
                    self.messages[-1]["stopped"] = True
                if stop == "end" and self.mode == "completion":
                    self.messages[-1]["ended"] = True
                self._tokens = _Tokens(self._so_far(), ids, new_text, stop == "end")

    def regenerate(self, text: str | None = None) -> Generator[str, None, None]:
        """Yield the pieces of another reply to the last message, which then replaces the last reply.

        text: the message to send in place of the last one. Raises UserError if there is none. If the new reply fails or
        is stopped before its first piece, the conversation is not changed.
        """
        if not self.messages:
            raise UserError(Problem("message", "the conversation is empty", fix="Write a message first."))
        *before, asked, _ = old = self.messages
        self.messages = before
        hits = hits_from(asked.get("sources", ())) if text is None else ()
        try:
            yield from self.reply(asked["content"] if text is None else text, hits)
        finally:
            if len(self.messages) < len(old):
                self.messages, self.last_stats = old, None

    @property
    def notice(self) -> str | None:
        """What the model did not see for the last reply, as sentences."""
        full = f"The context of {self.context_length:,} tokens is full: the model no longer sees {self.unseen}."
        results = "The model does not see the search results: there is no room."
        said = [text for text, holds in ((full, self.unseen), (results, self.has_unseen_results)) if holds]
        return " ".join(said) or None

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    @property
    def last_ids(self) -> list[int]:
        """The tokens of the last prompt and its reply; [] before the first reply."""
        return self._tokens.ids if self._tokens else []

    def reset(self) -> None:
        """Forget all messages; keep the system prompt and the settings."""
        self.messages = []
        self.unseen, self.has_unseen_results = None, False

    def set_system(self, text: str) -> None:
        """Set the system prompt; an empty text removes it. Raises UserError if the model does not support one."""
        text = valid_text(text).strip()
        if self.mode == "completion":
            fix = "Put instructions at the start of the prompt."
            raise UserError(Problem("system", "base models do not support a system prompt", fix=fix))
        if text:
            asked = [{"role": "system", "content": text}, {"role": "user", "content": "."}]
            try:
                shown = render_conversation(self._tokenizer, asked)
            except Refused as refused:
                why = f"this model's chat template does not support system prompts: {refused.reason}"
                raise UserError(Problem("system", why)) from None
            if text not in shown:
                raise UserError(Problem("system", "this model's chat template ignores system prompts"))
        self.system = text or None

    def require_search(self) -> None:
        """Raise UserError if the model can't use search results."""
        if self.mode == "completion":
            why = "base models continue a text: they can't use search results"
            raise UserError(Problem("web search", why, fix="Use a model that was fine-tuned to chat."))

    def change_setting(self, name: str, text: str) -> None:
        """Change one setting, given as text. Raises UserError, and changes nothing, if it is not allowed."""
        self.settings = self.settings.changed(name, text)

    def save(self, path: str | Path) -> Path:
        """Write the conversation as JSON. Raises UserError if the file exists and is not a conversation."""
        file = Path(path).expanduser()
        write_conversation(file, self.mode, self.name, self.settings, self.system, self.messages)
        return file

    def load(self, path: str | Path) -> None:
        """Replace this conversation by a saved one; keep the settings. Raises UserError if the file is not one."""
        conversation = read_conversation(Path(path).expanduser())
        if conversation["mode"] != self.mode:
            why = f"it was saved in {conversation['mode']} mode, but {self.name} uses {self.mode} mode"
            raise UserError(Problem(str(path), why))
        self.take_up(conversation["messages"], conversation["system"])
        self.last_stats = None

    def take_up(self, messages: list[dict[str, Any]], system: str | None) -> None:
        """Replace this conversation; keep the settings. Raises UserError if the model can't take its system prompt."""
        if system:
            self.set_system(system)
        else:
            self.system = None
        self.reset()
        self.messages = messages

    def _fitting(self, text: str, hits: Sequence[Hit]) -> list[dict[str, Any]]:
        """Return as many search results as fit into a quarter of the context, as sources."""
        if not hits:
            return []
        self.require_search()
        budget = min(BUDGET, self.context_length // 4) if self.context_length else BUDGET
        numbers = [source["n"] for message in self.messages for source in message.get("sources", ())]

        def count_tokens(added: str) -> int:
            return len(self._encode(added, special=False))

        return with_results(text, hits, count_tokens, budget, first=max(numbers, default=0) + 1)[1]

    def _prompt(self, text: str) -> list[int]:
        """Return the prompt tokens, shortened to fit into the context."""
        self.unseen = None
        limit = self.context_length
        # Reserve at most half of the context for the reply: the messages need room too.
        longest = limit - min(self.settings.max_new_tokens, limit // 2) if limit else None
        return self._chat_prompt(text, longest) if self.mode == "chat" else self._text_prompt(text, longest)

    def _chat_prompt(self, text: str, longest: int | None) -> list[int]:
        if not text.strip():
            raise UserError(Problem("message", "it is empty"))
        system = [{"role": "system", "content": self.system}] if self.system else []
        last = {"role": "user", "content": text}
        for dropped in range(0, len(self.messages) + 1, 2):
            # The same function as in training, so that the prompt has the exact format of training.
            ids = encode_prompt(self._tokenizer, [*system, *map(seen, self.messages[dropped:]), last])
            if longest is None or len(ids) <= longest:
                break
        else:
            self._require_room(len(ids))
        if dropped:
            self.unseen = f"the first {dropped} messages"
        return ids

    def _text_prompt(self, text: str, longest: int | None) -> list[int]:
        so_far, written = self._so_far(), self._tokens_so_far()
        if written and (not text or REPLACEMENT in so_far):
            ids = written.ids + self._encode(text, special=False)
        else:
            ids = self._encode(so_far + text, special=True)
        if not ids:
            begin = [self._tokenizer.bos_token_id, self._tokenizer.eos_token_id]
            ids = [token for token in begin if token is not None][:1]
        if not ids:
            why = "it is empty, and this tokenizer has no token to start a text with"
            raise UserError(Problem("prompt", why, fix="Write a few words."))
        if longest is not None and len(ids) > longest:
            new = len(self._encode(text, special=False))
            self._require_room(new)
            if len(ids) > max(longest, new):
                ids = ids[-max(longest, new) :]
                self.unseen = "the beginning of the text"
        return ids

    def _so_far(self) -> str:
        """Return the text that a base model continues: everything since the last end token."""
        ended = [index for index, message in enumerate(self.messages) if message.get("ended")]
        return "".join(message["content"] for message in self.messages[ended[-1] + 1 if ended else 0 :])

    def _tokens_so_far(self) -> _Tokens | None:
        """Return the tokens of the text so far, if this session generated the end of it."""
        written = self._tokens
        return written if written and not written.ended and written.text == self._so_far() else None

    def _text_after(self, ids: list[int], text: str) -> TextStream:
        """Return the stream that decodes the reply."""
        if self.mode == "chat":
            return TextStream(self._tokenizer)
        written = self._tokens_so_far()
        if written and not text:
            return written.stream  # it may hold back the first bytes of a character
        return TextStream(self._tokenizer, ids[-DECODED_BEFORE:])

    def _require_room(self, tokens: int) -> None:
        if self.context_length and tokens >= self.context_length:
            why = f"it has {tokens:,} tokens, but the model's context holds {self.context_length:,}"
            raise UserError(Problem("message", why, fix="Send a shorter message."))

    def _encode(self, text: str, *, special: bool) -> list[int]:
        ids = list(self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
        if special and ids[-1:] == [self._tokenizer.eos_token_id]:
            ends = self._encode(text, special=False)[-1:] == ids[-1:]
            return ids if ends else ids[:-1]  # the tokenizer added an end token, before which the reply belongs
        return ids


def _stats(times: list[float], prompt_tokens: int, stop: str) -> ReplyStats:
    tokens = len(times) - 1
    first = times[1] - times[0] if tokens else None
    later = times[-1] - times[1] if tokens > 1 else 0.0
    return ReplyStats(tokens, prompt_tokens, first, (tokens - 1) / later if later > 0 else None, stop)
