"""Read a model's config from the header of a GGUF file, without importing torch or transformers."""

from __future__ import annotations

import functools
import mmap
import struct
from pathlib import Path
from typing import Any

SUFFIX = ".gguf"
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _LIST = 8, 9
_LONGEST_LIST = 4096  # longer ones, such as vocabularies, are only counted
# {Hugging Face's key: GGUF's key, without the architecture before it}.
_CONFIG = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "vocab_size": "vocab_size",
    "sliding_window": "attention.sliding_window",
}
# {GGUF's name of an architecture: Hugging Face's}, where they differ.
_ARCHITECTURES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss", "gptneox": "gpt_neox"}
_GATED = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3", "stablelm")


def is_gguf(name: str | Path) -> bool:
    """Return whether a path is an existing GGUF file."""
    path = Path(name).expanduser()
    return path.suffix.lower() == SUFFIX and path.is_file()


def how_to_download(repository: str, file: str) -> str:
    """Return, in words, how to download a GGUF file from the Hub so that it can be used here."""
    return f"For example: hf download {repository} {file} --local-dir . Its name is then ./{file}"


def file_on_the_hub(name: str) -> tuple[str, str] | None:
    """Return (repository, file) of a name such as owner/name/file.gguf, or None for anything else."""
    parts = name.split("/")
    if len(parts) < 3 or not parts[0].strip(".~") or not name.endswith(SUFFIX):
        return None
    return "/".join(parts[:2]), "/".join(parts[2:])


def read_gguf_header(path: str | Path) -> dict[str, Any] | None:
    """Return {key: value} of a GGUF file, and its tensors as {name: shape} under "tensors"; None if it is not one.

    For a long list, such as the vocabulary, the value is its number of entries.
    """
    file = Path(path).expanduser()
    try:
        status = file.stat()
        return _read(file, status.st_size, status.st_mtime_ns)
    except OSError:
        return None


@functools.lru_cache(maxsize=8)
def _read(file: Path, size: int, changed_ns: int) -> dict[str, Any] | None:
    if size < 24:
        return None
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _Reader(data).header()
        except (struct.error, ValueError, KeyError, IndexError):  # truncated or damaged
            return None


class _Reader:
    def __init__(self, data: mmap.mmap):
        self._data, self._at = data, 0

    def header(self) -> dict[str, Any] | None:
        if self._data[:4] != b"GGUF" or not 2 <= struct.unpack_from("<I", self._data, 4)[0] <= 3:
            return None
        self._at = 8
        tensors, keys = self._number("<Q"), self._number("<Q")
        found: dict[str, Any] = {}
        for _ in range(keys):
            key = self._text()
            found[key] = self._value(self._number("<I"))
        shapes = {}
        for _ in range(tensors):
            name = self._text()
            shapes[name] = tuple(self._number("<Q") for _ in range(self._number("<I")))
            self._at += 12  # its type (4 bytes) and offset (8)
        return {**found, "tensors": shapes}

    def _number(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return value

    def _skip_text(self) -> None:
        length = self._number("<Q")
        self._at += length
        if self._at > len(self._data):
            raise ValueError("the file is cut off")

    def _text(self) -> str:
        start = self._at + 8
        self._skip_text()
        return self._data[start : self._at].decode(errors="replace")

    def _value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self._text()
        if kind != _LIST:
            return self._number(_NUMBERS[kind])
        inner, count = self._number("<I"), self._number("<Q")
        if count <= _LONGEST_LIST:
            return [self._value(inner) for _ in range(count)]
        if inner == _TEXT:
            for _ in range(count):
                self._skip_text()
        elif inner == _LIST:
            raise ValueError("a list of lists")
        else:
            self._at += count * struct.calcsize(_NUMBERS[inner])
        return count


def gguf_architecture(path: str | Path) -> str | None:
    """Return the architecture that a GGUF file names, or None if it is not a GGUF file."""
    header = read_gguf_header(path)
    name = header.get("general.architecture") if header else None
    return name if isinstance(name, str) else None


def gguf_config(path: str | Path) -> dict[str, Any] | None:
    """Return the config.json of the model in a GGUF file, as far as estimates need it; None without a header."""
    header, architecture = read_gguf_header(path), gguf_architecture(path)
    if header is None or architecture is None:
        return None
    found = {key: header.get(f"{architecture}.{name}") for key, name in _CONFIG.items()}
    tokens = header.get("tokenizer.ggml.tokens")
    found["vocab_size"] = found["vocab_size"] or (len(tokens) if isinstance(tokens, list) else tokens)
    config: dict[str, Any] = {key: value for key, value in found.items() if isinstance(value, int) and value > 0}
    config["model_type"] = _ARCHITECTURES.get(architecture, architecture)
    config["tie_word_embeddings"] = "output.weight" not in header["tensors"]
    if architecture in _GATED:
        config["hidden_act"] = "silu"
    return config


def has_chat_template(path: str | Path) -> bool:
    """Return whether a GGUF file contains a chat template."""
    return "tokenizer.chat_template" in (read_gguf_header(path) or {})
