"""The wizard in a terminal: every kind of question at the keyboard, the way back, drafts, errors, and 80 by 24."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from conftest import tiny_recipe, write_text
from questionary.prompts.common import InquirerControl
from support.wizard_keys import Key, To, answer, keyboard, pick
from support.wizard_lab import base, lab  # noqa: F401 - fixtures

from llm_lab.commands.wizard_commands import wizard_commands
from llm_lab.errors import MachineError, Problem
from llm_lab.recipe.registry import STAGES
from llm_lab.runs.folder import RunFolder
from llm_lab.terminal import ask as prompts
from llm_lab.terminal.ask import Back
from llm_lab.terminal.console import make_console, print_waiting
from llm_lab.terminal.driver import Wizard, run_wizard
from llm_lab.terminal.screens import begin_screen
from llm_lab.wizard.draft_page import page_question
from llm_lab.wizard.questions import (
    CheckpointDetails,
    Choice,
    Line,
    Next,
    Plan,
    Question,
    Screen,
    ShowTokens,
    WriteRecipe,
    yes_no,
)
from llm_lab.wizard.review import start_question
from llm_lab.wizard.training_runs import new_draft, run_page
from llm_lab.wizard.walk import DRAFTS

LEAVE = pick("Quit")
PRETRAIN = (*pick("Design and train"), *pick("Pretrain "))
EVALUATE = (*pick("Use a model"), *pick("Evaluate "))
TO_TEXTS = (*PRETRAIN, *pick("a preset size"), *pick("nano"))
TEXT = (*answer("text.txt"), *pick("No, continue"))
TO_PAGE = (*TO_TEXTS, *TEXT)
FILLED = (To("name "), Key.ENTER, *answer("first"), To("max_steps"), *answer("4"))
RUN_PAGE = (*pick("Runs"), *pick("base "), *pick("Evaluate it"))
MEASURE = (*EVALUATE, *pick("Measure a model"), *pick("base "))
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
    """Return a function that returns the screens of a visit to the wizard with these keys and replaced commands."""

    def walk(*steps, debug=True, **replaced):
        commands = dataclasses.replace(wizard_commands(), **replaced)
        with keyboard(steps, monkeypatch, lambda: "".join(capsys.readouterr())) as keys:
            assert run_wizard(commands, debug=debug) == 0
        return keys.screens

    return walk


@pytest.fixture
def press(monkeypatch, capsys):
    """Return a function that returns the answer of these keys to a question, and the screens that were shown."""

    def run(question, *steps):
        with keyboard(steps, monkeypatch, lambda: "".join(capsys.readouterr())) as keys:
            return Wizard(wizard_commands(), debug=True).ask(question), keys.screens

    return run


def seen(screens, text):
    return any(text in " ".join(screen.split()) for screen in screens)


def test_a_choice_is_made_with_the_arrow_keys_and_impossible_ones_are_skipped(press):
    value, screens = press(CHOICE, Key.DOWN, Key.DOWN, Key.DOWN, Key.ENTER)
    assert value == 2
    assert "- three (not now)" in screens[0]
    assert "Esc back · ? help" in screens[0]


def test_several_choices_are_made_with_the_space_bar(press):
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
    value, screens = press(slow, *answer("bad"), Key.ERASE_LINE, *answer("good"))
    assert value == "good"
    assert ["not there" in screen for screen in screens] == [False, False, True, False, False]


def test_a_long_list_scrolls_within_the_terminal(press):
    choices = tuple(Choice(n, f"number {n}", effect="what it means") for n in range(100))
    long = Question("n", "Which number?", choices=choices)
    assert press(long, Key.PAGE_DOWN, Key.END, Key.ENTER)[0] == 99
    assert press(long, Key.END, Key.HOME, Key.ENTER)[0] == 0


def test_a_long_list_says_how_many_lines_are_above_and_below(press):
    long = Question("n", "Which number?", choices=tuple(Choice(n, f"number {n}") for n in range(100)))
    _, (first, middle, last) = press(long, Key.PAGE_DOWN * 5, Key.END, Key.ENTER)
    more = [
        re.search(r"^ +(?:↑ (\d+) more lines?)?(?:, )?(?:↓ (\d+) more lines?)?$", screen, re.M).groups()
        for screen in (first, middle, last)
    ]
    assert [(above is not None, below is not None) for above, below in more] == [(0, 1), (1, 1), (1, 0)]
    assert int(more[0][1]) == int(more[1][0]) + int(more[1][1]) == int(more[2][0])


def test_an_arrow_key_never_goes_round_between_two_answers(press):
    sure = Question("sure", "Delete it?", choices=(Choice(True, "Yes"), Choice(False, "No")), default=False)
    assert press(sure, Key.DOWN, Key.ENTER)[0] is False
    assert press(sure, Key.UP, Key.UP, Key.ENTER)[0] is True


@pytest.mark.parametrize(("question", "key"), [(CHOICE, Key.DOWN), (TYPED, "z")], ids=["choice", "text"])
def test_a_terminal_of_another_size_is_drawn_again_with_the_answer_so_far(press, monkeypatch, question, key):
    class Narrower:
        def __str__(self):
            monkeypatch.setattr("support.wizard_keys.COLUMNS", 50)  # the width of the screen from now on
            monkeypatch.setenv("COLUMNS", "50")
            return key

    wide = dataclasses.replace(question, screen=Screen("Title", lines=(Line("many words " * 7),)))
    value, screens = press(wide, Narrower(), Key.ENTER)
    assert value == {Key.DOWN: 2, "z": "z"}[key]
    assert ["many words " * 5 in screen for screen in screens] == [True, False]


def test_the_help_stays_open_when_the_terminal_gets_another_size(press, monkeypatch):
    class Narrower:
        def __str__(self):
            monkeypatch.setattr("support.wizard_keys.COLUMNS", 50)
            monkeypatch.setenv("COLUMNS", "50")
            return Key.DOWN

    _, screens = press(dataclasses.replace(CHOICE, why="This is the help."), "?", Narrower(), Key.ENTER)
    assert ["This is the help." in screen for screen in screens] == [False, True, True]


def test_typing_filters_a_long_list(press):
    choices = tuple(Choice(n, f"number {n}", "odd" if n % 2 else None) for n in range(30))
    long = Question("n", "Which number?", choices=choices)
    value, screens = press(long, "2", "4", "x", Key.ENTER, Key.BACKSPACE, Key.ENTER)
    assert value == 24
    assert "Filter: 2" in screens[1]
    assert "number 3" not in screens[1]
    assert "Nothing contains 24x. Esc or Ctrl-U clears the filter." in screens[3]
    assert press(long, "8", Key.BACKSPACE, Key.HOME, Key.ENTER)[0] == 0
    assert press(long, "8", Key.DOWN, Key.BACKSPACE, Key.ENTER)[0] == 18  # the line that was pointed at
    assert press(long, "z", Key.DOWN, Key.ENTER)[0] == 0


@pytest.mark.parametrize(("kind", "taken"), [("choice", 0), ("several", [3])])
def test_a_filter_without_a_match_shows_and_marks_no_line_until_ctrl_u_clears_it(press, kind, taken):
    lines = tuple(Choice(n, f"number {n}", effect=f"the meaning of {n}") for n in range(9))
    asked = Question("n", "Which number?", kind, choices=lines, default=[3])
    value, screens = press(asked, "7x", " ", Key.ENTER, Key.ERASE_LINE, Key.ENTER)
    assert value == taken
    for screen in screens[2:4]:
        assert "Nothing contains 7x" in screen
        assert not any(text in screen for text in ("number 7", "»", "the meaning of"))
    assert "number 8" in screens[-1]
    assert "Filter" not in screens[-1]


def test_a_space_does_not_begin_a_filter(press):
    lines = tuple(Choice(n, f"number {n}") for n in range(9))
    value, screens = press(Question("n", "Which number?", choices=lines, default=3), " ", Key.ENTER)
    assert value == 3
    assert not any("Filter" in screen for screen in screens)


@pytest.mark.parametrize("kind", ["choice", "several"])
def test_a_filter_shows_the_lines_that_cannot_be_chosen_with_their_reasons(press, kind):
    lines = (*(Choice(n, f"{n} heads") for n in (1, 2, 4)), Choice(3, "3 heads", why_not="must divide 4"))
    asked = Question("n", "How many?", kind, choices=lines, default=2 if kind == "choice" else [2])
    keys = (" ", Key.ENTER, Key.HELP, Key.HELP, Key.ERASE_LINE, Key.ENTER)
    value, screens = press(asked, "3", *keys)
    assert value == asked.default
    for screen in screens[1:3]:
        assert "- 3 heads (must divide 4)" in screen
        assert "None of these lines can be chosen. Esc or Ctrl-U clears the filter." in screen
        assert not any(text in screen for text in ("4 heads", "»"))
    for key in (Key.UP, Key.DOWN, Key.PAGE_DOWN, Key.END, "\x0e", "\x10", Key.BACKSPACE, Key.ERASE_LINE):
        assert press(asked, "3", key, Key.ENTER)[0] == asked.default


def test_clearing_a_filter_leaves_the_pointer_in_place_unless_it_was_moved(press):
    lines = tuple(Choice(n, f"{'even' if n % 2 == 0 else 'odd'} {n}") for n in range(9))
    asked = Question("n", "Which number?", choices=lines, default=3)
    for clears in ([Key.ERASE_LINE], [Key.BACKSPACE] * 4):
        assert press(asked, *"even", *clears, Key.ENTER)[0] == 3
    assert press(asked, *"even", Key.DOWN, Key.ERASE_LINE, Key.ENTER)[0] == 2


def test_a_page_opens_the_row_that_a_filter_found_with_one_enter(press):
    value, _ = press(page_of("pretrain"), *"max_steps", Key.ENTER, *answer("7"), Key.FINISH)
    assert value["changes"] == {"train": {"max_steps": 7}}
    value, _ = press(page_of("pretrain"), *"scheduler.name", Key.ENTER, *pick("wsd"), Key.FINISH)
    assert value["changes"] == {"scheduler": {"name": "wsd"}}


def test_ctrl_u_clears_the_filter_of_a_page(press):
    value, _ = press(page_of("pretrain"), *"batch", Key.ERASE_LINE, *"max_steps", Key.ENTER, *answer("7"), Key.FINISH)
    assert value["changes"] == {"train": {"max_steps": 7}}


def test_enter_starts_nothing_if_a_filter_of_a_page_finds_no_row(press):
    value, _ = press(page_of("pretrain"), *"zzz", Key.ENTER, Key.ESCAPE, To("max_steps"), *answer("7"), Key.FINISH)
    assert value["changes"] == {"train": {"max_steps": 7}}


def test_a_text_that_was_refused_is_continued_at_its_end(press):
    slow = dataclasses.replace(TYPED, check=lambda text: None if "," in text else "two values", wait="Reading ...")
    assert press(slow, *answer("adamw"), *answer(",muon"))[0] == "adamw,muon"


def test_typing_filters_short_lists_and_multiple_choices_and_the_line_above_says_so(press):
    short = Question("o", "What?", choices=(Choice("size", "model size"), Choice("optimizer", "optimizer")))
    value, screens = press(short, "opti", Key.ENTER)
    assert value == "optimizer"
    assert "(type to filter · Esc back" in screens[0]
    several = dataclasses.replace(short, kind="several", default=["size"])
    value, screens = press(several, *"opti", " ", Key.ENTER)
    assert value == ["size", "optimizer"]
    assert "model size" not in screens[-1]


def test_a_filter_prefers_lines_that_begin_with_it_then_names_then_descriptions_and_ignores_ages(press):
    lines = (
        "Resume short train  stopped 3 min ago",
        "Chat  what is short",
        "Train on my text  in minutes",
        "Runs  a list",
    )
    lines += tuple(f"more {n}  9 h ago" for n in range(8))
    menu = Question("m", "What?", choices=tuple(Choice(number, line) for number, line in enumerate(lines)))
    assert press(menu, *"train", Key.ENTER)[0] == 2
    assert press(menu, *"short", Key.ENTER)[0] == 0
    assert press(menu, *"my", Key.ENTER)[0] == 2
    value, screens = press(menu, *"ago", *(Key.BACKSPACE,) * 3, *"runs", Key.ENTER)
    assert value == 3
    assert any("Nothing contains" in screen for screen in screens)


def test_no_text_of_a_question_controls_the_terminal(press):
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


def test_a_list_in_a_dumb_terminal_names_its_columns_and_keeps_numbers_with_their_units(monkeypatch, capsys):
    monkeypatch.setenv("LLM_LAB_PLAIN", "1")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("builtins.input", lambda prompt="": "1")
    cells = ("demo/grpo", "grpo", "271 k", "18 h", "done", "exact match 98.4 %")
    choices = (Choice(1, "Qwen/Qwen3-0.6B          596 M  base"), Choice(2, "demo", cells=cells))
    prompts.ask(Question("a", "Which?", choices=choices))
    lines = ["   1  Qwen/Qwen3-0.6B: 596 M, base", "   2  demo/grpo: grpo, 271 k, 18 h, done, exact"]
    assert capsys.readouterr().out.splitlines() == ["Which?", *lines, "      match 98.4 %"]


@pytest.mark.parametrize(
    ("key", "name"), [(Key.CTRL_C, "Ctrl-C"), (Key.ESCAPE, "Esc or Ctrl-D")], ids=["Ctrl-C", "Esc"]
)
def test_ctrl_c_and_escape_leave_the_menu_when_they_are_pressed_again(visit, key, name):
    screens = visit(key, key)
    assert [(f"Press {name} again to quit." in screen) for screen in screens] == [False, True]


def test_escape_on_another_page_leads_to_the_menu_and_does_not_count_there(visit):
    assert "again to quit" not in visit(Key.ESCAPE, *pick("Use a model"), Key.ESCAPE, *LEAVE)[-1]


def test_settings_of_the_quick_start_are_kept_and_the_menu_offers_them(visit):
    quick = (*pick("Train on my text"), *answer("text.txt"), *pick("nano"), *pick("Change settings"))
    screens = visit(*quick, To("max_steps"), *answer("4"), Key.CTRL_C, *pick("Continue your draft"), Key.CTRL_C, *LEAVE)
    at = next(number for number, screen in enumerate(screens) if "Your answers are kept as a draft." in screen)
    assert "» Continue your draft  Train on my text" in screens[at]
    assert "4 " in line_of(screens[at + 1], "max_steps")


TO_MENU = (*[Key.UP] * 15, *[Key.RIGHT] * 3, Key.ENTER)


@pytest.mark.parametrize("leaves", [(Key.CTRL_C,), TO_MENU], ids=["Ctrl-C", "Menu"])
def test_leaving_a_page_keeps_what_was_changed_on_it(visit, leaves):
    screens = visit(*TO_PAGE, *FILLED, *leaves, *PRETRAIN, *pick("Continue where I"), Key.CTRL_C, *LEAVE)
    assert "What would you like to do?" in screens[-1]
    kept = screens[max(number for number, screen in enumerate(screens) if "Continue your draft?" in screen) + 1]
    assert "first" in line_of(kept, "name")
    assert "4 " in line_of(kept, "max_steps")


def test_a_draft_has_the_name_of_its_line_in_the_menu(visit):
    screens = visit(*pick("Design and train"), *pick("Fine-tune (SFT)"), *(Key.ENTER,) * 2, Key.CTRL_C, *LEAVE)
    assert "Continue your draft  Fine-tune (SFT)" in screens[-1]


def test_a_draft_can_be_started_over_and_one_without_an_answer_is_not_kept(visit):
    screens = visit(*TO_TEXTS, Key.CTRL_C, *PRETRAIN, *pick("Start over"), Key.ESCAPE, Key.ESCAPE, *LEAVE)
    asked = max(number for number, screen in enumerate(screens) if "Continue your draft?" in screen)
    assert "Which model?" in screens[asked + 1]
    assert not seen(visit(*PRETRAIN, Key.ESCAPE, *pick("Pretrain "), Key.CTRL_C, *LEAVE), "Continue your draft")


def test_a_draft_survives_the_end_of_the_wizard(visit):
    visit(*TO_TEXTS, Key.CTRL_C, *LEAVE)
    screens = visit(*PRETRAIN, *pick("Continue"), Key.CTRL_C, *LEAVE)
    asked = max(number for number, screen in enumerate(screens) if "Continue your draft?" in screen)
    assert "Which dataset of text?" in screens[asked + 1]


def test_values_of_a_command_line_are_not_replaced_by_those_of_a_draft(visit, monkeypatch, capsys):
    visit(*TO_TEXTS, Key.CTRL_C, *LEAVE)
    start = Next("pretrain", {"values": {"model": {"size": "micro"}, "data": [{"path": "text.txt"}]}})
    with keyboard([Key.ESCAPE, *LEAVE], monkeypatch, lambda: "".join(capsys.readouterr())) as keys:
        assert run_wizard(wizard_commands(), debug=True, start=start) == 0
    assert "micro" in keys.screens[0]


def test_the_draft_of_a_sweep_is_kept(visit):
    Path("configs").mkdir()
    Path("configs/mine.yaml").write_text(json.dumps(tiny_recipe()))
    way = (*pick("Experiment"), *pick("Sweep "), *pick("mine "), *pick("optimizer"), Key.ENTER, Key.CTRL_C)
    screens = visit(*way, *pick("Continue your draft"), Key.CTRL_C, *LEAVE)
    asked = max(number for number, screen in enumerate(screens) if "» Continue your draft" in screen)
    assert "How many steps for each run?" in screens[asked - 1]


def test_the_draft_is_kept_from_the_page(visit):
    to_menu = (Key.LEFT, Key.RIGHT, Key.RIGHT, Key.RIGHT, Key.ENTER)
    screens = visit(*TO_PAGE, *to_menu, *PRETRAIN, *pick("Continue"), Key.CTRL_C, *LEAVE)
    asked = max(number for number, screen in enumerate(screens) if "Continue your draft?" in screen)
    assert "[Continue to the plan]" in screens[asked + 1]


def line_of(screen, label):
    return next(line for line in screen.split("\n") if line[2:].startswith(f"{label} "))


def test_a_page_is_filled_in_place_with_arrow_keys_and_by_typing(press):
    page = page_of("pretrain")
    steps = (To("optimizer "), Key.RIGHT, To("max_steps"), Key.ENTER, "abc", Key.ENTER, Key.ERASE_LINE, *answer("7"))
    steps = (*steps, Key.ENTER, *answer("40"))  # what is typed into an opened row replaces its value
    value, screens = press(page, *steps, Key.FINISH)
    changes = {"optimizer": {"name": "adamw"}, "train": {"max_steps": 40}}
    assert value == {"changes": changes, "action": "start", "at": "train.max_steps"}
    assert any('"abc" is not a whole number.' in screen for screen in screens)
    assert "yours" in line_of(screens[-1], "optimizer")
    assert "optimizer.name=adamw train.max_steps=40" in screens[-1]


def test_the_error_of_a_value_disappears_as_soon_as_another_is_typed(press):
    steps = (To("max_steps"), Key.ENTER, "abc", Key.ENTER, "1", "2", Key.ENTER, Key.FINISH)
    value, screens = press(page_of("pretrain"), *steps)
    assert value["changes"] == {"train": {"max_steps": 12}}
    refused = [number for number, screen in enumerate(screens) if "is not a whole number" in screen]
    assert refused
    typing = next(screen for screen in screens[refused[0] :] if line_of(screen, "max_steps").split()[-1] == "1")
    assert "is not a whole number" not in typing


def test_a_value_is_erased_as_soon_as_its_row_is_open(press):
    steps = (To("max_steps"), *answer("7"), Key.ENTER, Key.ERASE_LINE, Key.ENTER, Key.FINISH)
    value, _ = press(page_of("pretrain"), *steps)
    assert value["changes"] == {}


def test_a_value_that_was_refused_is_typed_over(press):
    steps = (To("max_steps"), Key.ENTER, *answer("many"), *answer("7"), Key.FINISH)
    assert press(page_of("pretrain"), *steps)[0]["changes"] == {"train": {"max_steps": 7}}


def test_letters_filter_a_page_wherever_the_pointer_is_and_digits_change_a_number(press):
    steps = (To("name "), "decay", Key.ESCAPE, To("max_steps"), *answer("7"), Key.FINISH)
    value, screens = press(page_of("pretrain"), *steps)
    assert value["changes"] == {"train": {"max_steps": 7}}
    assert seen(screens, 'filter "decay"')
    assert seen(screens, "scheduler.decay_ratio") or seen(screens, "weight_decay")


def test_a_page_shows_its_groups_filters_all_values_and_resets_them(press):
    filtered = ("/", "eps", Key.ENTER, *answer("1e-6"), Key.ESCAPE)
    steps = (*filtered, Key.TAB, Key.TAB, Key.TAB, Key.END, Key.RIGHT, Key.ENTER)
    value, screens = press(page_of("pretrain"), *steps, Key.ESCAPE, "/", "eps", Key.DELETE, Key.FINISH)
    assert value["changes"] == {}
    titles = [screen.split("\n")[0] for screen in screens]
    for title in ('filter "eps"', "your values", "all values", "model"):
        assert any(title in line for line in titles), title


def test_a_page_shows_its_recipe_and_its_help(press):
    _, screens = press(page_of("pretrain"), Key.RECIPE, Key.ESCAPE, To("scheduler"), Key.HELP, Key.FINISH)
    recipe = next(screen for screen in screens if "stage: pretrain" in screen)
    assert recipe.count("llm-lab new pretrain") == 1, "a command that fits below the page is shown only there"
    assert seen(screens, "A wsd run can be continued")


def test_a_choice_of_a_page_opens_as_a_list_with_effects(press):
    value, _ = press(page_of("pretrain"), To("scheduler"), Key.ENTER, *pick("wsd"), Key.FINISH)
    assert value["changes"] == {"scheduler": {"name": "wsd"}}


def test_escape_on_a_page_keeps_what_was_changed(visit):
    screens = visit(*TO_PAGE, *FILLED, Key.ESCAPE, Key.ENTER, Key.CTRL_C, *LEAVE)
    page = [screen for screen in screens if "[Continue to the plan]" in screen][-1]
    assert "first" in line_of(page, "name")


def test_escape_leads_from_a_following_flow_back_to_the_one_before(visit):
    screens = visit(*EVALUATE, *pick("Measure a model"), Key.ESCAPE, Key.ESCAPE, Key.ESCAPE, *LEAVE)
    order = ["to do?", "Which one?", "Measure or", "Which model?", "Measure or", "Which one?", "to do?"]
    shown = [next(text for text in reversed(order) if text in screen) for screen in screens]
    assert [text for at, text in enumerate(shown) if at == 0 or text != shown[at - 1]] == order


def test_a_run_is_started_without_its_plan_a_second_time_and_can_be_left(visit):
    started = []
    visit(
        *TO_PAGE, *FILLED, Key.FINISH, *pick("Yes"), Key.ENTER, Key.ESCAPE, *LEAVE,
        start=lambda recipe, overrides, **options: started.append((recipe["name"], options)),
    )  # fmt: skip
    assert started == [("first", {"resume": False, "show_plan": False})]


def test_a_run_that_cannot_start_leads_back_to_the_page(visit):
    def start(*words, **options):
        raise MachineError(Problem("device", "too small for it"))

    keys = (*TO_PAGE, Key.ENTER, *pick("Yes"), Key.ENTER)
    screens = visit(*keys, Key.CTRL_C, *LEAVE, start=start)
    refused = max(number for number, screen in enumerate(screens) if "Enter goes back" in screen)
    assert "» device" in screens[refused + 1], "it points at what is to be fixed"


def test_a_run_that_is_stopped_before_anything_is_saved_leads_back_to_the_page(visit):
    def start(*words, **options):
        raise KeyboardInterrupt

    screens = visit(*TO_PAGE, Key.ENTER, *pick("Yes"), Key.ENTER, Key.CTRL_C, *LEAVE, start=start)
    stopped = max(number for number, screen in enumerate(screens) if "Enter goes back" in screen)
    assert "[Continue to the plan]" in screens[stopped + 1]


def test_a_page_that_is_shown_again_points_at_the_last_change(visit):
    from_row = (*TO_PAGE, *FILLED, Key.FINISH)
    from_bar = (*TO_PAGE, To("name "), Key.ENTER, *answer("first"), Key.HOME, Key.ENTER)
    from_data = (*TO_PAGE, To("name "), Key.ENTER, *answer("first"), Key.ESCAPE, *pick("No, continue"))
    for keys, label in ((from_row, "max_steps"), (from_bar, "name")):
        screens = visit(*keys, Key.ESCAPE, Key.CTRL_C, *pick("Continue your draft"), Key.CTRL_C, *LEAVE)
        plan = next(number for number, screen in enumerate(screens) if "Start now?" in screen)
        assert line_of(screens[plan + 1], label).startswith("»")
        DRAFTS.unlink()
    page = [screen for screen in visit(*from_data, Key.CTRL_C, *LEAVE) if "[Continue to the plan]" in screen][-1]
    assert line_of(page, "name").startswith("»")


def test_an_error_of_a_command_is_shown_and_leads_back_to_the_question(visit):
    def chat(path):
        raise MachineError(Problem(path, "too large for this machine"))

    keys = (*pick("Use a model"), *pick("Chat"), *pick("another folder"), *answer("some/where"), Key.ENTER)
    screens = visit(*keys, Key.ESCAPE, Key.ESCAPE, *LEAVE, chat=chat)
    shown = max(number for number, screen in enumerate(screens) if "Enter goes back" in screen)
    assert "Chat with which model?" in screens[shown + 1]


def test_an_internal_error_is_reported_and_the_menu_stays(visit, monkeypatch, capsys):
    def doctor(**options):
        raise RuntimeError("boom")

    with keyboard([*pick("Doctor"), Key.ENTER, *LEAVE], monkeypatch):
        assert run_wizard(dataclasses.replace(wizard_commands(), doctor=doctor)) == 0
    assert "Internal error: RuntimeError: boom" in capsys.readouterr().err


def test_ctrl_c_during_a_command_stops_only_the_command(visit):
    def compare(*words, **options):
        raise KeyboardInterrupt

    keys = (*EVALUATE, *pick("Compare"), *pick("another"), *answer("a/b"), *pick("another"), *answer("c/d"))
    visit(*keys, *pick("compare these"), Key.ENTER, Key.ENTER, Key.ESCAPE, *LEAVE, compare=compare)


@pytest.mark.usefixtures("lab")
def test_a_checkpoint_is_shown_and_the_plan_of_its_recipe_too(visit):
    screens = visit(
        *pick("Runs"), *pick("base "), *pick("Run its recipe"), *pick("No, go back"),
        *pick("Back to the list"), Key.ESCAPE, *LEAVE,
    )  # fmt: skip
    assert seen(screens, "What next?")
    assert seen(screens, "╭─ Plan: base")


def test_a_run_is_renamed_and_deleted_from_its_page(visit, finished_run):
    of_run = (*pick("Runs"), *pick("tiny "))
    taken = (*pick("Rename it"), *answer("tiny"), Key.ERASE_LINE)
    renamed = (*answer("small"), Key.ENTER, *pick("small "))
    kept = (*pick("Delete it"), Key.ENTER)
    screens = visit(*of_run, *taken, *renamed, *kept, *pick("Delete it"), *pick("Yes"), Key.ENTER, Key.CTRL_C, *LEAVE)
    refused = next(screen for screen in screens if "this name is taken" in screen)
    assert "New name?" in refused
    assert seen(screens, "checkpoints/tiny/ is now checkpoints/small/")
    assert seen(screens, "Deleted checkpoints/small/")
    assert not list(Path("checkpoints").glob("[!.]*"))


@pytest.mark.usefixtures("lab")
def test_a_push_without_a_token_is_refused_before_the_plan_and_the_card(visit, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(Path("no-login").resolve()))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    screens = visit(
        *pick("Use a model"), *pick("Export "), *pick("base "), To("name "), Key.ENTER, *answer("sent"), To("push"),
        Key.ENTER, *answer("me/mine"), Key.FINISH, Key.ESCAPE, Key.CTRL_C, *LEAVE,
    )  # fmt: skip
    assert seen(screens, "no Hub token found")
    assert not seen(screens, "Start now?")
    assert not seen(screens, "model card")
    assert not Path("checkpoints/sent").exists()


@pytest.mark.usefixtures("lab")
@pytest.mark.parametrize(("way", "page"), [(RUN_PAGE, "What next?"), (MEASURE, "Measure or compare")],
                         ids=["the page of a run", "Evaluate"])  # fmt: skip
def test_after_an_evaluation_enter_leads_back_to_the_previous_page(visit, way, page):
    keys = (*way, Key.FINISH, *pick("Yes, start"), Key.ENTER, Key.ESCAPE, Key.ESCAPE)
    screens = visit(*keys, *LEAVE, start=lambda *words, **options: 0)
    ended = next(number for number, screen in enumerate(screens) if "Enter goes back" in screen)
    assert page in screens[ended + 1]


@pytest.mark.usefixtures("lab")
def test_models_are_compared_and_the_comparison_is_printed(visit):
    import shutil

    shutil.copytree("checkpoints/base/model", "copied")
    screens = visit(
        *EVALUATE, *pick("Compare models"), *pick("base "), *pick("another folder"),
        *answer("copied"), *pick("compare these"), *answer("Tom has"), Key.PAGE_DOWN, Key.ENTER, Key.ESCAPE, *LEAVE,
    )  # fmt: skip
    assert seen(screens, "same as A")
    assert seen(screens, "Evaluate · A base · B copied"), "above what is scrolled"
    assert "Use a model" in screens[-3], "the menu that one came from"


def test_the_data_is_shown_as_tokens_page_by_page(monkeypatch, capsys):
    resolved, _ = new_draft("pretrain").with_answer("tokenizer", "bytes").look()
    with keyboard([Key.PAGE_DOWN, Key.UP, Key.ENTER], monkeypatch, lambda: "".join(capsys.readouterr())) as keys:
        assert Wizard(wizard_commands(), debug=True)._execute(ShowTokens(resolved, "Pretrain"))
    assert all("Pretrain · the data as tokens" in screen for screen in keys.screens)
    parts = [re.search(r"lines (\d+) to (\d+) of (\d+)", screen) for screen in keys.screens]
    (first, middle, last), of = [(int(part[1]), int(part[2])) for part in parts], int(parts[0][3])
    assert (first, middle, last) == ((1, 21), (of - 20, of), (of - 21, of - 1))


def test_a_recipe_is_written_and_a_full_or_read_only_disk_is_reported(monkeypatch, capsys):
    wizard = Wizard(wizard_commands(), debug=True)
    with keyboard([Key.ENTER, Key.ENTER], monkeypatch):
        assert wizard._execute(WriteRecipe(Path("configs/a.yaml"), "stage: sft\n"))
        assert not wizard._execute(WriteRecipe(Path("text.txt/a.yaml"), "stage: sft\n"))
    assert Path("configs/a.yaml").read_text() == "stage: sft\n"


def test_a_written_recipe_says_where_it_is_found(monkeypatch, capsys):
    wizard = Wizard(wizard_commands(), debug=True)
    with keyboard([Key.ENTER, Key.ENTER], monkeypatch):
        wizard._execute(WriteRecipe(Path("configs/a.yaml"), "stage: sft\n"))
        assert "Run a recipe lists it" in capsys.readouterr().out
        wizard._execute(WriteRecipe(Path("other/elsewhere.yaml"), "stage: sft\n"))
    shown = capsys.readouterr().out
    assert "Run it with: llm-lab run other/elsewhere.yaml" in shown
    assert "Run a recipe lists it" not in shown


def page_of(stage, **known):
    draft = new_draft(stage, **known)
    return page_question(draft, draft, run_page(stage))


@pytest.mark.usefixtures("lab")
@pytest.mark.parametrize("stage", STAGES)
def test_every_row_of_a_page_fits_the_terminal_with_its_help(press, stage):
    page = page_of(stage, **({} if stage == "pretrain" else {"model": "checkpoints/base"}))
    press(page, Key.TAB, Key.TAB, *[Key.DOWN] * len(page.form.rows), Key.HELP, Key.FINISH)  # the keyboard measures


def test_the_plan_of_a_large_run_fits_the_terminal_with_its_question(press):
    parts = {"size": "micro", "position_embedding": "sinusoidal", "norm": "layernorm", "activation": "leaky_relu"}
    texts = [{"path": f"someone/a-long-name-of-texts-{n}", "subset": "sample-10BT"} for n in range(9)]
    draft = new_draft("pretrain").with_answer("model", parts | {"tie_word_embeddings": False})
    resolved, _ = draft.with_answer("data", texts).look()
    started, screens = press(start_question(Plan(resolved)), Key.ENTER)
    assert started
    assert "╭─ Plan" in screens[0]


def test_a_panel_that_is_higher_than_the_terminal_is_scrolled_below_its_title(monkeypatch, capsys):
    def show(checkpoint, heading):
        make_console().print("\n".join(f"line {number}." for number in range(40)))

    commands = dataclasses.replace(wizard_commands(), show=show)
    page = Screen("Runs", "checkpoints/x", CheckpointDetails("checkpoints/x"))
    question = Question("q", "And now?", choices=(Choice(1, "one"), Choice(2, "two")), screen=page)
    steps = [Key.PAGE_DOWN, Key.PAGE_DOWN, Key.PAGE_UP, Key.ENTER]
    with keyboard(steps, monkeypatch, lambda: "".join(capsys.readouterr())) as keys:
        assert Wizard(commands, debug=True).ask(question) == 1
    assert all("LLM Lab · Runs · checkpoints/x" in screen for screen in keys.screens)
    assert "line 0." in keys.screens[0]
    assert "of 40 · Page Down: more" in keys.screens[0]
    assert "line 39." not in keys.screens[0]
    assert "line 39." in keys.screens[2]
    assert "Page Up: back" in keys.screens[2]
    assert "line 39." not in keys.screens[3]


def test_a_please_wait_line_appears_once_on_a_screen(monkeypatch, capsys):
    monkeypatch.setattr("llm_lab.terminal.console.is_terminal", lambda: True)
    begin_screen("Runs")
    for _ in range(2):
        print_waiting("Reading ...")
    begin_screen("Runs")
    print_waiting("Reading ...")
    assert capsys.readouterr().err.count("Reading ...") == 2


def test_a_hint_that_has_no_room_is_shortened_or_left_out(press, monkeypatch):
    monkeypatch.setenv("COLUMNS", "44")
    for text, shown in (
        ("Which one of these?", "? Which one of these? (Esc back · ? help)"),
        ("W" * 38, f"? {'W' * 38}"),
    ):
        _, screens = press(dataclasses.replace(CHOICE, text=text, can_finish=True), Key.ENTER)
        assert shown in [line.rstrip() for line in screens[0].split("\n")]


def test_text_that_is_cut_in_a_list_is_complete_in_its_help(press):
    reason = "requires a graphics card with at least 24 GiB of memory, and this machine has none at all"
    long = Choice(1, "one", effect="It means this. " * 30 + "The end.")
    question = Question("a", "Which?", choices=(long, Choice(2, "two", reason)), why="Why.")
    _, screens = press(question, Key.HELP, Key.ENTER)
    assert "The end." not in screens[0]
    for text in ("The end.", f"two: {reason}.", "Why."):
        assert seen(screens[1:], text)


def test_the_whole_help_of_a_row_is_a_page_that_scrolls(press):
    _, screens = press(page_of("pretrain"), To("optimizer "), Key.HELP, Key.END, Key.ESCAPE, Key.FINISH)
    first, last = [screen for screen in screens if "Esc back to the page" in screen]
    assert "optimizer.name: the optimizer" in first
    assert first != last, "the rest of it"
    assert "Esc back to the page" not in screens[-1]


def test_a_page_of_plain_mode_wraps_between_words(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("builtins.input", lambda prompt: "b")
    with pytest.raises(Back):
        Wizard(wizard_commands(), debug=True).ask(page_of("pretrain"))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    words = " ".join(lines).split()
    for word in ("per_device_train_batch_size:", "data.0.path=builtin:stories", "(derived:", "Enter:"):
        assert word in words


def test_the_help_of_a_page_names_only_keys_that_its_mode_has(press, monkeypatch, capsys):
    _, screens = press(page_of("pretrain"), Key.HELP, Key.ESCAPE, Key.FINISH)
    assert seen(screens, "Delete resets a value. Tab shows the values you chose")
    monkeypatch.setenv("TERM", "dumb")
    typed = iter(["?", "b"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    capsys.readouterr()
    with pytest.raises(Back):
        Wizard(wizard_commands(), debug=True).ask(page_of("pretrain"))
    words = " ".join(capsys.readouterr().out.split())
    assert "key= resets it" in words.partition("yours: you chose it.")[2]
    for key in ("Delete", "Tab "):
        assert key not in words


def test_a_list_has_no_history_to_search(press):
    answered, screens = press(CHOICE, Key.RECIPE, Key.DOWN, Key.ENTER)
    assert answered == 2
    assert not any("search" in screen for screen in screens)


def test_only_the_line_with_the_pointer_is_highlighted(press, monkeypatch):
    styles = []
    tokens = InquirerControl._get_choice_tokens

    def seen(control):
        styles.append({name for name, text in tokens(control) if text in ("one", "two")})
        return tokens(control)

    monkeypatch.setattr(InquirerControl, "_get_choice_tokens", seen)
    assert press(dataclasses.replace(CHOICE, default=1), Key.DOWN, Key.ENTER)[0] == 2
    assert styles
    assert all(found == {"class:highlighted", "class:text"} for found in styles[1:])


def test_esc_on_the_page_after_a_run_leads_to_the_menu_not_to_the_pages_before_the_run(monkeypatch, lab):  # noqa: F811
    commands = dataclasses.replace(wizard_commands(), start=lambda *_, **__: 0)
    RunFolder(Path("checkpoints/base")).update(status="stopped")
    with keyboard([*pick("Resume it"), *pick("Yes, start"), Key.ESCAPE], monkeypatch) as keys:
        Wizard(commands, debug=True).open(Next("next steps", {"path": "checkpoints/base"}))
    assert "What next with base?" in keys.screens[-1]
