"""Finding the base of a LoRA adapter, and its shape, before torch is imported."""

import json
import shutil
from pathlib import Path

import pytest

from llm_lab.cli import main
from llm_lab.estimate.adapter_base import find_base, read_object, weights_digest
from llm_lab.estimate.parameters import read_config_json, shape_at
from llm_lab.hf.adapter import read_adapter
from llm_lab.recipe.resolve import resolve
from llm_lab.runs.loading import inspect_folder, loading_code

CONFIG = {
    "model_type": "llama",
    "vocab_size": 257,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def write_model(folder: Path, weights: bytes = b"base") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def write_adapter(folder: Path, base: str | Path, digest: str | None) -> Path:
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "base_model_name_or_path": str(base), "trainable_token_indices": [257, 258]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(b"adapter")
    (folder / "base_model.json").write_text(json.dumps({"base_model": str(base), "digest": digest}))
    return folder


@pytest.fixture
def moved(tmp_path) -> Path:
    """A folder of runs that was moved after an adapter was trained in it: `base` and `sft`, with a saved step."""
    base = write_model(tmp_path / "here" / "checkpoints" / "base" / "model")
    for place in ("model", "steps/checkpoint-2"):
        write_adapter(tmp_path / "here" / "checkpoints" / "sft" / place, base, weights_digest(base))
    shutil.move(tmp_path / "here", tmp_path / "there")
    return tmp_path / "there" / "checkpoints"


@pytest.mark.parametrize("row", [10**400, -1, True])
def test_a_token_that_no_vocabulary_holds_is_not_counted_in_the_plan(tmp_path, row):
    base = write_model(tmp_path / "base")
    write_adapter(tmp_path / "adapter", base, weights_digest(base))
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"trainable_token_indices": {"lm_head": [257, row]}}))
    assert shape_at(tmp_path / "adapter").vocab_size == shape_at(base).vocab_size


@pytest.mark.parametrize("place", ["sft", "sft/model", "sft/steps/checkpoint-2"])
def test_an_adapter_and_its_base_may_move_together(moved, place):
    assert find_base(moved / place) == str(moved / "base" / "model")
    assert shape_at(moved / place).vocab_size == 259  # the base's, and the two rows of the adapter


def test_the_folder_of_all_runs_may_be_renamed(moved):
    renamed = moved.rename(moved.parent / "runs")
    assert find_base(renamed / "sft") == str(renamed / "base" / "model")


def test_the_planner_and_the_loader_find_the_same_base(moved):
    assert read_adapter(moved / "sft" / "model").base == find_base(moved / "sft")


def test_a_plan_that_starts_from_a_moved_adapter_knows_its_shape(moved):
    raw = {
        "stage": "dpo",
        "device": "cpu",
        "model": {"checkpoint": str(moved / "sft")},
        "data": [{"path": "builtin:sums"}],
    }
    before = resolve({**raw, "model": {"checkpoint": str(moved / "base")}})
    after = resolve(raw)
    assert after.shape.parameters == before.shape.parameters + 2 * CONFIG["hidden_size"]
    assert after.estimate.memory_bytes > 0


def test_show_describes_a_moved_adapter_with_its_base(moved, capsys):
    assert main(["show", str(moved / "sft" / "model")]) == 0
    text = "".join(capsys.readouterr().out.split())
    assert f"base{moved}/base/model" in text
    assert "259entries" in text


def test_another_model_at_the_same_path_is_not_mistaken_for_the_base(moved, capsys):
    (moved / "base" / "model" / "model.safetensors").write_bytes(b"other")
    assert find_base(moved / "sft") is None
    assert read_config_json(moved / "sft") is None
    assert main(["show", str(moved / "sft" / "model")]) == 2
    assert "the base model of this adapter is not at" in " ".join(capsys.readouterr().err.split())


def test_a_run_copied_alone_finds_its_base_through_its_recorded_parent(moved, tmp_path, monkeypatch):
    base = moved / "base" / "model"
    (moved / "sft" / "run.json").write_text(
        json.dumps({"stage": "sft", "parent": {"path": "checkpoints/base/model", "digest": weights_digest(base)}})
    )
    alone = Path(shutil.move(moved / "sft", tmp_path / "copy"))
    assert find_base(alone) is None
    monkeypatch.chdir(moved.parent)  # where the recorded path leads to the base
    for place in ("model", "steps/checkpoint-2"):
        assert find_base(alone / place) == str(base)


def test_a_base_without_a_digest_may_be_a_name_on_the_hub(tmp_path):
    write_model(tmp_path / "some" / "model")
    adapter = write_adapter(tmp_path / "adapter", "some/model", None)
    assert find_base(adapter) == "some/model"


def test_a_base_of_one_name_moves_with_its_adapter_if_it_has_the_digest(tmp_path):
    base = write_model(tmp_path / "p1" / "model")
    adapter = write_adapter(tmp_path / "p1" / "checkpoints" / "a" / "model", base, weights_digest(base))
    write_model(tmp_path / "p1" / "checkpoints" / "model", b"another one of that name")
    shutil.move(tmp_path / "p1", tmp_path / "p2")
    moved = tmp_path / "p2" / adapter.relative_to(tmp_path / "p1")
    assert find_base(moved) == str(tmp_path / "p2" / "model")
    record = moved / "base_model.json"
    record.write_text(json.dumps({"digest": None}))
    assert find_base(moved) is None, "without a digest it could be any model of that name"


def test_a_base_of_one_word_without_a_digest_is_a_name_on_the_hub(tmp_path):
    assert find_base(write_adapter(tmp_path / "adapter", "gpt2", None)) == "gpt2"
    assert find_base(write_adapter(tmp_path / "local", "gpt2", "0" * 64)) is None, "it was a folder"


def test_the_code_of_a_card_trusts_the_code_of_a_moved_base(moved):
    config = moved / "base" / "model" / "config.json"
    config.write_text(json.dumps(CONFIG | {"auto_map": {"AutoModelForCausalLM": "modeling_lab.LabForCausalLM"}}))
    ((_, code),) = loading_code(inspect_folder(moved / "sft" / "model"), "me/adapter")
    assert "trust_remote_code=True" in code


def test_an_adapter_that_names_no_base_or_itself_has_none(tmp_path):
    assert find_base(write_adapter(tmp_path / "nameless", "", None)) is None
    assert find_base(write_adapter(tmp_path / "itself", tmp_path / "itself", None)) is None
    assert find_base(tmp_path) is None


def test_values_of_another_type_are_left_out_of_configs_that_others_wrote(tmp_path):
    file = tmp_path / "adapter_config.json"
    file.write_text(
        '{"target_modules": ["q_proj", null], "vocab_size": "9", "model_type": [], "r": 4, "other": [null]}'
    )
    assert read_object(file) == {"r": 4, "other": [None]}
    file.write_text('{"target_modules": "all-linear", "vocab_size": 9, "eos_token_id": [1]}')
    assert read_object(file) == {"target_modules": "all-linear", "vocab_size": 9, "eos_token_id": [1]}
