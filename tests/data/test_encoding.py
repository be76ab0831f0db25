"""Text is encoded once: documents end with EOS, the cache is complete or absent, limits are reported."""

import errno
import json
import os
import subprocess
import sys
import threading
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from support.measured_models import STRANGE, make_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llm_lab.data import encoding
from llm_lab.data.builtin import builtin_documents
from llm_lab.data.encoding import Encoder, default_cache_dir, prepare_tokens, tokenizer_fingerprint
from llm_lab.data.sources import open_source
from llm_lab.errors import MachineError, UserError

EOS = "<|endoftext|>"


def byte_tokenizer(extra: int = 0, eos: str | None = EOS) -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate([*letters, *(f"<{i}>" for i in range(extra))])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


pytestmark = pytest.mark.usefixtures("in_tmp_path")


def prepare(path, tokenizer, **settings):
    arguments = {"fraction": 0.1, "take": "end", "max_length": 4, "cache_dir": Path("cache")}
    return prepare_tokens(
        open_source(str(path)),
        tokenizer,
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        **(arguments | settings),
    )


def write_rows(name: str, *texts: str) -> str:
    Path(name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return name


def pieces(tokens, tokenizer) -> list[str]:
    """Decode tokens document by document."""
    return tokenizer.decode(tokens.astype(int)).split(EOS)


def test_every_document_ends_with_eos(tokenizer):
    texts = [f"document {i}: ünï" for i in range(10)]
    tokens = prepare(write_rows("a.jsonl", *texts), tokenizer, fraction=0.2)
    assert pieces(tokens.train, tokenizer) == [*texts[:8], ""]
    assert pieces(tokens.validation, tokenizer) == [*texts[8:], ""]
    # One token per byte here, and one EOS per document.
    assert len(tokens.train) == sum(len(text.encode()) for text in texts[:8]) + 8
    assert len(tokens.validation) == tokens.validation_sizes.sum() + 2


def test_a_single_text_is_cut_at_90_percent(tokenizer):
    text = "".join(chr(97 + i % 26) for i in range(1003))
    Path("a.txt").write_text(text)
    tokens = prepare("a.txt", tokenizer)
    assert pieces(tokens.train, tokenizer) == [text[:902], ""]
    assert pieces(tokens.validation, tokenizer) == [text[902:], ""]
    assert "903 training tokens of 1 document, 102 validation tokens of 1 document" in tokens.description


def test_special_tokens_in_text_are_encoded_as_text(tokenizer):
    text = f"He wrote {EOS} and continued."
    tokens = prepare(write_rows("a.jsonl", *[text] * 3), tokenizer, fraction=0.0)
    assert (tokens.train == tokenizer.eos_token_id).sum() == 3
    assert len(tokens.train) == 3 * (len(text) + 1)


def test_the_post_processor_of_a_tokenizer_adds_no_tokens(tokenizer):
    framed = byte_tokenizer()
    framed.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{EOS} $A {EOS}", special_tokens=[(EOS, framed.eos_token_id)]
    )
    assert len(framed("ab")["input_ids"]) == 4
    path = write_rows("a.jsonl", "abcdef")
    assert prepare(path, framed, fraction=0.0).train.tolist() == prepare(path, tokenizer, fraction=0.0).train.tolist()


def test_padding_and_truncation_left_enabled_have_no_effect():
    used = byte_tokenizer()
    used.pad_token = EOS
    before = tokenizer_fingerprint(used)
    used(["a", "bcd"], padding=True, truncation=True, max_length=3)
    assert used.backend_tokenizer.truncation is not None
    assert tokenizer_fingerprint(used) == before
    tokens = prepare(write_rows("a.jsonl", "a", "a longer text"), used, fraction=0.0)
    assert pieces(tokens.train, used) == ["a", "a longer text", ""]


def test_a_long_document_is_encoded_in_pieces_without_loss(tokenizer, monkeypatch):
    monkeypatch.setattr(encoding, "_PIECE", 100)
    monkeypatch.setattr(encoding, "_BATCH", 250)
    text = "".join(f"line {i} of\n\nmany " for i in range(100)) + "x" * 350 + " ü" * 90 + "\nend"
    Path("a.txt").write_text(text)
    tokens = prepare("a.txt", tokenizer, fraction=0.0)
    assert pieces(tokens.train, tokenizer) == [text, ""]


def test_encoding_in_pieces_gives_the_same_tokens(monkeypatch):
    text = "\n".join(islice(builtin_documents("stories"), 60))
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.train_from_iterator([text], trainers.BpeTrainer(vocab_size=500, show_progress=False))
    whole = backend.encode(text).ids
    monkeypatch.setattr(encoding, "_PIECE", 1000)
    parts = [piece for piece, _ in encoding.pieces_of(text)]
    assert len(parts) > 30
    assert [token for part in parts for token in backend.encode(part).ids] == whole


def test_pieces_end_after_a_newline(monkeypatch):
    monkeypatch.setattr(encoding, "_PIECE", 20)
    text = "one line\n\nanother line\nand one more\n"
    parts = [piece for piece, _ in encoding.pieces_of(text)]
    assert "".join(parts) == text
    assert parts[0] == "one line\n\n"
    assert parts[1] == "another line\n"


def test_tokens_take_two_bytes_for_small_vocabularies_and_four_for_large_ones(tokenizer):
    path = write_rows("a.jsonl", "some text")
    assert prepare(path, tokenizer, fraction=0.0).train.dtype == np.uint16
    assert prepare(path, byte_tokenizer(extra=2**16 - 257), fraction=0.0).train.dtype == np.uint16
    large = byte_tokenizer(extra=2**16 - 256)
    tokens = prepare(path, large, fraction=0.0)
    assert tokens.train.dtype == np.uint32
    assert tokens.train[-1] == large.eos_token_id == 2**16


def test_validation_is_empty_with_fraction_0(tokenizer):
    tokens = prepare(write_rows("a.jsonl", "some text"), tokenizer, fraction=0.0)
    assert len(tokens.validation) == tokens.validation_sizes.sum() == 0


def test_validation_leaves_out_duplicates_of_training_and_reports_them(tokenizer):
    texts = [f"document {i}" for i in range(9)]
    tokens = prepare(write_rows("a.jsonl", *texts, texts[0]), tokenizer, fraction=0.3)
    assert tokens.duplicates == 1
    assert "(1 left out: also in training)" in tokens.description


def test_progress_ends_at_the_total_number_of_characters(tokenizer):
    seen = []
    prepare(
        write_rows("a.jsonl", "one two", "three"),
        tokenizer,
        fraction=0.0,
        progress=lambda *at: seen.append(at),
    )
    assert seen[-1] == (12, 12)


# The cache


def test_the_second_call_reads_the_cache_even_if_the_file_was_moved(tokenizer):
    Path("a.txt").write_text("some text to keep " * 10)
    first = prepare("a.txt", tokenizer)
    Path("moved").mkdir()
    Path("a.txt").rename("moved/b.txt")
    second = prepare("moved/b.txt", tokenizer, max_length=8)
    assert (first.cached, second.cached) == (False, True)
    assert first.folder == second.folder
    assert first.train.tolist() == second.train.tolist()
    assert isinstance(second.train, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        second.train[0] = 0


def test_another_text_split_or_tokenizer_is_encoded_again(tokenizer):
    Path("a.txt").write_text("some text to keep " * 10)
    found = {
        prepare("a.txt", tokenizer).fingerprint,
        prepare("a.txt", tokenizer, fraction=0.2).fingerprint,
        prepare("a.txt", byte_tokenizer(extra=1)).fingerprint,
    }
    Path("a.txt").write_text("some text to keep " * 10 + "!")
    changed = prepare("a.txt", tokenizer)
    assert not changed.cached
    assert len(found | {changed.fingerprint}) == 4


@pytest.mark.parametrize("damage", ["short", "no meta", "bad meta", "missing"])
def test_a_damaged_cache_is_built_again(tokenizer, damage):
    Path("a.txt").write_text("some text to keep " * 10)
    first = prepare("a.txt", tokenizer)
    expected = first.train.tolist()
    if damage == "short":
        with (first.folder / "train.bin").open("ab") as file:
            file.truncate(10)
    elif damage == "no meta":
        (first.folder / "meta.json").unlink()
    elif damage == "bad meta":
        (first.folder / "meta.json").write_text('{"dtype": ')
    else:
        (first.folder / "validation.bin").unlink()
    again = prepare("a.txt", tokenizer)
    assert not again.cached
    assert again.train.tolist() == expected
    assert prepare("a.txt", tokenizer).cached


@pytest.mark.parametrize("name", ["train.bin", "validation.bin", "validation_sizes.bin"])
def test_a_flipped_bit_in_the_cached_tokens_is_found_and_they_are_made_again(tokenizer, name):
    Path("a.txt").write_text("some text to keep " * 10)
    first = prepare("a.txt", tokenizer)
    expected = first.train.tolist(), first.validation.tolist()
    damaged = bytearray((first.folder / name).read_bytes())
    damaged[-1] ^= 1
    (first.folder / name).write_bytes(damaged)
    again = prepare("a.txt", tokenizer)
    assert f"tokenized again, because {first.folder / name} was damaged" in again.description
    assert (again.train.tolist(), again.validation.tolist()) == expected
    assert prepare("a.txt", tokenizer).cached


def test_an_interrupted_encoding_leaves_no_files(tokenizer, monkeypatch):
    Path("a.txt").write_text("some text to keep " * 10)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("a.txt", tokenizer, progress=stop)
    assert list(Path("cache").iterdir()) == []
    assert not prepare("a.txt", tokenizer).cached


def test_incomplete_entries_have_a_temporary_name(tokenizer):
    Path("a.txt").write_text("some text to keep " * 10)
    seen = []
    prepare("a.txt", tokenizer, progress=lambda *_: seen.extend(path.name for path in Path("cache").iterdir()))
    assert seen
    assert all(name.startswith(".half-done-") for name in seen)


def test_a_process_that_finishes_second_uses_the_files_of_the_first(tokenizer):
    Path("a.txt").write_text("some text to keep " * 10)
    results = []

    def win_first(done, total):
        if not results:
            results.append(None)
            results[0] = prepare("a.txt", tokenizer)

    loser = prepare("a.txt", tokenizer, progress=win_first)
    assert loser.folder == results[0].folder
    assert loser.train.tolist() == results[0].train.tolist()
    assert [path.name for path in Path("cache").iterdir()] == [loser.folder.name]


def test_concurrent_writers_get_the_same_tokens(tokenizer):
    Path("a.txt").write_text("some text to keep " * 1000)
    results, errors = [], []

    def work():
        try:
            results.append(prepare("a.txt", tokenizer).train.tolist())
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert all(result == results[0] for result in results)
    assert len(list(Path("cache").iterdir())) == 1


def test_files_of_killed_writers_are_removed_after_a_day(tokenizer):
    old, young = Path("cache/.half-done-old"), Path("cache/.half-done-young")
    for folder in (old, young):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    Path("a.txt").write_text("some text to keep " * 10)
    prepare("a.txt", tokenizer)
    assert not old.exists()
    assert young.exists()


def test_a_text_that_changes_while_being_read_is_not_cached(tokenizer):
    write_rows("a.jsonl", *["the same text"] * 3)
    source = open_source("a.jsonl")
    reads = []

    def read():
        reads.append(1)
        return iter(["the same text"] * 3 if len(reads) < 2 else ["another text"] * 2)

    object.__setattr__(source, "_read", read)
    with pytest.raises(UserError, match="changed while it was being read"):
        prepare_tokens(
            source,
            tokenizer,
            tokenizer_fingerprint="x",
            fraction=0.0,
            take="end",
            max_length=4,
            cache_dir=Path("cache"),
        )
    assert list(Path("cache").iterdir()) == []


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, "cache: The disk is full. Free some space, or set LLM_LAB_CACHE"),
        (errno.EROFS, "cache: The token cache can't be written: Read-only file system. Set LLM_LAB_CACHE"),
    ],
)
def test_a_full_or_read_only_disk_is_reported(tokenizer, monkeypatch, number, expected):
    def fail(file):
        raise OSError(number, os.strerror(number))

    Path("a.txt").write_text("some text to keep " * 10)
    monkeypatch.setattr(encoding, "_sync", fail)
    with pytest.raises(MachineError) as caught:
        prepare("a.txt", tokenizer)
    assert str(caught.value).startswith(expected)
    assert list(Path("cache").iterdir()) == []


def test_environment_variables_set_the_cache_folder(monkeypatch):
    monkeypatch.delenv("LLM_LAB_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache_dir() == Path.home() / ".cache/llm-lab/tokens"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_cache_dir() == Path("/xdg/llm-lab/tokens")
    monkeypatch.setenv("LLM_LAB_CACHE", "/own")
    assert default_cache_dir() == Path("/own/tokens")


# Text that is too short, and tokenizers that lack tokens


def test_too_little_text_is_reported_for_both_splits_at_once(tokenizer):
    Path("a.txt").write_text("ten chars.")
    with pytest.raises(UserError) as caught:
        prepare("a.txt", tokenizer, max_length=64)
    first, second = str(caught.value).splitlines()
    assert first.startswith("data.0.path = a.txt: The training split has 10 tokens, but one sequence of")
    assert "max_length = 64 needs 65. Add text, or set a smaller train.max_length." in first
    assert second.startswith("validation.fraction = 0.1: The validation split of a.txt has 2 tokens")
    assert "Set a larger fraction" in second


def test_too_little_validation_is_reported_with_a_cached_text_too(tokenizer):
    Path("a.txt").write_text("x" * 100)
    for _ in range(2):
        with pytest.raises(UserError, match=r"^validation\.fraction = 0\.01: The validation split of a\.txt has 2"):
            prepare("a.txt", tokenizer, fraction=0.01)


def test_a_tokenizer_without_eos_is_refused():
    Path("a.txt").write_text("some text")
    with pytest.raises(UserError, match=r"tokenizer: This tokenizer has no end-of-text token .*add_special_tokens"):
        prepare("a.txt", byte_tokenizer(eos=None))


def test_a_slow_tokenizer_is_refused():
    class Slow:
        eos_token_id = 0

    with pytest.raises(UserError, match=r"Slow is not a fast \(Rust\) tokenizer"):
        tokenizer_fingerprint(Slow())


THREADS = """
import os
from llm_lab.data.encoding import encode
from llm_lab.hf.tokenizers import make_byte_tokenizer

tokenizer = make_byte_tokenizer()
before = len(os.listdir("/proc/self/task"))
list(encode(iter(["some words " * 100] * 500), tokenizer))
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists() or os.cpu_count() < 2, reason="counts threads with /proc")
def test_encoding_uses_all_cores():
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("TOKENIZERS_", "RAYON_"))}
    done = subprocess.run([sys.executable, "-c", THREADS], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) >= len(os.sched_getaffinity(0)), "one thread per core; none if parallelism is off"


@pytest.mark.parametrize("name", ["bytes", "bpe", "pieces", "gpt2"])
def test_the_bytes_of_tokens_add_up_to_the_text_they_encode(name):
    encoder = Encoder(make_tokenizer(name))
    text = "English first. " * 3 + STRANGE + " "
    sizes = encoder.sizes(text, True)
    [(ids, _, _)] = encoder([(text, True)])
    assert len(sizes) == len(ids)
    assert sizes.sum() == encoder.sizes(text, False).sum() == len(text.encode())
    for count in range(1, len(ids)):
        some, decoded = encoder.beginning(text, count)
        if len(some) == count:
            assert sizes[:count].sum() == len(decoded.encode())


def test_a_cache_of_a_version_without_the_bytes_of_tokens_is_made_again(tokenizer):
    file = write_rows("a.jsonl", *(f"document {i}: ünï" for i in range(10)))
    first = prepare(file, tokenizer)
    (first.folder / "validation_sizes.bin").unlink()
    again = prepare(file, tokenizer)
    assert again.train.tolist() == first.train.tolist()
    assert again.validation_sizes.tolist() == first.validation_sizes.tolist()
    assert again.validation_sizes.sum() > 0
