"""Design a model in the wizard: parts, numbers, the config that is written, and its pretraining."""

from dataclasses import replace

import pytest
from conftest import write_text
from support.wizard_answers import ENTER, STAY, Fill, Refused, answers, follow, rows_of

from llm_lab.estimate.formatting import count
from llm_lab.recipe.fields import keys_of
from llm_lab.recipe.parts import ModelParts
from llm_lab.runs.plan_lines import plan_lines
from llm_lab.terminal.console import make_console
from llm_lab.terminal.screens import print_design_numbers
from llm_lab.wizard.draft_page import page_question
from llm_lab.wizard.home import MODELS
from llm_lab.wizard.model_design import design, design_page, new_design
from llm_lab.wizard.questions import WriteDesign


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

    answers(design, [Fill({"name": "mine"}), "Back to the menu"], execute=write)
    config = AutoConfig.from_pretrained("configs/models/mine")
    assert (config.model_type, config.hidden_size, config.num_key_value_heads) == ("llama", 128, 2)


def test_a_design_with_other_parts_includes_its_code():
    from transformers import AutoConfig

    parts = {"position_embedding": "alibi", "norm": "layernorm", "attention": "mha", "activation": "relu"}
    parts |= {"hidden_size": "64", "num_hidden_layers": "2", "num_attention_heads": "2"}
    answers(design, [Fill({"name": "odd", **{f"model.{part}": value for part, value in parts.items()}})], execute=write)
    config = AutoConfig.from_pretrained("configs/models/odd", trust_remote_code=True)
    assert config.model_type == "llm_lab"
    assert (config.position_embedding, config.norm, config.activation) == ("alibi", "layernorm", "relu")
    assert (config.hidden_size, config.num_hidden_layers, config.num_key_value_heads) == (64, 2, 2)


def test_a_design_is_pretrained_with_its_tokenizer():
    write_text("text.txt")
    designed = answers(
        design, [Fill({"name": "mine"}, "tokenizer"), "a BPE", "300", ENTER, "Pretrain it"], execute=write
    )
    visit = follow(designed.result, ["text.txt", "No, continue", Fill({"train.max_steps": "3"}), "Yes"])
    (start,) = visit.effects
    assert start.recipe["model"] == {"config": "configs/models/mine"}
    assert start.recipe["tokenizer"] == {"bpe": 300}
    assert start.recipe["name"] == "mine"


def test_the_numbers_of_a_design_follow_the_answers():
    visit = answers(design, [Fill({"model.size": "micro", "model.position_embedding": "yarn"}, STAY)])
    shapes = [question.screen.panel.resolved.shape.parameters for question in visit.questions]
    assert round(shapes[0], -3) == 771_000
    assert round(shapes[-1], -5) == 2_800_000
    command = "llm-lab design size=micro position_embedding=yarn --out configs/models/my-model"
    assert visit.question.form.command == command


def test_every_part_of_a_model_is_on_the_page():
    rows = {row.key for row in rows_of(answers(design, [Fill({"model.position_embedding": "yarn"}, STAY)]).question)}
    assert {key.path for key in keys_of(ModelParts, "model.")} <= {*rows, "model.num_key_value_heads"}


def test_a_design_is_replaced_only_after_a_yes():
    keys = [Fill({"name": "mine"})]
    answers(design, keys, execute=write)
    visit = answers(design, [*keys, "No"], execute=write)
    assert visit.question.form.changes == {"name": "mine"}
    assert answers(design, [*keys, "Yes"]).question.key == "design.next"


def test_wrong_names_and_tokenizers_are_refused():
    wrong = Fill({"name": Refused("no/slash", "not allowed")}, "tokenizer")
    answers(design, [wrong, "a BPE", Refused("100", "at least 257")])
    answers(design, ["tokenizer", "a tokenizer from", Refused("./no/such", "does not exist"), Refused("", "required")])


def test_the_help_of_the_name_says_where_a_design_is_written():
    start = new_design()
    row = page_question(start, start, design_page()).form.row("name")
    assert row.help == "name: the design is written to configs/models/<name>/config.json"


def test_the_draft_is_kept_on_the_way_to_the_menu():
    assert answers(design, [Fill({"name": "a"}, "menu")]).left


def test_a_design_with_experts_shows_all_and_active_parameters(in_tmp_path, capsys):
    parts = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    raw = {**new_design().raw, "model": {**parts, "num_experts": 4, "num_experts_per_tok": 1}}
    resolved, problems = replace(new_design(), raw=raw).look()
    assert problems == []
    shape = resolved.shape
    assert shape.parameters - shape.active_parameters == 2 * 3 * (3 * 32 * 48)  # layers, idle experts, matrices of one
    print_design_numbers(make_console(), resolved)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{count(shape.parameters)}, {count(shape.active_parameters)} active: feed-forward" in shown
    assert (
        f"{count(shape.parameters)}, {count(shape.active_parameters)} active"
        in dict((name, text) for name, text, _ in plan_lines(resolved))["parameters"]
    )
