"""Conversations as tokens, the same in training and inference, with a mask of the trained tokens.

An answer is trained as the model must generate it: after exactly the prompt that it gets at inference, up to its own
end of turn. Both are found by rendering the template, turn by turn. If a template renders an answer differently once
the conversation continues (many leave out earlier reasoning), the conversation becomes several sequences, one for each
such answer. Text is encoded in pieces, and each answer starts a new piece, so the tokens of the prompt at inference are
a prefix of the trained sequence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from llm_lab.errors import Problem, UserError

from .rendering import Message, Refused, mark, properties, render
from .turns import NO_END, Talk, Turn, control_tokens, holds, is_trained, read_turn

TEMPLATED = (
    "the text already contains the chat template's control tokens: they are read as control tokens, and all tokens "
    "are trained"
)
_EMPTY_TAG = re.compile(r"\s*<(\w+)>\s*(</\1>)?\s*\Z")
IGNORED = -100  # the label that losses ignore
SPLIT = (
    "split into one sequence per answer: the chat template writes an answer differently once the conversation continues"
)


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
class Encodings:
    """The sequences of one conversation. remarks: what is not trained on, or differs, and why; each once."""

    sequences: list[Encoded]
    remarks: tuple[str, ...] = ()


def encode_sequences(
    tokenizer: Any, messages: Sequence[Message], *, assistant_only: bool = True, max_length: int | None = None
) -> Encodings:
    """Return a conversation as sequences of tokens; with `assistant_only`, only answers (with end of turn) are trained.

    Most templates give one. Sequences are truncated at the end to max_length. Raises Refused if no answer can be
    trained, UserError if there is no chat template.
    """
    talk = Talk.of(tokenizer, messages)
    if not assistant_only:
        return Encodings([_truncate(*_all_trained(talk), max_length)], tuple(_lost_in_whole(talk)))
    turns: dict[int, Turn] = {}
    remarks: dict[str, None] = {}
    for number, message in enumerate(talk.marked.messages):
        if is_trained(message):
            try:
                turns[number] = read_turn(talk, number)
            except Refused as refused:
                remarks[refused.reason] = None
    if not turns:
        raise Refused(next(iter(remarks), "no answer to train"))
    sequences: list[Encoded] = []
    left = dict(turns)
    while left:
        last, turn = left.popitem()
        same = {
            number: one
            for number, one in left.items()
            if turn.whole.startswith(one.prompt + one.text) and one.end <= len(turn.prompt)
        }
        spans = [(len(one.prompt), one.end) for one in (*same.values(), turn)]
        sequences.insert(0, _truncate(*_encode(talk, turn.whole, last, spans), max_length))
        left = {number: one for number, one in left.items() if number not in same}
    if len(sequences) > 1:
        remarks[SPLIT] = None
    remarks |= {remark: None for turn in turns.values() for remark in turn.remarks}
    final = max(turns)
    remarks |= {
        f"the chat template leaves out a {message['role']} message": None
        for message in talk.marked.messages[:final]
        if message["role"] != "assistant" and not holds(talk, message, turns[final].whole)
    }
    return Encodings(sequences, tuple(remarks))


def encode_conversation(
    tokenizer: Any, messages: Sequence[Message], *, assistant_only: bool = True, max_length: int | None = None
) -> Encoded:
    """Return a conversation as one sequence, as encode_sequences does. Raises Refused if it takes several."""
    found = encode_sequences(tokenizer, messages, assistant_only=assistant_only, max_length=max_length).sequences
    if len(found) > 1:
        raise Refused("the template writes an answer differently once the conversation continues")
    return found[0]


def encode_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Return the tokens up to where the assistant's answer to `messages` starts.

    They are a prefix of what is trained for the same messages with an answer. Raises Refused.
    """
    talk = Talk.of(tokenizer, messages)
    return _encode(talk, talk.render(len(messages), prompt=True), len(messages))[0]


def encode_answer(tokenizer: Any, messages: Sequence[Message], answer: str) -> tuple[list[int], list[int]]:
    """Return the tokens of a prompt and of an answer, including its end-of-turn token. Raises Refused."""
    talk = Talk.of(tokenizer, [*messages, {"role": "assistant", "content": answer}])
    turn = read_turn(talk, len(messages))
    if turn.remarks:
        raise Refused(turn.remarks[0])
    ids, mask = _encode(talk, turn.prompt + turn.text, len(messages), [(len(turn.prompt), turn.end)])
    start = mask.index(1)
    return ids[:start], ids[start:]


def encode_text(tokenizer: Any, text: str, *, max_length: int | None = None) -> Encoded:
    """Return the tokens of plain text followed by EOS, all trained; BOS only if the tokenizer adds one.

    In a text that is already in the chat template's format, control tokens are encoded as such, and EOS is added only
    if the text does not end with one. Raises UserError if the tokenizer has no EOS.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            Problem("tokenizer", "This tokenizer has no end-of-text token (EOS), which is needed to end every document")
        )
    if is_templated(tokenizer, text):
        begin = tokenizer("")["input_ids"][:1]
        ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        ids = ids if ids[:1] == begin or begin != [tokenizer.bos_token_id] else [*begin, *ids]
        ends = bool(re.search(rf"(?:{properties(tokenizer).control_tokens.pattern})\s*\Z", text))
    else:
        ids = list(tokenizer(text, split_special_tokens=True, verbose=False)["input_ids"])
        ends = ids[-1:] == [tokenizer.eos_token_id]
    if not ends:
        ids.append(tokenizer.eos_token_id)
    return Encoded(ids[:max_length], [1] * len(ids[:max_length]), len(ids))


def is_templated(tokenizer: Any, text: str) -> bool:
    """Return whether a text is a conversation that is already written in the tokenizer's chat template."""
    known = properties(tokenizer)
    opening = _EMPTY_TAG.sub("", known.opening)
    return bool(known.control_tokens.search(opening)) and opening in text


def render_conversation(tokenizer: Any, messages: Sequence[Message], *, prompt: bool = False) -> str:
    """Return a conversation formatted by the chat template; with `prompt`, up to where an answer starts."""
    marked = mark(tokenizer, messages)
    return marked.plain(render(tokenizer, marked.messages, prompt=prompt))


def find_end_of_turn(tokenizer: Any) -> str | None:
    """Return the control token that ends an answer in the chat template, or None if there is none.

    Raises Refused if the template does not accept the simplest conversation.
    """
    talk = Talk.of(tokenizer, [{"role": "user", "content": "?"}, {"role": "assistant", "content": "qzxjq"}])
    try:
        text = read_turn(talk, 1).text
    except Refused as refused:
        if refused.reason == NO_END:
            return None
        raise
    return control_tokens(talk, text)[-1][0]


def _truncate(ids: list[int], mask: list[int], max_length: int | None) -> Encoded:
    return Encoded(ids[:max_length], mask[:max_length], len(ids))


def _all_trained(talk: Talk) -> tuple[list[int], list[int]]:
    count = len(talk.marked.messages)
    ids, _ = _encode(talk, talk.render(count), count)
    return ids, [1] * len(ids)


def _lost_in_whole(talk: Talk) -> Iterator[str]:
    text = talk.render(len(talk.marked.messages))
    if any(
        not holds(talk, message, text, with_reasoning=True)
        for message in talk.marked.messages
        if message["role"] == "assistant"
    ):
        yield "the chat template leaves out part of an answer: that part is not trained"


# Tokens


def _encode(talk: Talk, text: str, before: int, spans: Sequence[tuple[int, int]] = ()) -> tuple[list[int], list[int]]:
    """Return tokens, and a mask with 1 for those in spans; answers before message number `before` start new pieces."""
    starts = {len(prompt) for number, prompt in talk.prompts.items() if number < before and text.startswith(prompt)}
    ids: list[int] = []
    mask: list[int] = []
    for start, stop in pairwise(sorted({0, len(text), *starts, *(begin for begin, _ in spans)})):
        trained_to = next((end for begin, end in spans if begin <= start < end), start)
        for at, piece, is_text in _pieces(text[start:stop], talk.marked.marks):
            tokens, offsets = _encode_piece(talk, piece, behind=text[: start + at], is_text=is_text)
            ids += tokens
            mask += [int(start + at + offset < trained_to) for offset in offsets]
    return ids, mask


def _pieces(text: str, marks: tuple[str, str]) -> Iterator[tuple[int, str, bool]]:
    """Yield (position, piece, whether it is a control token spelled out in a message). Templates may split marks."""
    opening, closing = marks
    at = 0
    for piece in re.split(f"({opening}[^{opening}{closing}]*{closing}|[{opening}{closing}])", text):
        bare = piece.strip(opening + closing)
        if bare:
            yield at + piece.index(bare), bare, bare != piece
        at += len(piece)


def _encode_piece(talk: Talk, piece: str, *, behind: str, is_text: bool) -> tuple[list[int], list[int]]:
    """Return the tokens of a piece and the position of each in it. behind: the text before it."""
    # Some tokenizers add a space before everything they encode. To avoid it in the middle of a text, encode the piece
    # after a newline and remove the newline's tokens. Right after a control token, however, older tokenizers do add a
    # space, and some control tokens remove the white space that follows them. So encode a piece there after the control
    # token itself.
    befores = ["\n", ""] if talk.known.begins_with_space and behind else [""]
    control = re.search(rf"(?:{talk.known.control_tokens.pattern})\s*\Z", behind)
    if control and len(befores) > 1 and not is_text:
        befores.insert(0, control[0])
    for before in befores:
        encoding = talk.tokenizer(
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
    if is_text and talk.known.control_ids & set(ids):
        raise Refused(f"this tokenizer encodes {piece!r} as a control token even if it is part of a message")
    return ids, starts
