"""Design a model in the wizard: parts, numbers, the config that is written, and its pretraining."""

import pytest
from conftest import write_text
from support.wizard_answers import ENTER, Refused, answers, follow

from llm_lab.recipe.fields import keys_of
from llm_lab.recipe.parts import ModelParts
from llm_lab.wizard.home import MODELS
from llm_lab.wizard.model_design import design, design_paths
from llm_lab.wizard.questions import WriteDesign

DEFAULTS = [ENTER] * 8  # norm, attention, activation, width, depth, heads, key-value heads, context
USUAL = ["no, the defaults are fine", "Save this design"]


@pytest.fixture(autouse=True)
def folder(in_tmp_path):
    return in_tmp_path


def write(effect) -> bool:
    from llm_lab.hf.load import write_design

    assert isinstance(effect, WriteDesign)
    write_design(MODELS / effect.name, effect.values)
    return True


def test_a_design_of_usual_parts_is_a_plain_llama():
    from transformers import AutoConfig

    answers(design, ["mine", "bytes", "nano", "rope", *DEFAULTS, *USUAL, "Back to the menu"], execute=write)
    config = AutoConfig.from_pretrained("configs/models/mine")
    assert (config.model_type, config.hidden_size, config.num_key_value_heads) == ("llama", 128, 2)


def test_a_design_of_other_parts_carries_its_code():
    from transformers import AutoConfig

    parts = ["alibi", "layernorm", "mha", "relu", 64, "2", 2, "128"]
    answers(design, ["odd", "bytes", "nano", *parts, *USUAL], execute=write)
    config = AutoConfig.from_pretrained("configs/models/odd", trust_remote_code=True)
    assert config.model_type == "llm_lab"
    assert (config.position_embedding, config.norm, config.activation) == ("alibi", "layernorm", "relu")
    assert (config.hidden_size, config.num_hidden_layers, config.num_key_value_heads) == (64, 2, 2)


def test_a_design_is_pretrained_with_its_tokenizer():
    write_text("text.txt")
    designed = answers(
        design, ["mine", "a BPE", "300", "nano", "rope", *DEFAULTS, *USUAL, "Pretrain it"], execute=write
    )
    keys = ["text.txt", "no, continue", "a BPE", "300", "muon", ENTER, "cosine", ENTER, ENTER, "3", ENTER]
    visit = follow(designed.result, [*keys, "Continue to the plan", "Yes"])
    (start,) = visit.effects
    assert start.recipe["model"] == {"config": "configs/models/mine"}
    assert start.recipe["tokenizer"] == {"bpe": 300}
    assert start.recipe["name"] == "mine"


def test_the_numbers_of_a_design_follow_the_answers():
    visit = answers(design, [ENTER, "bytes", "micro", "yarn"])
    shapes = [question.screen.panel.resolved.shape.parameters for question in visit.questions]
    assert round(shapes[0], -3) == 771_000
    assert round(shapes[-1], -5) == 2_800_000


def test_every_part_of_a_model_is_asked():
    asked = design_paths(advanced=False) + design_paths(advanced=True)
    assert sorted(asked) == sorted(key.path for key in keys_of(ModelParts, "model."))


def test_the_advanced_settings_are_asked_one_by_one_on_request():
    count = len([path for path in design_paths(advanced=True) if "original_max" not in path])
    visit = answers(design, ["fine", "bytes", "nano", "rope", *DEFAULTS, "yes, one by one", *[ENTER] * count])
    assert visit.question.key == "review"
    assert "Sliding window, in tokens" in visit.texts()


def test_a_design_is_replaced_only_after_a_yes():
    keys = ["mine", "bytes", "nano", "rope", *DEFAULTS, *USUAL]
    answers(design, keys, execute=write)
    visit = answers(design, [*keys, "no"], execute=write)
    assert visit.question.key == "review"
    assert answers(design, [*keys, "yes"]).question.key == "design.next"


def test_wrong_names_and_tokenizers_are_refused():
    answers(design, [Refused("no/slash", "not a valid name"), ENTER, "a BPE", Refused("100", "at least 257")])
    answers(
        design, [ENTER, "a tokenizer from", Refused("./no/such", "does not exist"), Refused("", "required"), "gpt2"]
    )


def test_the_draft_is_kept_on_the_way_to_the_menu():
    assert answers(design, ["a", "bytes", "nano", "rope", *DEFAULTS, "no, the", "Back to the menu"]).left
