"""The worker of a chat: the replies of a chat session, whatever it had loaded before."""

import shutil

import pytest
from support.chat_models import speller, write_speller
from support.chat_sessions import GREEDY, chat_tokenizer, llama, open_session, say
from support.own_code import write_model_with_code

from llm_lab.commands.model_commands import start_chat
from llm_lab.errors import UserError
from llm_lab.web import chat_calls

SETTINGS = vars(GREEDY)
HIT = {"title": "Moons", "url": "https://example.org/moons", "snippet": "Mars has two moons."}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders with a chat model and with a base model, of the same random weights."""
    home = tmp_path_factory.mktemp("models")
    for name in ("chat", "base"):
        write_speller(home / name, chat=name == "chat")
    return home


@pytest.fixture(autouse=True)
def fresh():
    chat_calls._loaded.clear()


def drain(pieces):
    """Return what a call yields, and what it returns."""
    found = []
    while True:
        try:
            found.append(next(pieces))
        except StopIteration as end:
            return found, end.value


def ask(model, text, messages=(), **options):
    """Return the shown text and the result of a reply."""
    found, result = drain(chat_calls.reply(str(model), text, list(messages), SETTINGS, **options))
    return "".join(piece.get("piece", "") for piece in found), result


@pytest.mark.parametrize("kind", ["chat", "base"])
def test_replies_equal_those_of_a_chat_session_in_every_turn(models, kind):
    session = open_session(speller(), chat=kind == "chat")
    messages = []
    for number, text in enumerate(("hello", "and then?", "why")):
        if number == 2:  # the worker was killed: the next one gets the messages, and nothing else
            chat_calls._loaded.clear()
        shown, result = ask(models / kind, text, messages)
        assert shown == result["content"] == say(session, text)
        assert (result["tokens"], result["stop"]) == (session.last_stats.tokens, session.last_stats.stop)
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": result["content"]}]
        messages[-1] |= {"ended": True} if result["ended"] else {}


def test_the_system_prompt_and_search_results_are_those_of_a_chat_session(models):
    from llm_lab.chat.web_search import Hit

    session = open_session(speller(), chat=True)
    session.set_system("be short")
    expected = "".join(session.reply("moons?", [Hit(**HIT)]))
    shown, result = ask(models / "chat", "moons?", system="be short", hits=[{"n": 1, **HIT}])
    assert shown == expected
    assert result["sources"] == session.messages[0]["sources"]


def test_a_caller_who_leaves_stops_the_reply_and_the_next_reply_is_correct(models):
    pieces = chat_calls.reply(str(models / "chat"), "hello", [], {**SETTINGS, "max_new_tokens": 200})
    assert any("piece" in next(pieces) for _ in range(50))
    pieces.close()
    tokens = chat_calls._loaded[0].session.last_stats.tokens
    assert 0 < tokens < 200
    assert ask(models / "chat", "hello")[0] == say(open_session(speller(), chat=True), "hello")


def test_one_model_is_loaded_at_a_time_and_again_when_its_files_have_changed(models, tmp_path):
    shutil.copytree(models / "chat", tmp_path / "run")
    _, about = drain(chat_calls.load(str(tmp_path / "run")))
    assert (about["mode"], about["context"], about["no_system"]) == ("chat", 4096, None)
    before = chat_calls._loaded[0]
    drain(chat_calls.load(str(tmp_path / "run")))
    assert chat_calls._loaded == [before]
    changed = llama()
    changed.save_pretrained(tmp_path / "run")
    drain(chat_calls.load(str(tmp_path / "run")))
    assert chat_calls._loaded != [before]
    about = drain(chat_calls.load(str(models / "base")))[1]
    assert (about["mode"], len(chat_calls._loaded)) == ("completion", 1)
    assert "do not support a system prompt" in about["no_system"]


def test_code_that_comes_with_a_model_runs_only_after_a_yes(tmp_path):
    write_model_with_code(tmp_path / "theirs", f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(UserError, match="custom code") as caught:
        ask(tmp_path / "theirs", "hello")
    assert caught.value.problems[0].key == "trust_remote_code"
    assert not (tmp_path / "ran").exists()
    assert ask(tmp_path / "theirs", "hello", trust=True)[1]["content"]
    assert (tmp_path / "ran").exists()


def test_a_request_that_is_not_a_conversation_or_too_long_is_refused_with_the_reason(models):
    with pytest.raises(UserError, match="not a conversation"):
        ask(models / "chat", "hello", [{"role": "assistant", "content": "first"}])
    with pytest.raises(UserError, match="the model's context holds 4,096"):
        ask(models / "chat", "x" * 5000)


def test_a_secret_in_a_reply_is_neither_shown_nor_kept(models, monkeypatch):
    whole = ask(models / "chat", "hello")[1]["content"]
    secret = whole[4:16]
    monkeypatch.setenv("SOME_TOKEN", secret)
    shown, result = ask(models / "chat", "hello")
    assert secret not in shown
    assert secret not in result["content"]
    assert "***" in shown


def test_a_reward_model_is_refused_as_on_the_command_line(models, tmp_path):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForSequenceClassification(LlamaConfig(vocab_size=257, **sizes)).save_pretrained(tmp_path / "reward")
    chat_tokenizer().save_pretrained(tmp_path / "reward")
    with pytest.raises(UserError) as in_page:
        ask(tmp_path / "reward", "hello")
    with pytest.raises(UserError) as in_terminal:
        start_chat(str(tmp_path / "reward"), prompt="hello")
    assert "scores text and can't generate any" in str(in_page.value)
    assert str(in_page.value) == str(in_terminal.value)
