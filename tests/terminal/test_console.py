"""Text and numbers on the screen: nothing in them controls the terminal, and people can read them."""

import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from llm_lab.cli import main
from llm_lab.errors import Problem, UserError
from llm_lab.estimate.formatting import about, clock, count, size, whole_percents
from llm_lab.runs.comparison import Answer, Compared, Comparison
from llm_lab.runs.folder import find_model
from llm_lab.terminal import console as console_module
from llm_lab.terminal.compare_screen import print_comparison
from llm_lab.terminal.console import columns, is_plain, print_error, printable
from llm_lab.terminal.screens import begin_screen

HOSTILE = "a\x1b[2Jb\x07c\rd\x9b31me\u202ef\x00"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")


def test_text_from_elsewhere_cannot_control_the_terminal():
    assert not CONTROL.search(printable(HOSTILE))
    assert printable("\x1b\x7f") == "␛␡"
    assert printable("é你😀\n\tx\r\n") == "é你😀\n\tx\n"
    printable("\ud800").encode()


def test_numbers_are_formatted_for_people():
    assert [count(n) for n in (0, 950, 9_999, 12_345, 771_328, 1_234_567, 20e9)] == [
        *("0", "950", "9,999", "12 k", "771 k", "1.2 M", "20 B")
    ]
    assert [size(n) for n in (12, 2048, 3.4 * 2**30)] == ["12 bytes", "2.0 KiB", "3.4 GiB"]
    assert [clock(n) for n in (12.9, 91, 3723, 200_000)] == ["0:13", "1:31", "1:02:03", "2d 07:33:20"]
    assert [about(n) for n in (2, 44, 110, 8_000, 90_000, 320_000)] == [
        *("a few seconds", "about 40 s", "about 2 min", "about 2.2 h", "about 25 h", "about 3.7 days")
    ]


def test_errors_go_to_standard_error_one_paragraph_each(capsys):
    print_error(UserError(Problem("train.max_steps", "too few [b]", value=0, allowed="1 or more"), "another"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "train.max_steps = 0: too few [b]. Allowed: 1 or more.\nanother\n"


def test_a_terminal_without_unicode_does_not_stop_a_run(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    console_module.make_console().print("naïve ┤")
    stream.flush()
    assert stream.buffer.getvalue() == b"na?ve ?\n"


@pytest.mark.parametrize(
    ("variables", "plain"),
    [
        ({}, False),
        ({"LLM_LAB_PLAIN": "1"}, True),
        ({"LLM_LAB_PLAIN": "0"}, False),
        ({"TERM": "dumb"}, True),
    ],
    ids=str,
)
def test_plain_mode_follows_the_environment(monkeypatch, variables, plain):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_plain() == plain


@pytest.mark.parametrize("words", [["--plain", "list", "data"], ["list", "data", "--plain"]])
def test_plain_mode_prints_tables_and_titles_as_lines(monkeypatch, capsys, words):
    monkeypatch.setenv("LLM_LAB_PLAIN", "")
    monkeypatch.setenv("COLUMNS", "200")
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "a file: txt or md (one document), jsonl, csv or parquet (one document per row)" in lines
    begin_screen("Runs", "here")
    assert capsys.readouterr().out == "\nLLM Lab · Runs · here\n", "a blank line is above each screen"


def test_the_width_is_that_of_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "61")
    assert columns() == 61


def test_a_dumb_terminal_has_its_own_width_and_rows_without_a_name_are_read_as_well(monkeypatch, capsys):
    from rich.table import Table

    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "61")
    console = console_module.make_console()
    assert console.width == 61
    table = Table.grid()
    for row in (("a", "b", "c"), ("", "status", "done"), ("alone", "", "")):
        table.add_row(*row)
    console.print(table)
    assert capsys.readouterr().out == "a: b, c\nstatus: done\nalone\n"


def test_the_curves_of_compared_runs_are_drawn_in_one_picture_with_a_letter_each(in_tmp_path):
    for name, last in (("low", 1.0), ("high", 3.0)):
        folder = Path("checkpoints", name)
        folder.mkdir(parents=True)
        (folder / "run.json").write_text('{"stage": "pretrain"}')
        rows = [{"step": step, "loss": last + 2 / step} for step in range(1, 30)]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    models = [Compared(name, f"checkpoints/{name}", "chat", (Answer("x"),), {}) for name in ("low", "high")]
    console = Console(file=io.StringIO(), width=60)
    print_comparison(Comparison(("a",), tuple(models), "greedy"), console)
    shown = console.file.getvalue().splitlines()
    at = next(number for number, line in enumerate(shown) if line.startswith("training loss of each run"))
    curve = [line.partition("|")[2] or line.partition("+")[2] for line in shown[at + 1 : -1]]
    assert "A" in curve[-1]
    assert "B" not in curve[-1]
    assert "B" in "".join(curve[:5])
    alone = Console(file=io.StringIO(), width=60)
    print_comparison(Comparison(("a",), (models[0], replace(models[1], checkpoint="gpt2")), "greedy"), alone)
    assert "of each run" not in alone.file.getvalue()


def test_an_error_about_a_name_lists_the_existing_ones_and_names_no_command(in_tmp_path):
    with pytest.raises(UserError, match=r"There are no runs in checkpoints/ yet\."):
        find_model("nope")
    for name in ("tales", "sums", *map(str, range(8))):
        Path("checkpoints", name).mkdir(parents=True)
        Path("checkpoints", name, "run.json").write_text("{}")
    for wrong, said in (("tlaes", "Did you mean tales?"), ("nope", "There are: 0, 1, 2, 3, 4, 5, 6, 7 and 2 more.")):
        with pytest.raises(UserError, match=re.escape(said)) as raised:
            find_model(wrong)
        assert "llm-lab" not in str(raised.value)


def test_the_percents_of_a_whole_sum_to_one_hundred():
    assert whole_percents([0.25, 0.25, 0.5]) == [25, 25, 50]
    assert whole_percents([0.2451, 0.2454, 0.5095]) == [24, 25, 51]
    assert whole_percents([1, 1, 1]) == [34, 33, 33]
    assert whole_percents([0.007, 0.993]) == [1, 99]
    assert whole_percents([0.0, 0.0]) == [0, 0]
