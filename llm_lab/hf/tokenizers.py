"""Tokenizers: bytes, a BPE trained on the run's text, or any Hugging Face tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError
from llm_lab.estimate.gguf_header import is_gguf

from .gguf import load_gguf_tokenizer
from .hub import files_of

END_OF_TEXT = "<|endoftext|>"
# BPE training time is quadratic in word length, and a text without spaces is one word. Cuts this far apart do not
# affect the merges that matter.
LONG_TEXT = 10_000


def make_byte_tokenizer() -> Any:
    """Return a tokenizer whose ids 0 to 255 are the bytes of UTF-8 text and 256 is end-of-text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = _byte_characters()
    vocabulary = {character: byte for byte, character in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    # Without merges, splitting into words does not change the result, but BPE is faster on short pieces.
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    return _wrap(backend)


def train_bpe(documents: Iterable[str], vocab_size: int, *, key: str = "tokenizer.bpe") -> Any:
    """Train a byte-level BPE with GPT-2's pre-tokenizer, which llama.cpp supports.

    Returns a tokenizer with at most `vocab_size` entries, including end-of-text. Raises UserError if there is no
    text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # the end-of-text token is added as the last id
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_pieces(documents), trainer)
    if not backend.get_vocab_size():
        raise UserError(Problem(key, "there is no text to train a tokenizer on", value=vocab_size))
    return _wrap(backend)


def _pieces(documents: Iterable[str]) -> Iterator[str]:
    for document in documents:
        for start in range(0, len(document), LONG_TEXT):
            yield document[start : start + LONG_TEXT]


def _byte_characters() -> list[str]:
    """Return GPT-2's printable characters for the 256 bytes, in byte order."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def _wrap(backend: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,  # as in GPT-2: the token between documents also starts a document
        eos_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(name: str | Path, *, trust_remote_code: bool = False, key: str = "tokenizer") -> Any:
    """Load a tokenizer from a folder (or run folder) or the Hub. Raises UserError if it can't be loaded."""
    from transformers import AutoTokenizer

    folder = Path(name).expanduser()
    with files_of(name, key=key, what="tokenizer"):
        if is_gguf(folder):
            return load_gguf_tokenizer(folder, key=key)
        source = next((f for f in (folder / "model", folder) if (f / "tokenizer_config.json").exists()), None)
        if source is None and folder.is_dir():
            source = next((f for f in (folder / "model", folder) if (f / "tokenizer.json").exists()), None)
            if source is None:
                raise UserError(Problem(key, "this folder has no tokenizer.json", value=name))
        # Always passed: without a value, transformers asks on the terminal.
        tokenizer = AutoTokenizer.from_pretrained(source or str(name), trust_remote_code=trust_remote_code)
        if not isinstance(tokenizer.model_max_length, int | float):
            raise ValueError(f"model_max_length = {tokenizer.model_max_length!r} is not a number")
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            Problem(key, "this is not a fast tokenizer (tokenizer.json), which training requires", value=name)
        )
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer in a form that transformers 4.57 reads too."""
    tokenizer.save_pretrained(folder)
    write_older_names(folder / "tokenizer_config.json", older_tokenizer)


def write_older_names(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Rewrite a file of transformers 5 so that transformers 4.57 reads it the same way."""
    written = json.loads(path.read_text(encoding="utf-8"))
    changed = change(written)
    if changed != written:
        path.write_text(json.dumps(changed, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def older_tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer_config.json that both versions read as the same tokenizer."""
    changed = dict(config)
    if changed.get("tokenizer_class") == "TokenizersBackend":
        changed["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(changed.get("extra_special_tokens"), list):  # 4.57 accepts only a dictionary under this name
        changed["additional_special_tokens"] = changed.pop("extra_special_tokens")
    return changed
