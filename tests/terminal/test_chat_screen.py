"""The chat screen: what a user types, what is shown, and how a reply is stopped."""

import io
import sys
import textwrap

import pytest
from conftest import spawn_program
from support.chat_sessions import GREEDY, no_checkpoint, open_session, type_into_chat

from llm_lab.chat.session import ChatSettings
from llm_lab.terminal.chat_screen import COMMANDS, answer_once, run_chat
from llm_lab.terminal.console import printable


def test_a_conversation_is_typed_and_ended_with_ctrl_d(capsys):
    session = open_session(chat=True)
    type_into_chat(session, "hello\r//slash\r\x04")
    assert [m["content"] for m in session.messages[::2]] == ["hello", "/slash"]
    out = capsys.readouterr().out
    assert "chat mode" in out
    assert "24 tokens" in out


def test_a_message_can_have_several_lines():
    session = open_session(chat=True)
    type_into_chat(session, "one\\\rtwo\x1b\rthree\r/quit\r")
    assert session.messages[0]["content"] == "one\ntwo\nthree"


def test_ctrl_c_at_the_prompt_says_how_to_leave_and_the_second_one_leaves(capsys):
    session = open_session(chat=True)
    type_into_chat(session, "half a thought\x03hello\r\x03\x03")
    assert len(session.messages) == 2
    assert capsys.readouterr().out.count("Press Ctrl-C again, or Ctrl-D, to quit.") == 2


def test_commands_change_the_session(capsys, tmp_path):
    session = open_session(chat=True)
    file = tmp_path / "talk.json"
    type_into_chat(
        session,
        "/temperature 0.5\r/top_p 0.9\r/top_k 5\r/max_new_tokens 4\r/repetition_penalty 1.2\r/seed 3\r"
        f"/system be kind\rhello\r/save {file}\r/reset\r/load {file}\r/settings\r/help\r/quit\r",
    )
    assert session.settings == ChatSettings(0.5, 0.9, 5, 4, 1.2, 3)
    assert session.system == "be kind"
    assert len(session.messages) == 2
    out = capsys.readouterr().out
    assert "be kind" in out
    assert all(len(line) <= 80 for line in out.split("/help    ")[1].splitlines())


def test_an_invalid_command_shows_an_error_and_changes_nothing(capsys):
    session = open_session(chat=True)
    type_into_chat(session, "/temprature 1\r/top_p 7\r/save\r/load nothing.json\r/model nowhere\r/nonsense\r/quit\r")
    assert session.settings == GREEDY
    assert session.messages == []
    errors = capsys.readouterr().err
    assert "Did you mean /temperature?" in errors
    for word in ("Allowed", "/save FILE", "No such file", "there is no such run or model", "/help lists all commands"):
        assert word in " ".join(errors.split()), word


def test_another_model_is_opened_with_the_same_settings(capsys):
    session, other = open_session(chat=True), open_session(name="the other", settings=ChatSettings())
    type_into_chat(session, "/model there\rhello\r/quit\r", load=lambda path: other)
    assert session.messages == []
    assert len(other.messages) == 2
    assert other.settings == GREEDY
    out = capsys.readouterr().out
    assert "the other" in out
    assert "completion mode" in out


def test_piped_lines_get_only_replies_on_standard_output(capsys, monkeypatch):
    session = open_session(chat=True)
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n\n/top_k 5\n/oops\nmore\n"))
    run_chat(session, load=no_checkpoint, side_by_side=None)
    replies = [m["content"] for m in session.messages[1::2]]
    assert len(replies) == 2
    captured = capsys.readouterr()
    assert captured.out == "".join(printable(reply) + "\n" for reply in replies)
    assert "top_k = 5" in captured.err


def test_a_single_answer_is_the_only_output(capsys):
    class WithControlCodes:
        def reply(self, text, hits=()):
            yield from ("fine\n", "\x1b[2J", text)

    answer_once(WithControlCodes(), "x")
    captured = capsys.readouterr()
    assert captured.out == "fine\n␛[2Jx\n"
    assert captured.err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="pexpect needs a Unix terminal")
def test_ctrl_c_stops_a_reply_and_the_conversation_continues():
    import pexpect

    program = textwrap.dedent(
        """
        import time
        from types import SimpleNamespace
        from llm_lab.terminal.chat_screen import run_chat

        class Endless:
            name, mode, notice, context_length = "endless", "chat", None, None
            last_stats = SimpleNamespace(tokens=3, tokens_per_second=None, stop="stopped")

            def reply(self, text, hits=()):
                while True:
                    time.sleep(0.02)
                    yield "word "

        run_chat(Endless(), load=None, side_by_side=None)
        """
    )
    child = spawn_program(program)
    child.expect(">")
    child.send("continue\r")
    child.expect("word word")
    child.sendintr()
    child.expect(r"3 tokens; stopped")
    child.expect(">")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_each_command_has_one_line_of_help():
    for name, (argument, what) in COMMANDS.items():
        assert len(f"  /{name} {argument}".ljust(26) + what) <= 80
        assert len(f"  /{name} {argument}") < 26


@pytest.mark.skipif(sys.platform == "win32", reason="pexpect needs a Unix terminal")
def test_ctrl_c_while_another_model_answers_returns_to_the_conversation():
    import pexpect

    program = textwrap.dedent(
        """
        import time
        from types import SimpleNamespace
        from llm_lab.events import Notice
        from llm_lab.terminal.chat_screen import run_chat

        class Slow:
            def compare(self, session, name, text, listener):
                listener(Notice("loading " + name))
                time.sleep(60)

        session = SimpleNamespace(name="a", mode="chat", notice=None, context_length=None, settings=None, messages=[])
        run_chat(session, load=None, side_by_side=Slow())
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
