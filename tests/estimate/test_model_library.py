"""The model library: its facts agree with the architectures in transformers, and it is read without torch."""

import pytest

from llm_lab.estimate.model_library import CONFIGS, MODELS, TEXT_ONLY, find_in_library

QUICK = ("Qwen3-0.6B", "SmolLM2-135M", "Gemma-3-270M", "GPT-2", "Qwen3.5-0.8B")
# Values that the library counts and that are not in its config for estimates.
DETAILS = {"Qwen3.5-0.8B": {"linear_num_value_heads": 16}, "Qwen3.5-2B": {"linear_num_value_heads": 16}}
GEMMA_IMAGES = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
GEMMA_IMAGES |= {"image_size": 896, "patch_size": 14, "vision_use_head": False}


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CONFIGS])
def test_the_parameters_of_a_model_are_exactly_those_of_its_architecture(name):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values, parameters = CONFIGS[name]
    values = {**values, **DETAILS.get(name, {})}
    if values["model_type"] == "phi3":
        values |= {"pad_token_id": 0}  # the default is outside smaller vocabularies
    if name == "Gemma-3-4B":
        values = {"model_type": "gemma3", "text_config": values, "vision_config": GEMMA_IMAGES}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))
    assert sum(weight.numel() for weight in model.parameters()) == parameters


def test_the_shape_for_estimates_has_every_parameter():
    for model in MODELS:
        assert model.shape.parameters == model.parameters
        described = model.parameters - model.shape.other_parameters
        assert described == pytest.approx(model.parameters, rel=0.15)


def test_each_family_has_each_of_its_base_and_chat_models_once():
    names = [model.name for model in MODELS]
    assert len(set(names)) == len(names)
    families = {model.family: {m.is_chat for m in MODELS if m.family == model.family} for model in MODELS}
    assert families.pop("Phi") == {True}  # this family has no base models
    assert families.pop("GPT-2") == {False}
    assert set(map(frozenset, families.values())) == {frozenset({True, False})}


def test_models_that_need_permission_say_so():
    gated = {model.family for model in MODELS if model.gated}
    assert gated == {"Llama 3.2", "Llama 3.1", "Gemma 3"}
    assert {model.license for model in MODELS if model.gated} == {"llama3.2", "llama3.1", "gemma"}
    assert [model.name for model in MODELS if TEXT_ONLY in model.note and "3.5" not in model.name] == [
        "google/gemma-3-4b-pt",
        "google/gemma-3-4b-it",
    ]


def test_a_model_is_found_by_its_name_on_the_hub():
    assert find_in_library("gpt2") is find_in_library("openai-community/gpt2")
    assert find_in_library("Qwen/Qwen3-0.6B").context == 40_960
    assert find_in_library("Qwen3-0.6B") is None
