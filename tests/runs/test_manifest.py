"""A checkpoint is complete, or the run reports which of its files is damaged."""

import json
from pathlib import Path

import pytest

from llm_lab.runs.manifest import NAME, find_damage, write_manifest


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    folder = tmp_path / "checkpoint-10"
    (folder / "inner").mkdir(parents=True)
    for name, content in (("optimizer.pt", b"moments"), ("inner/rng_state.pth", b"random"), ("empty.json", b"")):
        (folder / name).write_bytes(content)
    write_manifest(folder)
    return folder


def test_a_checkpoint_as_it_was_written_has_no_damage(checkpoint):
    assert find_damage(checkpoint) is None
    manifest = json.loads((checkpoint / NAME).read_text())
    assert manifest.keys() == {"files", "sha256"}
    assert set(manifest["files"]) == {"optimizer.pt", "inner/rng_state.pth", "empty.json"}
    assert manifest["files"]["optimizer.pt"]["size"] == 7


@pytest.mark.parametrize("name", ["optimizer.pt", "inner/rng_state.pth", "empty.json"])
def test_a_missing_or_changed_file_is_named(checkpoint, name):
    file = checkpoint / name
    content = file.read_bytes()
    file.write_bytes(content + b"x")
    assert str(file) in find_damage(checkpoint)
    if content:
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        assert find_damage(checkpoint) == f"{file} has changed since it was written (another SHA-256)"
    file.unlink()
    assert find_damage(checkpoint) == f"{file} is missing"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": [1]}', '{"files": {"a": {}}}', '{"files": {"a": 1}}'])
def test_a_manifest_that_cannot_be_read_is_named(checkpoint, text):
    (checkpoint / NAME).write_text(text)
    assert find_damage(checkpoint) == f"{checkpoint / NAME} can't be read"


def test_a_manifest_is_checked_like_the_files_in_it(checkpoint):
    text = (checkpoint / NAME).read_text()
    for changed in (text.replace('"size": 7', '"size": 6'), text.replace("optimizer.pt", "optimizer.pu")):
        (checkpoint / NAME).write_text(changed)
        assert find_damage(checkpoint) == f"{checkpoint / NAME} has changed since it was written (another SHA-256)"


def test_a_missing_manifest_is_damage_only_if_one_was_written(tmp_path):
    folder = tmp_path / "old"
    folder.mkdir()
    assert find_damage(folder) == f"{folder / NAME} is missing"
    assert find_damage(folder, has_manifest=False) == f"{folder / 'trainer_state.json'} is missing"
    for name in ("trainer_state.json", "optimizer.pt", "scheduler.pt"):
        (folder / name).write_bytes(b"not a zip file")
    assert find_damage(folder, has_manifest=False) == f"{folder / 'optimizer.pt'} was cut off"
