"""Conversations as tokens, the same in training and inference, with a mask of the trained tokens.

A conversation is formatted by the tokenizer's chat template and encoded in pieces, with each answer starting a new
piece. So the prompt at inference is, token by token, a prefix of what was trained. Control tokens come only from the
template: a message that spells one out is encoded as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

from llm_lab.errors import Problem, UserError

IGNORED = -100  # the label that losses ignore
Message = Mapping[str, str]
# Unicode noncharacters, which valid text does not contain. Two of them mark control tokens in messages.
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_KEY = "chat_template"


@dataclass(frozen=True)
class Encoded:
    """Tokens and their mask: 1 for trained tokens, 0 for masked ones.

    `length`: number of tokens before truncation.
    """

    input_ids: list[int]
    labels_mask: list[int]
    length: int

    @property
    def truncated(self) -> bool:
        """Whether tokens were cut off at the end."""
        return self.length > len(self.input_ids)

    @property
    def trained_tokens(self) -> int:
        """Number of trained tokens."""
        return sum(self.labels_mask)

    @property
    def labels(self) -> list[int]:
        """The trained tokens, with -100 for masked ones."""
        return [token if mask else IGNORED for token, mask in zip(self.input_ids, self.labels_mask, strict=True)]


@dataclass(frozen=True)
class _Rendered:
    """A conversation as text, with marks around control tokens in messages, and the spans of its answers."""

    text: str
    answers: tuple[tuple[int, int], ...]
    marks: tuple[str, str]


@dataclass(frozen=True)
class _Properties:
    """Properties of a tokenizer and its template, determined once."""

    control_tokens: re.Pattern[str]
    control_ids: frozenset[int]
    begins_with_space: bool
    has_markers: bool  # the {% generation %} blocks of the template are correct
    end_of_turn: str | None


def encode_conversation(
    tokenizer: Any, messages: Sequence[Message], *, assistant_only: bool = True, max_length: int | None = None
) -> Encoded:
    """Return the tokens of a conversation; with `assistant_only`, only answers (with end of turn) are trained.

    Truncated at the end to max_length. Raises UserError if there is no chat template, if it does not accept these
    messages, or if its answers can't be located.
    """
    written = _render(tokenizer, messages, strict=assistant_only)
    ids, mask = _encode(tokenizer, written)
    if not assistant_only:
        mask = [1] * len(ids)
    return Encoded(ids[:max_length], mask[:max_length], len(ids))


def encode_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Return the tokens up to where the assistant's answer to `messages` starts.

    They are a prefix of what encode_conversation returns for the same messages with an answer.
    """
    return _encode(tokenizer, _render(tokenizer, messages, prompt=True))[0]


def encode_answer(tokenizer: Any, messages: Sequence[Message], answer: str) -> tuple[list[int], list[int]]:
    """Return the tokens of a prompt and of an answer, including its end-of-turn token."""
    whole = encode_conversation(tokenizer, [*messages, {"role": "assistant", "content": answer}])
    # The tokens of the last answer are contiguous; after them is only what the template writes between turns.
    end = max((i for i, mask in enumerate(whole.labels_mask) if mask), default=-1) + 1
    start = len(encode_prompt(tokenizer, messages))
    return whole.input_ids[:start], whole.input_ids[start:end]


def encode_text(tokenizer: Any, text: str, *, max_length: int | None = None) -> Encoded:
    """Return the tokens of plain text followed by EOS, all trained; BOS only if the tokenizer adds one.

    Raises UserError if the tokenizer has no EOS.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            Problem("tokenizer", "This tokenizer has no end-of-text token (EOS), which is needed to end every text")
        )
    ids = list(tokenizer(text, split_special_tokens=True, verbose=False)["input_ids"])
    if ids[-1:] != [tokenizer.eos_token_id]:
        ids.append(tokenizer.eos_token_id)
    return Encoded(ids[:max_length], [1] * len(ids[:max_length]), len(ids))


def render_conversation(tokenizer: Any, messages: Sequence[Message], *, prompt: bool = False) -> str:
    """Return a conversation formatted by the chat template; with `prompt`, up to where an answer starts."""
    written = _render(tokenizer, messages, prompt=prompt, find_answers=False)
    return re.sub(f"[{''.join(written.marks)}]", "", written.text)


def find_end_of_turn(tokenizer: Any) -> str | None:
    """Return the control token that ends an answer in the chat template, or None if there is none."""
    return _properties(tokenizer).end_of_turn


def has_answer_markers(tokenizer: Any) -> bool:
    """Return whether the chat template marks the assistant's answers, including the end-of-turn token."""
    return _properties(tokenizer).has_markers


def _render(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    prompt: bool = False,
    find_answers: bool = True,
    strict: bool = False,
) -> _Rendered:
    properties = _properties(tokenizer)
    marked, marks = _mark(messages, properties.control_tokens)
    text, spans = _apply_template(tokenizer, marked, prompt=prompt)
    if not find_answers:
        return _Rendered(text, (), marks)
    if not properties.has_markers:
        spans = list(_find_answers(tokenizer, marked, text, properties, marks, strict))
    return _Rendered(text, tuple(spans), marks)


def _mark(messages: Sequence[Message], control_tokens: re.Pattern[str]) -> tuple[list[Message], tuple[str, str]]:
    """Return the messages with marks around all control tokens in them, and the two marks."""
    contents = "".join(message["content"] for message in messages)
    free = [mark for mark in _MARKS if mark not in contents][:2]
    if len(free) < 2:
        raise UserError(
            Problem("messages", "they contain nearly all Unicode noncharacters, so they are probably not text")
        )
    start, end = free
    if not control_tokens.search(contents):
        return [dict(message) for message in messages], (start, end)
    return [
        {**message, "content": control_tokens.sub(rf"{start}\g<0>{end}", message["content"])} for message in messages
    ], (start, end)


def _apply_template(tokenizer: Any, messages: Sequence[Message], *, prompt: bool) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of the template and the spans of its {% generation %} blocks."""
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
        raise UserError(Problem(_KEY, f"the template does not accept this conversation: {error}")) from None
    return texts[0], spans[0] if track else []


def _template(tokenizer: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        why = "this tokenizer has no chat template, which conversations require"
        raise UserError(Problem(_KEY, why, fix="Set chat_template: chatml, or use a model tuned for chat."))
    return tokenizer.get_chat_template()


def _find_answers(
    tokenizer: Any, messages: list[Message], text: str, properties: _Properties, marks: tuple[str, str], strict: bool
) -> Iterator[tuple[int, int]]:
    """Yield the spans of the answers: from the end of the prompt to the next end of a turn.

    strict: raise a UserError for answers that can't be located. Otherwise they are skipped: in a prompt, which is not
    trained, or if everything is trained, their spans do not matter.
    """
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if not number:
            why = "the assistant has the first message, so its answer can't be separated from the text before it"
        else:
            before, _ = _apply_template(tokenizer, messages[:number], prompt=True)
            end = (
                _find_outside_marks(text, properties.end_of_turn, len(before), marks)
                if properties.end_of_turn
                else None
            )
            if text.startswith(before) and (end is not None or not strict):
                yield len(before), end or len(before)
                continue
            why = "the template has no end-of-turn token for the assistant, so a model would never learn to stop"
            if end is not None:
                why = (
                    f"the template changes the text before message {number + 1} once it is answered, so the prompt at "
                )
                why += "inference would not match training"
        if strict:
            raise UserError(Problem(_KEY, why, fix="Set chat_template: chatml."))


def _find_outside_marks(text: str, token: str, start: int, marks: tuple[str, str]) -> int | None:
    """Return the end of the first `token` after `start` that is not part of a message, or None."""
    for found in re.compile(f"{marks[0]}.*?{marks[1]}|({re.escape(token)})", re.DOTALL).finditer(text, start):
        if found[1]:
            return found.end()
    return None


def _encode(tokenizer: Any, written: _Rendered) -> tuple[list[int], list[int]]:
    """Return the tokens, and a mask with 1 for those in answers."""
    properties = _properties(tokenizer)
    cuts = sorted({0, len(written.text), *(start for start, _ in written.answers)})
    ids: list[int] = []
    mask: list[int] = []
    for start, stop in pairwise(cuts):
        answer_end = next((end for begin, end in written.answers if begin == start), start)
        for at, piece, is_text in _pieces(written.text[start:stop], written.marks):
            tokens, offsets = _encode_piece(tokenizer, piece, properties, first=start + at == 0, is_text=is_text)
            ids += tokens
            mask += [int(start + at + offset < answer_end) for offset in offsets]
    return ids, mask


def _pieces(text: str, marks: tuple[str, str]) -> Iterator[tuple[int, str, bool]]:
    """Yield (position, piece, whether it is a control token in a message, so text). A template may separate marks."""
    opening, closing = marks
    at = 0
    for piece in re.split(f"({opening}[^{opening}{closing}]*{closing}|[{opening}{closing}])", text):
        bare = piece.strip(opening + closing)
        if bare:
            yield at + piece.index(bare), bare, bare != piece
        at += len(piece)


def _encode_piece(
    tokenizer: Any, piece: str, properties: _Properties, *, first: bool, is_text: bool
) -> tuple[list[int], list[int]]:
    """Return the tokens of a piece and the position of each in it."""
    # Some tokenizers add a space before everything they encode. To avoid it in the middle of a text, encode the piece
    # after a newline and remove the newline's tokens.
    for before in ("\n", "") if properties.begins_with_space and not first else ("",):
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
    if is_text and properties.control_ids & set(ids):
        why = f"this tokenizer encodes {piece!r} as a control token even if it is part of a message"
        raise UserError(Problem("tokenizer", why, fix="Remove such strings from the data."))
    return ids, starts


_KNOWN: WeakKeyDictionary[Any, tuple[Any, _Properties]] = WeakKeyDictionary()


def _properties(tokenizer: Any) -> _Properties:
    state = (str(tokenizer.chat_template), len(tokenizer), tuple(tokenizer.special_tokens_map.items()))
    known = _KNOWN.get(tokenizer)
    if known is None or known[0] != state:
        _KNOWN[tokenizer] = known = (state, _look_up(tokenizer))
    return known[1]


def _look_up(tokenizer: Any) -> _Properties:
    special = {token.content: id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    longest_first = sorted(filter(None, special), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
    first = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"][:1])
    begins_with_space = bool(first) and first[0].startswith(("\u2581", "\u0120"))
    # A word that no template contains, so what follows it is what follows an answer.
    word = "qzxjq"
    example = [{"role": "user", "content": "?"}, {"role": "assistant", "content": word}]
    try:
        text, spans = _apply_template(tokenizer, example, prompt=False)
    except UserError:  # it accepts only other conversations, or none; reported when one is encoded
        text, spans = "", []
    after = text[text.rindex(word) + len(word) :] if word in text else ""
    end = pattern.match(after.lstrip())
    marked = [text[start:stop] for start, stop in spans]
    has_markers = len(marked) == 1 and end is not None and marked[0].rstrip().endswith(end[0]) and word in marked[0]
    return _Properties(pattern, frozenset(special.values()), begins_with_space, has_markers, end[0] if end else None)
