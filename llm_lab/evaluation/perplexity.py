"""Loss of any causal model on any text: nats a token, perplexity, bits per byte."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from llm_lab.data.encoding import Encoder, opener_of, pieces_of
from llm_lab.data.sources import TextSource, open_source
from llm_lab.errors import Problem, UserError
from llm_lab.events import Listener, Notice, progress_of
from llm_lab.hf.load import context_of
from llm_lab.recipe.evaluation import EvalText
from llm_lab.training.measure import PATIENCE_SECONDS, summed_nats

from .score import generating

IGNORED = -100
LONGEST = 1024  # tokens that a model sees at once, where nobody says otherwise
FEW_TOKENS = 1_000
CHUNK_CHARACTERS, CHUNK_PIECES = 250_000, 1_000  # what is encoded at once
NO_NUMBERS = "its outputs are not numbers (NaN)"


def open_texts(data: Sequence[EvalText]) -> list[TextSource]:
    """Open every text. UserError with the problems of all of them."""
    sources, problems = [], []
    for index, text in enumerate(data):
        try:
            sources.append(open_source(**text.model_dump(), key=f"data.{index}"))
        except UserError as error:
            problems.extend(error.problems)
    if problems:
        raise UserError(*problems)
    return sources


def length_within(model: Any, wanted: int | None, trained: int | None = None) -> int:
    """Return how many tokens the model is shown at once: what is wanted, else what it was trained with, else what it
    can see, up to 1,024. UserError where more is wanted than it can see."""
    context = context_of(model)
    if wanted is not None and context is not None and wanted > context:
        why = f"the model sees {context:,} tokens at once"
        raise UserError(Problem("eval.max_length", why, value=wanted, fix=f"Set it to at most {context}."))
    return wanted or min(trained or LONGEST, context or LONGEST)


def measure_text(
    model: Any,
    tokenizer: Any,
    source: TextSource,
    *,
    max_tokens: int,
    max_length: int,
    rows: int,
    device: str,
    dtype: str,
    listener: Listener,
) -> dict[str, Any]:
    """Return a row for a text: loss (nats a token), perplexity, bits_per_byte, and what was measured.

    Each document is measured by itself, after the token that begins a text, and in pieces of max_length; each of
    its tokens is a target once, and no other token is. Bytes are the UTF-8 bytes of what was measured: models
    with different tokenizers can be compared by bits_per_byte. max_tokens: the first ones are measured; a document
    is cut between characters. UserError where the outputs are not numbers.
    """
    documents, size, whole = _read(source, tokenizer, max_tokens)
    tokens = sum(len(ids) - 1 for ids in documents)
    if not tokens:
        raise UserError(Problem(f"{source.key}.path", "its text has no tokens", value=source.path))
    if tokens < FEW_TOKENS:
        listener(Notice(f"{source.path}: these are {tokens:,} tokens only, so the figures are rough"))
    blocks = [block for ids in documents for block in _blocks(ids, max_length)]
    tell = progress_of(listener, f"measuring {source.path}")
    with generating(model):
        nats = _sum(model, blocks, rows * max_length, device, dtype, tell)
    measured = {"documents": len(documents), "tokens": tokens, "bytes": size, "whole": whole, "max_length": max_length}
    return {"path": source.path, "fingerprint": source.fingerprint} | figures(nats, tokens, size) | measured


def total_of(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return loss, perplexity and bits_per_byte of several texts as one."""
    tokens, size = (sum(row[key] for row in rows) for key in ("tokens", "bytes"))
    return figures(sum(row["loss"] * row["tokens"] for row in rows), tokens, size)


def figures(nats: float, tokens: int, size: float) -> dict[str, float]:
    """Return what a sum of nats comes to over so many tokens and bytes. UserError where it is no number."""
    if not math.isfinite(nats):
        raise UserError(Problem("model", NO_NUMBERS, fix="Take a checkpoint from before it diverged."))
    loss = nats / tokens
    # exp() has no room for the loss of a model that is sure of the wrong thing.
    perplexity = math.exp(loss) if loss < 700 else math.inf
    return {"loss": loss, "perplexity": perplexity, "bits_per_byte": nats / math.log(2) / size}


def _read(source: TextSource, tokenizer: Any, most: int) -> tuple[list[np.ndarray], int, bool]:
    """Return documents as tokens, each behind the token that begins a text; their bytes, and whether these are all."""
    encoder, opener = Encoder(tokenizer), opener_of(tokenizer)
    documents, parts, size, room, whole = [], [], 0, most, True
    for piece, ends in _pieces(encoder, source):
        ids, text = piece
        if len(ids) > room:
            ids, text = encoder.beginning(text, room)
            ends, whole = True, False
        parts += ids
        size += len(text.encode())
        room -= len(ids)
        if ends:
            documents.append(np.array([opener, *parts], dtype=np.int64))
            parts = []
        if not whole:
            break
    return [ids for ids in documents if len(ids) > 1], size, whole


def _pieces(encoder: Encoder, source: TextSource) -> Iterator[tuple[tuple[list[int], str], bool]]:
    """Yield ((tokens, text), whether a document ends here), encoding no more than a little ahead."""
    batch: list[tuple[str, bool]] = []
    size = 0
    for document in source.documents():
        for piece in pieces_of(document):
            batch.append(piece)
            size += len(piece[0])
            if len(batch) >= CHUNK_PIECES or size >= CHUNK_CHARACTERS:
                yield from _encoded(encoder, batch)
                batch, size = [], 0
    yield from _encoded(encoder, batch)


def _encoded(encoder: Encoder, batch: list[tuple[str, bool]]) -> Iterator[tuple[tuple[list[int], str], bool]]:
    # What ends a document is no part of it: each model has a token of its own for that, a tuned one another.
    found = encoder([(text, False) for text, _ in batch])
    for (ids, text, _), (_, ends) in zip(found, batch, strict=True):
        yield (ids, text), ends


def _blocks(ids: np.ndarray, length: int) -> Iterator[np.ndarray]:
    """Cut a document so that each token but the first is a target once."""
    for start in range(0, len(ids) - 1, length):
        yield ids[start : start + length + 1]


def _sum(
    model: Any,
    blocks: list[np.ndarray],
    tokens_at_once: int,
    device: str,
    dtype: str,
    progress: Callable[[int, int], None],
) -> float:
    """Return the sum of nats. Blocks of like length are measured together: little of a batch is padding."""
    blocks.sort(key=len, reverse=True)
    total, done, begun = 0.0, 0, time.perf_counter()
    while done < len(blocks):
        width = len(blocks[done]) - 1
        batch = blocks[done : done + max(1, tokens_at_once // width)]
        ids, labels = np.zeros((len(batch), width), np.int64), np.full((len(batch), width), IGNORED)
        for row, block in enumerate(batch):
            ids[row, : len(block) - 1], labels[row, : len(block) - 1] = block[:-1], block[1:]
        # Padding stands behind the text and attention looks back only, so it needs no mask.
        with torch.no_grad():
            inputs, targets = torch.from_numpy(ids).to(device), torch.from_numpy(labels).to(device)
            total += summed_nats(model, inputs, targets, device, dtype).item()
        done += len(batch)
        if time.perf_counter() - begun > PATIENCE_SECONDS:
            progress(done, len(blocks))
    return total
