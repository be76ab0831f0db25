"""Conversations as tokens: the same ones in training and in use, with a mask of what is learnt.

A conversation is written by the tokenizer's own chat template and encoded in pieces, each answer from its first
character: so what a model is asked is, token by token, the beginning of what it was trained on. Control tokens come
from the template alone: a message that spells one out is text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

from llm_lab.errors import Problem, UserError

IGNORED = -100  # the label that losses leave out
Message = Mapping[str, str]
# Unicode's noncharacters: never part of a text that is exchanged. Two of them stand around control tokens in messages.
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_KEY = "chat_template"


@dataclass(frozen=True)
class Encoded:
    """Tokens, and which of them are learnt (1) or only read (0).

    `length` is the number of tokens before any were cut off at the end.
    """

    input_ids: list[int]
    labels_mask: list[int]
    length: int

    @property
    def truncated(self) -> bool:
        """Whether the end was cut off."""
        return self.length > len(self.input_ids)

    @property
    def trained_tokens(self) -> int:
        """How many tokens are learnt."""
        return sum(self.labels_mask)

    @property
    def labels(self) -> list[int]:
        """The tokens that are learnt, -100 at the others."""
        return [token if mask else IGNORED for token, mask in zip(self.input_ids, self.labels_mask, strict=True)]


@dataclass(frozen=True)
class _Rendered:
    """A conversation as text, marks around messages' control tokens, and where (from, to) its answers stand."""

    text: str
    answers: tuple[tuple[int, int], ...]
    marks: tuple[str, str]


@dataclass(frozen=True)
class _Facts:
    """What is looked up once for a tokenizer and its template."""

    control_tokens: re.Pattern[str]
    control_ids: frozenset[int]
    begins_with_space: bool
    has_markers: bool  # the template's own {% generation %} can be relied on
    end_of_turn: str | None


def encode_conversation(
    tokenizer: Any, messages: Sequence[Message], *, assistant_only: bool = True, max_length: int | None = None
) -> Encoded:
    """Return a conversation's tokens; with `assistant_only` the answers are learnt, each with its end-of-turn token.

    Longer ones are cut at the end. UserError where there is no chat template, where it does not take these messages,
    or where its answers can't be told from the rest.
    """
    written = _render(tokenizer, messages, strict=assistant_only)
    ids, mask = _encode(tokenizer, written)
    if not assistant_only:
        mask = [1] * len(ids)
    return Encoded(ids[:max_length], mask[:max_length], len(ids))


def encode_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Return the tokens after which the assistant's answer to `messages` begins.

    They are the beginning of what encode_conversation returns for the same messages and an answer.
    """
    return _encode(tokenizer, _render(tokenizer, messages, prompt=True))[0]


def encode_answer(tokenizer: Any, messages: Sequence[Message], answer: str) -> tuple[list[int], list[int]]:
    """Return the tokens of a prompt, and those of an answer to it, up to and with the end of its turn."""
    whole = encode_conversation(tokenizer, [*messages, {"role": "assistant", "content": answer}])
    # The last answer's tokens stand together at the end; after them comes what the template writes between turns.
    end = max((i for i, mask in enumerate(whole.labels_mask) if mask), default=-1) + 1
    start = len(encode_prompt(tokenizer, messages))
    return whole.input_ids[:start], whole.input_ids[start:end]


def encode_text(tokenizer: Any, text: str, *, max_length: int | None = None) -> Encoded:
    """Return the tokens of plain text with EOS after it, all learnt; BOS before it only where the tokenizer adds one.

    UserError where the tokenizer has no EOS.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(Problem("tokenizer", "It has no end-of-text token (EOS), which ends every text"))
    ids = list(tokenizer(text, split_special_tokens=True, verbose=False)["input_ids"])
    if ids[-1:] != [tokenizer.eos_token_id]:
        ids.append(tokenizer.eos_token_id)
    return Encoded(ids[:max_length], [1] * len(ids[:max_length]), len(ids))


def render_conversation(tokenizer: Any, messages: Sequence[Message], *, prompt: bool = False) -> str:
    """Return a conversation as its chat template writes it; with `prompt`, up to where an answer begins."""
    written = _render(tokenizer, messages, prompt=prompt, find_answers=False)
    return re.sub(f"[{''.join(written.marks)}]", "", written.text)


def find_end_of_turn(tokenizer: Any) -> str | None:
    """Return the control token with which the chat template ends an answer, or None where it ends it with none."""
    return _facts(tokenizer).end_of_turn


def has_answer_markers(tokenizer: Any) -> bool:
    """Whether the chat template says itself what the assistant wrote, the end of its turn included."""
    return _facts(tokenizer).has_markers


def _render(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    prompt: bool = False,
    find_answers: bool = True,
    strict: bool = False,
) -> _Rendered:
    facts = _facts(tokenizer)
    marked, marks = _mark(messages, facts.control_tokens)
    text, spans = _apply_template(tokenizer, marked, prompt=prompt)
    if not find_answers:
        return _Rendered(text, (), marks)
    if not facts.has_markers:
        spans = list(_find_answers(tokenizer, marked, text, facts, marks, strict))
    return _Rendered(text, tuple(spans), marks)


def _mark(messages: Sequence[Message], control_tokens: re.Pattern[str]) -> tuple[list[Message], tuple[str, str]]:
    """Return the messages with marks around all control tokens in them, and the marks."""
    contents = "".join(message["content"] for message in messages)
    free = [mark for mark in _MARKS if mark not in contents][:2]
    if len(free) < 2:
        raise UserError(Problem("messages", "they hold nearly all of Unicode's noncharacters: is this text?"))
    start, end = free
    if not control_tokens.search(contents):
        return [dict(message) for message in messages], (start, end)
    return [
        {**message, "content": control_tokens.sub(rf"{start}\g<0>{end}", message["content"])} for message in messages
    ], (start, end)


def _apply_template(tokenizer: Any, messages: list[Message], *, prompt: bool) -> tuple[str, list[tuple[int, int]]]:
    """Return the text that the template writes, and where its {% generation %} blocks stand."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    template = _template(tokenizer)
    track = bool(_GENERATION.search(template))
    try:
        texts, spans = render_jinja_template(
            [messages],
            chat_template=template,
            add_generation_prompt=prompt,
            return_assistant_tokens_mask=track,
            **tokenizer.special_tokens_map,
        )
    except TemplateError as error:
        raise UserError(Problem(_KEY, f"it does not take this conversation: {error}")) from None
    return texts[0], spans[0] if track else []


def _template(tokenizer: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        why = "this tokenizer has no chat template, so it is not said how a conversation is written"
        raise UserError(Problem(_KEY, why, fix="Set chat_template: chatml, or take a model that was tuned to chat."))
    return tokenizer.get_chat_template()


def _find_answers(
    tokenizer: Any, messages: list[Message], text: str, facts: _Facts, marks: tuple[str, str], strict: bool
) -> Iterator[tuple[int, int]]:
    """Yield where the answers stand: each from where its prompt ends through the next end of a turn.

    strict: UserError for those that can't be told. They are passed over where nothing hangs on them: in a prompt,
    which nothing is learnt from, or where all is learnt.
    """
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if not number:
            why = "where the assistant speaks first, what it says can't be told from what is written before"
        else:
            before, _ = _apply_template(tokenizer, messages[:number], prompt=True)
            end = _find_outside_marks(text, facts.end_of_turn, len(before), marks) if facts.end_of_turn else None
            if text.startswith(before) and (end is not None or not strict):
                yield len(before), end or len(before)
                continue
            why = "it ends the assistant's turn with no token of its own, so a model would never learn to stop"
            if end is not None:
                why = f"it writes what stands before message {number + 1} otherwise once that is answered, so what is "
                why += "learnt would not be what is asked"
        if strict:
            raise UserError(Problem(_KEY, why, fix="Set chat_template: chatml."))


def _find_outside_marks(text: str, token: str, start: int, marks: tuple[str, str]) -> int | None:
    """Return where the first `token` after `start` ends that a message did not bring, or None."""
    for found in re.compile(f"{marks[0]}.*?{marks[1]}|({re.escape(token)})", re.DOTALL).finditer(text, start):
        if found[1]:
            return found.end()
    return None


def _encode(tokenizer: Any, written: _Rendered) -> tuple[list[int], list[int]]:
    """Return tokens, and 1 for those that belong to an answer."""
    facts = _facts(tokenizer)
    cuts = sorted({0, len(written.text), *(start for start, _ in written.answers)})
    ids: list[int] = []
    mask: list[int] = []
    for start, stop in pairwise(cuts):
        answer_end = next((end for begin, end in written.answers if begin == start), start)
        for at, piece, is_text in _pieces(written.text[start:stop], written.marks):
            tokens, offsets = _encode_piece(tokenizer, piece, facts, first=start + at == 0, is_text=is_text)
            ids += tokens
            mask += [int(start + at + offset < answer_end) for offset in offsets]
    return ids, mask


def _pieces(text: str, marks: tuple[str, str]) -> Iterator[tuple[int, str, bool]]:
    """Yield (place, piece, whether it is a control token in a message: text); a template may tear marks apart."""
    opening, closing = marks
    at = 0
    for piece in re.split(f"({opening}[^{opening}{closing}]*{closing}|[{opening}{closing}])", text):
        bare = piece.strip(opening + closing)
        if bare:
            yield at + piece.index(bare), bare, bare != piece
        at += len(piece)


def _encode_piece(
    tokenizer: Any, piece: str, facts: _Facts, *, first: bool, is_text: bool
) -> tuple[list[int], list[int]]:
    """Return the tokens of a piece and where in it each begins."""
    # Some tokenizers put a space before all that they encode; in the middle of a text there is none, so the piece
    # goes after a line end, which is then taken off again.
    for before in ("\n", "") if facts.begins_with_space and not first else ("",):
        encoding = tokenizer(
            before + piece,
            add_special_tokens=False,
            split_special_tokens=is_text,
            return_offsets_mapping=True,
            verbose=False,
        )
        ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
        skipped = next((i for i, (_, end) in enumerate(offsets) if end > len(before)), len(ids))
        ids = ids[skipped:]
        starts = [start - len(before) for start, _ in offsets[skipped:]]
        if not starts or starts[0] >= 0:
            break
    if is_text and facts.control_ids & set(ids):
        why = f"this tokenizer makes a control token of {piece!r} even where it is text"
        raise UserError(Problem("tokenizer", why, fix="Take such strings out of the data."))
    return ids, starts


_KNOWN: WeakKeyDictionary[Any, tuple[Any, _Facts]] = WeakKeyDictionary()


def _facts(tokenizer: Any) -> _Facts:
    state = (str(tokenizer.chat_template), len(tokenizer), tuple(tokenizer.special_tokens_map.items()))
    known = _KNOWN.get(tokenizer)
    if known is None or known[0] != state:
        _KNOWN[tokenizer] = known = (state, _look_up(tokenizer))
    return known[1]


def _look_up(tokenizer: Any) -> _Facts:
    special = {token.content: id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    longest_first = sorted(filter(None, special), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
    first = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"][:1])
    begins_with_space = bool(first) and first[0].startswith(("\u2581", "\u0120"))
    # A word that no template writes, so that what follows it is what follows an answer.
    word = "qzxjq"
    example = [{"role": "user", "content": "?"}, {"role": "assistant", "content": word}]
    try:
        text, spans = _apply_template(tokenizer, example, prompt=False)
    except UserError:  # it takes other conversations only, or none; that is said where one is encoded
        text, spans = "", []
    after = text[text.rindex(word) + len(word) :] if word in text else ""
    end = pattern.match(after.lstrip())
    marked = [text[start:stop] for start, stop in spans]
    has_markers = len(marked) == 1 and end is not None and marked[0].rstrip().endswith(end[0]) and word in marked[0]
    return _Facts(pattern, frozenset(special.values()), begins_with_space, has_markers, end[0] if end else None)
