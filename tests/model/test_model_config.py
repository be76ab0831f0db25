"""A configuration derives missing sizes and reports all problems at once."""

import pytest
from support.tiny_models import YARN, tiny_config

from llm_lab.model.configuration_lab import LabConfig


def test_the_defaults_are_a_complete_model():
    config = LabConfig()
    assert config.head_dim * config.num_attention_heads == config.hidden_size
    assert config.num_key_value_heads == config.num_attention_heads
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}


@pytest.mark.parametrize(("activation", "width"), [("gelu", 512), ("swiglu", 384)])
def test_the_feed_forward_width_depends_on_the_activation(activation, width):
    assert LabConfig(hidden_size=128, activation=activation).intermediate_size == width


@pytest.mark.parametrize("position", ["sinusoidal", "rope", "alibi", "yarn", "learned"])
def test_a_configuration_is_the_same_after_saving_and_loading(position, tmp_path):
    config = tiny_config(position, sliding_window=7, qk_norm=True, eos_token_id=[1, 2])
    config.save_pretrained(tmp_path)
    assert LabConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize("position", ["sinusoidal", "alibi"])
def test_only_rotary_positions_have_rope_parameters(position):
    assert tiny_config(position, rope_parameters={"rope_theta": 500.0}).rope_parameters is None


def test_yarn_derives_its_factor_from_the_contexts():
    rope = {"original_max_position_embeddings": 16}
    assert tiny_config("yarn", rope_parameters=rope, max_position_embeddings=64).rope_parameters["factor"] == 4
    assert rope == {"original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"position_embedding": "rotary"},
            "position_embedding = 'rotary' is unknown: choose from sinusoidal, rope",
        ),
        ({"norm": "batchnorm"}, "norm = 'batchnorm' is unknown: choose from layernorm, rmsnorm"),
        ({"activation": "tanh"}, "activation = 'tanh' is unknown"),
        ({"hidden_size": 30}, "hidden_size = 30 is not divisible by num_attention_heads = 4"),
        ({"num_key_value_heads": 3}, "num_attention_heads = 4 is not divisible by num_key_value_heads = 3"),
        ({"head_dim": 7}, "head_dim = 7 must be even for rope"),
        ({"head_dim": 7, "position_embedding": "yarn", "rope_parameters": YARN}, "head_dim = 7 must be even"),
        (
            {"hidden_size": 33, "head_dim": 8, "position_embedding": "sinusoidal"},
            "hidden_size = 33 must be even",
        ),
        ({"sliding_window": 0}, "sliding_window = 0 must be a whole number of at least 1"),
        ({"layer_types": ["full_attention"]}, "layer_types has 1 entries, but num_hidden_layers = 2"),
        ({"layer_types": ["full_attention", "odd"]}, "layer_types contains 'odd'"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "which requires a sliding_window"),
        ({"final_logit_softcapping": 0}, "final_logit_softcapping = 0 must be greater than 0, or null"),
        ({"sliding_window": 1}, "sliding_window = 1 lets a token attend only to itself"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0 must be a whole number"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers = 2.0 must be a whole number"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0 must be"),
        ({"hidden_size": None}, "hidden_size = None must be a whole number"),
        ({"hidden_dropout": 1.0}, "hidden_dropout = 1.0 must be at least 0 and less than 1"),
        ({"attention_dropout": "0.1"}, "attention_dropout = '0.1' must be"),
        ({"norm_eps": 0}, "norm_eps = 0 must be greater than 0"),
        ({"eos_token_id": 61}, "eos_token_id = 61 is outside the vocabulary of 61"),
        ({"eos_token_id": [1, 99]}, "eos_token_id = 99 is outside"),
        ({"position_embedding": "yarn"}, "requires rope_parameters.factor"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_type = 'llama3' does not match"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "it must be 'default'"),
        ({"rope_parameters": {"factor": 2.0}}, "rope_parameters.factor is not allowed here"),
        ({"rope_parameters": {"rope_theta": 0.5}}, "rope_theta = 0.5 must be greater than 1"),
        ({"qk_norm": "yes"}, "qk_norm = 'yes' must be true or false"),
        (
            {"position_embedding": "yarn", "rope_parameters": {**YARN, "beta_fast": -1}},
            "rope_parameters.beta_fast = -1 must be greater than 0",
        ),
        (
            {"position_embedding": "yarn", "rope_parameters": {**YARN, "factor": 0.5}},
            "rope_parameters.factor = 0.5 must be at least 1",
        ),
    ],
    ids=str,
)
def test_an_invalid_value_is_reported(changes, message):
    with pytest.raises(ValueError, match="cannot be built") as error:
        tiny_config(**changes)
    assert message in str(error.value)
    assert str(error.value).count("\n- ") == 1


def test_all_problems_are_reported_at_once():
    with pytest.raises(ValueError, match="cannot be built") as error:
        tiny_config(hidden_size=30, norm="none", activation="none", num_hidden_layers=-1)
    assert str(error.value).count("\n- ") == 4


def test_an_odd_head_dim_is_allowed_without_rotary_positions():
    for position in ("alibi", "sinusoidal"):
        assert tiny_config(position, head_dim=7).head_dim == 7
