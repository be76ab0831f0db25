"""The wizard in a pseudo-terminal of 80 by 24, from the menu to a trained model's reply."""

import io
import os
import re
import sys

import pexpect
import pytest
from conftest import write_text

WIZARD = [sys.executable, "-m", "llm_lab"]
TAKES_KEYS = "\x1b[?2004h"  # what a prompt sends once it reads keys itself
ENTER, DOWN, RIGHT, ESCAPE, FINISH, END_OF_INPUT = "\r", "\x1b[B", "\x1b[C", "\x1b", "\x06", "\x04"


class Terminal:
    """A pseudo-terminal with the wizard in it."""

    def __init__(self, folder, **environment):
        self.child = pexpect.spawn(
            WIZARD[0],
            WIZARD[1:],
            cwd=folder,
            dimensions=(24, 80),
            encoding="utf-8",
            timeout=90,  # test machines are busy
            env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color", **environment},
        )
        self.child.logfile_read = self.seen = io.StringIO()
        self.child.delaybeforesend = 0.1  # like a person, who looks before pressing a key

    def at(self, text: str, *keys: str) -> None:
        """Wait for a text on the screen, then press keys."""
        self.child.expect(re.escape(text))
        for key in keys:
            self.child.send(key)


@pytest.fixture
def terminal(in_tmp_path):
    write_text("text.txt")
    terminals = []

    def begin(**environment):
        terminals.append(Terminal(in_tmp_path, **environment))
        return terminals[-1]

    yield begin
    for each in terminals:
        each.child.close(force=True)


def test_a_person_trains_a_model_in_the_wizard_and_chats_with_it(terminal, in_tmp_path):
    here = terminal()
    here.at("What would you like to do?", DOWN, ENTER)
    here.at("Which one?", ENTER)
    here.at("model: what is trained", ENTER)
    here.at("model.size:", ENTER)
    here.at("data.0.path:", "text.txt", ENTER)
    here.at("Add another dataset", ENTER)
    name = (DOWN, ENTER, "first", ENTER)
    optimizer = (*[DOWN] * 4, RIGHT)
    numbers = (*[DOWN] * 3, "32", ENTER, DOWN, "2", ENTER, DOWN, "10", ENTER)
    here.at("[Continue to the plan]", *name, *optimizer, *numbers, FINISH)
    here.at("Start now?", ENTER)
    here.at("Preparing")
    here.at("Done: checkpoints/first/")
    here.at("What next with first?", ENTER)
    here.at("Loading checkpoints/first")
    here.at("/reset starts a new one", "the small", ENTER)
    here.child.expect(r"tokens?(, [\d,]+ tokens\/s)?;")  # a text that ends at once has no speed
    here.at(TAKES_KEYS, END_OF_INPUT)  # earlier, the terminal itself would handle Ctrl-D
    here.at("What next with first?", ESCAPE)
    here.at("What would you like to do?", ESCAPE)
    here.at("Press Esc or Ctrl-D again to quit.")
    here.at("What would you like to do?", ESCAPE)
    here.child.expect(pexpect.EOF)
    here.child.close()
    assert here.child.exitstatus == 0
    assert (in_tmp_path / "checkpoints/first/model/config.json").is_file()


def test_keys_that_are_typed_ahead_are_not_lost(terminal):
    here = terminal()
    here.at("What would you like to do?", DOWN, ENTER, ENTER, ENTER, ENTER)
    here.at("Which dataset of text?")


def test_no_color_is_sent_with_no_color_set(terminal):
    here = terminal(NO_COLOR="1")
    here.at("What would you like to do?", DOWN, ENTER, ENTER)
    here.at("Which model?")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", here.child.before)


def test_a_dumb_terminal_gets_plain_lines(terminal):
    here = terminal(TERM="dumb")
    here.at("What would you like to do?")
    here.at("Number [1]", "?2\r")
    here.at("merging LoRA adapters")
    here.at("Number [1]", "2\r")
    here.at("Which one?")
    here.at("Number [1]", "b\r")
    here.at("7  Quit")
    here.at("Number [", "2\r")
    here.at("Which one?")
    here.at("Number [1]", "1\r")
    here.at("Which model?")
    here.at("Number [1]", "1\r")
    here.at("Number [1]", "\x03")
    here.at("Your answers are kept as a draft.")
    here.at("What would you like to do?")
    here.at("Number [", "\x03")
    here.at("Press Ctrl-C again to quit.")
    here.at("Number [", "\x03")
    here.child.expect(pexpect.EOF)
    assert here.child.before.endswith("\n"), "the line of the shell is its own"
    assert "Traceback" not in here.child.before
    assert "\x1b" not in here.child.before


def test_the_terminal_is_never_asked_for_its_cursor_position(terminal):
    here = terminal()
    here.at("What would you like to do?", ESCAPE)
    here.at("Press Esc or Ctrl-D again to quit.")
    here.at("What would you like to do?", ESCAPE)
    here.child.expect(pexpect.EOF)
    assert "What would you like to do?" in here.seen.getvalue()
    assert "\x1b[6n" not in here.seen.getvalue()
