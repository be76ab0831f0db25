"""Uploads stay inside uploads/ and within a limit, and never replace a file."""

from pathlib import Path

import pytest
from support.web_server import run_apart

from llm_lab.errors import UserError
from llm_lab.web import uploads
from llm_lab.web.uploads import safe_name, save_upload


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


async def pieces(*parts):
    for part in parts:
        yield part


def save(name, *parts, **options):
    return run_apart(save_upload(name, pieces(*parts), **options))


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../etc/data.jsonl", "data.jsonl"),
        ("C:\\Users\\me\\my data.CSV", "my-data.csv"),
        ("..json", "data.json"),
        (".hidden.txt", "hidden.txt"),
        ("a\0b\n<img src=x>.md", "a-b-img-src-x.md"),
        ("Grüße 你好.jsonl", "Grüße-你好.jsonl"),
        ("x" * 500 + ".parquet", "x" * 80 + ".parquet"),
    ],
)
def test_a_name_becomes_a_plain_file_name(name, safe):
    assert safe_name(name) == safe
    assert str(save(name, b"{}\n")) == f"uploads/{safe}"


@pytest.mark.parametrize("name", ["", "data", "page.html", "run.py", "model.safetensors", "data.jsonl/"])
def test_other_formats_are_refused_and_the_error_lists_those_that_are_read(name, tmp_path):
    with pytest.raises(UserError, match=r"another format.*jsonl"):
        save(name, b"x")
    assert not list(tmp_path.rglob("*"))


def test_a_name_that_is_taken_gets_a_number():
    paths = [str(save("data.jsonl", content)) for content in (b"1\n", b"2\n", b"3\n")]
    assert paths == ["uploads/data.jsonl", "uploads/data-2.jsonl", "uploads/data-3.jsonl"]
    assert [Path(path).read_text() for path in paths] == ["1\n", "2\n", "3\n"]


def test_nothing_is_kept_of_an_upload_that_is_too_large_empty_or_interrupted(tmp_path):
    with pytest.raises(UserError, match=r"larger than 10 bytes.*name its path"):
        save("data.txt", b"12345678", b"90123", largest=10)
    with pytest.raises(UserError, match="empty"):
        save("data.txt")

    async def broken():
        yield b"123"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        run_apart(save_upload("data.txt", broken()))
    assert list((tmp_path / "uploads").iterdir()) == []


def test_all_uploads_together_have_a_limit_and_leave_room_on_the_disk(tmp_path, monkeypatch):
    save("old.txt", b"x" * 80)
    monkeypatch.setattr(uploads, "MOST_UPLOADED", 100)
    save("fits.txt", b"x" * 20)
    with pytest.raises(UserError, match=r"uploads/: it holds 120 bytes, and at most 100 bytes are kept. Delete files"):
        save("more.txt", b"x" * 20)
    monkeypatch.setattr(uploads, "MOST_UPLOADED", 1000)
    monkeypatch.setattr(uploads, "LEFT_FREE", 2**60)
    with pytest.raises(UserError, match=r"the disk has only [\d,]+ MiB left"):
        save("more.txt", b"x" * 20)
    assert sorted(file.name for file in (tmp_path / "uploads").iterdir()) == ["fits.txt", "old.txt"]


def test_a_parquet_file_that_unpacks_to_far_more_than_fits_is_not_read(monkeypatch):
    import pyarrow
    import pyarrow.parquet

    from llm_lab.web import data_calls

    text = pyarrow.array(["a" * 1000] * 50_000)
    Path("uploads").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), "uploads/bomb.parquet", use_dictionary=False)
    assert Path("uploads/bomb.parquet").stat().st_size < 5_000_000
    monkeypatch.setattr(data_calls, "_free_bytes", lambda: 40_000_000)
    found = data_calls.look_at_data({"path": "uploads/bomb.parquet"}, "text")
    assert "unpacks to 0.05 GiB" in found["problem"]
    assert found["rows"] == []


def test_a_file_that_says_it_is_too_large_is_refused_before_it_is_read(server):
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(uploads.LARGEST_UPLOAD + 1)}
    status, _, text = server.ask("POST", "/api/uploads?name=a.txt", None, headers)
    assert status == 400
    assert "larger than 2 GiB" in text
