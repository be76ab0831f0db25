"""A saved folder is complete: it loads here, in a process without llm_lab, and on the meta device."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_models import LOAD_WITHOUT_LLM_LAB, tiny_config, tiny_model, tokens
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from llm_lab.model import modeling_lab
from llm_lab.model.configuration_lab import LabConfig
from llm_lab.model.modeling_lab import LabForCausalLM, LabForSequenceClassification, register


def test_a_saved_folder_loads_without_llm_lab(tmp_path, run_without_llm_lab):
    models = {
        "rope": tiny_model("rope", norm="layernorm", activation="relu"),
        "alibi": tiny_model("alibi", sliding_window=5, tie_word_embeddings=True),
        "yarn": tiny_model("yarn", qk_norm=True, num_key_value_heads=1),
        "sinusoidal": tiny_model("sinusoidal").to(torch.bfloat16),
    }
    ids = tokens(2, 11)
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        torch.save(ids, tmp_path / name / "ids.pt")
    run_without_llm_lab(LOAD_WITHOUT_LLM_LAB, *(tmp_path / name for name in models))
    for name, model in models.items():
        folder = tmp_path / name
        assert torch.equal(torch.load(folder / "logits.pt", weights_only=True), model(ids).logits)
        generated = model.generate(ids, max_new_tokens=5, do_sample=False)
        assert torch.equal(torch.load(folder / "generated.pt", weights_only=True), generated)
        again = {path.name for path in (folder / "again").glob("*.py")}
        assert again == {path.name for path in folder.glob("*.py")}


def test_a_saved_folder_contains_its_code_and_class_names(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "llm_lab"
    assert config["auto_map"] == {
        "AutoConfig": "configuration_lab.LabConfig",
        "AutoModelForCausalLM": "modeling_lab.LabForCausalLM",
    }
    code = Path(modeling_lab.__file__).parent
    saved = {path.name for path in tmp_path.glob("*.py")}
    assert saved == {path.name for path in code.glob("*.py")} - {"__init__.py"}
    assert all("llm_lab." not in (code / name).read_text() for name in saved)
    assert not list(tmp_path.glob("*.bin"))


def test_registered_classes_load_without_remote_code(tmp_path):
    register()
    register()
    model, ids = tiny_model("alibi"), tokens(2, 9)
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), LabConfig)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is LabForCausalLM
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert type(AutoModel.from_pretrained(tmp_path)) is modeling_lab.LabModel
    reward = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1)
    assert type(reward) is LabForSequenceClassification
    assert torch.equal(reward.model.norm.weight, model.model.norm.weight)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_heads_are_saved_and_loaded(tied, tmp_path):
    model, ids = tiny_model(tie_word_embeddings=tied), tokens(2, 9)
    model.save_pretrained(tmp_path)
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) != tied
    loaded = LabForCausalLM.from_pretrained(tmp_path)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)


def test_loading_initializes_only_missing_weights(tmp_path):
    model = tiny_model(attention_bias=True)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    missing = "model.layers.1.mlp.down_proj.weight"
    del weights[missing]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = LabForCausalLM.from_pretrained(tmp_path).state_dict()
    assert 0 < loaded.pop(missing).std() < 0.02
    assert set(loaded) == set(weights)
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


@pytest.mark.parametrize("position", ["sinusoidal", "rope", "alibi", "yarn", "learned"])
def test_a_model_created_on_the_meta_device_is_correct(position):
    model, ids = tiny_model(position), tokens(2, 9)
    with torch.device("meta"):
        empty = LabForCausalLM(tiny_config(position))
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty.eval()(ids).logits, model(ids).logits)


def test_bf16_weights_are_saved_and_loaded_as_bf16(tmp_path):
    model = tiny_model("yarn").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = LabForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.eval()(tokens(1, 9)).logits, model(tokens(1, 9)).logits)
