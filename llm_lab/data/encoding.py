"""Encode documents: batch by batch, long ones in pieces, special tokens kept out of the text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from llm_lab.errors import Problem, UserError

# A longer document is encoded in pieces of half to once this many characters: an encoding holds some
# 100 bytes a token, and one text keeps one core busy only.
_PIECE = 1_000_000
_BATCH = 4 * _PIECE
# After a line that is no blank one and before one that does not begin with a blank: no tokenizer that
# splits at white space has a token across it.
_CUT = re.compile(r"(?<=\S)\n(?=\S)")


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a digest of all that decides a tokenizer's output, and its EOS id."""
    backend = _plain_backend(tokenizer)
    return hashlib.sha256(f"{tokenizer.eos_token_id}\0{backend.to_str()}".encode()).hexdigest()


def checked_eos(tokenizer: Any) -> int:
    """Return the id that ends every document. UserError where the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise UserError(
            Problem(
                "tokenizer",
                "It has no end-of-text token (EOS), which ends every document",
                fix="Set one: tokenizer.add_special_tokens({'eos_token': '<|endoftext|>'}), then save it; "
                "or take tokenizer: bytes or {bpe: 8192}.",
            )
        )
    return int(tokenizer.eos_token_id)


def opener_of(tokenizer: Any) -> int:
    """Return the id that a text begins with: the beginning-of-text token, or the one that ended the text before."""
    return checked_eos(tokenizer) if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)


def _plain_backend(tokenizer: Any) -> Any:
    """Return a private copy of the Rust tokenizer: no padding, no truncation, no special tokens in text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            Problem(
                "tokenizer",
                f"{type(tokenizer).__name__} has no fast (Rust) form",
                fix="Take one with a tokenizer.json.",
            )
        )
    # Calling a tokenizer with padding or truncation leaves these switched on in its backend.
    backend = type(backend).from_str(backend.to_str())
    backend.no_padding()
    backend.no_truncation()
    # "<|endoftext|>" that stands in a document is text somebody wrote, not the end of the document.
    backend.encode_special_tokens = True
    return backend


class Encoder:
    """Turns pieces of documents into tokens, all cores at work; EOS after the piece that ends a document."""

    def __init__(self, tokenizer: Any):
        self.eos = checked_eos(tokenizer)
        self._backend = _plain_backend(tokenizer)
        self._backend.post_processor = None  # it may leave blanks out of the places where tokens stand

    def __call__(self, pieces: Sequence[tuple[str, bool]]) -> Iterator[tuple[list[int], str, bool]]:
        """Take (text, whether a document ends here) and yield (tokens, text, whether a document ends here)."""
        encodings = self._backend.encode_batch_fast([piece for piece, _ in pieces], add_special_tokens=False)
        for (piece, ends), encoding in zip(pieces, encodings, strict=True):
            yield ([*encoding.ids, self.eos] if ends else encoding.ids), piece, ends

    def beginning(self, text: str, count: int) -> tuple[list[int], str]:
        """Return the first tokens of a text, at most so many, and what they spell; no character is cut."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        spans = encoding.offsets
        if count >= len(spans):
            return list(encoding.ids), text
        # The bytes of a character may be several tokens, each of which spans all of it.
        while count and spans[count][0] < spans[count - 1][1]:
            count -= 1
        return list(encoding.ids[:count]), text[: spans[count - 1][1]] if count else ""


def encode(documents: Iterator[str], tokenizer: Any) -> Iterator[tuple[list[int], str, bool]]:
    """Yield (tokens, text, whether a document ends here), piece by piece, EOS included."""
    encoder = Encoder(tokenizer)
    batch: list[tuple[str, bool]] = []
    size = 0
    for text in documents:
        for piece, ends in pieces_of(text):
            batch.append((piece, ends))
            size += len(piece)
            if size >= _BATCH or len(batch) >= 10_000:
                yield from encoder(batch)
                batch, size = [], 0
    yield from encoder(batch)


def pieces_of(text: str) -> Iterator[tuple[str, bool]]:
    """Cut a long document where no token stands across; yield (piece, whether it is the last)."""
    start = 0
    while len(text) - start > _PIECE:
        cut = _CUT.search(text, start + _PIECE // 2, start + _PIECE)
        stop = cut.end() if cut else _any_cut(text, start, start + _PIECE)
        yield text[start:stop], False
        start = stop
    yield text[start:], True


def _any_cut(text: str, start: int, stop: int) -> int:
    newline = text.rfind("\n", start, stop)
    space = text.rfind(" ", start, stop)
    # Before a space, since tokens of most tokenizers begin with theirs.
    return newline + 1 if newline > start else space if space > start else stop
