"""Split documents or examples into training and validation: disjoint, and the same every time."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llm_lab.errors import Problem, UserError, did_you_mean, one_of
from llm_lab.estimate.tuning_cost import ExampleSizes

from .examples import ExampleSource, open_examples
from .paths import find_files
from .rows import Example

TAKES = ("end", "random")
READ_AT_ONCE_BYTES = 16 * 2**20  # larger files are not read for a plan
MEASURED_ROWS = 200  # rows whose tokens are counted for a plan
TOKENS_OF_TEMPLATE = 5  # about what a chat template adds to each message
Documents = Callable[[], Iterator[str]]
Render = Callable[[Sequence[Mapping[str, Any]], bool], str]


@dataclass(frozen=True)
class Side:
    """One side of a split; call it to iterate over its documents.

    `characters`: total length. `duplicates`: number of documents left out because the other side has an equal one.
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


def split_documents(
    source_documents: Documents, *, fraction: float, take: str, left_out: np.ndarray | None = None
) -> tuple[Side, Side]:
    """Return the (training, validation) sides of a corpus; `fraction` of the characters go to validation.

    `take` "end": documents that start at or after character int(total * (1 - fraction)) are validation. If there
    are none, the last document is cut there, so a single long text is split as in nanoGPT's tiny Shakespeare. A
    validation document that is also in training is left out of validation, so the validation loss stays honest.

    `take` "random": a document is validation if the hash of its text is below `fraction`. Neither a new order nor added
    documents move a document, and equal documents are on the same side.

    `left_out`: hashes of documents that are left out of validation too, since another set trains on them.

    Reads the corpus once and keeps 16 bytes per document. Raises UserError for values out of range.
    """
    if not 0 <= fraction < 1:
        raise UserError(
            Problem("validation.fraction", "Out of range", value=fraction, allowed="at least 0 and less than 1")
        )
    if take not in TAKES:
        raise UserError(
            Problem(
                "validation.from",
                "Unknown way to split",
                value=take,
                allowed=one_of(TAKES),
                fix=did_you_mean(take, TAKES),
            )
        )
    lengths, hashes = _survey(source_documents)
    if take == "random":
        return _split_random(source_documents, lengths, hashes, fraction)
    return _split_end(source_documents, lengths, hashes, fraction, left_out)


@dataclass(frozen=True)
class SplitHashes:
    """The hashes of a corpus's documents, by side of the split `end`."""

    train: np.ndarray
    validation: np.ndarray


def hash_sides(source_documents: Documents, *, fraction: float) -> SplitHashes:
    """Return the document hashes of both sides of the split `end`, to compare several sets. Reads the corpus once."""
    lengths, hashes = _survey(source_documents)
    held_out = _held_out_at_end(lengths, fraction)
    if fraction > 0 and len(lengths) and not held_out.any():  # the last document is cut
        return SplitHashes(hashes, hashes[-1:])
    return SplitHashes(np.unique(hashes[~held_out]), np.unique(hashes[held_out]))


def _held_out_at_end(lengths: np.ndarray, fraction: float) -> np.ndarray:
    return np.cumsum(lengths) - lengths >= int(int(lengths.sum()) * (1 - fraction))


def _split_random(source: Documents, lengths: np.ndarray, hashes: np.ndarray, fraction: float) -> tuple[Side, Side]:
    if len(lengths) == 1 and fraction > 0:
        raise UserError(
            Problem(
                "validation.from",
                "There is only one document, and random splits whole documents",
                value="random",
                fix="Use from: end, which cuts the document.",
            )
        )
    held_out = hashes < np.uint64(int(fraction * 2**64))
    return _side(source, lengths, ~held_out), _side(source, lengths, held_out)


def _split_end(
    source: Documents, lengths: np.ndarray, hashes: np.ndarray, fraction: float, left_out: np.ndarray | None
) -> tuple[Side, Side]:
    elsewhere = np.zeros(0, dtype=np.uint64) if left_out is None else left_out
    total = int(lengths.sum())
    held_out = _held_out_at_end(lengths, fraction)
    if fraction > 0 and len(lengths) and not held_out.any():
        last = len(lengths) - 1
        at = int(total * (1 - fraction)) - (total - int(lengths[last]))
        both: np.ndarray = np.ones(len(lengths), dtype=bool)
        only: np.ndarray = np.zeros(len(lengths), dtype=bool)
        only[last] = True
        tail = int(lengths[last]) - at
        train = Side(last + 1, total - tail, 0, source, both, (last, slice(None, at)))
        if hashes[last] in elsewhere:
            return train, Side(0, 0, 1, source, np.zeros_like(only))
        return (
            train,
            Side(1, tail, 0, source, only, (last, slice(at, None))),
        )
    leaked = held_out & np.isin(hashes, np.concatenate([hashes[~held_out], elsewhere]))
    return _side(source, lengths, ~held_out), _side(source, lengths, held_out & ~leaked, int(leaked.sum()))


def _side(source: Documents, lengths: np.ndarray, keep: np.ndarray, duplicates: int = 0) -> Side:
    return Side(int(keep.sum()), int(lengths[keep].sum()), duplicates, source, keep)


def _survey(documents: Documents) -> tuple[np.ndarray, np.ndarray]:
    lengths, hashes = array("q"), array("Q")
    for text in documents():
        lengths.append(len(text))
        hashes.append(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))
    return np.array(lengths, dtype=np.int64), np.array(hashes, dtype=np.uint64)


@dataclass(frozen=True)
class ExampleSplit:
    """The two sides of a dataset. `duplicates`: examples left out of validation because training has their prompt."""

    train: Sequence[Example]
    validation: Sequence[Example]
    duplicates: int


def split_examples(
    sources: Sequence[ExampleSource], *, fraction: float, take: str, require_validation: bool = True
) -> list[ExampleSplit]:
    """Return the training and validation examples of each dataset; a prompt is on one side only, across datasets.

    take "end": the last `fraction` of each dataset is validation, except prompts that are also in training. take
    "random": the hash of the prompt decides, so neither a new order nor added examples move an example. If no example
    has a hash below `fraction`, the one with the lowest hash is validation. The prompt of a conversation is everything
    before the first answer that is trained on. Raises UserError if a side of a dataset would be empty (with
    require_validation False: only if training would be empty).
    """
    if take not in TAKES:
        why = "Unknown way to split"
        raise UserError(
            Problem("validation.from", why, value=take, allowed=one_of(TAKES), fix=did_you_mean(take, TAKES))
        )
    hashes = [[_hash(example.opening) for example in source.examples] for source in sources]
    if take == "random":
        limit = int(fraction * 2**64)
        few = [values for values in hashes if fraction and min(values, default=0) >= limit and len(set(values)) > 1]
        lowest = {min(values) for values in few}
        held_out = [[value < limit or value in lowest for value in values] for values in hashes]
    else:
        held_out = [_last(len(values), fraction) for values in hashes]
    trained = {
        value
        for values, held in zip(hashes, held_out, strict=True)
        for value, is_held in zip(values, held, strict=True)
        if not is_held
    }
    splits = []
    for source, values, held in zip(sources, hashes, held_out, strict=True):
        rows = list(zip(source.examples, values, held, strict=True))
        train = [example for example, _, is_held in rows if not is_held]
        validation = [example for example, value, is_held in rows if is_held and value not in trained]
        splits.append(ExampleSplit(train, validation, len(rows) - len(train) - len(validation)))
    _require_sides(sources, splits, fraction, require_validation)
    return splits


def _last(size: int, fraction: float) -> list[bool]:
    kept = size - max(1, round(size * fraction)) if fraction else size
    return [number >= kept for number in range(size)]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _require_sides(
    sources: Sequence[ExampleSource], splits: Sequence[ExampleSplit], fraction: float, require_validation: bool
) -> None:
    problems = []
    for source, split in zip(sources, splits, strict=True):
        size = f"{len(source.examples):,} example{'' if len(source.examples) == 1 else 's'}"
        if not split.train:
            why = f"None of the {size} in {source.path} is left for training"
            if len(source.examples) == 1:
                why = f"the only example in {source.path} is held out for validation, so none is left for training"
            problems.append(
                Problem("validation.fraction", why, value=fraction, fix="Add examples, or set a smaller fraction.")
            )
        elif fraction and require_validation and not split.validation:
            why = f"None of the {size} in {source.path} is left for validation"
            if len(source.examples) == 1:
                why = f"the only example in {source.path} is used for training, so none is left for validation"
            elif split.duplicates:
                why += f": {split.duplicates:,} have prompts that are also in training"
            fix = "Set a larger fraction, add examples, or set fraction: 0."
            problems.append(Problem("validation.fraction", why, value=fraction, fix=fix))
    if problems:
        raise UserError(*problems)


# --- for a plan


def measure_examples(
    sets: Sequence[Mapping[str, Any]],
    *,
    kind: str,
    fraction: float,
    take: str,
    count_tokens: Callable[[str], int],
    render: Render | None = None,
) -> ExampleSizes | None:
    """Return the number and lengths of the examples of a recipe's datasets, or None if reading them would take long.

    sets: the arguments of open_examples. count_tokens: returns the tokens of a text. render: returns the text that the
    model's chat template makes of messages, or of a prompt. A Hub dataset is not read. Raises UserError as
    open_examples does.
    """
    for given in sets:
        path = str(given["path"])
        files = None if path.startswith("builtin:") else find_files(path, given["key"], given["split"])
        if not path.startswith("builtin:") and files is None:
            return None
        if files is not None and sum(file.stat().st_size for file in files.files) > READ_AT_ONCE_BYTES:
            return None
    sources = [open_examples(kind=kind, **given) for given in sets]
    splits = split_examples(sources, fraction=fraction, take=take, require_validation=False)
    train = [example for split in splits for example in split.train]
    some = train[:: max(1, len(train) // MEASURED_ROWS)]
    dropped = [
        f"{count:,} of {source.counts.read:,} rows of {source.path}: {why}"
        for source in sources
        for why, count in source.counts.dropped.items()
    ]
    held_out = sum(len(split.validation) for split in splits)
    repeated = sum(split.duplicates for split in splits)
    try:
        lengths = [_tokens_of(one, count_tokens, render) for one in some]
    except Exception:  # a template is a program and may raise anything; the run reports the error
        lengths = [_tokens_of(one, count_tokens) for one in some]
    return ExampleSizes(len(train), held_out, lengths, tuple(dropped), repeated)


def _tokens_of(example: Example, count_tokens: Callable[[str], int], render: Render | None = None) -> int:
    """Estimate the tokens of an example: of a pair, the longer side; without answers, the prompt alone."""
    if example.text is not None:
        return count_tokens(example.text) + 1
    answers = [text for text in (example.completion, example.chosen, example.rejected) if text is not None]
    if render is not None:
        asked = list(example.prompt)
        whole = [render([*asked, {"role": "assistant", "content": text, **example.about}], False) for text in answers]
        return max(map(count_tokens, whole or [render(asked, True)]))
    said = sum(count_tokens(str(message["content"])) + TOKENS_OF_TEMPLATE for message in example.prompt)
    return said + max((count_tokens(text) for text in answers), default=0) + TOKENS_OF_TEMPLATE
