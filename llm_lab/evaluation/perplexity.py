"""Loss, perplexity and bits per byte of any causal model on any text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llm_lab.data.encoding import Encoder, pieces_of, start_token_id
from llm_lab.data.sources import TextSource, open_source
from llm_lab.errors import Problem, UserError
from llm_lab.events import Listener, Notice, progress_of
from llm_lab.hf.load import context_of
from llm_lab.recipe.eval import EvalText
from llm_lab.training.loss import PATIENCE_SECONDS, summed_nats

from .score import generating

IGNORED = -100
DEFAULT_LENGTH = 1024  # tokens of context, if neither the recipe nor the run sets it
FEW_TOKENS = 1_000
CHUNK_CHARACTERS, CHUNK_PIECES = 250_000, 1_000  # encoded in one call


def open_texts(data: Sequence[EvalText]) -> list[TextSource]:
    """Open every text. Raises UserError with the problems of all of them."""
    sources: list[TextSource] = []
    problems: list[Problem | str] = []
    for index, text in enumerate(data):
        try:
            sources.append(open_source(**text.model_dump(), key=f"data.{index}"))
        except UserError as error:
            problems.extend(error.problems)
    if problems:
        raise UserError(*problems)
    return sources


def context_length(model: Any, requested: int | None, trained: int | None = None) -> int:
    """Return the context length to measure with, in tokens.

    It is the requested length, else the training length, else the model's context up to 1,024. Raises UserError if
    the requested length exceeds the model's context.
    """
    context = context_of(model)
    if requested is not None and context is not None and requested > context:
        why = f"the model's context is {context:,} tokens"
        raise UserError(Problem("eval.max_length", why, value=requested, fix=f"Set it to at most {context}."))
    return requested or min(trained or DEFAULT_LENGTH, context or DEFAULT_LENGTH)


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
    stride: int | None = None,
) -> dict[str, Any]:
    """Return the loss (nats per token), perplexity and bits_per_byte of a text, and what was measured.

    Each document is measured on its own: after a start token, in windows of max_length tokens, with each of its tokens
    as a target exactly once. stride: tokens between the starts of two windows, so that every token except the first
    ones has at least max_length - stride tokens before it; default: windows do not overlap. Bytes are the UTF-8 bytes
    of the measured text, so bits_per_byte is comparable between models with different tokenizers. max_tokens: how many
    tokens are measured, from the start; a document is cut between characters. Raises UserError if the text is empty,
    the loss is NaN or stride exceeds max_length.
    """
    if stride is not None and stride > max_length:
        why = f"windows of {max_length:,} tokens (eval.max_length) that move by more would skip tokens"
        raise UserError(Problem("eval.stride", why, value=stride, allowed=f"1 to {max_length}"))
    documents, size, whole = _read(source, tokenizer, max_tokens)
    tokens = sum(len(ids) - 1 for ids in documents)
    if not tokens:
        raise UserError(Problem(f"{source.key}.path", "the text is empty", value=source.path))
    if tokens < FEW_TOKENS:
        listener(Notice(f"{source.path}: only {tokens:,} tokens, so the numbers are not precise"))
    blocks = [block for ids in documents for block in _blocks(ids, max_length, stride or max_length)]
    report = progress_of(listener, f"measuring {source.path}")
    with generating(model):
        nats = _sum_nats(model, blocks, rows * max_length, device, dtype, report)
    measured = {"documents": len(documents), "tokens": tokens, "bytes": size, "whole": whole, "max_length": max_length}
    if stride is not None:
        measured["stride"] = stride
    return {"path": source.path, "fingerprint": source.fingerprint} | figures(nats, tokens, size) | measured


def total_of(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return loss, perplexity and bits_per_byte over several measured texts together."""
    tokens, size = (sum(row[key] for row in rows) for key in ("tokens", "bytes"))
    return figures(sum(row["loss"] * row["tokens"] for row in rows), tokens, size)


def figures(nats: float, tokens: int, size: float, text_nats: float | None = None) -> dict[str, float]:
    """Return loss, perplexity and bits_per_byte of a sum of nats. Raises UserError if it is not finite.

    text_nats: the part of the sum that the bytes belong to, if document ends were predicted too.
    """
    bits = (nats if text_nats is None else text_nats) / math.log(2)
    return loss_figures(nats, tokens) | {"bits_per_byte": bits / size}


def loss_figures(nats: float, tokens: int) -> dict[str, float]:
    """Return loss and perplexity of a sum of nats. Raises UserError if it is not finite."""
    if not math.isfinite(nats):
        fix = "Use an earlier checkpoint, from before training diverged."
        raise UserError(Problem("model", "its loss is NaN or infinite", fix=fix))
    loss = nats / tokens
    # exp() overflows for losses above 709.
    return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}


def _read(source: TextSource, tokenizer: Any, max_tokens: int) -> tuple[list[np.ndarray], int, bool]:
    """Return (documents as token ids with the start token first, their size in bytes, whether nothing was cut)."""
    encoder, start = Encoder(tokenizer), start_token_id(tokenizer)
    documents: list[np.ndarray] = []
    parts: list[int] = []
    size, room, whole = 0, max_tokens, True
    for ids, text, ends in _encoded_pieces(encoder, source):
        if len(ids) > room:
            ids, text = encoder.beginning(text, room)
            ends, whole = True, False
        parts += ids
        size += len(text.encode())
        room -= len(ids)
        if ends:
            documents.append(np.array([start, *parts], dtype=np.int64))
            parts = []
        if not whole:
            break
    return [ids for ids in documents if len(ids) > 1], size, whole


def _encoded_pieces(encoder: Encoder, source: TextSource) -> Iterator[tuple[list[int], str, bool]]:
    """Yield (token ids, text, whether the document ends here), encoding in batches.

    The token that ends a document is not measured: it differs between a base model and its fine-tuned versions.
    """
    batch: list[tuple[str, bool]] = []
    size = 0
    for document in source.documents():
        for piece in pieces_of(document):
            batch.append(piece)
            size += len(piece[0])
            if len(batch) >= CHUNK_PIECES or size >= CHUNK_CHARACTERS:
                yield from _encode(encoder, batch)
                batch, size = [], 0
    yield from _encode(encoder, batch)


def _encode(encoder: Encoder, batch: list[tuple[str, bool]]) -> Iterator[tuple[list[int], str, bool]]:
    encoded = encoder([(text, False) for text, _ in batch])
    for (ids, text, _), (_, ends) in zip(encoded, batch, strict=True):
        yield ids, text, ends


@dataclass(frozen=True)
class _Window:
    """Tokens of a document; all but the first `context` + 1 of them are targets."""

    ids: np.ndarray
    context: int


def _blocks(ids: np.ndarray, length: int, stride: int) -> Iterator[_Window]:
    """Cut a document into windows in which each token but the first is a target exactly once."""
    done = 0  # tokens that have been targets
    while done < len(ids) - 1:
        stop = min(len(ids) - 1, done + (stride if done else length))
        start = max(0, stop - length) if stride < length else done
        yield _Window(ids[start : stop + 1], done - start)
        done = stop


def _sum_nats(
    model: Any,
    blocks: list[_Window],
    tokens_at_once: int,
    device: str,
    dtype: str,
    progress: Callable[[int, int], None],
) -> float:
    """Return the sum of nats. Blocks of similar length share a batch, to limit padding."""
    blocks.sort(key=lambda block: len(block.ids), reverse=True)
    total, done, started = 0.0, 0, time.perf_counter()
    while done < len(blocks):
        width = len(blocks[done].ids) - 1
        batch = blocks[done : done + max(1, tokens_at_once // width)]
        ids: np.ndarray = np.zeros((len(batch), width), dtype=np.int64)
        labels: np.ndarray = np.full((len(batch), width), IGNORED, dtype=np.int64)
        for row, block in enumerate(batch):
            count, context = len(block.ids) - 1, block.context
            ids[row, :count], labels[row, context:count] = block.ids[:-1], block.ids[1 + context :]
        # Padding comes after the text and attention is causal, so no mask is needed.
        with torch.no_grad():
            inputs, targets = torch.from_numpy(ids).to(device), torch.from_numpy(labels).to(device)
            total += summed_nats(model, inputs, targets, device, dtype)[0].item()
        done += len(batch)
        if time.perf_counter() - started > PATIENCE_SECONDS:
            progress(done, len(blocks))
    return total
