"""The chat screen: what a user types, what is shown, and how a reply is stopped."""

import base64
import io
import json
import os
import re
import sys
import textwrap
import time
from types import SimpleNamespace

import pytest
from conftest import spawn_program
from support.chat_sessions import GREEDY, llama, loud, no_checkpoint, open_session, type_into_chat

from llm_lab.chat.session import ChatSettings
from llm_lab.errors import Problem, UserError
from llm_lab.terminal.chat_prompt import Loading, history_path
from llm_lab.terminal.chat_screen import COMMANDS, HELP, _Screen, answer_once, run_chat
from llm_lab.terminal.clipboard import copy
from llm_lab.terminal.console import printable
from llm_lab.terminal.streamed_text import StyledMarkdown, WordWrap


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
    assert f"{HELP}\n\n" in out, "a blank line is above the next prompt"
    assert re.search(r"plain +off", out)


def test_an_invalid_command_shows_an_error_and_changes_nothing(capsys):
    session = open_session(chat=True)
    type_into_chat(session, "/temprature 1\r/top_p 7\r/save\r/load nothing.json\r/model nowhere\r/nonsense\r/quit\r")
    assert session.settings == GREEDY
    assert session.messages == []
    errors = capsys.readouterr().err
    assert "Did you mean /temperature?" in errors
    for word in ("Allowed", "/save FILE", "No such file", "there is no such run or model", "/help lists all commands"):
        assert word in " ".join(errors.split()), word


def test_the_beginning_of_a_command_is_that_command_if_it_is_the_only_one(capsys):
    session = open_session(chat=True)
    type_into_chat(session, "/temp 0.5\r/top 3\r/help regen\r/qui\r")
    said = capsys.readouterr()
    assert session.settings.temperature == 0.5
    assert "/regenerate: get another reply" in said.out
    assert "several commands begin like this" in said.err
    assert "/top_p, /top_k" in " ".join(said.err.split())


def test_another_model_is_opened_with_the_same_settings(capsys):
    session, other = open_session(chat=True), open_session(name="the other", settings=ChatSettings())
    type_into_chat(session, "/model there\rhello\r/quit\r", load=lambda path: other)
    assert session.messages == []
    assert len(other.messages) == 2
    assert other.settings == GREEDY
    out = capsys.readouterr().out
    assert "the other" in out
    assert "completion mode" in out


def test_after_the_end_of_a_text_the_line_below_the_prompt_says_that_enter_starts_a_new_one():
    session = open_session()
    screen = _Screen(session, no_checkpoint, lambda: None, True)
    session.messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert "Enter alone continues the text" in screen._status()
    session.messages[-1]["ended"] = True
    assert "Enter alone starts a new text" in screen._status()


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


def test_a_single_answer_is_wrapped_between_words_only_on_a_terminal(capsys, monkeypatch):
    class InPieces:
        def reply(self, text, hits=()):
            yield from ("one two th", "ree four five")

    monkeypatch.setenv("COLUMNS", "10")
    for on_a_terminal, shown in ((False, "one two three four five\n"), (True, "one two \nthree four\nfive\n")):
        monkeypatch.setattr(
            "llm_lab.terminal.chat_screen.is_terminal", lambda on_a_terminal=on_a_terminal: on_a_terminal
        )
        answer_once(InPieces(), "x")
        assert capsys.readouterr().out == shown


@pytest.mark.skipif(sys.platform == "win32", reason="pexpect needs a Unix terminal")
def test_ctrl_c_and_esc_stop_a_reply_and_what_was_typed_meanwhile_begins_the_next_message():
    import pexpect

    program = textwrap.dedent(
        """
        import time
        from types import SimpleNamespace
        from llm_lab.terminal.chat_screen import run_chat

        class Endless:
            name, mode, notice, unseen, context_length, messages = "endless", "chat", None, None, None, []
            last_stats = SimpleNamespace(tokens=3, tokens_per_second=None, stop="stopped")

            def reply(self, text, hits=()):
                yield f"got <{text}> "
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
    child.expect(r"3 tokens; stopped by you")
    child.expect(">")
    child.send("again\r")
    child.expect("word word")
    child.send("\x1b[A")  # an arrow key, which begins as Esc does
    child.expect("word word")
    child.send("schön\x7f\x7fon\r gut")  # with Backspace twice; Enter sends nothing by itself
    time.sleep(0.3)
    child.send("\x1b")
    child.expect(r"3 tokens; stopped by you")
    child.expect("> .*schon gut")
    child.send("!\r")
    child.expect("got <schon gut!>")
    child.send("\x1b")
    child.expect(r"3 tokens; stopped by you")
    child.expect(">")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_the_help_has_every_command_on_one_page_of_60_columns_and_20_rows():
    lines = HELP.split("\n")
    assert len(lines) <= 18, "the prompt is below"
    assert max(map(len, lines)) <= 60
    assert set(re.findall(r"/([a-z_]+)", HELP)) == COMMANDS.keys()


def test_help_of_a_command_says_what_it_does_and_what_is_allowed(capsys):
    session = open_session(chat=True)
    type_into_chat(session, "/help top_p\r/help hlp\r?\r/quit\r")
    assert session.messages == []
    said = capsys.readouterr()
    assert HELP.splitlines()[1] in said.out
    assert "/top_p X: nucleus sampling" in said.out
    assert "Allowed: above 0, at most 1 (off). Now: 0.95." in said.out
    assert "Did you mean /help?" in said.err


def test_the_last_message_is_changed_and_sent_again():
    session = open_session(chat=True)
    type_into_chat(session, "first\rhelo\r/edit\r\x7fllo\r/edit other\r/quit\r")
    assert [m["content"] for m in session.messages[::2]] == ["first", "other"]
    session = open_session(chat=True)
    type_into_chat(session, "helo\r/edit\r\x7flo\r/quit\r")
    assert [m["content"] for m in session.messages[::2]] == ["hello"]
    before = list(session.messages)
    type_into_chat(session, "/edit\rmore\x03/edit\r\x15/settings\r/quit\r")
    assert session.messages == before, "Ctrl-C, or a command, keeps the message"


def test_a_reply_is_generated_again_in_place_of_the_last_one(capsys):
    session = open_session(chat=True, settings=ChatSettings(temperature=1.0, max_new_tokens=8))
    type_into_chat(session, "/regenerate\rone\rtwo\r/quit\r")
    first = [dict(message) for message in session.messages]
    assert "the conversation is empty" in capsys.readouterr().err
    type_into_chat(session, "/regenerate\r/quit\r")
    assert session.messages[:3] == first[:3]
    assert session.messages[3]["content"] != first[3]["content"]
    type_into_chat(session, "/seed 3\r/regenerate\r/quit\r")
    assert "the reply can't differ" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["edit", "regenerate", "save talk.json", "compare other", "time"])
def test_a_command_that_requires_a_message_says_its_name_and_does_nothing_without_one(command, capsys, in_tmp_path):
    type_into_chat(open_session(chat=True), f"/{command}\r/quit\r")
    assert f"/{command.split()[0]}: the conversation is empty" in capsys.readouterr().err
    assert list(in_tmp_path.glob("*.json")) == []


def test_saving_says_which_folder_it_created(capsys, in_tmp_path):
    type_into_chat(open_session(chat=True), "hello\r/save new/a.json\r/save new/b.json\r/quit\r")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Saved")]
    assert said == ["Saved: new/a.json (created the folder new)", "Saved: new/b.json"]


def test_esc_then_a_slash_begins_a_command():
    session = open_session(chat=True)
    type_into_chat(session, "\x1b/top_k 7\r/quit\r")
    assert session.settings.top_k == 7


def test_a_pasted_text_of_several_lines_is_one_message():
    session = open_session(chat=True)
    type_into_chat(session, "\x1b[200~one\r\n  two\nthree\x1b[201~\r/quit\r")
    assert [m["content"] for m in session.messages[::2]] == ["one\n  two\nthree"]


def test_what_was_typed_is_kept_for_the_next_chat_without_secrets_and_only_for_its_user():
    secret = "my token is hf_" + "a1" * 12
    type_into_chat(open_session(chat=True), f"hello\r{secret}\r/quit\r")
    session = open_session(chat=True)
    type_into_chat(session, "\x1b[A\x1b[A\r/quit\r")  # /quit, then hello
    assert [m["content"] for m in session.messages[::2]] == ["hello"]
    kept = history_path().read_text()
    assert json.loads(kept.splitlines()[0]) == "hello"
    assert secret not in kept
    assert history_path().stat().st_mode & 0o777 == 0o600


def test_tab_completes_commands_and_runs(finished_run):
    session, named = open_session(chat=True), []

    def load(name):
        named.append(name)
        return session

    type_into_chat(session, "/repe\t 1.1\r/model check\t\r/quit\r", load=load)
    assert session.settings.repetition_penalty == 1.1
    assert named == ["checkpoints/tiny"]


def test_a_model_is_loaded_while_the_user_types(capsys):
    def load():
        until = time.monotonic() + 20
        while not history_path().exists():  # written with the first line that is sent
            assert time.monotonic() < until
            time.sleep(0.01)
        return session

    session = open_session(chat=True)
    type_into_chat(Loading("slow", load), "/help quit\rhello\r/quit\r")
    assert [m["content"] for m in session.messages[::2]] == ["hello"]
    assert "/quit: quit" in capsys.readouterr().out


def test_a_model_that_cannot_be_loaded_ends_the_prompt():
    def load():
        raise UserError(Problem("model", "its weights are missing"))

    with pytest.raises(UserError, match="weights are missing"):
        type_into_chat(Loading("broken", load), "half a mess")


def test_plain_mode_reads_lines_and_draws_nothing(capsys, monkeypatch):
    monkeypatch.setenv("LLM_LAB_PLAIN", "1")
    monkeypatch.setattr(sys, "stdin", io.StringIO("helo\n/edit\nhello \\\nyou\n"))
    session = open_session(chat=True)
    run_chat(session, load=no_checkpoint, side_by_side=None, interactive=True)
    assert [m["content"] for m in session.messages[::2]] == ["hello \nyou"]
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "What you type now replaces it" in out


def test_the_last_reply_is_copied_through_the_terminal_if_there_is_no_tool(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("SSH_CONNECTION", "here there")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    session = open_session(chat=True)
    type_into_chat(session, "/copy\rhello\r/copy\r/quit\r")
    said = capsys.readouterr()
    assert "there is no reply yet" in said.err
    sent = re.search(r"\x1b\]52;c;([^\a]+)\a", said.out)[1]
    assert base64.b64decode(sent).decode() == printable(session.messages[-1]["content"])


def test_the_last_reply_is_copied_with_the_tool_of_the_system(monkeypatch, tmp_path):
    tool = tmp_path / "pbcopy"
    tool.write_text(f"#!/bin/sh\ncat > {tmp_path}/copied\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    assert copy("grün\x1b[2J") == "Copied 8 characters with pbcopy."
    assert (tmp_path / "copied").read_text() == "grün␛[2J"


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        (["one two", " three four"], "one two \nthree four"),
        (["a", "b ", "cde", "fghij"], "ab \ncdefghij"),
        (["x" * 25, " y"], "x" * 25 + " y"),
        (["  code\n", "    more\n"], "  code\n    more\n"),
        (["日本語日本語"], "日本語日本\n語"),
    ],
    ids=["between words", "in pieces", "a long word", "indented", "without spaces"],
)
def test_a_reply_is_wrapped_between_words(pieces, shown):
    wrap = WordWrap(10)
    assert "".join(wrap.push(piece) for piece in pieces) + wrap.rest() == shown


MARKDOWN = """# A heading
Some **bold text** and `some code`, 2**3, [a link](https://a.example).
- an `unclosed one
- the next
```python
x = "a line that is not wrapped"
```
> quoted
**end"""


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_markdown_gets_styles_that_end_with_the_line_and_loses_no_character(size):
    styled = StyledMarkdown(WordWrap(20), has_colors=True)
    shown = "".join(styled.push(MARKDOWN[at : at + size]) for at in range(0, len(MARKDOWN), size)) + styled.rest()
    bare = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert "".join(bare.split()) == "".join(MARKDOWN.split())
    assert max(len(line) for line in bare.split("\n") if "=" not in line and "http" not in line) <= 21
    assert 'x = "a line that is not wrapped"' in bare
    styles, now = [], ""
    for style, text in re.findall(r"\x1b\[([0-9;]*)m|([^\x1b]+)", shown):
        now = now if text else "" if style == "0" else style
        styles += [now] * len(text)

    def style_of(text: str) -> str:
        (found,) = {styles[at] for at in range(bare.index(text), bare.index(text) + len(text))}
        return found

    assert style_of("heading") == "1;36"
    assert style_of("text**") == style_of("**end") == "1"
    assert style_of("code`") == style_of("`unclosed") == style_of('x = "a line that') == "36"
    assert style_of("quoted") == "2"
    assert style_of("Some") == style_of("2**3") == style_of("next") == style_of("example") == ""


def test_markdown_is_shown_without_styles_after_plain_on(capsys):
    class Bold:
        name, mode, notice, unseen, context_length, messages = "bold", "chat", None, None, None, ()
        last_stats = SimpleNamespace(tokens=1, tokens_per_second=None, stop="end")

        def reply(self, text, hits=()):
            yield "**so**"

    type_into_chat(Bold(), "hi\r/plain on\rhi\r/plain maybe\r/quit\r")
    said = capsys.readouterr()
    assert said.out.count("\x1b[1mso\x1b[0m") == 1
    assert said.out.count("\n**so**\n") == 1
    assert "/plain = maybe: invalid value. Allowed: on or off." in " ".join(said.err.split())


def test_a_context_that_stays_full_is_said_once_and_then_only_in_the_numbers_of_the_reply(capsys):
    session = open_session(loud(llama(max_position_embeddings=64)), chat=True)
    type_into_chat(session, "".join(f"message {number}\r" for number in range(5)) + "/reset\ragain\r/quit\r")
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("is full: the model no longer sees") == 1
    assert said.count("; context full]") >= 2
    assert not said.endswith("; context full]")


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

        session = SimpleNamespace(
            name="a", mode="chat", notice=None, unseen=None, context_length=None, settings=None, messages=[]
        )
        run_chat(session, load=None, side_by_side=Slow)
        """
    )
    child = spawn_program(program)
    child.expect(">")
    child.send("/compare other text\r")
    child.expect("loading other")
    child.sendintr()
    child.expect("Stopped.")
    child.expect(">")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
