"""Data preparation: tokens a second from text to the memory-mapped blocks, against `datasets.map` as users write it."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path

from .timing import race

MEGABYTES = 4


def bench(full: bool) -> None:
    """Print tokens a second for bytes and for a BPE of 1,024 entries, and of a second run, which finds the cache."""
    from datasets import disable_progress_bars

    from llm_lab.data.encoding import prepare_tokens, tokenizer_fingerprint
    from llm_lab.data.sources import open_source
    from llm_lab.hf.load import quiet_libraries
    from llm_lab.hf.tokenizers import make_byte_tokenizer, train_bpe

    quiet_libraries()
    disable_progress_bars()
    size = MEGABYTES * (8 if full else 1) * 10**6
    sentence = "The old river runs under the green stone, and the small bird waits near the tree until it rains.\n"
    print(f"Data preparation, {size / 1e6:.0f} MB of text in lines:\n")
    print("| tokenizer | tokens | ours | datasets.map, in batches | ratio | found in the cache |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.jsonl")
        # Numbered, since documents that are alike are kept out of the validation part.
        line = sentence.strip() * 20
        text.write_text("".join(f'{{"text": "{number}: {line}"}}\n' for number in range(size // len(line))))
        tokenizers = {"bytes": make_byte_tokenizer(), "bpe 1,024": train_bpe([sentence * 50], 1024)}
        for name, tokenizer in tokenizers.items():
            counts: list[int] = []

            def ours(cache: Path, tokenizer=tokenizer, counts=counts) -> None:
                source = open_source(str(text), key="data.0", text_column="text")
                found = prepare_tokens(
                    source,
                    tokenizer,
                    tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
                    fraction=0.1,
                    take="end",
                    max_length=64,
                    cache_dir=cache,
                    progress=lambda done, total: None,
                )
                counts.append(len(found.train) + len(found.validation))

            def theirs(tokenizer=tokenizer) -> None:
                from datasets import load_dataset

                with tempfile.TemporaryDirectory() as cache:
                    rows = load_dataset("json", data_files=str(text), split="train", cache_dir=cache)
                    rows.map(lambda batch: tokenizer(batch["text"]), batched=True, remove_columns=["text"])

            def ours_anew(ours=ours) -> None:
                with tempfile.TemporaryDirectory() as cache:
                    ours(Path(cache))

            timings = race({"ours": ours_anew, "theirs": theirs}, rounds=3, warmup=1)
            kept = Path(folder, name)
            ours(kept)
            begun = time.perf_counter()
            partial(ours, kept)()
            again = time.perf_counter() - begun
            speeds = {who: counts[-1] / timing.median for who, timing in timings.items()}
            print(
                f"| {name} | {counts[-1]:,} | {speeds['ours']:,.0f} tokens/s | {speeds['theirs']:,.0f} tokens/s "
                f"| {speeds['ours'] / speeds['theirs']:.1f} × | {again:.2f} s |"
            )
