"""The home screen and the list of text files, as they look in a narrow, a usual and a wide terminal."""

import json
import os
import time
from pathlib import Path

import pytest
from support.screens import Terminal, assert_matches_snapshot

from llm_lab.cli import main
from llm_lab.terminal import ask
from llm_lab.terminal.prompt_layout import SIDE_COLUMNS
from llm_lab.terminal.side_panel import head_of
from llm_lab.wizard.questions import Choice, Question

HOURS = 3600
RUNS = {
    "shakespeare": {"stage": "pretrain", "status": "stopped", "results": {"step": 300, "eval_loss": 1.72}},
    "support-desk": {"stage": "sft", "status": "done", "results": {"step": 90, "eval_loss": 1.31}},
    "heads": {"status": "done", "study": {"experiment": "heads", "options": {}}},
}


def make_runs() -> None:
    for number, (name, facts) in enumerate(RUNS.items()):
        folder = Path("checkpoints", name)
        (folder / "model").mkdir(parents=True)
        (folder / "model/config.json").write_text("{}")
        (folder / "steps/checkpoint-300").mkdir(parents=True)
        (folder / "steps/checkpoint-300/trainer_state.json").write_text("{}")
        (folder / "metrics.jsonl").write_text('{"step": 300, "loss": 1.5}\n')
        (folder / "recipe.yaml").write_text("stage: pretrain\ntrain:\n  max_steps: 1000\n")
        then = time.time() - (2.5 + number) * HOURS
        about = {"name": name, "created_at": then, "ended_at": then, "parameters": 870_000, **facts}
        (folder / "run.json").write_text(json.dumps(about))


def test_one_long_name_in_the_list_of_runs_is_wrapped_and_hides_no_column(in_tmp_path, monkeypatch, capsys):
    make_runs()
    Path("checkpoints/shakespeare").rename(f"checkpoints/{'long-' * 12}name")
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["list", "runs"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == "run stage size disk age status result".split()


def make_texts() -> None:
    for name, count in (("letters.txt", 20_000), ("notes/2024.md", 3_000), ("notes/long/deep.txt", 900)):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("Dear Anna, the days are long.\n" * (count // 30))
    Path("empty.txt").touch()
    Path("scan.txt").write_bytes(b"\x00\x01" * 100)


@pytest.mark.parametrize(("columns", "rows"), [(60, 20), (80, 24), (120, 40)])
def test_home_and_the_texts_fit_every_terminal(in_tmp_path, columns, rows):
    make_runs()
    make_texts()
    with Terminal(columns=columns, rows=rows, NO_COLOR="1") as terminal:
        terminal.wait_for("What would you like to do?")
        machine, home = terminal.lines[1], [*terminal.lines[:1], *terminal.lines[2:]]
        terminal.press("?")
        help_text = " ".join(" ".join(terminal.lines).split())
        terminal.press("?", "\r")
        terminal.wait_for("Which text?")
        texts = terminal.lines
    assert "CPU core" in machine
    assert "It learns to continue text, not to answer questions: for that, fine-tune it afterwards (SFT)." in help_text
    assert_matches_snapshot(f"home-{columns}x{rows}", [line.split(" runs,")[0] for line in home])
    assert_matches_snapshot(f"texts-{columns}x{rows}", texts)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_choice_that_is_not_possible_shows_its_reason_and_stays_in_its_columns(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    possible = Choice("nano", "nano     771 k parameters   615 MiB  about 90 s")
    too_large = Choice("3b", "3b       2.6 B parameters    35 GiB  about 2.3 days", "not enough memory")
    line = f"   - {ask.title_of(too_large)} ({ask.reason_of(too_large)})"
    assert len(line) < columns
    assert line.endswith("(not enough memory)")
    assert line.index("parameters") == f"   {ask.title_of(possible)}".index("parameters")


@pytest.mark.parametrize(("columns", "rows"), [(60, 20), (80, 24), (120, 40)])
def test_the_runs_are_listed_in_columns_with_the_pointed_one_next_to_them(in_tmp_path, columns, rows):
    make_runs()
    with Terminal(columns=columns, rows=rows, NO_COLOR="1") as terminal:
        terminal.wait_for("What would you like to do?")
        terminal.press("\x1b[F", "\x1b[A", "\x1b[A", "\r")
        terminal.wait_for("Which run or model?")
        lines = terminal.lines
    assert_matches_snapshot(f"runs-{columns}x{rows}", lines)


def test_columns_without_room_are_left_out_the_least_important_first():
    heads = ("run", "stage", "size", "age", "status", "result")
    cells = ("a-run-with-a-rather-long-name", "pretrain", "870 k", "3 h", "stopped", "loss 1.7200")
    question = Question("q", "Which?", choices=(Choice("a", "a", cells=cells),), heads=heads)
    assert [ask.titles_of(question, room)[0].split() for room in (80, 74, 66, 58)] == [
        list(heads),
        [head for head in heads if head != "size"],
        [head for head in heads if head not in ("size", "age")],
        [head for head in heads if head not in ("size", "age", "stage")],
    ]
    assert all(len(ask.titles_of(question, room)[1][0]) <= room for room in (80, 74, 66, 58))


def test_the_beginning_of_a_text_file_is_shown_next_to_the_list(in_tmp_path):
    Path("a.txt").write_text("First line.\n\n" + "many words " * 20 + "\x1b[2Jend\n")
    os.mkfifo("pipe.txt")
    lines = [line.text for line in head_of("a.txt")]
    assert lines[0] == "First line."
    assert max(map(len, lines)) <= SIDE_COLUMNS
    assert "\x1b" not in "".join(lines)
    assert [*head_of("pipe.txt"), *head_of("missing.txt"), *head_of(".")] == []
