"""Questions: defaults, help, the longer why, the way back, and what can't be answered."""

import pytest
from support.recipe_keys import every_key
from support.wizard_keys import Key, To, answer, keyboard, pick

from llm_lab.estimate.machine import find_machine
from llm_lab.recipe.files import format_value
from llm_lab.recipe.registry import STAGES
from llm_lab.terminal.prompts import Back, Option, choose, confirm, type_in
from llm_lab.wizard import design, pretraining
from llm_lab.wizard.asking import ask_key, ask_keys
from llm_lab.wizard.draft import Draft
from llm_lab.wizard.finish import confirm_plan
from llm_lab.wizard.review import value_lines


@pytest.fixture
def press(monkeypatch, capsys, in_tmp_path):
    """Return a function: what a question gives for these keys, and the screens that were seen."""

    def run(ask, *steps):
        with keyboard(steps, monkeypatch, lambda: capsys.readouterr().out) as keys:
            return ask(), keys.screens

    return run


@pytest.fixture
def draft() -> Draft:
    return pretraining.new_draft(find_machine())


def asked(draft: Draft, path: str):
    return lambda: ask_key(draft, path, show=pretraining.show_run)


def test_enter_on_a_default_leaves_it_a_default(press, draft):
    answered, _ = press(asked(draft, "train.max_steps"), Key.ENTER)
    assert answered.raw == draft.raw


def test_typing_replaces_the_default(press, draft):
    answered, screens = press(asked(draft, "train.max_steps"), *answer("20"))
    assert answered.raw["train"] == {"max_steps": 20}
    assert "500" in screens[0]


def test_an_arrow_key_keeps_the_default_to_edit_it(press, draft):
    answered, _ = press(asked(draft, "name"), Key.END, *answer("-2"))
    assert answered.raw["name"] == "my-run-2"


def test_a_question_has_its_help_and_what_is_allowed(press, draft):
    _, screens = press(asked(draft, "train.max_steps"), Key.ENTER)
    assert "train.max_steps: optimizer updates" in screens[0]
    assert "Allowed: a whole number of at least 1." in screens[0]


def test_a_tracker_is_picked_and_several_from_a_file_are_kept_by_enter(press, draft):
    answered, _ = press(asked(draft, "train.report_to"), *pick("trackio"))
    assert answered.raw["train"] == {"report_to": "trackio"}
    several = draft.with_answer("train.report_to", ["wandb", "trackio"])
    kept, screens = press(asked(several, "train.report_to"), Key.ENTER)
    assert list(kept.value("train.report_to")) == ["wandb", "trackio"]
    assert "wandb, trackio" in screens[0]
    assert press(asked(several, "train.report_to"), *pick("none"))[0].value("train.report_to") == "none"


def test_a_question_mark_shows_the_why_and_hides_it_again(press, draft):
    _, screens = press(asked(draft, "model.norm"), Key.WHY, Key.WHY, Key.ENTER)
    assert "Zhang & Sennrich" not in screens[0]
    assert "Zhang & Sennrich" in screens[1]
    assert "Zhang & Sennrich" not in screens[2]


def test_a_question_mark_is_asked_of_a_number_too(press, draft):
    answered, screens = press(asked(draft, "train.max_steps"), Key.WHY, *answer("7"))
    assert "A step is one optimizer update" in screens[1]
    assert answered.value("train.max_steps") == 7


def test_a_question_mark_within_a_text_is_a_letter(press):
    text, _ = press(lambda: type_in("Prompt?", default="Once"), *answer("who?"))
    assert text == "who?"


@pytest.mark.parametrize(
    "question",
    [
        lambda: choose("Which?", [Option(1, "one"), Option(2, "two")]),
        lambda: type_in("Text?", default="x"),
        lambda: type_in("Text?"),
        lambda: type_in("Path?", paths=True),
        lambda: confirm("Sure?"),
    ],
    ids=["list", "text", "empty text", "path", "yes or no"],
)
@pytest.mark.parametrize("key", [Key.ESCAPE, Key.CTRL_D])
def test_escape_and_ctrl_d_go_back_from_every_kind_of_question(press, question, key):
    with pytest.raises(Back):
        press(question, key)


@pytest.mark.parametrize(
    "path", ["model.norm", "model.num_attention_heads", "train.max_steps", "train.compile", "name"]
)
def test_escape_goes_back_from_every_kind_of_key(press, draft, path):
    with pytest.raises(Back):
        press(asked(draft, path), Key.ESCAPE)


def test_escape_goes_to_the_question_before_with_its_answer_as_default(press, draft):
    paths = ["model.norm", "model.attention"]
    answered, screens = press(
        lambda: ask_keys(draft, paths, show=pretraining.show_run),
        *pick("layernorm"), Key.ESCAPE, Key.ENTER, *pick("mha"),
    )  # fmt: skip
    assert answered.raw["model"] == {"norm": "layernorm", "attention": "mha"}
    assert "» layernorm" in next(s for s in screens[3:] if "Which normalisation" in s)


def test_heads_that_do_not_divide_the_width_are_shown_with_the_reason_and_skipped(press, draft):
    answered, screens = press(asked(draft, "model.num_attention_heads"), To("4 "), Key.DOWN, Key.ENTER)
    assert "- 5    (must divide model.hidden_size = 128)" in screens[0]
    assert answered.value("model.num_attention_heads") == 8


def test_heads_that_do_not_divide_the_width_are_refused_when_typed(press, draft):
    answered, screens = press(
        asked(draft, "model.num_attention_heads"), *pick("another"), *answer("5"), Key.ERASE_LINE, *answer("16")
    )
    assert any("5: must divide model.hidden_size = 128" in screen for screen in screens)
    assert answered.value("model.num_attention_heads") == 16


def test_key_value_heads_that_do_not_divide_the_heads_are_shown_with_the_reason(press, draft):
    _, screens = press(asked(draft, "model.num_key_value_heads"), Key.ENTER)
    assert "- 3    (must divide model.num_attention_heads = 4)" in screens[0]


def test_a_list_without_a_possible_line_goes_back():
    with pytest.raises(Back):
        choose("Which?", [Option(1, "one", "not now")])


@pytest.mark.parametrize(
    ("path", "wrong", "allowed"),
    [
        ("train.max_steps", "0", "a whole number of at least 1"),
        ("train.max_steps", "many", "a whole number of at least 1"),
        ("train.max_steps", "1.5", "a whole number of at least 1"),
        ("optimizer.learning_rate", "-1", "a number above 0, up to 10"),
        ("optimizer.adamw_betas", "[0.9]", "Written like [0.9, 0.95]"),
        ("optimizer.adamw_betas", "[0.9, 2]", "Written like [0.9, 0.95]"),
        ("samples.prompts", "[1,", 'Written like ["Once", "The"]'),
        ("name", "no/slash", "Letters, digits"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(press, draft, path, wrong, allowed):
    right = format_value(draft.value(path))
    answered, screens = press(asked(draft, path), *answer(wrong), Key.ERASE_LINE, *answer(right))
    assert any(allowed in screen for screen in screens)
    assert format_value(answered.value(path)) == right


def test_rows_longer_than_the_context_are_refused(press, draft):
    short = draft.with_answer("model.max_position_embeddings", 64)
    answered, screens = press(asked(short, "train.max_length"), *answer("65"), Key.ERASE_LINE, *answer("64"))
    assert any("65: rows are longer than the model's context" in screen for screen in screens)
    assert answered.value("train.max_length") == 64


def test_a_list_is_typed_as_in_a_recipe(press, draft):
    answered, _ = press(asked(draft, "samples.prompts"), *answer('["Once", "The"]'))
    assert list(answered.value("samples.prompts")) == ["Once", "The"]
    answered, _ = press(asked(draft, "optimizer.adamw_betas"), *answer("[0.8, 0.9]"))
    assert list(answered.value("optimizer.adamw_betas")) == [0.8, 0.9]


def test_a_value_that_may_be_missing_is_set_and_unset(press, draft):
    windowed, _ = press(asked(draft, "model.sliding_window"), *answer("64"))
    assert windowed.value("model.sliding_window") == 64
    for empty in ([Key.ERASE_LINE, Key.ENTER], answer("null")):
        unset, _ = press(asked(windowed, "model.sliding_window"), *empty)
        assert unset.value("model.sliding_window") is None


def test_an_answer_is_taken_back_so_that_it_is_derived_again(press, draft):
    answered, _ = press(asked(draft, "train.compile"), *pick("yes"))
    assert answered.value("train.compile") is True
    back, _ = press(asked(answered, "train.compile"), *pick("take the answer back"))
    assert back.value("train.compile") == draft.value("train.compile")
    assert not back.is_answered("train.compile")


def test_another_attention_drops_the_heads_that_were_answered_for_grouped_queries(press, draft):
    grouped = draft.with_answer("model.num_key_value_heads", 2)
    answered, _ = press(asked(grouped, "model.attention"), *pick("mha"))
    assert answered.value("model.num_key_value_heads") == 4
    assert "model.num_key_value_heads = 2" in answered.notice


def test_a_line_says_what_it_would_lead_to(press, draft):
    _, screens = press(asked(draft, "model.size"), Key.DOWN, Key.ENTER)
    assert "→ 771 k parameters" in screens[0]
    assert "→ 2.8 M parameters" in screens[1]


def test_another_optimizer_offers_its_own_learning_rate_and_says_so(press, draft):
    mine = draft.with_answer("optimizer.learning_rate", 0.5)
    answered, _ = press(lambda: pretraining.ask_optimizer(mine), *pick("adamw"))
    assert answered.value("optimizer.learning_rate") == 0.001
    _, screens = press(asked(answered, "optimizer.learning_rate"), Key.ENTER)
    assert "adamw has its own scale: its learning rate is now 0.001; muon's was 0.5." in screens[0]


@pytest.mark.parametrize(("size", "positions"), [("nano", "rope"), ("7b", "yarn")])
def test_every_question_fits_the_terminal_with_its_why_whatever_the_model(press, draft, size, positions):
    large = draft.with_answer("model", {"size": size, "position_embedding": positions, "activation": "gelu"})
    for line in value_lines(large):
        show = design.show_design if line.value.startswith("model.") else pretraining.show_run
        _, screens = press(lambda path=line.value, show=show: ask_key(large, path, show=show), Key.WHY, Key.ENTER)
        assert len(screens) == 2  # the keyboard has measured them


def test_the_plan_of_a_large_run_fits_the_terminal_with_its_question(press, draft):
    parts = {"size": "micro", "position_embedding": "sinusoidal", "norm": "layernorm", "activation": "leaky_relu"}
    texts = [{"path": f"someone/a-long-name-of-texts-{n}", "subset": "sample-10BT"} for n in range(9)]
    large = draft.with_answer("model", parts | {"tie_word_embeddings": False}).with_answer("data", texts)
    started, screens = press(lambda: confirm_plan(large), Key.WHY, Key.ENTER)
    assert started
    assert "╭─ Plan" in screens[0]


def test_another_schedule_keeps_the_warm_up_that_was_answered(press, draft):
    warm = draft.with_answer("scheduler.warmup_steps", 7).with_answer("scheduler.min_ratio", 0.3)
    answered, _ = press(asked(warm, "scheduler.name"), *pick("none"))
    assert answered.raw["scheduler"] == {"name": "none", "warmup_steps": 7}
    assert "scheduler.min_ratio = 0.3" in answered.notice


@pytest.mark.parametrize("stage", STAGES)
def test_every_key_has_help_and_every_question_ends_in_a_question_mark(stage):
    for key in every_key(STAGES[stage].recipe):
        assert key.help, key.path
        assert key.question is None or key.question.endswith("?"), key.path


def test_a_question_stands_on_one_line_with_its_hint_below_where_it_is_long(press, draft):
    for key in every_key(STAGES["pretrain"].recipe):
        if key.question:
            assert len(key.question) < 76, key.path


def test_a_machine_without_cuda_still_writes_recipes_for_one(press, draft):
    answered, _ = press(asked(draft, "device"), *pick("cuda"))
    assert answered.raw["device"] == "cuda"
