"""Other models' answers in a chat: /compare and /time, typed into the chat screen."""

import dataclasses
import io
import os
import shutil
import sys

from support.chat_sessions import chat_tokenizer, llama, loud, say, type_into_chat

from llm_lab import load
from llm_lab.chat.session import ChatSession, ChatSettings
from llm_lab.chat.web_search import Hit
from llm_lab.evaluation.candidates import find_steps
from llm_lab.evaluation.side_by_side import SideBySide
from llm_lab.events import ignore
from llm_lab.runs.folder import RunFolder
from llm_lab.terminal.chat_screen import run_chat

pytest_plugins = ("support.compared_models",)
SETTINGS = ChatSettings(temperature=0, max_new_tokens=8)
SAMPLED = dataclasses.replace(SETTINGS, temperature=1.0)
TINY_60 = "checkpoints/tiny/steps/checkpoint-60"


class Opener:
    """Open checkpoints as the command does, and record their names."""

    def __init__(self, settings=SETTINGS):
        self.opened, self.settings = [], settings

    def __call__(self, name):
        self.opened.append(name)
        model, tokenizer = load(name, device="cpu")
        return ChatSession(model, tokenizer, name=name, settings=self.settings)


def open_session(name, settings=SETTINGS):
    return Opener(settings)(name)


def printed(capsys):
    captured = capsys.readouterr()
    return " ".join(captured.out.split()), " ".join(captured.err.split())


def test_another_model_answers_the_last_message_and_the_conversation_continues_unchanged(models, capsys):
    session, opener = open_session("checkpoints/tiny"), Opener()
    type_into_chat(session, f"the old\r/compare {TINY_60}\rand\r/quit\r", load=opener, side_by_side=SideBySide(opener))
    out, errors = printed(capsys)
    alone = open_session("checkpoints/tiny")
    expected = [say(alone, "the old"), say(alone, "and")]
    assert [message["content"] for message in session.messages[1::2]] == expected
    assert " ".join(say(open_session(TINY_60), "the old").split())[:8] in out
    assert "differs from A" in out
    assert errors == ""


def test_a_new_message_is_answered_by_both_models_and_added_to_the_conversation(models):
    session, opener = open_session("checkpoints/tiny"), Opener()
    say(session, "the old")
    found = SideBySide(opener).compare(session, TINY_60, "and the", ignore)
    assert [message["content"] for message in session.messages[::2]] == ["the old", "and the"]
    other = open_session(TINY_60)
    other.messages = [dict(message) for message in session.messages[:2]]
    assert found.models[1].answers[0].text == say(other, "and the")
    assert found.models[0].answers[0].text == session.messages[-1]["content"]


def test_both_models_sample_with_the_same_seed(models):
    session, opener = open_session("checkpoints/tiny"), Opener(SAMPLED)
    comparison = SideBySide(opener)
    say(session, "the old")  # greedy: a sampled reply could end within a character, which its text would lose
    session.settings = SAMPLED
    # The same weights under another name.
    found = comparison.compare(session, "base", "and the", ignore)
    assert found.models[0].answers == found.models[1].answers
    assert session.settings.seed is None
    assert "seed" in found.drawn
    assert "no seed" in comparison.compare(session, "base", "", ignore).drawn


def test_the_other_model_stays_loaded_until_a_different_one_is_named(models):
    session, opener = open_session("checkpoints/tiny"), Opener()
    keys = f"a\r/compare {TINY_60}\r/compare {TINY_60} the\r/compare gpt2\r/compare {TINY_60}\r/quit\r"
    type_into_chat(session, keys, load=opener, side_by_side=SideBySide(opener))
    assert [os.path.basename(name) for name in opener.opened] == ["checkpoint-60", "gpt2", "checkpoint-60"]


def test_base_is_the_model_without_its_adapter_even_if_a_folder_is_named_base(models, capsys):
    session, opener = open_session("adapter"), Opener()
    type_into_chat(session, "hello\r/compare base\rmore\r/quit\r", load=opener, side_by_side=SideBySide(opener))
    out, _ = printed(capsys)
    assert opener.opened == []
    assert "adapter, adapter off" in out
    plain, alone = open_session("plain"), open_session("adapter")
    found = SideBySide(opener).compare(session, "base", "", ignore)
    assert found.models[1].answers[0].text == say(plain, "more")
    assert "is a base model: it gets only the last message" in found.remarks[0]
    assert [say(alone, "hello"), say(alone, "more")] == [m["content"] for m in session.messages[1::2]]


def test_wrong_names_show_an_error_and_the_conversation_continues(models, capsys):
    session, opener = open_session("checkpoints/tiny"), Opener()
    keys = "/compare gpt2\rthe\r/compare\r/compare checkpoints/nowhere\r/compare checkpoints/reward\r"
    keys += "/compare checkpoints/tiny\r/compare ./base/nothing\rold\r/quit\r"
    type_into_chat(session, keys, load=opener, side_by_side=SideBySide(opener))
    assert [message["content"] for message in session.messages[::2]] == ["the", "old"]
    _, errors = printed(capsys)
    for word in (
        "the conversation is empty",
        "/compare OTHER",
        "there is no such run or model",
        "reward model",
        "the model of this chat",
    ):
        assert word in errors, word
    assert opener.opened == []


def test_base_without_an_adapter_is_an_error(models, tmp_path, monkeypatch, capsys):
    session, opener = open_session(str(models / "gpt2")), Opener()
    monkeypatch.chdir(tmp_path)
    type_into_chat(session, "the\r/compare base\r/quit\r", load=opener, side_by_side=SideBySide(opener))
    assert "has no adapter" in printed(capsys)[1]


def test_a_name_with_spaces_can_be_quoted(models, tmp_path):
    (tmp_path / "my model").symlink_to(models / "gpt2")
    session, opener = open_session("checkpoints/tiny"), Opener()
    keys = f'/compare "{tmp_path / "my model"}" the old\r/quit\r'
    type_into_chat(session, keys, load=opener, side_by_side=SideBySide(opener))
    assert session.messages[0]["content"] == "the old"
    assert opener.opened == [str(tmp_path / "my model")]


def test_time_asks_every_checkpoint_and_does_not_change_the_conversation(models, capsys):
    session, opener = open_session("checkpoints/tiny"), Opener()
    type_into_chat(session, "/time\rthe old\r/time\r/time a red\r/quit\r", load=opener, side_by_side=SideBySide(opener))
    out, errors = printed(capsys)
    assert "the conversation is empty" in errors
    assert len(session.messages) == 2
    assert len(opener.opened) == 6
    assert out.index("step 20") < out.index("step 60") < out.index("step 80")
    found = SideBySide(opener).over_time(session, "", ignore)
    assert found.models[1].answers[0].text == say(open_session(TINY_60), "the old")
    assert found.models[-1].answers[0].text == session.messages[1]["content"]


def test_why_a_loaded_reply_stopped_is_only_said_if_it_is_known(models, tmp_path):
    session, comparison = open_session("checkpoints/tiny"), SideBySide(Opener())
    say(session, "the old")
    assert session.last_stats.stop == "length"
    session.save(tmp_path / "talk.json")
    session.load(tmp_path / "talk.json")
    described = comparison.compare(session, TINY_60, "", ignore).models[0].answers[0].describe()
    assert described.endswith(" characters")
    for key, words in (("stopped", "stopped"), ("ended", "end of turn")):
        session.messages[-1] = {"role": "assistant", "content": "fish", key: True}
        described = comparison.compare(session, TINY_60, "", ignore).models[0].answers[0].describe()
        assert described.endswith(f" characters, {words}")


def test_the_limit_that_keeps_all_checkpoints_counts_those_that_a_run_still_makes(models, tmp_path):
    shutil.copytree("checkpoints/tiny", tmp_path / "tiny", symlinks=True)
    run = RunFolder(tmp_path / "tiny")
    assert "kept 3 of 4 checkpoints (train.save_total_limit=3); set" in find_steps(str(run.path))[1][0]
    run.update(status="interrupted", max_steps=190)
    assert find_steps(str(run.path))[1] == [
        "The run kept 3 of 4 checkpoints (train.save_total_limit=3) so far. It makes 10 in all; "
        "set train.save_total_limit=10 to keep them all."
    ]


def test_time_is_refused_for_a_model_without_a_run(models, capsys):
    type_into_chat(open_session("gpt2"), "the\r/time\r/quit\r", side_by_side=SideBySide(Opener()))
    assert "not a run of LLM Lab" in printed(capsys)[1]


def test_in_a_pipe_comparisons_are_not_written_to_standard_output(models, capsys, monkeypatch):
    session, opener = open_session("checkpoints/tiny"), Opener()
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"the old\n/compare {TINY_60}\n"))
    run_chat(session, load=opener, side_by_side=lambda: SideBySide(opener))
    captured = capsys.readouterr()
    assert "differs from A" not in captured.out
    assert "differs from A" in captured.err


def test_another_model_gets_the_search_results_of_the_message_that_it_answers(tmp_path):
    model = loud(llama(max_position_embeddings=4096))
    for name in ("mine", "other"):
        model.save_pretrained(tmp_path / name)
        chat_tokenizer().save_pretrained(tmp_path / name)
    hit = Hit("Mars", "https://example.org/mars", "Mars is red.")
    session, other = (
        ChatSession(model, chat_tokenizer(), name=str(tmp_path / name), settings=SETTINGS) for name in ("mine", "other")
    )
    "".join(session.reply("What color is it?", [hit]))
    SideBySide(lambda name: other).compare(session, str(tmp_path / "other"), "", ignore)
    assert other.messages == session.messages
    assert other.messages[0]["sources"][0]["snippet"] == "Mars is red."
