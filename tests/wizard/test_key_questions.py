"""Questions made from recipe keys: defaults, help, what is allowed, and the consequences of an answer."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from support.recipe_keys import every_key
from support.wizard_answers import ENTER, Refused, ask

from llm_lab.estimate.machine import Machine
from llm_lab.job import read_job
from llm_lab.recipe.files import format_value
from llm_lab.recipe.registry import STAGES
from llm_lab.recipe.what_fits import make_it_fit
from llm_lab.wizard.draft import Draft
from llm_lab.wizard.draft_page import command_line, summary
from llm_lab.wizard.key_questions import ask_key, key_question
from llm_lab.wizard.model_questions import with_model
from llm_lab.wizard.review import recipe_text, why_not_start
from llm_lab.wizard.training_runs import change, new_draft, own_keys


@pytest.fixture
def draft(in_tmp_path) -> Draft:
    return new_draft("pretrain")


def answered(draft, path, *given) -> Draft:
    return ask(draft, ask_key, given, path=path)[0]


def question_of(draft, path):
    return key_question(draft, path)


def test_enter_on_a_default_leaves_it_a_default(draft):
    for path in (
        "train.max_steps",
        "model.norm",
        "model.num_attention_heads",
        "train.compile",
        "optimizer.adamw_betas",
    ):
        assert answered(draft, path, ENTER).raw == draft.raw


def test_an_answer_is_typed_as_in_a_recipe(draft):
    assert answered(draft, "train.max_steps", "20").raw["train"] == {"max_steps": 20}
    assert list(answered(draft, "samples.prompts", '["Once", "The"]').value("samples.prompts")) == ["Once", "The"]
    assert list(answered(draft, "optimizer.adamw_betas", "[0.8, 0.9]").value("optimizer.adamw_betas")) == [0.8, 0.9]


def test_a_question_has_its_help_its_explanation_and_what_is_allowed(draft):
    question = question_of(draft, "train.max_steps")
    assert question.help.startswith("train.max_steps: ")
    assert "A step is one optimizer update" in question.why
    assert question.allowed.startswith("Allowed: a whole number of at least 1.")
    assert "Zhang & Sennrich" in question_of(draft, "model.norm").why


def test_several_trackers_from_a_file_are_kept_by_enter(draft):
    assert answered(draft, "train.report_to", "trackio").raw["train"] == {"report_to": "trackio"}
    several = draft.with_answer("train.report_to", ["wandb", "trackio"])
    assert list(answered(several, "train.report_to", ENTER).value("train.report_to")) == ["wandb", "trackio"]
    assert answered(several, "train.report_to", "none").value("train.report_to") == "none"


def test_choices_that_are_impossible_say_why(draft):
    heads = draft.with_answer("model.num_attention_heads", 4)
    question = question_of(heads, "model.num_key_value_heads")
    reasons = {choice.value: choice.why_not for choice in question.choices}
    assert reasons["3"] == "must divide model.num_attention_heads = 4"
    assert reasons["2"] is None
    optimizers = question_of(new_draft("sft"), "optimizer.name").choices
    assert "for pretraining only" in [choice.why_not for choice in optimizers]


@pytest.mark.parametrize(
    ("path", "wrong", "reason"),
    [
        ("train.max_steps", "0", "0 is not allowed."),
        ("train.max_steps", "many", '"many" is not a whole number.'),
        ("train.max_steps", "1.5", "1.5 is not a whole number."),
        ("optimizer.learning_rate", "-1", "-1 is not allowed."),
        ("optimizer.learning_rate", "fast", '"fast" is not a number.'),
        ("optimizer.adamw_betas", "[0.9]", "[0.9] is not allowed."),
        ("optimizer.adamw_betas", "[0.9, 2]", "[0.9, 2] is not allowed."),
        ("samples.prompts", "[1,", "can't be read"),
        ("name", "no/slash", '"no/slash" is not allowed.'),
        ("name", "a" * 200, "200 characters are too long: at most 100."),
    ],
)
def test_a_wrong_value_is_refused_with_the_reason(draft, path, wrong, reason):
    right = format_value(draft.value(path))
    assert format_value(answered(draft, path, Refused(wrong, reason), right).value(path)) == right


def test_rows_longer_than_the_context_are_refused(draft):
    short = draft.with_answer("model.max_position_embeddings", 64)
    assert answered(short, "train.max_length", Refused("65", "65: "), "64").value("train.max_length") == 64


def test_a_value_that_may_be_missing_is_set_and_unset(draft):
    windowed = answered(draft, "model.sliding_window", "64")
    assert windowed.value("model.sliding_window") == 64
    for empty in ("", "null"):
        assert answered(windowed, "model.sliding_window", empty).value("model.sliding_window") is None


def test_an_answer_can_be_undone_so_that_the_key_is_derived_again(draft):
    compiled = answered(draft, "train.compile", "yes")
    assert compiled.value("train.compile") is True
    back = answered(compiled, "train.compile", "use the derived value")
    assert back.value("train.compile") == draft.value("train.compile")
    assert not back.is_answered("train.compile")


def test_another_number_is_typed(draft):
    assert answered(draft, "model.hidden_size", "40").value("model.hidden_size") == 40


def test_another_kind_of_attention_removes_the_answer_for_key_and_value_heads(draft):
    grouped = draft.with_answer("model.num_key_value_heads", 2)
    multi_head = answered(grouped, "model.attention", "mha")
    assert multi_head.value("model.num_key_value_heads") == 4
    assert "model.num_key_value_heads = 2" in multi_head.notice


def test_another_schedule_keeps_the_answered_warm_up(draft):
    warm = draft.with_answer("scheduler.warmup_steps", 7).with_answer("scheduler.min_ratio", 0.3)
    flat = answered(warm, "scheduler.name", "none")
    assert flat.raw["scheduler"] == {"name": "none", "warmup_steps": 7}
    assert "scheduler.min_ratio = 0.3" in flat.notice


def test_a_choice_shows_what_it_would_lead_to(draft):
    effects = [choice.effect for choice in question_of(draft, "model.size").choices]
    assert "→ 771 k parameters" in effects[0]
    assert "→ 2.8 M parameters" in effects[1]


def test_each_size_is_offered_with_one_number_of_parameters(draft):
    choices = question_of(draft, "model.size").choices
    assert choices[0].text.split(None, 1) == ["nano", "771 k parameters: minutes on a CPU"]
    for choice in choices:
        number = choice.effect.removeprefix("→ ").partition(" parameters")[0]
        assert "about" not in choice.text
        assert f"  {number} parameters: " in choice.text


def test_a_key_without_an_effect_is_not_asked(draft):
    multi_head = draft.with_answer("model.attention", "mha")
    assert ask(multi_head, ask_key, [], path="model.num_key_value_heads")[1].keys == []


def test_another_optimizer_offers_its_own_learning_rate_and_says_so(draft):
    mine = draft.with_answer("optimizer.learning_rate", 0.5)
    changed = change(mine, "optimizer.name", "adamw")
    assert changed.value("optimizer.learning_rate") == 0.001
    assert changed.notice == ("adamw has its own scale: its learning rate is now 0.001; for muon it was 0.5.")


def test_a_machine_without_cuda_still_writes_recipes_for_one(draft):
    assert answered(draft, "device", "cuda").raw["device"] == "cuda"


@pytest.mark.parametrize("stage", STAGES)
def test_every_key_has_help_and_every_question_fits_a_line_and_ends_in_a_question_mark(stage):
    for key in every_key(STAGES[stage].recipe):
        assert key.help, key.path
        assert key.question is None or (key.question.endswith("?") and len(key.question) < 76), key.path


def test_enter_leaves_values_unset_that_only_the_run_can_derive(in_tmp_path):
    draft = new_draft("sft")
    opened, visit = ask(draft, ask_key, [ENTER], path="chat_template")
    assert "chat_template" not in opened.raw
    assert "Derived: " in visit.questions[0].choices[0].effect


@pytest.mark.parametrize("stage", ["dpo", "grpo", "ppo"])
def test_help_of_the_options_of_a_stage_says_more_than_the_question(stage):
    keys = {key.path: key for key in every_key(STAGES[stage].recipe)}
    assert [path for path in own_keys(stage) if not keys[path].why] == []


def test_a_whole_number_may_be_written_with_an_exponent(draft):
    assert answered(draft, "train.max_steps", "1e3").value("train.max_steps") == 1000


@pytest.mark.parametrize(
    ("groups", "words"),
    [({"lora": {}}, ["lora={}"]), ({"score": None, "lora": None, "forgetting": None}, ["score=off", "lora=off"])],
    ids=["empty", "off"],
)
def test_the_command_in_the_footer_and_its_recipe_switch_groups_as_the_draft_does(in_tmp_path, groups, words):
    draft = new_draft("grpo")
    assert "lora=" not in command_line(draft)
    draft = replace(draft, raw={**draft.raw, **groups, "model": {"checkpoint": "gpt2"}})
    _, _, stage, *overrides = shlex.split(command_line(draft))
    assert set(words) <= set(overrides)
    job, problems = read_job({"stage": stage}, overrides, machine=draft.machine)
    assert problems == []
    assert make_it_fit(job.stages[0]).values == draft.look()[0].values
    written = recipe_text(draft.raw, draft.look()[0], Path("mine.yaml"))
    again = read_job(yaml.safe_load(written), machine=draft.machine)[0]
    assert again.stages[0].values == job.stages[0].values


def test_a_group_is_off_by_name_on_every_command_line_and_in_a_pipeline(in_tmp_path):
    stages = [{"stage": "sft", "model": {"checkpoint": "gpt2"}, "data": [{"path": "builtin:instruct"}], "lora": {}}]
    job, problems = read_job({"stages": stages}, ["stages.0.lora=off", "device=cpu"])
    assert problems == []
    assert job.stages[0].values["lora"] is None


def test_a_value_counts_as_the_users_only_if_the_user_chose_it(in_tmp_path):
    draft = with_model(new_draft("sft"), "gpt2")
    assert draft.origin("name") == ("derived", "from the model's name")
    assert draft.origin("device")[0] == "derived"
    assert draft.origin("model.checkpoint")[0] == "yours"
    assert draft.with_answer("name", "mine").origin("name")[0] == "yours"
    adapted = change(draft, "lora", "lora")
    assert [adapted.origin(path)[0] for path in ("lora", "lora.preset", "lora.r")] == ["yours", "default", "default"]
    assert change(adapted, "lora.r", "16").origin("lora.r")[0] == "yours"
    reward = new_draft("grpo")
    assert reward.origin("rewards.0.name")[0] == "default"


def test_a_model_that_fits_only_as_an_adapter_can_start_and_says_why():
    machine = Machine((), "a CPU", 8, 24 * 2**30, True, False)
    draft = with_model(replace(new_draft("sft"), machine=machine), "Qwen/Qwen3-4B-Base")
    assert why_not_start(draft) is None
    assert summary(draft, "lora") == "LoRA"
    kind, reason = draft.origin("lora")
    assert kind == "derived"
    assert reason.startswith("training all weights needs at least")
    assert "null" not in reason
    assert draft.origin("lora.preset") == ("derived", "usual for an adapter instead of all weights")
    assert draft.origin("train.gradient_checkpointing")[0] == "derived"
    assert "lora" not in draft.raw
    assert change(draft, "lora", "all").look()[0].estimate.fits is False


def test_a_group_of_derived_values_does_not_count_as_chosen(in_tmp_path):
    draft = replace(new_draft("pretrain"), automatic={"tokenizer.bpe": (512, "for this text")})
    draft = replace(draft, raw={**draft.raw, "tokenizer": {"bpe": 512}})
    assert draft.origin("tokenizer") == ("derived", "for this text")
    assert draft.with_answer("tokenizer", {"bpe": 600}).origin("tokenizer") == ("yours", "")
