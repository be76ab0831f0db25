"""Data preparation: tokens/s from text to memory-mapped blocks, against `datasets.map`."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from .timing import race

MEGABYTES = 4
SENTENCE = "The old river runs under the green stone, and the small bird waits near the tree until it rains.\n"


def bench(full: bool) -> None:
    """Print tokens/s for bytes and for a BPE vocabulary of 1,024, and the time of a second run with the cache."""
    from datasets import disable_progress_bars

    from llm_lab.hf.load import quiet_libraries
    from llm_lab.hf.tokenizers import make_byte_tokenizer, train_bpe

    quiet_libraries()
    disable_progress_bars()
    size = MEGABYTES * (8 if full else 1) * 10**6
    print(f"Data preparation, {size / 1e6:.0f} MB of text in lines:\n")
    print("| tokenizer | tokens | LLM Lab | datasets.map, in batches | ratio | with the cache |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.jsonl")
        # Numbered, because duplicate documents are left out of the validation split.
        line = SENTENCE.strip() * 20
        text.write_text("".join(f'{{"text": "{number}: {line}"}}\n' for number in range(size // len(line))))
        tokenizers = {"bytes": make_byte_tokenizer(), "bpe 1,024": train_bpe([SENTENCE * 50], 1024)}
        for name, tokenizer in tokenizers.items():
            print(_compare(name, text, tokenizer, Path(folder, name)))


def _compare(name: str, text: Path, tokenizer: Any, cache: Path) -> str:
    """Return the table row of a tokenizer."""

    def ours() -> None:
        with tempfile.TemporaryDirectory() as empty:
            _prepare(text, tokenizer, Path(empty))

    def theirs() -> None:
        from datasets import load_dataset

        with tempfile.TemporaryDirectory() as empty:
            rows = load_dataset("json", data_files=str(text), split="train", cache_dir=empty)
            rows.map(lambda batch: tokenizer(batch["text"]), batched=True, remove_columns=["text"])

    timings = race({"ours": ours, "theirs": theirs}, rounds=3, warmup=1)
    tokens = _prepare(text, tokenizer, cache)
    start = time.perf_counter()
    _prepare(text, tokenizer, cache)
    cached_seconds = time.perf_counter() - start
    our_speed, their_speed = (tokens / timings[who].median for who in ("ours", "theirs"))
    return (
        f"| {name} | {tokens:,} | {our_speed:,.0f} tokens/s | {their_speed:,.0f} tokens/s "
        f"| {our_speed / their_speed:.1f} × | {cached_seconds:.2f} s |"
    )


def _prepare(text: Path, tokenizer: Any, cache: Path) -> int:
    """Tokenize the text into blocks and return the number of tokens."""
    from llm_lab.data.encoding import prepare_tokens, tokenizer_fingerprint
    from llm_lab.data.sources import open_source

    prepared = prepare_tokens(
        open_source(str(text), key="data.0", text_column="text"),
        tokenizer,
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        fraction=0.1,
        take="end",
        max_length=64,
        cache_dir=cache,
        progress=lambda done, total: None,
    )
    return len(prepared.train) + len(prepared.validation)
