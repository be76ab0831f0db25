"""The parameter count in the plan equals that of the model that is built."""

import json

import pytest
import torch
from conftest import tiny_recipe
from support.tiny_models import FACTORS, KEY_VALUE_HEADS, combinations, named, recipe_keys, tiny_config
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, MistralConfig, Qwen3Config

from llm_lab.estimate import parameters
from llm_lab.estimate.parameters import read_config_json, shape_of_config, vocabulary_size
from llm_lab.hf.configs import config_of_parts
from llm_lab.hf.save import native_config
from llm_lab.hf.tokenizers import make_byte_tokenizer, train_bpe
from llm_lab.model import feed_forward
from llm_lab.model.modeling_lab import LabForCausalLM
from llm_lab.recipe.parts import ACTIVATIONS, ATTENTIONS, NORMS, POSITIONS, SIZES
from llm_lab.recipe.resolve import resolve

SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def built(config) -> torch.nn.Module:
    """Build a model without allocating memory for its weights."""
    with torch.device("meta"):
        return (LabForCausalLM if config.model_type == "llm_lab" else AutoModelForCausalLM.from_config)(config)


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_parts_of_a_recipe_are_the_parts_of_the_model():
    of_the_model = [set(FACTORS[part]) for part in ("position", "norm", "activation")]
    assert of_the_model == [set(part) for part in (POSITIONS, NORMS, ACTIVATIONS)]
    assert set(KEY_VALUE_HEADS) == set(ATTENTIONS)
    assert parameters.GATED == feed_forward.GATED


@pytest.mark.parametrize("parts", combinations(2), ids=named)
def test_parameters_counted_before_the_build_are_those_of_the_model(parts):
    attention = next(name for name, heads in KEY_VALUE_HEADS.items() if heads == parts["num_key_value_heads"])
    own = {"attention": attention, "num_attention_heads": 4}
    own |= {"num_key_value_heads": None if attention != "gqa" else 2, "head_dim": 10 if parts["mlp_bias"] else None}
    raw = tiny_recipe()
    raw["model"] |= recipe_keys(parts) | own
    resolved = resolve(raw)
    config = config_of_parts(resolved.recipe.model.model_dump(by_alias=True), 257)
    model = built(config)
    assert resolved.shape.parameters == count(model)
    assert resolved.estimate.parameters_by_part == resolved.shape.parameters_by_part
    embedding = model.get_input_embeddings().weight.numel()
    assert resolved.shape.parameters_by_part["embedding"] == embedding
    assert resolved.shape.parameters_by_part["output"] == (0 if parts["tie_word_embeddings"] else embedding)
    assert config.num_key_value_heads == KEY_VALUE_HEADS[attention]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL),
        LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True, head_dim=12),
        MistralConfig(**SMALL, sliding_window=8),
        Qwen3Config(**SMALL, head_dim=16, attention_bias=True),
        GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=48),
        GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_inner=40),
        tiny_config("alibi", norm="layernorm", activation="gelu", attention_bias=True),
        tiny_config("yarn", qk_norm=True, num_key_value_heads=1),
    ],
    ids=lambda config: config.model_type,
)
def test_the_parameters_of_a_config_are_counted(config, tied, tmp_path):
    config.tie_word_embeddings = tied
    config.save_pretrained(tmp_path)
    shape = shape_of_config(read_config_json(tmp_path))
    assert shape.parameters == count(built(config))
    assert shape_of_config(read_config_json(tmp_path / "config.json"), 100).vocab_size == 100


@pytest.mark.parametrize("kind", [LlamaConfig, MistralConfig, Qwen3Config])
def test_keys_missing_from_a_config_get_the_defaults_of_transformers(kind, tmp_path):
    values = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
    values |= {"model_type": kind.model_type, "num_attention_heads": 32, "hidden_size": 128}
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = kind.from_pretrained(tmp_path)
    assert shape_of_config(read_config_json(tmp_path)).parameters == count(built(config))


def test_the_shape_of_an_unsupported_architecture_is_unknown(tmp_path):
    assert shape_of_config({"model_type": "opt", "hidden_size": 32}) is None
    assert shape_of_config({"model_type": "llama"}) is None
    assert read_config_json(tmp_path) is None
    (tmp_path / "config.json").write_text("{")
    assert read_config_json(tmp_path) is None
    (tmp_path / "config.json").write_text("[]")
    assert read_config_json(tmp_path) is None


@pytest.mark.parametrize("size", SIZES)
def test_every_preset_size_has_about_the_parameters_it_names(size):
    raw = {"stage": "pretrain", "device": "auto", "model": {"size": size}, "data": [{"path": "builtin:stories"}]}
    resolved = resolve(raw)
    config = config_of_parts(resolved.recipe.model.model_dump(), resolved.shape.vocab_size)
    assert resolved.shape.parameters == count(built(config))
    assert native_config(config) is not None
    word = SIZES[size].parameters.removeprefix("under ").removeprefix("about ").split()
    promised = float(word[0]) * {"M": 1e6, "B": 1e9}[word[1]]
    if SIZES[size].parameters.startswith("under"):
        assert resolved.shape.parameters < promised
    else:
        assert resolved.shape.parameters == pytest.approx(promised, rel=0.12)


def test_vocabulary_size_is_the_length_of_the_tokenizer(tmp_path):
    assert vocabulary_size("bytes") == (len(make_byte_tokenizer()), True)
    tokenizer = train_bpe(["the old tree and the old stone"] * 5, 270)
    tokenizer.save_pretrained(tmp_path / "plain")
    assert vocabulary_size(str(tmp_path / "plain")) == (len(tokenizer), True)
    tokenizer.add_tokens(["<word>"])
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(tmp_path / "added" / "model")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "added" / "model")
    assert vocabulary_size(str(tmp_path / "added")) == (len(loaded), True)
    assert len(loaded) == len(tokenizer) != loaded.vocab_size
    assert vocabulary_size({"bpe": 512}) == (512, False)
    assert not vocabulary_size("org/name")[1]


def test_the_memory_of_muon_counts_the_matrices_that_it_updates():
    from llm_lab.optim.factory import split_parameters

    resolved = resolve(tiny_recipe(optimizer={"name": "muon"}))
    model = LabForCausalLM(config_of_parts(resolved.recipe.model.model_dump(), 257))
    hidden, _, _ = split_parameters(model)
    assert resolved.shape.matrix_parameters == sum(parameter.numel() for parameter in hidden)
