"""Others beside a conversation: /compare and /time, typed as a person types them."""

import dataclasses
import io
import os
import sys
import textwrap

import pytest
from conftest import spawn_program
from support.chat_keys import typed

from llm_lab import load
from llm_lab.chat.session import ChatSession, ChatSettings
from llm_lab.evaluation.side_by_side import Beside
from llm_lab.events import ignore
from llm_lab.terminal.chat_screen import COMMANDS, run_chat

pytest_plugins = ("support.compared_models",)
SETTINGS = ChatSettings(temperature=0, max_new_tokens=8)
DRAWN = dataclasses.replace(SETTINGS, temperature=1.0)
TINY_40 = "checkpoints/tiny/steps/checkpoint-40"


class Opener:
    """Opens checkpoints as the command does, and notes which."""

    def __init__(self, settings=SETTINGS):
        self.opened, self.settings = [], settings

    def __call__(self, name):
        self.opened.append(name)
        model, tokenizer = load(name, device="cpu")
        return ChatSession(model, tokenizer, name=name, settings=self.settings)


def open_session(name, settings=SETTINGS):
    return Opener(settings)(name)


def say(session, text):
    return "".join(session.reply(text))


def told(capsys):
    captured = capsys.readouterr()
    return " ".join(captured.out.split()), " ".join(captured.err.split())


def test_another_model_answers_the_last_message_and_the_conversation_goes_on_with_the_first(models, capsys):
    session, opener = open_session("checkpoints/tiny"), Opener()
    typed(session, f"the old\r/compare {TINY_40}\rand\r/quit\r", load=opener, beside=Beside(opener))
    out, errors = told(capsys)
    alone = open_session("checkpoints/tiny")
    expected = [say(alone, "the old"), say(alone, "and")]
    assert [message["content"] for message in session.messages[1::2]] == expected
    assert " ".join(say(open_session(TINY_40), "the old").split())[:8] in out
    assert "differs from A" in out
    assert errors == ""


def test_a_message_of_its_own_is_answered_by_both_and_stays_in_the_conversation(models):
    session, opener = open_session("checkpoints/tiny"), Opener()
    say(session, "the old")
    found = Beside(opener).compare(session, TINY_40, "and the", ignore)
    assert [message["content"] for message in session.messages[::2]] == ["the old", "and the"]
    other = open_session(TINY_40)
    other.messages = [dict(message) for message in session.messages[:2]]
    assert found.models[1].answers[0].text == say(other, "and the")
    assert found.models[0].answers[0].text == session.messages[-1]["content"]


def test_both_draw_by_the_same_dice(models):
    session, opener = open_session("checkpoints/tiny", DRAWN), Opener(DRAWN)
    beside = Beside(opener)
    say(session, "the old")
    # The same weights under another name.
    found = beside.compare(session, "base", "and the", ignore)
    assert found.models[0].answers == found.models[1].answers
    assert session.settings.seed is None
    assert "seed" in found.drawn
    assert "its own dice" in beside.compare(session, "base", "", ignore).drawn


def test_the_other_model_is_kept_until_another_is_named(models):
    session, opener = open_session("checkpoints/tiny"), Opener()
    keys = f"a\r/compare {TINY_40}\r/compare {TINY_40} the\r/compare stranger\r/compare {TINY_40}\r/quit\r"
    typed(session, keys, load=opener, beside=Beside(opener))
    assert [os.path.basename(name) for name in opener.opened] == ["checkpoint-40", "stranger", "checkpoint-40"]


def test_the_base_is_asked_without_loading_it_again_whatever_else_is_called_base(models, capsys):
    session, opener = open_session("adapter"), Opener()
    typed(session, "hello\r/compare base\rmore\r/quit\r", load=opener, beside=Beside(opener))
    out, _ = told(capsys)
    assert opener.opened == []
    assert "adapter, adapter off" in out
    plain, alone = open_session("plain"), open_session("adapter")
    found = Beside(opener).compare(session, "base", "", ignore)
    assert found.models[1].answers[0].text == say(plain, "more")
    assert "continues texts: it is given the last message alone" in found.remarks[0]
    assert [say(alone, "hello"), say(alone, "more")] == [m["content"] for m in session.messages[1::2]]


def test_wrong_names_are_told_and_the_conversation_goes_on(models, capsys):
    session, opener = open_session("checkpoints/tiny"), Opener()
    keys = "/compare stranger\rthe\r/compare\r/compare checkpoints/nowhere\r/compare checkpoints/reward\r"
    keys += "/compare checkpoints/tiny\r/compare ./base/nothing\rold\r/quit\r"
    typed(session, keys, load=opener, beside=Beside(opener))
    assert [message["content"] for message in session.messages[::2]] == ["the", "old"]
    _, errors = told(capsys)
    for word in ("nothing was said yet", "/compare OTHER", "no such checkpoint", "reward model", "you talk to"):
        assert word in errors, word
    assert opener.opened == []


def test_base_without_an_adapter_says_that_there_is_none(models, tmp_path, monkeypatch, capsys):
    session, opener = open_session(str(models / "stranger")), Opener()
    monkeypatch.chdir(tmp_path)
    typed(session, "the\r/compare base\r/quit\r", load=opener, beside=Beside(opener))
    assert "has no adapter" in told(capsys)[1]


def test_a_name_with_spaces_is_quoted(models, tmp_path):
    (tmp_path / "my model").symlink_to(models / "stranger")
    session, opener = open_session("checkpoints/tiny"), Opener()
    typed(session, f'/compare "{tmp_path / "my model"}" the old\r/quit\r', load=opener, beside=Beside(opener))
    assert session.messages[0]["content"] == "the old"
    assert opener.opened == [str(tmp_path / "my model")]


def test_the_time_machine_asks_every_checkpoint_and_leaves_the_conversation(models, capsys):
    session, opener = open_session("checkpoints/tiny"), Opener()
    typed(session, "/time\rthe old\r/time\r/time a red\r/quit\r", load=opener, beside=Beside(opener))
    out, errors = told(capsys)
    assert "nothing was said yet" in errors
    assert len(session.messages) == 2
    assert len(opener.opened) == 6
    assert out.index("step 40") < out.index("step 60") < out.index("step 80")
    found = Beside(opener).over_time(session, "", ignore)
    assert found.models[0].answers[0].text == say(open_session(TINY_40), "the old")
    assert found.models[-1].answers[0].text == session.messages[1]["content"]


def test_the_time_machine_of_what_is_no_run_is_refused(models, capsys):
    typed(open_session("stranger"), "the\r/time\r/quit\r", beside=Beside(Opener()))
    assert "no run of LLM Lab" in told(capsys)[1]


def test_in_a_pipe_the_comparison_stays_out_of_the_replies(models, capsys, monkeypatch):
    session, opener = open_session("checkpoints/tiny"), Opener()
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"the old\n/compare {TINY_40}\n"))
    run_chat(session, load=opener, beside=Beside(opener))
    captured = capsys.readouterr()
    assert "differs from A" not in captured.out
    assert "differs from A" in captured.err


def test_each_command_has_one_line_of_help():
    for name, (argument, what) in COMMANDS.items():
        assert len(f"  /{name} {argument}".ljust(26) + what) <= 80
        assert len(f"  /{name} {argument}") < 26


@pytest.mark.skipif(sys.platform == "win32", reason="pexpect needs a Unix terminal")
def test_ctrl_c_while_another_answers_returns_to_the_conversation():
    import pexpect

    program = textwrap.dedent(
        """
        import time
        from types import SimpleNamespace
        from llm_lab.terminal.chat_screen import run_chat

        class Slow:
            def compare(self, session, name, text, display):
                display(Notice("loading " + name))
                time.sleep(60)

        session = SimpleNamespace(name="a", mode="chat", notice=None, context_length=None, settings=None, messages=[])
        run_chat(session, load=None, beside=Slow())
        """
    )
    child = spawn_program(program)
    child.expect(">")
    child.send("/compare other\r")
    child.expect("loading other")
    child.sendintr()
    child.expect("Stopped.")
    child.expect(">")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
