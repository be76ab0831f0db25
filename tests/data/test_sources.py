"""Text is read from the path in the recipe, and every problem with it has a clear error."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.text_files import documents, refusal, write_file, write_jsonl

from llm_lab.data.sources import look_at_source, open_source

pytestmark = pytest.mark.usefixtures("in_tmp_path")


# Readable sources


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.text", "a.markdown", "A.TXT", "notes", "main.py"])
def test_one_text_file_is_one_document(name):
    write_file(name, "Hello\n\nworld\n")
    assert documents(f"./{name}") == ["Hello\n\nworld\n"]


def test_a_byte_order_mark_is_removed_and_windows_newlines_are_kept():
    write_file("a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert documents("a.txt") == ["one\r\ntwo\r\n"]


def test_a_folder_is_read_recursively_in_the_order_of_file_names():
    write_file("corpus/b.txt", "second")
    write_file("corpus/a/z.md", "first")
    write_file("corpus/c.txt", " \n ")
    write_file("corpus/.git/x.txt", "hidden")
    source = open_source("corpus")
    assert list(source.documents()) == ["first", "second"]
    assert source.describe().startswith("3 text files")


def test_a_readme_next_to_data_is_not_data():
    write_file("corpus/README.md", "About this corpus")
    write_jsonl("corpus/a.jsonl", {"text": "data"})
    assert documents("corpus") == ["data"]


def test_a_glob_reads_matching_files_with_any_suffix():
    write_file("src/a.py", "print(1)")
    write_file("src/deep/b.py", "print(2)")
    assert documents("src/**/*.py") == ["print(1)", "print(2)"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_one_json_line_is_one_document(name):
    write_file(name, '\ufeff{"text": "one"}\r\n\n{"text": ""}\n{"text": null}\n{"text": "zwei ü"}')
    assert documents(name) == ["one", "zwei ü"]


def test_a_json_list_of_objects_is_read_like_json_lines():
    write_file("rows.json", json.dumps([{"text": "one"}, {"text": "two"}], indent=2))
    assert documents("rows.json") == ["one", "two"]


def test_json_objects_that_span_lines_are_read_like_json_lines():
    write_file("one.json", json.dumps({"text": "one"}, indent=2))
    assert documents("one.json") == ["one"]
    write_file(
        "more.json", "\ufeff\n" + "\r\n".join(json.dumps({"text": text}, indent=1) for text in ("one", "two ü")) + "\n"
    )
    assert documents("more.json") == ["one", "two ü"]


def test_csv_and_tsv_cells_may_be_long_and_contain_newlines():
    long = "word " * 60_000
    write_file("a.csv", f'id,text\n1,"{long}"\n2,"two ""quoted"" lines\r\nhere"\n')
    write_file("a.tsv", "id\ttext\n1\tone, two\n")
    assert documents("a.csv") == [long, 'two "quoted" lines\r\nhere']
    assert documents("a.tsv") == ["one, two"]


def test_parquet_is_read_row_by_row():
    pq.write_table(pa.table({"id": [1, 2, 3], "text": ["one", None, "three"]}), "a.parquet")
    source = open_source("a.parquet")
    assert list(source.documents()) == ["one", "three"]
    assert source.columns == ("id", "text")


def test_gzipped_text_and_rows_are_read():
    write_file("a.txt.gz", gzip.compress(b"one"))
    write_file("b.jsonl.gz", gzip.compress(b'{"text": "two"}\n'))
    write_file("c.tsv.gz", gzip.compress(b"id\ttext\n1\tthree\n"))
    assert documents("a.txt.gz") + documents("b.jsonl.gz") + documents("c.tsv.gz") == ["one", "two", "three"]


def test_a_source_can_be_read_repeatedly_with_the_same_documents():
    write_jsonl("a.jsonl", *({"text": f"document {i}"} for i in range(50)))
    source = open_source("a.jsonl")
    assert list(source.documents()) == list(source.documents())
    assert len(list(source.documents())) == 50


def test_a_source_describes_itself_in_one_line():
    write_jsonl("d/a.jsonl", {"id": "1", "text": "one"})
    write_jsonl("d/b.jsonl", {"id": "2", "text": "two"})
    write_file("a.txt", "x" * 1_234_567)
    assert open_source("d").describe() == "2 jsonl files, 54 B, column 'text' (of: id, text)"
    assert open_source("a.txt").describe() == "1 text file, 1.2 MB"
    assert open_source("builtin:stories").describe() == "built-in dataset 'stories': 7,000 stories, 3.7 MiB"


def test_sources_open_without_heavy_imports():
    write_file("a.txt", "text")
    code = (
        "import sys; from llm_lab.data.sources import open_source; open_source('a.txt');"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_check_names_the_columns_that_are_not_read(streaming):
    write_jsonl("a.jsonl", {"id": "1", "text": "one"})
    remark = look_at_source("a.jsonl", key="data.1", streaming=streaming)
    assert remark == "data.1: columns of a.jsonl that are not read: id"


# The fingerprint


def test_the_fingerprint_depends_on_the_content_not_the_path():
    before = Path(write_file("here/a.txt", "same"))
    first = open_source(str(before)).fingerprint
    Path("there").mkdir()
    assert open_source(str(before.rename("there/b.txt"))).fingerprint == first
    write_file("there/b.txt", "other")
    assert open_source("there/b.txt").fingerprint != first


def test_the_fingerprint_depends_on_file_type_and_column():
    write_jsonl("a.jsonl", {"text": "one", "title": "two"})
    write_jsonl("a.txt", {"text": "one", "title": "two"})
    found = {
        open_source("a.jsonl").fingerprint,
        open_source("a.jsonl", text_column="title").fingerprint,
        open_source("a.txt").fingerprint,
    }
    assert len(found) == 3


# The text column


@pytest.mark.parametrize(
    ("rows", "column"),
    [
        ([{"title": "a", "text": "b"}], "text"),
        ([{"title": "a", "content": "b"}], "content"),
        ([{"id": 1, "poem": "b"}], "poem"),
        ([{"text": 3, "words": "b"}], "words"),
        ([{"name": "ab", "poem": "a long poem " * 9}], "poem"),
        ([{"story": None}, {"story": "b", "x": "y"}], "story"),
    ],
)
def test_the_text_column_is_found(rows, column):
    write_jsonl("a.jsonl", *rows)
    assert open_source("a.jsonl").text_column == column


def test_a_csv_column_of_numbers_is_not_text():
    write_file("a.csv", "id,words\n1,hello there\n2.5,bye\n")
    assert open_source("a.csv").text_column == "words"


def test_an_ambiguous_text_column_must_be_named():
    write_jsonl("a.jsonl", {"question": "why is it so", "answer": "because it is"})
    message = refusal("a.jsonl", key="data.3")
    assert message.startswith("data.3.text_column: The text column of a.jsonl is ambiguous.")
    assert "Columns: question, answer" in message
    assert "Set text_column, for example text_column: answer" in message


def test_a_mistyped_text_column_gets_a_suggestion():
    write_jsonl("a.jsonl", {"id": 1, "contents": "a"})
    message = refusal("a.jsonl", text_column="content")
    assert message == (
        "data.0.text_column = content: There is no such column. Allowed: id, contents. Did you mean contents?"
    )


def test_a_column_that_is_not_text_is_refused():
    write_jsonl("a.jsonl", {"id": 1, "text": "a"})
    assert "data.0.text_column = id: This column does not contain text. Allowed: text." in refusal(
        "a.jsonl", text_column="id"
    )
    pq.write_table(pa.table({"n": [1]}), "a.parquet")
    assert "No column contains text. Columns: n." in refusal("a.parquet")


def test_a_link_that_cannot_be_followed_is_left_out_of_a_folder_and_a_glob():
    write_file("corpus/a.txt", "first")
    Path("corpus/b.txt").symlink_to("x" * 300)  # too long for a file name, so checking it raises
    assert documents("corpus") == documents("corpus/*.txt") == ["first"]


def test_a_folder_with_too_many_files_to_go_through_is_refused(monkeypatch):
    monkeypatch.setattr("llm_lab.data.paths.MOST_FILES", 2)
    for number in range(3):
        write_file(f"corpus/{number}/a.txt", "text")
    assert "data.0.path = corpus: This folder has more than 2 files. Name the folder" in refusal("corpus")
    assert documents("corpus/0") == ["text"]


def test_the_error_for_conversations_names_the_stage_for_them():
    write_jsonl("a.jsonl", {"messages": [{"role": "user", "content": "hi"}]})
    assert "'messages' looks like conversations: use stage sft for those" in refusal("a.jsonl")


# Paths that do not exist


def test_a_mistyped_file_gets_a_suggestion():
    write_file("corpora/shakespeare.txt", "To be")
    message = refusal("corpora/shakespere.txt")
    assert "data.0.path = corpora/shakespere.txt: There is no such file or folder." in message
    assert "Did you mean corpora/shakespeare.txt?" in message
    assert "Hub datasets are named owner/name." in message


def test_a_file_with_only_the_same_extension_is_not_suggested():
    write_file("bin.txt", "To be")
    assert "Did you mean" not in refusal("missing.txt")
    write_file("misssing.md", "To be")
    assert "Did you mean misssing.md?" in refusal("missing.txt")


def test_a_mistyped_folder_gets_a_suggestion():
    write_file("corpora/a.txt", "To be")
    message = refusal("./corpra/deep/a.txt")
    assert "There is no folder corpra." in message
    assert "Did you mean corpora?" in message


@pytest.mark.parametrize("path", ["./x", "../x/y", "~/no-such-file", "a/b/c", "x.jsonl", "x/", "/no/such"])
def test_a_path_that_looks_local_is_never_looked_up_on_the_hub(path, monkeypatch):
    monkeypatch.setattr("llm_lab.data.hub_datasets.load_hub", None)
    assert "There is no" in refusal(path)


def test_a_glob_without_matches_is_an_error():
    assert "No file matches this pattern. Check with: ls *.txt." in refusal("*.txt")


def test_an_unknown_builtin_gets_a_suggestion():
    message = refusal("builtin:storys")
    assert "No built-in dataset is named 'storys'. Allowed: builtin:stories" in message
    assert "Did you mean stories?" in message


def test_a_builtin_dataset_of_conversations_that_is_used_as_a_text_is_recognized():
    message = refusal("builtin:instruct")
    assert "has conversations, preferences or prompts, not plain text" in message
    assert "score.path" in message


def test_several_file_types_in_a_folder_are_listed():
    write_file("d/a.txt", "one")
    write_jsonl("d/b.jsonl", {"text": "two"})
    write_jsonl("d/c.jsonl", {"text": "two"})
    message = refusal("d")
    assert "It contains files of several types (2 jsonl, 1 text)" in message
    assert "such as d/**/*.jsonl" in message


def test_the_error_for_a_folder_without_text_lists_its_file_types():
    write_file("d/a.png", b"\x89PNG")
    assert "no files of a supported type, only .png. Allowed: .txt" in refusal("d")
    Path("empty").mkdir()
    assert "no files of a supported type. Allowed: .txt" in refusal("empty")


def test_keys_for_hub_datasets_are_refused_together_for_files():
    write_file("a.txt", "text")
    message = refusal("a.txt", subset="en", split="test").splitlines()
    assert len(message) == 2
    assert message[0].startswith("data.0.subset = en: This is plain text: only Hub datasets have subsets.")
    assert message[1].startswith("data.0.split = test: This is plain text: it has no splits.")
    assert "data.0.text_column = x: This is plain text" in refusal("a.txt", text_column="x")


@pytest.mark.parametrize("path", ["", "  "])
def test_an_empty_path_is_refused(path):
    assert "The path is empty" in refusal(path)


# Files that can't be read


def test_invalid_utf8_is_reported_with_its_byte():
    write_file("a.txt", "Gr\xfc\xdfe\n".encode() + "Gr\xfc\xdfe\n".encode("latin-1"))
    message = refusal("a.txt")
    assert "a.txt is not UTF-8 at byte 10 (line 2): 0xfc is invalid." in message
    assert "iconv -f WINDOWS-1252 -t UTF-8 a.txt > utf8-a.txt" in message


def test_the_byte_of_invalid_utf8_counts_the_byte_order_mark():
    write_file("a.txt", b"\xef\xbb\xbfab\xff")
    assert "not UTF-8 at byte 5 (line 1)" in refusal("a.txt")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_invalid_utf8_in_rows_is_reported_with_its_line(name):
    good = b'{"text": "ok"}\n' if name == "a.jsonl" else b"text\nok\n"
    write_file(name, good + b'{"text": "\xe9"}\n')
    assert f"(line {good.count(bytes([10])) + 1})" in refusal(name)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("packed", [False, True])
def test_utf16_with_its_mark_is_read(encoding, packed):
    texts = [f"Grüße 漢字 😀 {number}" for number in range(9000)]
    rows = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\r\n" for text in texts)
    table = "text\r\n" + "".join(f"{text}\r\n" for text in texts)
    for name, content, expected in (
        ("a.txt", "Grüße 😀\n", ["Grüße 😀\n"]),
        ("a.jsonl", rows, texts),
        ("a.csv", table, texts),
    ):
        data = ("\ufeff" + content).encode(encoding)
        path = write_file(f"{name}.gz" if packed else name, gzip.compress(data) if packed else data)
        source = open_source(str(path))
        assert list(source.documents()) == expected
        assert list(source.documents()) == expected, "and again from its start"


def test_a_file_that_only_begins_as_utf16_is_refused():
    write_file("a.txt", b"\xff\xfe" + "text".encode("utf-16-le") + b"\x00\xd8")
    assert "begins like UTF-16 text, but is not valid UTF-16" in refusal("a.txt")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_a_binary_file_is_refused(name):
    write_file(name, b"text\nPK\x03\x04\x00\x00")
    assert "so it is not text" in refusal(name)


def test_a_broken_json_line_is_named():
    write_file("a.jsonl", '{"text": "one"}\n{"text": "two"\n')
    assert "line 2 of a.jsonl is not JSON: Expecting ',' delimiter (column 15). Write" in refusal("a.jsonl")


def test_a_json_line_that_is_not_an_object_is_refused():
    write_file("a.jsonl", '"just text"\n')
    assert "line 1 of a.jsonl is a JSON str, not an object" in refusal("a.jsonl")


def test_a_broken_json_list_is_refused():
    write_file("a.json", '[{"text": "one"},\n {"text"]')
    assert "starts as a list but is not JSON" in refusal("a.json")


def test_an_error_in_a_json_object_that_spans_lines_names_its_line():
    write_file("a.json", '{\n  "text": "one"\n}\n{\n  "text": two\n}\n')
    assert "object 2 of a.json is not JSON: Expecting value: line 5 column 11" in refusal("a.json")
    write_file("b.json", '{\n  "text": "one"\n}\n"two"\n')
    assert "object 2 of b.json is a JSON str, not an object" in refusal("b.json")


def test_an_unpaired_surrogate_is_refused():
    write_file("a.jsonl", '{"text": "\\ud83d"}\n')
    assert "contains an unpaired surrogate" in refusal("a.jsonl")


def test_a_row_without_the_column_is_named():
    write_jsonl("a.jsonl", *[{"text": "one"}] * 30, {"txt": "two"})
    assert "line 31 of a.jsonl has no column 'text'; it has txt" in refusal("a.jsonl")


def test_a_row_whose_column_is_not_text_is_named():
    write_jsonl("a.jsonl", *[{"text": "one"}] * 30, {"text": 5})
    assert "line 31 of a.jsonl: column 'text' is int, not text" in refusal("a.jsonl")


def test_a_csv_row_with_too_many_cells_is_named():
    write_file("a.csv", "id,text\n1,one, two\n")
    assert "line 2 of a.csv has more cells than the header" in refusal("a.csv")


def test_an_unclosed_csv_quote_is_refused():
    write_file("a.csv", 'id,text\n1,"one\n')
    assert "a.csv is not CSV" in refusal("a.csv")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.txt.gz"])
def test_a_file_without_text_is_refused(name):
    write_file(name, gzip.compress(b"") if name.endswith(".gz") else b"")
    message = refusal(name)
    assert "It contains no text" in message or "It has no rows" in message


def test_rows_without_text_are_refused():
    write_jsonl("a.jsonl", {"text": ""}, {"text": " "})
    assert "It contains no text" in refusal("a.jsonl")


def test_an_incomplete_download_is_refused():
    write_file("a.txt.gz", gzip.compress(b"text" * 1000)[:-9])
    write_file("b.txt.gz", b"not gzip")
    write_file("c.parquet", b"PAR1 torn")
    assert "is not a complete gzip file" in refusal("a.txt.gz")
    assert "is not a complete gzip file" in refusal("b.txt.gz")
    assert "can't be read as Parquet" in refusal("c.parquet")
