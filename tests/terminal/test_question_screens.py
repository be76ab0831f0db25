"""Every kind of question as it looks in a narrow, a usual and a wide terminal."""

import io
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.theme import Theme
from support.screens import assert_matches_snapshot
from support.wizard_keys import drawn

from llm_lab.estimate.formatting import duration
from llm_lab.estimate.machine import Machine
from llm_lab.recipe.registry import STAGES
from llm_lab.studies.cells import CellState
from llm_lab.terminal.console import PALETTE
from llm_lab.terminal.prompt_layout import WIDE_COLUMNS, wrap_lines
from llm_lab.terminal.sweep_screen import SweepScreen, print_result_table
from llm_lab.wizard import menu
from llm_lab.wizard.draft import Draft
from llm_lab.wizard.draft_page import page_question
from llm_lab.wizard.home import line_of
from llm_lab.wizard.model_design import design_page, new_design
from llm_lab.wizard.questions import Choice, Line, Plan, Question, Screen, yes_no
from llm_lab.wizard.quick_start import size_question
from llm_lab.wizard.review import start_question
from llm_lab.wizard.training_runs import run_page

SIZES = [(60, 20), (80, 24), (120, 40)]
CPU = Machine((), "a CPU", 8, 7 * 2**30, True, False)
RATES = "0.0001,0.0003,0.001,0.003,0.01,0.03,0.1,0.3,1.0"
WIDTH = 16


def plan() -> Question:
    raw = {"stage": "pretrain", "name": "tales", "device": "cpu", "data": [{"path": "builtin:stories"}]}
    resolved, _ = Draft(raw, CPU, STAGES["pretrain"].title).look()
    assert resolved is not None
    return start_question(Plan(resolved), 8)


def sizes() -> Question:
    return size_question([({"path": "letters.txt"}, 20_000)], CPU)


def group() -> Question:
    texts = {
        "Sweep": "compare optimizers, learning rates or other settings, with several seeds",
        "Duel": "two recipes: is one really better?",
    }
    choices = [line_of(name, name, about, WIDTH, "Runs a recipe once for each value.") for name, about in texts.items()]
    return Question("group", "Which one?", choices=tuple(choices), screen=Screen("Experiments"))


def options() -> Question:
    values = {"learning_rates": RATES, "steps": "200", "device": "auto"}
    choices = [Choice(key, f"{key:<{WIDTH}}{value}", effect=f"{key}: what it is.") for key, value in values.items()]
    screen = Screen("Study", "learning_rate", lines=(Line("Too small, right, too large: what a rate does."),))
    return Question("options", "Start, or change an option?", choices=tuple(choices), screen=screen)


def ticks() -> Question:
    choices = tuple(Choice(rate, rate) for rate in RATES.split(",")[:5])
    return Question("sweep", "Which values of optimizer.learning_rate?", "several", choices=choices,
                    default=["0.0001", "0.001"], screen=Screen("Sweep", "stories"))  # fmt: skip


def text() -> Question:
    return Question("steps", "How many steps for each run?", "text", default="800", notice='"many" is not a number.',
                    allowed="A whole number above 0. Empty: as in the recipe, 800.",
                    screen=Screen("Sweep", "stories"))  # fmt: skip


def files() -> Question:
    Path("letters.txt").write_text("Dear Anna, the days are long.\n" * 700)
    Path("empty.txt").touch()
    stories = "short English stories for pretraining, generated on this machine"
    offered = (Choice("", "none", effect="Nothing is measured."), Choice("builtin:stories", stories))
    return Question("text", "General text to measure?", "path", choices=offered, default="", look_for="texts",
                    help="forgetting: general text that is measured", screen=Screen("Fine-tune"))  # fmt: skip


def delete() -> Question:
    return yes_no("delete", "Delete it?", default=False, screen=Screen("Runs", "checkpoints/tales", lines=(
        Line("checkpoints/tales/: 18 MiB"), Line("With the 2 runs in it."))))  # fmt: skip


def design() -> Question:
    start = new_design()
    return page_question(start, start, design_page())


KINDS = (plan, sizes, group, options, ticks, text, files, delete)


@pytest.mark.parametrize(("columns", "rows"), SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_question_fits_every_terminal(in_tmp_path, monkeypatch, capsys, kind, columns, rows):
    lines = drawn(kind(), columns, rows, monkeypatch, lambda: capsys.readouterr().out)
    assert_matches_snapshot(f"{kind.__name__}-{columns}x{rows}", lines)


@pytest.mark.parametrize(("columns", "rows"), SIZES)
def test_the_page_of_a_design_fits_every_terminal(in_tmp_path, monkeypatch, capsys, columns, rows):
    monkeypatch.setattr("llm_lab.wizard.model_design.find_machine", lambda: CPU)
    lines = drawn(design(), columns, rows, monkeypatch, lambda: capsys.readouterr().out)
    assert_matches_snapshot(f"design-{columns}x{rows}", lines)


@pytest.mark.parametrize(("columns", "rows"), SIZES)
@pytest.mark.parametrize("name", ["train", "use", "try"])
def test_no_line_of_a_group_is_cut(in_tmp_path, monkeypatch, capsys, name, columns, rows):
    question = next(iter(menu.group(name)))
    lines = drawn(question, columns, rows, monkeypatch, lambda: capsys.readouterr().out)
    assert not [line for line in lines if "…" in line]
    for entry in menu.entries_of(name):
        assert entry.about in " ".join(" ".join(lines).split()) or columns >= WIDE_COLUMNS


def test_a_list_that_would_not_fit_the_terminal_has_one_line_for_each_choice(in_tmp_path, monkeypatch, capsys):
    about = "what it does, in more words than the line of a narrow terminal can show"
    choices = tuple(line_of(f"choice {n}", f"choice {n}", about, WIDTH, "") for n in range(9))
    question = Question("group", "Which one?", choices=choices, screen=Screen("Experiments"))
    lines = drawn(question, 60, 20, monkeypatch, lambda: capsys.readouterr().out)
    assert sum("choice" in line and line.endswith("…") for line in lines) == len(choices)


def test_the_pointer_can_begin_at_the_answer_none_which_has_a_name(in_tmp_path, monkeypatch, capsys):
    lines = drawn(files(), 80, 24, monkeypatch, lambda: capsys.readouterr().out)
    assert [line for line in lines if line.startswith(" »")] == [" » none"]


@pytest.mark.parametrize("columns", [80, 120])
def test_a_long_path_does_not_move_the_origins_of_a_page_out_of_their_column(in_tmp_path, monkeypatch, capsys, columns):
    raw = {"stage": "sft", "name": "x", "device": "cpu", "model": {"checkpoint": "checkpoints/demo/pretrain"}}
    start = Draft({**raw, "data": [{"path": "builtin:word-problems"}]}, CPU, STAGES["sft"].title)
    page = page_question(start, start, run_page("sft"))
    lines = drawn(page, columns, 40, monkeypatch, lambda: capsys.readouterr().out)
    rows = [line.partition("│")[0] for line in lines if line.startswith(("  model ", "  data ", "  score "))]
    assert len(rows) == 3
    assert len({re.search("yours|default|derived", row).start() for row in rows}) == 1


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_table_of_results_leaves_out_the_seeds_before_it_wraps_a_number(columns):
    head = ["optimizer", "mean", "SD", "n", "seed 1337", "seed 1338", "seed 1339", "time", "tokens"]
    rows = [["adamw", "3.4029", "0.0007", "3", "3.4034", "3.4024", "3.4029", "17 s", "23 k"]]
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=columns, theme=Theme(PALETTE))
    print_result_table(console, head, rows)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert len(lines) == 2
    assert ("seed 1337" in lines[0]) == (columns > 60)
    shown = [cell for name, cell in zip(head, rows[0], strict=True) if name in lines[0]]
    assert lines[1].split() == " ".join(shown).split()


def test_the_time_of_a_run_of_a_sweep_that_is_done_is_that_of_the_table(tmp_path):
    sweep = SimpleNamespace(folder=tmp_path / "sweep", measure="eval_loss")
    screen = SweepScreen(sweep, Console(file=io.StringIO()))
    state = CellState(SimpleNamespace(label="adamw"), "done", 40, 40, value=4.9531, seconds=7.6)
    assert screen._details(state).endswith(f", {duration(7.6)}")
    assert screen._details(replace(state, status="running")).endswith(", 0:08")


def test_a_running_sweep_has_one_line_for_each_run_in_a_narrow_terminal(tmp_path):
    labels = [f"position_embedding={name}, seed={seed}" for seed in (1337, 1338) for name in ("rope", "learned")]
    states = [CellState(SimpleNamespace(label=label), "running", 30, 30, loss=4.9531, seconds=27.0) for label in labels]
    sweep = SimpleNamespace(folder=tmp_path / "stories-duel-position_embedding", measure="eval_loss")
    console = Console(file=io.StringIO(), width=60, height=20, force_terminal=True, theme=Theme(PALETTE))
    screen = SweepScreen(sweep, console)
    console.print(screen._frame(states, 603.0))
    lines = re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue()).splitlines()
    assert len(lines) == 1 + len(states) + 1
    assert lines[2].split() == ["learned,", "seed=1337", "running", "training", "loss", "4.9531,", "0:27"]


def test_a_help_never_breaks_a_word_at_its_hyphen():
    assert wrap_lines("Changes: data.0.path=my-text.txt name=again", 30) == [
        "Changes:",
        "data.0.path=my-text.txt",
        "name=again",
    ]
