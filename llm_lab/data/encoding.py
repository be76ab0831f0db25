"""Encode text as tokens once and cache the tokens in memory-mapped files."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llm_lab.errors import MachineError, Problem, UserError
from llm_lab.estimate.measurements import cache_folder

from .sources import TextSource
from .split import Side, SplitHashes, hash_sides, split_documents

# Longer documents are encoded in pieces of half to all of this many characters: an encoding takes about
# 100 bytes per token, and a single text uses only one core.
_PIECE = 1_000_000
_BATCH = 4 * _PIECE
# A newline between two non-space characters: tokenizers that split on white space never have a token across it.
_CUT = re.compile(r"(?<=\S)\n(?=\S)")


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a digest of everything that determines a tokenizer's output, including its EOS id."""
    backend = _plain_backend(tokenizer)
    return hashlib.sha256(f"{tokenizer.eos_token_id}\0{backend.to_str()}".encode()).hexdigest()


def require_eos(tokenizer: Any) -> int:
    """Return the id that ends every document. Raises UserError if the tokenizer has no EOS token."""
    if tokenizer.eos_token_id is None:
        raise UserError(
            Problem(
                "tokenizer",
                "This tokenizer has no end-of-text token (EOS), which is needed to end every document",
                fix="Add one with tokenizer.add_special_tokens({'eos_token': '<|endoftext|>'}) and save it, "
                "or use tokenizer: bytes or {bpe: 8192}.",
            )
        )
    return int(tokenizer.eos_token_id)


def start_token_id(tokenizer: Any) -> int:
    """Return the id that a text starts with: BOS, or if there is none EOS, the end of the previous text."""
    return require_eos(tokenizer) if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)


def _plain_backend(tokenizer: Any) -> Any:
    """Return a copy of the Rust tokenizer without padding, truncation or special tokens parsed from text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            Problem(
                "tokenizer",
                f"{type(tokenizer).__name__} is not a fast (Rust) tokenizer",
                fix="Use a tokenizer that has a tokenizer.json.",
            )
        )
    # A call with padding or truncation leaves these enabled in the backend.
    backend = type(backend).from_str(backend.to_str())
    backend.no_padding()
    backend.no_truncation()
    # "<|endoftext|>" inside a document is part of the text, not the end of the document.
    backend.encode_special_tokens = True
    return backend


class Encoder:
    """Encodes pieces of documents on all cores; adds EOS after the piece that ends a document."""

    def __init__(self, tokenizer: Any):
        self.eos = require_eos(tokenizer)
        self._backend = _plain_backend(tokenizer)
        self._backend.post_processor = None  # a post-processor may trim spaces from the offsets

    def __call__(self, pieces: Sequence[tuple[str, bool]]) -> Iterator[tuple[list[int], str, bool]]:
        """Take (text, whether it ends a document) and yield (tokens, text, whether it ends a document)."""
        encodings = self._backend.encode_batch_fast([piece for piece, _ in pieces], add_special_tokens=False)
        for (piece, ends), encoding in zip(pieces, encodings, strict=True):
            yield ([*encoding.ids, self.eos] if ends else encoding.ids), piece, ends

    def sizes(self, text: str, ends: bool) -> np.ndarray:
        """Return how many UTF-8 bytes of a piece each of its tokens adds; the sum is the size of the piece.

        If a character takes several tokens, the first one counts all its bytes. EOS counts bytes after the last token.
        """
        codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        widths = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
        reach = np.concatenate([[0], np.cumsum(widths)])  # bytes before each character
        stops = [stop for _, stop in self._backend.encode(text, add_special_tokens=False).offsets]
        if ends:
            stops.append(len(text))
        elif stops:
            stops[-1] = len(text)
        read = reach[np.maximum.accumulate(np.array(stops, dtype=np.int64))] if stops else reach[:0]
        return np.diff(read, prepend=0)

    def beginning(self, text: str, count: int) -> tuple[list[int], str]:
        """Return at most `count` first tokens of a text and the text they encode, without splitting a character."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        spans = encoding.offsets
        if count >= len(spans):
            return list(encoding.ids), text
        # A character may be encoded as several tokens, each with the offsets of the whole character.
        while count and spans[count][0] < spans[count - 1][1]:
            count -= 1
        return list(encoding.ids[:count]), text[: spans[count - 1][1]] if count else ""


def encode(documents: Iterator[str], tokenizer: Any) -> Iterator[tuple[list[int], str, bool]]:
    """Yield (tokens, text, whether it ends a document), piece by piece, EOS included."""
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
    """Split a long document where no token crosses the cut; yield (piece, whether it is the last)."""
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
    # Before a space: in most tokenizers a token starts with its space.
    return newline + 1 if newline > start else space if space > start else stop


_FORMAT = 1  # part of every fingerprint: increase it when the same text would produce different files
_STALE_SECONDS = 24 * 3600
_HALF_DONE = ".half-done-"
_SIZES, _SIZE = "validation_sizes.bin", "<u4"


@dataclass(frozen=True)
class TokenSet:
    """The tokens of a corpus on disk; `train` and `validation` are read-only memory maps.

    Every document ends with the tokenizer's EOS. `validation_sizes`: bytes of each validation token, see Encoder.sizes.
    `duplicates`: number of validation documents left out because they are also in the training split.
    """

    folder: Path
    train: np.ndarray
    validation: np.ndarray
    validation_sizes: np.ndarray
    duplicates: int
    description: str
    cached: bool
    fingerprint: str


def default_cache_dir() -> Path:
    """Return the folder for token files, in the user's cache."""
    return cache_folder("tokens")


def prepare_tokens(
    source: TextSource,
    tokenizer: Any,
    *,
    tokenizer_fingerprint: str,
    fraction: float,
    take: str,
    max_length: int,
    cache_dir: Path,
    left_out: np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TokenSet:
    """Return the tokens of a source, split into training and validation: from the cache, or encoded now.

    The cache key is made of text, tokenizer and split, not of names, times or max_length. `left_out`: hashes of
    documents that stay out of validation, see `trained_elsewhere`. `progress` is called with (characters done, total
    characters). Raises UserError if the text is shorter than one block or the tokenizer has no EOS, MachineError if the
    disk is full or the cache folder is not writable.
    """
    eos = require_eos(tokenizer)
    split = f"{fraction!r} {take}" if fraction else "none"
    parts = [str(_FORMAT), source.fingerprint, tokenizer_fingerprint, split]
    if left_out is not None and len(left_out):
        parts.append(hashlib.sha256(left_out.tobytes()).hexdigest())
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    folder = Path(cache_dir) / key[:32]
    damaged = _damaged_file(folder, key)
    if damaged:
        shutil.rmtree(folder, ignore_errors=True)  # another process may remove it too
    tokens = _open_cached(folder, key, source, cached=True)
    if tokens is None:
        sides = split_documents(source.documents, fraction=fraction, take=take, left_out=left_out)
        with _disk_errors(Path(cache_dir)):
            _write(folder, key, source, sides, tokenizer, eos, progress)
            tokens = _open_cached(folder, key, source, cached=False)
        if tokens is None:
            raise MachineError(Problem(str(folder), "The tokens that were just written can't be read back"))
    _check_lengths(tokens, source, fraction, max_length)
    if damaged:
        return replace(tokens, description=f"{tokens.description}; tokenized again, because {damaged} was damaged")
    return tokens


def trained_elsewhere(sources: Sequence[TextSource], *, fraction: float, cache_dir: Path) -> list[np.ndarray]:
    """For each source, return the hashes of its held-out documents that another source trains on (split `end` only).

    The hashes are cached, so that each source is read once.
    """
    found = [_hashes_of(source, fraction, cache_dir) for source in sources]
    left_out = []
    for number, own in enumerate(found):
        others = [other.train for index, other in enumerate(found) if index != number]
        left_out.append(np.intersect1d(own.validation, np.concatenate(others)) if others else own.validation[:0])
    return left_out


def _hashes_of(source: TextSource, fraction: float, cache_dir: Path) -> SplitHashes:
    key = hashlib.sha256(f"{_FORMAT}\0{source.fingerprint}\0{fraction!r} end".encode()).hexdigest()
    file = cache_dir / f"hashes-{key[:32]}.npz"
    try:
        with np.load(file, allow_pickle=False) as kept:
            return SplitHashes(kept["train"], kept["validation"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        pass  # missing or damaged: computed again
    hashes = hash_sides(source.documents, fraction=fraction)
    with _disk_errors(cache_dir):
        cache_dir.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.npz")
        with temporary.open("wb") as out:
            np.savez(out, train=hashes.train, validation=hashes.validation)
        os.replace(temporary, file)
    return hashes


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
            counts: dict[str, Any] = {"tokens": 0, "documents": 0, "bytes": 0}
            digest = hashlib.sha256()
            with (temporary / f"{name}.bin").open("wb") as file:
                for ids, text, ends in encode(side(), tokenizer):
                    # Not ndarray.tofile: its error on a full disk has no errno.
                    block = np.asarray(ids, dtype=dtype).tobytes()
                    file.write(block)
                    digest.update(block)
                    counts["tokens"] += len(ids)
                    counts["documents"] += ends
                    counts["bytes"] += len(text.encode())
                    done += len(text)
                    if progress is not None:
                        progress(done, total)
                _sync(file)
            # Otherwise the changed text would be cached under the fingerprint of the old text.
            if counts["documents"] != side.documents or done != before + side.characters:
                raise UserError(Problem(source.key, "The text changed while it was being read", value=source.path))
            meta[name] = counts | {"sha256": digest.hexdigest()}
        _write_sizes(temporary / _SIZES, sides[1], tokenizer)
        meta["validation_sizes"] = {"sha256": _digest(temporary / _SIZES, 0)}
        with (temporary / "meta.json").open("wb") as file:
            file.write(json.dumps(meta, indent=2).encode() + b"\n")
            _sync(file)
        _publish(temporary, folder, key)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_sizes(path: Path, validation: Side, tokenizer: Any) -> None:
    """Write the bytes of each validation token."""
    encoder = Encoder(tokenizer)
    with path.open("wb") as file:
        for text in validation():
            for piece, ends in pieces_of(text):
                file.write(encoder.sizes(piece, ends).astype(_SIZE).tobytes())
        _sync(file)


def _publish(temporary: Path, folder: Path, key: str) -> None:
    if folder.exists() and _read_meta(folder, key) is None:
        shutil.rmtree(folder)
    try:
        os.replace(temporary, folder)
    except OSError as error:
        # Another process wrote the same files first.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or _read_meta(folder, key) is None:
            raise


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sweep(cache_dir: Path) -> None:
    """Remove temporary folders of writers that were killed."""
    for left in cache_dir.glob(f"{_HALF_DONE}*"):
        try:
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        except FileNotFoundError:
            continue


def _read_meta(folder: Path, key: str) -> dict[str, Any] | None:
    """Return the metadata of a cached folder, or None if it is missing, damaged or has another key."""
    try:
        meta = json.loads((folder / "meta.json").read_bytes())
        size = np.dtype(meta["dtype"]).itemsize
        sound = meta["key"] == key and all(
            (folder / f"{name}.bin").stat().st_size == meta[name]["tokens"] * size and meta[name]["sha256"]
            for name in ("train", "validation")
        )
        sound = sound and (folder / _SIZES).is_file() and meta["validation_sizes"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return meta if sound else None


def _damaged_file(folder: Path, key: str) -> Path | None:
    """Return the path of a file of cached tokens that has changed since it was written, or None."""
    meta = _read_meta(folder, key) or {}
    for file in (folder / "train.bin", folder / "validation.bin", folder / _SIZES):
        with suppress(FileNotFoundError):
            if meta and _digest(file, file.stat().st_mtime_ns) != meta[file.stem]["sha256"]:
                return file
    return None


@functools.lru_cache(maxsize=64)  # a run opens its tokens several times
def _digest(file: Path, changed_at: int) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _open_cached(folder: Path, key: str, source: TextSource, *, cached: bool) -> TokenSet | None:
    meta = _read_meta(folder, key)
    if meta is None:
        return None
    train, validation = meta["train"], meta["validation"]
    description = f"{source.describe()}: {train['tokens']:,} training tokens of {_documents(train)}"
    if validation["tokens"]:
        description += f", {validation['tokens']:,} validation tokens of {_documents(validation)}"
    if meta["duplicates"]:
        description += f" ({meta['duplicates']:,} left out: also in training)"
    return TokenSet(
        folder=folder,
        train=_map(folder / "train.bin", meta["dtype"]),
        validation=_map(folder / "validation.bin", meta["dtype"]),
        validation_sizes=_map(folder / _SIZES, _SIZE),
        duplicates=meta["duplicates"],
        description=description,
        cached=cached,
        fingerprint=key,
    )


def _documents(counts: dict[str, int]) -> str:
    return f"{counts['documents']:,} document{'' if counts['documents'] == 1 else 's'}"


def _map(file: Path, dtype: str) -> np.ndarray:
    # An empty file can't be memory-mapped.
    return np.memmap(file, dtype=dtype, mode="r") if file.stat().st_size else np.zeros(0, dtype=dtype)


def _check_lengths(tokens: TokenSet, source: TextSource, fraction: float, max_length: int) -> None:
    need = f"one sequence of max_length = {max_length:,} needs {max_length + 1:,}"
    problems = []
    if len(tokens.train) < max_length + 1:
        problems.append(
            Problem(
                f"{source.key}.path",
                f"The training split has {len(tokens.train):,} tokens, but {need}",
                value=source.path,
                fix="Add text, or set a smaller train.max_length.",
            )
        )
    if fraction > 0 and len(tokens.validation) < max_length + 1:
        duplicates = f" (without {tokens.duplicates} documents also in training)" if tokens.duplicates else ""
        problems.append(
            Problem(
                "validation.fraction",
                f"The validation split of {source.path} has {len(tokens.validation):,} tokens{duplicates}, but {need}",
                value=fraction,
                fix="Set a larger fraction, add text, or set a smaller train.max_length.",
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
        why = "The disk is full" if full else f"The token cache can't be written: {error.strerror or error}"
        raise MachineError(
            Problem(
                str(cache_dir),
                why,
                fix="Free some space, or set LLM_LAB_CACHE to a folder on another disk."
                if full
                else "Set LLM_LAB_CACHE to a writable folder.",
            )
        ) from error
