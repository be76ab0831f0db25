"""The wizard in a terminal: every kind of question at the keyboard, the way back, drafts, errors, and 80 by 24."""

import dataclasses
from functools import partial
from pathlib import Path

import pytest
from conftest import write_text
from support.wizard_answers import answers
from support.wizard_keys import Key, answer, keyboard, pick
from support.wizard_lab import base, lab  # noqa: F401 - fixtures

from llm_lab.commands.wizard_commands import wizard_commands
from llm_lab.errors import MachineError, Problem
from llm_lab.recipe.registry import STAGES
from llm_lab.terminal import ask as prompts
from llm_lab.terminal.ask import Back
from llm_lab.terminal.driver import Wizard, run_wizard
from llm_lab.wizard.key_questions import ask_key
from llm_lab.wizard.questions import Choice, Plan, Question, ShowTokens, WriteRecipe, yes_no
from llm_lab.wizard.review import start_question, value_choices
from llm_lab.wizard.training_runs import new_draft, run_of_stage

LEAVE = pick("Quit")
PRETRAIN = (*pick("Design and train"), *pick("Pretrain "))
EVALUATE = (*pick("Use a model"), *pick("Evaluate "))
TO_TEXTS = (*PRETRAIN, *pick("a preset size"), *pick("nano"))
TEXT = (*answer("text.txt"), *pick("no, continue"))
TO_REVIEW = (*TO_TEXTS, *TEXT, *pick("bytes"), *pick("adamw"), Key.ENTER, *pick("cosine"), *answer("32"), *answer("2"),
             *answer("4"), *answer("first"))  # fmt: skip
CHOICE = Question("a", "Which?", choices=(Choice(1, "one"), Choice(2, "two"), Choice(3, "three", "not now")),
                  why="The reason.")  # fmt: skip
TYPED = Question("b", "Name?", "text", default="x", why="The reason.", allowed="Allowed: anything.")
SEVERAL = Question("c", "Which ones?", "several", choices=CHOICE.choices, default=[2])


@pytest.fixture(autouse=True)
def terminal_size(monkeypatch, in_tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    write_text("text.txt")


@pytest.fixture
def visit(monkeypatch, capsys):
    """Return a function: the screens of a visit to the wizard with these keys, its commands replaced as said."""

    def walk(*steps, debug=True, **replaced):
        commands = dataclasses.replace(wizard_commands(), **replaced)
        with keyboard(steps, monkeypatch, lambda: capsys.readouterr().out) as keys:
            assert run_wizard(commands, debug=debug) == 0
        return keys.screens

    return walk


@pytest.fixture
def press(monkeypatch, capsys):
    """Return a function: the answer that these keys give to a question, and the screens that were shown."""

    def run(question, *steps):
        with keyboard(steps, monkeypatch, lambda: capsys.readouterr().out) as keys:
            return Wizard(wizard_commands(), debug=True).ask(question), keys.screens

    return run


def seen(screens, text):
    return any(text in " ".join(screen.split()) for screen in screens)


def test_a_choice_is_taken_with_the_arrow_keys_and_impossible_ones_are_skipped(press):
    value, screens = press(CHOICE, Key.DOWN, Key.DOWN, Key.DOWN, Key.ENTER)
    assert value == 2
    assert "- three (not now)" in screens[0]
    assert "Esc back · ? help" in screens[0]


def test_several_choices_are_taken_with_the_space_bar(press):
    assert press(SEVERAL, " ", Key.ENTER)[0] == [1, 2]
    assert press(SEVERAL, Key.ENTER)[0] == [2]


def test_typing_replaces_the_default_and_an_arrow_key_keeps_it(press):
    assert press(TYPED, *answer("new"))[0] == "new"
    assert press(TYPED, Key.END, *answer("yz"))[0] == "xyz"
    assert press(TYPED, Key.ENTER)[0] == "x"


def test_a_path_is_completed_with_tab(press):
    path = dataclasses.replace(TYPED, kind="path", default="")
    assert press(path, "tex", "\t", Key.ENTER)[0] == "text.txt"


@pytest.mark.parametrize("question", [CHOICE, SEVERAL, TYPED, yes_no("d", "Sure?", default=True)],
                         ids=["choice", "several", "text", "yes or no"])  # fmt: skip
@pytest.mark.parametrize("key", [Key.ESCAPE, Key.CTRL_D])
def test_escape_and_ctrl_d_go_back_from_every_kind_of_question(press, question, key):
    with pytest.raises(Back):
        press(question, key)


@pytest.mark.parametrize("question", [CHOICE, TYPED], ids=["choice", "text"])
def test_a_question_mark_shows_the_help_and_hides_it_again(press, question):
    _, screens = press(question, Key.HELP, Key.HELP, Key.ENTER)
    assert ["The reason." in screen for screen in screens] == [False, True, False]


def test_a_question_mark_within_a_text_is_a_letter(press):
    assert press(TYPED, *answer("who?"))[0] == "who?"


def test_a_wrong_text_is_refused_below_the_question(press):
    strict = dataclasses.replace(TYPED, check=lambda text: f"{text} is not allowed" if text == "bad" else None)
    value, screens = press(strict, *answer("bad"), Key.ERASE_LINE, *answer("good"))
    assert value == "good"
    assert seen(screens, "bad is not allowed Allowed: anything.")


def test_an_answer_that_takes_a_while_to_check_is_asked_again_with_the_reason(press):
    slow = dataclasses.replace(TYPED, check=lambda text: "not there" if text == "bad" else None, wait="Reading ...")
    value, screens = press(slow, *answer("bad"), *answer("good"))
    assert value == "good"
    assert "not there" in screens[-1]


def test_a_long_list_scrolls_within_the_terminal(press):
    choices = tuple(Choice(n, f"number {n}", effect="what it means") for n in range(100))
    long = Question("n", "Which number?", choices=choices)
    assert press(long, Key.PAGE_DOWN, Key.END, Key.ENTER)[0] == 99
    assert press(long, Key.END, Key.HOME, Key.ENTER)[0] == 0


def test_no_text_of_a_question_steers_the_terminal(press):
    strange = Question("e", "Which?", choices=(Choice(1, "a\x1b[2Jb\nc", effect="\x1b]0;title\x07"),), notice="\x1b[2J",
                       help="[bold]no markup[/bold]")  # fmt: skip
    _, screens = press(strange, Key.ENTER)
    assert "\x1b" not in screens[0]
    assert "a␛[2Jb⏎c" in screens[0]
    assert "[bold]no markup[/bold]" in screens[0]


def test_a_dumb_terminal_gets_numbered_lists(monkeypatch, capsys):
    monkeypatch.setenv("LLM_LAB_PLAIN", "1")
    typed = iter(["?", "9", "3", "1", "", "", "x y", "good", "1 2", "", "none", "b"])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(typed))
    assert prompts.ask(dataclasses.replace(CHOICE, default=2)) == 1
    assert prompts.ask(dataclasses.replace(CHOICE, default=2)) == 2
    assert prompts.ask(TYPED) == "x"
    strict = dataclasses.replace(TYPED, check=lambda text: "no spaces" if " " in text else None)
    assert prompts.ask(strict) == "good"
    assert [prompts.ask(SEVERAL) for _ in range(3)] == [[1, 2], [2], []]
    with pytest.raises(Back):
        prompts.ask(TYPED)
    printed = capsys.readouterr().out
    for text in ("The reason.", "Enter a number from 1 to 3.", "Not available: not now.", "no spaces"):
        assert text in printed


@pytest.mark.parametrize("key", [Key.ESCAPE, Key.CTRL_C])
def test_escape_and_ctrl_c_leave_the_menu(visit, key):
    visit(key)


def test_ctrl_c_returns_to_the_menu_and_the_draft_continues_where_it_was(visit):
    screens = visit(
        *TO_TEXTS, *TEXT, *pick("bytes"), *pick("adamw"), Key.CTRL_C,
        *PRETRAIN, *pick("continue where I stopped"), Key.CTRL_C, *LEAVE,
    )  # fmt: skip
    assert "What would you like to do?" in screens[-1]
    kept = screens[max(number for number, screen in enumerate(screens) if "Continue your draft?" in screen) + 1]
    assert "Learning rate?" in kept
    assert "adamw" in kept


def test_a_draft_can_be_started_over_and_one_without_an_answer_is_not_kept(visit):
    screens = visit(*TO_TEXTS, Key.CTRL_C, *PRETRAIN, *pick("start over"), Key.ESCAPE, Key.ESCAPE, *LEAVE)
    asked = max(number for number, screen in enumerate(screens) if "Continue your draft?" in screen)
    assert "Which model?" in screens[asked + 1]
    assert not seen(visit(*PRETRAIN, Key.ESCAPE, *pick("Pretrain "), Key.CTRL_C, *LEAVE), "Continue your draft")


def test_a_draft_survives_the_end_of_the_wizard(visit):
    visit(*TO_TEXTS, Key.CTRL_C, *LEAVE)
    screens = visit(*PRETRAIN, *pick("continue"), Key.CTRL_C, *LEAVE)
    asked = max(number for number, screen in enumerate(screens) if "Continue your draft?" in screen)
    assert "Which dataset of texts?" in screens[asked + 1]


def test_the_draft_is_kept_from_the_review(visit):
    screens = visit(*TO_REVIEW, *pick("Back to the menu"), *PRETRAIN, *pick("continue"), Key.CTRL_C, *LEAVE)
    asked = max(number for number, screen in enumerate(screens) if "Continue your draft?" in screen)
    assert "Review: Enter edits a line" in screens[asked + 1]


def test_escape_leads_from_a_following_flow_back_to_the_one_before(visit):
    screens = visit(*EVALUATE, *pick("Measure a model"), Key.ESCAPE, Key.ESCAPE, Key.ESCAPE, *LEAVE)
    order = ["to do?", "Which one?", "Measure or", "Which model?", "Measure or", "Which one?", "to do?"]
    shown = [next(text for text in reversed(order) if text in screen) for screen in screens]
    assert [text for at, text in enumerate(shown) if at == 0 or text != shown[at - 1]] == order


def test_a_run_is_started_without_its_plan_a_second_time_and_can_be_left(visit):
    started = []
    visit(
        *TO_REVIEW, *pick("Continue to the plan"), *pick("Yes"), Key.ENTER, *LEAVE,
        start=lambda recipe, overrides, **options: started.append((recipe["name"], options)),
    )  # fmt: skip
    assert started == [("first", {"resume": False, "show_plan": False})]


def test_a_run_that_can_not_start_leads_back_to_the_review(visit, capsys):
    def start(*words, **options):
        raise MachineError(Problem("device", "too small for it"))

    keys = (*TO_REVIEW, *pick("Continue to the plan"), *pick("Yes"), Key.ENTER)
    screens = visit(*keys, Key.CTRL_C, *LEAVE, start=start)
    refused = max(number for number, screen in enumerate(screens) if "Enter goes back" in screen)
    assert "Review: Enter edits a line" in screens[refused + 1]


def test_an_error_of_a_command_is_shown_and_leads_back_to_the_question(visit):
    def chat(path):
        raise MachineError(Problem(path, "too large for this machine"))

    keys = (*pick("Use a model"), *pick("Chat"), *pick("another folder"), *answer("some/where"), Key.ENTER)
    screens = visit(*keys, Key.ESCAPE, Key.ESCAPE, *LEAVE, chat=chat)
    shown = max(number for number, screen in enumerate(screens) if "Enter goes back" in screen)
    assert "Chat with which model?" in screens[shown + 1]


def test_an_internal_error_is_reported_and_the_menu_stays(visit, monkeypatch, capsys):
    def doctor():
        raise RuntimeError("boom")

    with keyboard([*pick("Doctor"), Key.ENTER, *LEAVE], monkeypatch):
        assert run_wizard(dataclasses.replace(wizard_commands(), doctor=doctor)) == 0
    assert "Internal error: RuntimeError: boom" in capsys.readouterr().err


def test_ctrl_c_during_a_command_stops_only_the_command(visit):
    def compare(*words, **options):
        raise KeyboardInterrupt

    keys = (*EVALUATE, *pick("Compare"), *pick("another"), *answer("a/b"), *pick("another"), *answer("c/d"))
    visit(*keys, *pick("compare these"), Key.ENTER, Key.ENTER, *LEAVE, compare=compare)


@pytest.mark.usefixtures("lab")
def test_a_checkpoint_is_shown_and_the_plan_of_its_recipe_too(visit):
    screens = visit(
        *pick("Runs"), *pick("checkpoints/base:"), *pick("Run its recipe"), *pick("No, go back"),
        *pick("Back to the list"), Key.ESCAPE, *LEAVE,
    )  # fmt: skip
    assert seen(screens, "What next?")
    assert seen(screens, "╭─ Plan: base")


@pytest.mark.usefixtures("lab")
def test_a_push_without_a_token_is_refused_before_anything_is_written(visit, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(Path("no-login").resolve()))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    screens = visit(
        *pick("Use a model"), *pick("Export "), *pick("checkpoints/base:"), *pick("hf"), Key.ENTER,
        *pick("yes, to my repository"), *answer("me/mine"), *pick("yes"), *pick("no, the defaults"),
        *answer("sent"), *pick("Continue to the plan"),
        *pick("Yes, start"), Key.ENTER, Key.CTRL_C, *LEAVE,
    )  # fmt: skip
    assert seen(screens, "me/mine on the Hub (private)")
    assert not Path("checkpoints/sent").exists()


@pytest.mark.usefixtures("lab")
def test_models_are_compared_and_the_comparison_is_printed(visit):
    import shutil

    shutil.copytree("checkpoints/base/model", "copied")
    screens = visit(
        *EVALUATE, *pick("Compare models"), *pick("checkpoints/base:"), *pick("another folder"),
        *answer("copied"), *pick("compare these"), *answer("Tom has"), Key.ENTER, *LEAVE,
    )  # fmt: skip
    assert seen(screens, "same as A")


def test_the_data_are_shown_as_tokens_page_by_page(monkeypatch, capsys):
    monkeypatch.setenv("LINES", "20")
    resolved, _ = new_draft("pretrain").with_answer("tokenizer", "bytes").look()
    with keyboard([*pick("Show more"), Key.ENTER], monkeypatch, lambda: capsys.readouterr().out) as keys:
        assert Wizard(wizard_commands(), debug=True)._execute(ShowTokens(resolved, "Pretrain"))
    assert seen(keys.screens, "more lines")


def test_a_recipe_is_written_and_a_full_or_read_only_disk_is_reported(monkeypatch, capsys):
    wizard = Wizard(wizard_commands(), debug=True)
    with keyboard([Key.ENTER, Key.ENTER], monkeypatch):
        assert wizard._execute(WriteRecipe(Path("configs/a.yaml"), "stage: sft\n"))
        assert not wizard._execute(WriteRecipe(Path("text.txt/a.yaml"), "stage: sft\n"))
    assert Path("configs/a.yaml").read_text() == "stage: sft\n"


@pytest.mark.parametrize(("size", "positions"), [("nano", "rope"), ("7b", "yarn")])
def test_every_key_question_fits_the_terminal_with_its_help_whatever_the_model(press, size, positions):
    parts = {"size": size, "position_embedding": positions, "activation": "gelu"}
    large = new_draft("pretrain").with_answer("model", parts)
    for is_design in (False, True):
        draft = dataclasses.replace(large, is_design=is_design)
        for choice in value_choices(draft)[:: 1 if is_design else 3]:
            if not is_design or choice.value.startswith("model."):
                question = answers(partial(ask_key, draft, choice.value), []).question
                assert len(press(question, Key.HELP, Key.ENTER)[1]) == 2  # the keyboard has measured them


@pytest.mark.usefixtures("lab")
@pytest.mark.parametrize("stage", STAGES)
def test_every_question_of_a_stage_fits_the_terminal_with_its_help(press, stage):
    known = {} if stage in ("pretrain", "merge") else {"model": "checkpoints/base"}
    visit = answers(partial(run_of_stage, stage, **known), [])
    while visit.question.key != "review" and stage != "merge":
        question = visit.question
        press(question, Key.HELP, Key.ENTER)
        visit.walk.answer(question.suggested)
        while not isinstance(visit.walk.item, Question):
            visit.walk.finish_effect(True)
    press(visit.question, Key.HELP, Key.ENTER)


def test_the_plan_of_a_large_run_fits_the_terminal_with_its_question(press):
    parts = {"size": "micro", "position_embedding": "sinusoidal", "norm": "layernorm", "activation": "leaky_relu"}
    texts = [{"path": f"someone/a-long-name-of-texts-{n}", "subset": "sample-10BT"} for n in range(9)]
    draft = new_draft("pretrain").with_answer("model", parts | {"tie_word_embeddings": False})
    resolved, _ = draft.with_answer("data", texts).look()
    started, screens = press(start_question(Plan(resolved)), Key.ENTER)
    assert started
    assert "╭─ Plan" in screens[0]
