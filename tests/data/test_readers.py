"""Files are read however they are compressed, and every library error for a broken file is explained."""

import bz2
import gzip
import json
import lzma
import zipfile
from contextlib import suppress
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.text_files import documents, refusal, write_file, write_jsonl

from llm_lab.data.examples import open_examples
from llm_lab.data.paths import default_split
from llm_lab.data.sources import open_source
from llm_lab.data.streams import open_stream
from llm_lab.errors import UserError

pytestmark = pytest.mark.usefixtures("in_tmp_path")
TEXTS = [f"document {number}" for number in range(300)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


# Compressed files


def zipped(**files: bytes) -> bytes:
    with zipfile.ZipFile("made.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__", "."), data)
    return Path("made.zip").read_bytes()


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


PACKED = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd,
    "zip": lambda data: zipped(rows__jsonl=data),
}


@pytest.mark.parametrize("ending", list(PACKED))
def test_compressed_files_are_read_and_streamed(ending):
    path = write_file(f"rows.jsonl.{ending}", PACKED[ending](LINES))
    assert documents(path) == TEXTS
    pieces = list(open_stream(path).pieces())
    position = json.loads(json.dumps(pieces[200].position()))
    assert [piece.text for piece in open_stream(path).pieces(position)] == TEXTS[201:]


@pytest.mark.parametrize("ending", list(PACKED))
def test_a_truncated_compressed_file_is_refused(ending):
    packed = PACKED[ending](LINES)
    message = refusal(write_file(f"rows.jsonl.{ending}", packed[: len(packed) // 2]))
    assert f"rows.jsonl.{ending} is not a complete" in message
    assert "Check that the download is complete." in message


def test_a_zstd_file_may_have_several_frames():
    assert documents(write_file("a.jsonl.zst", zstd(LINES[:500]) + zstd(LINES[500:]))) == TEXTS


def test_a_zip_file_has_one_file():
    assert documents(write_file("a.zip", zipped(inner__csv=b"id;text\n1;hello\n"))) == ["hello"]
    assert "contains 2 files, not one. Unpack it" in refusal(
        write_file("b.zip", zipped(a__jsonl=LINES, b__jsonl=LINES))
    )
    assert "contains 0 files, not one" in refusal(write_file("c.zip", zipped()))


BEGINNINGS = {
    "a.parquet": (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer: the data itself was not"),
    "a.jsonl.gz": (b"version https://git-lfs.github.com/spec/v1\noid", "Download it: git lfs pull"),
    "a.txt": (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
    "a.jsonl": (gzip.compress(LINES), "is packed with gzip. Add .gz to its name"),
    "a.csv": (b"PK\x03\x04", "is a zip file"),
    "a.md": (b"\x28\xb5\x2f\xfd", "is packed with zstd"),
    "a.ndjson": (b"PAR1", "is a Parquet file. Change the ending of its name to .parquet"),
    "a.json": (b"<!DOCTYPE html><html>", "is a web page, not data"),
    "a.arrow": (b"PAR1", "is a Parquet file"),
}


@pytest.mark.parametrize("name", list(BEGINNINGS))
def test_a_file_whose_content_does_not_match_its_extension_is_named(name):
    content, message = BEGINNINGS[name]
    assert message in refusal(write_file(name, content))


# File extensions


@pytest.mark.parametrize("ending", ["ndjson", "jsonlines", "NDJSON"])
def test_json_lines_files_may_have_several_extensions(ending):
    assert documents(write_file(f"rows.{ending}", LINES)) == TEXTS


@pytest.mark.parametrize("name", ["a.dat", "a.docx", "a.jsonl.lz4", "a.tar.gz", "a.parquet.gz"])
def test_unknown_extensions_are_refused_with_the_allowed_ones(name):
    message = refusal(write_file(name, "text"))
    assert (
        f"Files that end in {name.removeprefix('a') if name != 'a.jsonl.lz4' else '.lz4'} are not supported" in message
    )
    assert "Allowed: .txt, " in message


def test_a_file_without_an_extension_is_text_unless_it_is_json():
    assert documents(write_file("notes", "Once.")) == ["Once."]
    assert "looks like JSON" in refusal(write_file("rows", LINES))


def test_other_files_in_a_folder_are_counted():
    write_jsonl("set/a.jsonl", {"text": "one"})
    write_file("set/b.jsonl.lz4", "two")
    write_file("set/README.md", "About")
    assert open_source("set").describe() == "1 jsonl file, 16 B (not read: 1 .lz4), column 'text' (of: text)"


# Tables


@pytest.mark.parametrize(
    ("name", "table", "texts"),
    [
        ("a.csv", "id;text\n1;one, two\n2;three\n", ["one, two", "three"]),
        ("a.csv", "id\ttext\n1\tone, two\n", ["one, two"]),
        ("a.csv", "id|text\n1|one\n", ["one"]),
        ("a.csv", '"id";"text"\n1;"one; ""two"""\n', ['one; "two"']),
        ("a.csv", "id;a, b;text\n1;x, y;one\n2;x, y;two\n", ["one", "two"]),
        ("a.csv", "id,text\n1,one; two\n", ["one; two"]),
        ("a.csv", "text\none; two\n", ["one; two"]),
        ("a.csv", 'id,"a;b",text\n1,x,one\n', ["one"]),
        ("a.tsv", "id;text\n1;one\n", ["one"]),
    ],
)
def test_the_separator_is_found_in_the_first_lines(name, table, texts):
    assert documents(write_file(name, table), text_column="text") == texts


def test_two_columns_of_one_name_are_refused():
    assert "two columns of the same name: text" in refusal(write_file("a.csv", "text,text\na,b\n"))
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, "a.parquet")
    assert "two columns of the same name: text" in refusal("a.parquet")


BROKEN_LINES = {
    '{"text": "a", "text": "b"}': "line 2 of a.jsonl is not JSON: the key 'text' appears twice",
    '{"text": ' + "[" * 100_000: "line 2 of a.jsonl is nested too deeply",
    '{"text": "b", "n": ' + "9" * 5000 + "}": "line 2 of a.jsonl is not JSON: Exceeds the limit",
    '{"text": "b"} {"text": "c"}': "line 2 of a.jsonl is not JSON: Extra data",
}


@pytest.mark.parametrize("line", list(BROKEN_LINES), ids=["twice", "deep", "digits", "extra"])
def test_a_broken_line_is_named(line):
    assert BROKEN_LINES[line] in refusal(write_file("a.jsonl", f'{{"text": "a"}}\n{line}\n'))


@pytest.mark.parametrize(
    "name", ["a.parquet", "a.arrow", "a.jsonl.gz", "a.csv.bz2", "a.txt.xz", "a.jsonl.zst", "a.zip"]
)
@pytest.mark.parametrize(
    "content", [b"", b"\0" * 40, b"PAR1PAR1", bytes(range(256))], ids=["empty", "nul", "par", "all"]
)
def test_no_content_of_a_file_is_an_internal_error(name, content):
    refusal(write_file(name, content))


def test_arrow_files_are_read_and_streamed():
    table = pa.table({"text": TEXTS, "more": [{"a": 1}] * len(TEXTS)})
    with pa.OSFile("file.arrow", "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=70)
    with pa.OSFile("stream.arrow", "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=70)
    for path in ("file.arrow", "stream.arrow"):
        assert documents(path) == TEXTS
        pieces = list(open_stream(path).pieces())
        for index in (0, 69, 70, 299):
            rest = open_stream(path).pieces(pieces[index].position())
            assert [piece.text for piece in rest] == TEXTS[index + 1 :]


# Splits


def test_a_folder_is_trained_on_without_its_test_and_validation_splits():
    for split in ("train", "validation", "test"):
        write_jsonl(f"set/{split}.jsonl", {"text": f"for {split}"})
    assert documents("set") == ["for train"]
    assert documents("set", split="test") == ["for test"]
    assert "split train of train, validation, test" in open_source("set").describe()
    message = refusal("set", split="dev")
    assert message.startswith("data.0.split = dev: set has no such split. Allowed: train, validation, test.")
    assert [piece.text for piece in open_stream("set", split="validation").pieces()] == ["for validation"]
    assert default_split("set", None) == "test"


@pytest.mark.parametrize(
    ("names", "trained"),
    [
        (["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test-00000-of-00001.jsonl"], [0, 1]),
        (["train/a.jsonl", "train/b.jsonl", "eval/a.jsonl"], [0, 1]),
        (["my_training_set.jsonl", "my_dev_set.jsonl"], [0]),
        (["rows.jsonl", "test.jsonl"], [0]),
        (["trains.jsonl", "contest.jsonl", "a.jsonl"], [0, 1, 2]),
        (["data/train_sft-00000-of-00001.jsonl", "data/train-00000-of-00001.jsonl"], [1]),
        (["wiki.train.txt", "wiki.valid.txt", "wiki.test.txt"], [0]),
        (["dev-guide.md", "testing.md", "training.md"], [0, 1, 2]),
        (["a.md", "test.md"], [0, 1]),
    ],
)
def test_splits_are_found_in_names_as_in_the_datasets_library(names, trained):
    for name in names:
        if name.endswith(".jsonl"):
            write_jsonl(f"set/{name}", {"text": name})
        else:
            write_file(f"set/{name}", name)
    assert sorted(documents("set")) == sorted(names[index] for index in trained)


def test_splits_agree_with_the_datasets_library(tmp_path):
    names = ["a-train.jsonl", "b.training.jsonl", "val 1.jsonl", "c_test_2.jsonl", "evaluation.jsonl", "dev.jsonl"]
    for name in names:
        write_jsonl(f"set/{name}", {"text": name})
    for split in ("train", "validation", "test"):
        loaded = datasets.load_dataset("set", split=split, cache_dir=str(tmp_path / "cache"))
        assert documents("set", split=split) == loaded["text"][:]


def test_a_file_that_belongs_to_no_split_is_named():
    for name in ("train", "test", "more"):
        write_jsonl(f"set/{name}.jsonl", {"text": name})
    assert "not read: more.jsonl" in open_source("set").describe()


def test_folders_written_by_save_to_disk_are_read():
    rows = datasets.Dataset.from_list([{"prompt": f"Say {n}", "completion": str(n)} for n in range(6)])
    rows.save_to_disk("one")
    datasets.DatasetDict({"train": rows.select(range(4)), "test": rows.select([4, 5])}).save_to_disk("both")
    assert open_examples("one", kind="conversation").counts.kept == 6
    assert [e.completion for e in open_examples("both", kind="conversation").examples] == ["0", "1", "2", "3"]
    assert [e.completion for e in open_examples("both", kind="conversation", split="test").examples] == ["4", "5"]
    Path("both/train/state.json").unlink()
    with pytest.raises(UserError, match="was written by save_to_disk, but is not complete"):
        open_examples("both", kind="conversation")


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_a_damaged_table_is_refused_and_never_crashes(kind):
    table = pa.table({"text": [f"text {number}" for number in range(20)], "ids": [[number] for number in range(20)]})
    if kind == "parquet":
        pq.write_table(table, "a.parquet")
    else:
        with pa.OSFile("a.arrow", "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    whole = Path(f"a.{kind}").read_bytes()
    for at in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[at] ^= 0x80
        Path(f"b.{kind}").write_bytes(damaged)
        # Damage within the texts themselves can't be detected; any other damage is a single error for users.
        with suppress(UserError):
            open_examples(f"b.{kind}", kind="conversation")
