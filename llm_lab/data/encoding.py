"""Encode text as tokens, once, and keep the tokens in memory-mapped files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llm_lab.errors import MachineError, Problem, UserError

from .sources import TextSource
from .split import Side, split_documents

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


_FORMAT = 1  # part of every fingerprint: raise it when the same text would give other files
_STALE_SECONDS = 24 * 3600
_HALF_DONE = ".half-done-"


@dataclass(frozen=True)
class TokenSet:
    """The tokens of a corpus on disk; `train` and `validation` are read-only memory maps.

    Every document ends with the tokenizer's EOS. Bytes are UTF-8 bytes of the text without EOS.
    `duplicates` is how many validation documents were left out because training holds them too.
    """

    folder: Path
    train: np.ndarray
    validation: np.ndarray
    train_documents: int
    validation_documents: int
    train_bytes: int
    validation_bytes: int
    duplicates: int
    description: str
    cached: bool
    fingerprint: str


def default_cache_dir() -> Path:
    """Return the folder for token files: tokens/ in $LLM_LAB_CACHE, or in llm-lab/ of the user's cache."""
    if own := os.environ.get("LLM_LAB_CACHE"):
        return Path(own).expanduser() / "tokens"
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "llm-lab" / "tokens"


def prepare_tokens(
    source: TextSource,
    tokenizer: Any,
    *,
    tokenizer_fingerprint: str,
    fraction: float,
    take: str,
    max_length: int,
    cache_dir: Path,
    progress: Callable[[int, int], None] | None = None,
) -> TokenSet:
    """Return a source's tokens, split; encoded now, or mapped from the cache where they are there already.

    The cache is keyed by text, tokenizer and split, not by names, times or max_length. `progress` gets
    (characters done, characters in all). UserError where the text is shorter than a block or the
    tokenizer has no EOS; MachineError where the disk is full or the cache can't be written.
    """
    eos = checked_eos(tokenizer)
    split = f"{fraction!r} {take}" if fraction else "none"
    parts = (str(_FORMAT), source.fingerprint, tokenizer_fingerprint, split)
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    folder = Path(cache_dir) / key[:32]
    tokens = _open_cached(folder, key, source, cached=True)
    if tokens is None:
        sides = split_documents(source.documents, fraction=fraction, take=take)
        with _disk_errors(Path(cache_dir)):
            _write(folder, key, source, sides, tokenizer, eos, progress)
            tokens = _open_cached(folder, key, source, cached=False)
        if tokens is None:
            raise MachineError(Problem(str(folder), "The tokens just written there can't be read back"))
    _check_lengths(tokens, source, fraction, max_length)
    return tokens


def _write(
    folder: Path,
    key: str,
    source: TextSource,
    sides: tuple[Side, Side],
    tokenizer: Any,
    eos: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    temporary = Path(tempfile.mkdtemp(prefix=_HALF_DONE, dir=folder.parent))
    try:
        highest = max(eos, *tokenizer.get_vocab().values())
        dtype = np.dtype("<u2" if highest < 2**16 else "<u4")
        meta: dict[str, Any] = {"key": key, "dtype": dtype.str, "eos": eos, "duplicates": sides[1].duplicates}
        total = sum(side.characters for side in sides)
        done = 0
        for name, side in zip(("train", "validation"), sides, strict=True):
            before = done
            counts = {"tokens": 0, "documents": 0, "bytes": 0}
            with (temporary / f"{name}.bin").open("wb") as file:
                for ids, text, ends in encode(side(), tokenizer):
                    # Not ndarray.tofile: its error on a full disk has no errno.
                    file.write(np.asarray(ids, dtype=dtype).tobytes())
                    counts["tokens"] += len(ids)
                    counts["documents"] += ends
                    counts["bytes"] += len(text.encode())
                    done += len(text)
                    if progress is not None:
                        progress(done, total)
                _sync(file)
            # Else the text of another day would be kept under the fingerprint of this one.
            if counts["documents"] != side.documents or done != before + side.characters:
                raise UserError(Problem(source.key, "The text changed while it was read", value=source.path))
            meta[name] = counts
        with (temporary / "meta.json").open("wb") as file:
            file.write(json.dumps(meta, indent=2).encode() + b"\n")
            _sync(file)
        _publish(temporary, folder, key)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, folder: Path, key: str) -> None:
    if folder.exists() and _read_meta(folder, key) is None:
        shutil.rmtree(folder)
    try:
        os.replace(temporary, folder)
    except OSError as error:
        # Another process was faster; its files are the same as ours.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or _read_meta(folder, key) is None:
            raise


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sweep(cache_dir: Path) -> None:
    """Remove what writers that were killed have left behind."""
    for left in cache_dir.glob(f"{_HALF_DONE}*"):
        try:
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        except FileNotFoundError:
            continue


def _read_meta(folder: Path, key: str) -> dict[str, Any] | None:
    """Return what is known of a cached folder, or None where it is missing, damaged or another's."""
    try:
        meta = json.loads((folder / "meta.json").read_bytes())
        size = np.dtype(meta["dtype"]).itemsize
        sound = meta["key"] == key and all(
            (folder / f"{name}.bin").stat().st_size == meta[name]["tokens"] * size for name in ("train", "validation")
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return meta if sound else None


def _open_cached(folder: Path, key: str, source: TextSource, *, cached: bool) -> TokenSet | None:
    meta = _read_meta(folder, key)
    if meta is None:
        return None
    train, validation = meta["train"], meta["validation"]
    description = f"{source.describe()}: {train['tokens']:,} training tokens of {_documents(train)}"
    if validation["tokens"]:
        description += f", {validation['tokens']:,} validation tokens of {_documents(validation)}"
    if meta["duplicates"]:
        description += f" ({meta['duplicates']:,} more left out, which training holds too)"
    return TokenSet(
        folder=folder,
        train=_map(folder / "train.bin", meta["dtype"]),
        validation=_map(folder / "validation.bin", meta["dtype"]),
        train_documents=train["documents"],
        validation_documents=validation["documents"],
        train_bytes=train["bytes"],
        validation_bytes=validation["bytes"],
        duplicates=meta["duplicates"],
        description=description,
        cached=cached,
        fingerprint=key,
    )


def _documents(counts: dict[str, int]) -> str:
    return f"{counts['documents']:,} document{'' if counts['documents'] == 1 else 's'}"


def _map(file: Path, dtype: str) -> np.ndarray:
    # An empty file can't be mapped.
    return np.memmap(file, dtype=dtype, mode="r") if file.stat().st_size else np.zeros(0, dtype=dtype)


def _check_lengths(tokens: TokenSet, source: TextSource, fraction: float, max_length: int) -> None:
    need = f"one block of max_length = {max_length:,} takes {max_length + 1:,}"
    problems = []
    if len(tokens.train) < max_length + 1:
        problems.append(
            Problem(
                f"{source.key}.path",
                f"The training part is {len(tokens.train):,} tokens long, and {need}",
                value=source.path,
                fix="Give more text, or set a smaller train.max_length.",
            )
        )
    if fraction > 0 and len(tokens.validation) < max_length + 1:
        left_out = f", after {tokens.duplicates} were left out that training holds" if tokens.duplicates else ""
        problems.append(
            Problem(
                "validation.fraction",
                f"The validation part of {source.path} is {len(tokens.validation):,} tokens long{left_out}, and {need}",
                value=fraction,
                fix="Set a larger fraction, give more text, or set a smaller train.max_length.",
            )
        )
    if problems:
        raise UserError(*problems)


@contextmanager
def _disk_errors(cache_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "The disk is full" if full else f"Tokens can't be written there: {error.strerror or error}"
        raise MachineError(
            Problem(
                str(cache_dir),
                why,
                fix="Free some space, or set LLM_LAB_CACHE to a folder on another disk."
                if full
                else "Set LLM_LAB_CACHE to a folder that can be written.",
            )
        ) from error
