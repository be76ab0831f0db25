"""Split a corpus into training and validation documents that are disjoint and the same every time."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from llm_lab.errors import Problem, UserError, did_you_mean, one_of

TAKES = ("end", "random")
Documents = Callable[[], Iterator[str]]


@dataclass(frozen=True)
class Side:
    """One side of a split: call it for a fresh iterator over its documents.

    `characters` counts them; `duplicates` is how many documents were left out because an equal one
    stands on the other side.
    """

    documents: int
    characters: int
    duplicates: int
    _source: Documents = field(repr=False)
    _keep: np.ndarray = field(repr=False)
    _cut: tuple[int, slice] | None = field(repr=False, default=None)

    def __call__(self) -> Iterator[str]:
        for index, (text, keep) in enumerate(zip(self._source(), self._keep, strict=False)):
            if keep:
                yield text[self._cut[1]] if self._cut and self._cut[0] == index else text


def split_documents(source_documents: Documents, *, fraction: float, take: str) -> tuple[Side, Side]:
    """Return (training, validation) sides of a corpus; `fraction` of the characters are for validation.

    `take` "end": the corpus in order. The boundary stands at character int(total * (1 - fraction)).
    Documents that start at or after it are validation; where none does, the last document is cut there,
    so one long text splits as nanoGPT's tiny Shakespeare does. A validation document that also stands in
    training is left out of validation: training keeps all the text the user gave, and the loss on
    validation is not flattered.

    `take` "random": a document is validation when the hash of its text falls below `fraction`. Neither
    order nor additions move a document, and equal documents fall on the same side.

    Reads the corpus once to measure it; keeps 16 bytes a document. UserError for values out of range.
    """
    if not 0 <= fraction < 1:
        raise UserError(
            Problem("validation.fraction", "It is out of range", value=fraction, allowed="0 up to, not with, 1")
        )
    if take not in TAKES:
        raise UserError(
            Problem(
                "validation.from",
                "There is no such way to split",
                value=take,
                allowed=one_of(TAKES),
                fix=did_you_mean(take, TAKES),
            )
        )
    lengths, hashes = _survey(source_documents)
    if take == "random":
        return _split_random(source_documents, lengths, hashes, fraction)
    return _split_end(source_documents, lengths, hashes, fraction)


def _split_random(source: Documents, lengths: np.ndarray, hashes: np.ndarray, fraction: float) -> tuple[Side, Side]:
    if len(lengths) == 1 and fraction > 0:
        raise UserError(
            Problem(
                "validation.from",
                "There is only one document, and whole documents are drawn",
                value="random",
                fix="Use from: end, which cuts the document.",
            )
        )
    held_out = hashes < np.uint64(int(fraction * 2**64))
    return _side(source, lengths, ~held_out), _side(source, lengths, held_out)


def _split_end(source: Documents, lengths: np.ndarray, hashes: np.ndarray, fraction: float) -> tuple[Side, Side]:
    total = int(lengths.sum())
    starts = np.cumsum(lengths) - lengths
    boundary = int(total * (1 - fraction))
    held_out = starts >= boundary
    if fraction > 0 and len(lengths) and not held_out.any():
        last = len(lengths) - 1
        at = boundary - int(starts[last])
        both = np.ones(len(lengths), dtype=bool)
        only = np.zeros(len(lengths), dtype=bool)
        only[last] = True
        tail = int(lengths[last]) - at
        return (
            Side(last + 1, total - tail, 0, source, both, (last, slice(None, at))),
            Side(1, tail, 0, source, only, (last, slice(at, None))),
        )
    leaked = held_out & np.isin(hashes, hashes[~held_out])
    return _side(source, lengths, ~held_out), _side(source, lengths, held_out & ~leaked, int(leaked.sum()))


def _side(source: Documents, lengths: np.ndarray, keep: np.ndarray, duplicates: int = 0) -> Side:
    return Side(int(keep.sum()), int(lengths[keep].sum()), duplicates, source, keep)


def _survey(documents: Documents) -> tuple[np.ndarray, np.ndarray]:
    lengths, hashes = array("q"), array("Q")
    for text in documents():
        lengths.append(len(text))
        hashes.append(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))
    return np.array(lengths, dtype=np.int64), np.array(hashes, dtype=np.uint64)
