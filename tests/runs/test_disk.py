"""Folders appear complete or not at all, and every library's report of a full disk is recognized."""

import errno

import pytest
import torch
from safetensors.torch import save_file
from support.small_disk import small_disk

from llm_lab.runs.disk import TEMPORARY, describe_disk_error, is_disk_error, publish, remove_folder, staged_folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_complete(tmp_path):
    with staged_folder(tmp_path / "model") as staged:
        staged.mkdir()
        (staged / "config.json").write_text("{}")
        assert names(tmp_path) == [staged.name]
        assert TEMPORARY.fullmatch(staged.name)
    assert names(tmp_path) == ["model"]


def test_a_folder_that_could_not_be_finished_leaves_the_old_one(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()

    def write() -> None:
        with staged_folder(tmp_path / "model") as staged:
            staged.mkdir()
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        write()
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["old"]


def test_replacing_and_deleting_leave_no_part_of_a_folder_under_its_name(tmp_path, monkeypatch):
    """After a kill while the files of the old folder are deleted, the rest has a temporary name."""
    for name in ("model", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # killed before the first file was deleted
    publish(tmp_path / "new", tmp_path / "model")
    assert names(tmp_path / "model") == ["new"]
    remove_folder(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert all(TEMPORARY.fullmatch(name) for name in names(tmp_path))


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 64 KiB."""
    with small_disk(tmp_path / "disk", "64k") as folder:
        yield folder


WRITERS = {
    "python": lambda path: path.write_bytes(bytes(1_000_000)),
    "torch": lambda path: torch.save({"a": torch.zeros(1_000_000)}, path),
    "torch, many": lambda path: torch.save({str(i): torch.zeros(1_000) for i in range(100)}, path),
    "safetensors": lambda path: save_file({"a": torch.zeros(1_000_000)}, path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_recognized(full_disk, writer):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - each library has its own
        WRITERS[writer](full_disk / "file")
    assert is_disk_error(caught.value), repr(caught.value)
    assert any(word in describe_disk_error(caught.value).lower() for word in ("space", "full", "write"))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no space left"),
        RuntimeError("CUDA out of memory"),
        RuntimeError("mat1 and mat2 shapes"),
        KeyError("a"),
    ],
)
def test_other_errors_are_not_mistaken_for_a_full_disk(error):
    assert not is_disk_error(error)
