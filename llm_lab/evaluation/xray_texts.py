"""The X-ray of plain text: documents as tokens, and what ends them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from llm_lab.data.sources import open_source
from llm_lab.data.streams import open_stream
from llm_lab.hf.conversations import Encoded
from llm_lab.hf.tokenizers import load_tokenizer, make_byte_tokenizer, train_bpe
from llm_lab.recipe.schema import BpeTokenizer
from llm_lab.training.loop import find_local

from .xray_values import SetXray, make_specimen

MEASURED_DOCUMENTS = 2_000
MEASURED_CHARACTERS = 2_000_000
Read = Callable[[], Iterator[str]]


def xray_texts(recipe: Any, tokenizer: Any | None, specimens: int) -> tuple[Any, str, list[SetXray]]:
    """Return (tokenizer, what ends a document, sets); where no tokenizer is given, it is the recipe's.

    A BPE is trained on the beginning of the texts alone, which gives nearly the run's own.
    """
    texts = [_open_texts(source, f"data.{index}") for index, source in enumerate(recipe.data)]
    tokenizer = tokenizer or _make_tokenizer(recipe, [read for _, read in texts])
    sets = [_xray_set(f"data.{i}", *text, tokenizer, recipe, specimens) for i, text in enumerate(texts)]
    return tokenizer, f"plain text; {tokenizer.eos_token} ends a document", sets


def _open_texts(source: Any, key: str) -> tuple[str, Read]:
    """Return what a set of texts is, and a function that reads its documents."""
    options = {"key": key, "subset": source.subset, "split": source.split, "text_column": source.text_column}
    if source.streaming:
        stream = open_stream(source.path, **options)
        return stream.describe(), lambda: (piece.text for piece in stream.pieces())
    opened = open_source(source.path, **options)
    return opened.describe(), opened.documents


def _make_tokenizer(recipe: Any, texts: Sequence[Read]) -> Any:
    if recipe.tokenizer == "bytes":
        return make_byte_tokenizer()
    if isinstance(recipe.tokenizer, BpeTokenizer):
        beginnings = (text for read in texts for text in _beginning(read))
        return train_bpe(beginnings, recipe.tokenizer.bpe)
    checkpoint = getattr(recipe.model, "checkpoint", None)
    return load_tokenizer(find_local(recipe.tokenizer) if recipe.tokenizer == checkpoint else recipe.tokenizer)


def _beginning(read: Read) -> Iterator[str]:
    room = MEASURED_CHARACTERS
    for text in read():
        yield text[:room]
        room -= len(text)
        if room <= 0:
            return


def _xray_set(key: str, description: str, read: Read, tokenizer: Any, recipe: Any, specimens: int) -> SetXray:
    lengths, shown = [], []
    for number, text in enumerate(islice(_beginning(read), MEASURED_DOCUMENTS)):
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        ids = [*ids, tokenizer.eos_token_id]
        lengths.append(len(ids))
        if number < specimens:
            shown.append(
                make_specimen(tokenizer, f"document {number + 1}", Encoded(ids, [1] * len(ids), len(ids)), None)
            )
    rows = recipe.train.max_length
    return SetXray(
        key=key,
        description=description,
        sides=f"read in rows of {rows:,} tokens, document after document",
        measured=len(lengths),
        total=None,
        lengths={"document": tuple(lengths)},
        learnt_share=1.0,
        warnings=(),
        good=(f"{tokenizer.eos_token} stands after every document, and is learnt",),
        rendered=None,
        specimens=tuple(shown),
    )
