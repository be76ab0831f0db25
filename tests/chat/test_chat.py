"""A chat session: what it generates, what it stores, and how it is saved."""

import contextlib
import copy
import dataclasses
import io
import json

import pytest
import torch
from support.chat_sessions import END, GREEDY, lab, llama, loud, mistral, open_session, say
from support.own_code import write_model_with_code

from llm_lab.chat.decoding import TextStream
from llm_lab.chat.session import ChatSettings, valid_text
from llm_lab.cli import main
from llm_lab.errors import UserError
from llm_lab.hf.conversations import encode_prompt, render_conversation
from llm_lab.hf.tokenizers import make_byte_tokenizer

MODELS = {
    "llama": llama,
    "mistral, sliding window": mistral,
    "alibi": lambda: lab(position_embedding="alibi"),
    "sinusoidal": lambda: lab(position_embedding="sinusoidal", norm="layernorm", activation="gelu"),
    "rope, sliding window": lambda: lab(sliding_window=12),
}


def reply_and_generate(session, model, text, **options):
    """Return the tokens of a reply, and the tokens that `generate` returns for the same prompt."""
    ids = session.tokenizer(text)["input_ids"] or [END]
    given = torch.tensor([ids])
    out = model.generate(given, attention_mask=torch.ones_like(given), pad_token_id=0, max_new_tokens=24, **options)
    expected = out[0].tolist()
    if len(expected) > len(ids) and expected[-1] == END:
        expected.pop()
    say(session, text)
    return session.last_ids, expected


@contextlib.contextmanager
def counted_tokens(model):
    """Record the number of input tokens of each forward pass."""
    counts = []
    handle = model.register_forward_pre_hook(
        lambda _, __, kwargs: counts.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    yield counts
    handle.remove()


# What is generated


def test_a_prompt_does_not_end_with_the_end_token_that_the_tokenizer_adds():
    from tokenizers import processors

    model = loud(llama())
    plain, adding = open_session(model), open_session(model)
    end = (adding.tokenizer.eos_token, adding.tokenizer.eos_token_id)
    backend = copy.deepcopy(adding.tokenizer)
    backend.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end[0]}", special_tokens=[end]
    )
    adding._tokenizer = backend
    assert say(adding, "Once upon") == say(plain, "Once upon")


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_a_greedy_reply_equals_generate(make):
    model = loud(make())
    written, expected = reply_and_generate(open_session(model), model, "Once upon", do_sample=False)
    assert written == expected


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_later_turns_equal_those_of_a_session_with_an_empty_cache(make):
    model = loud(make())
    session = open_session(model, chat=True)
    for text in ("hello", "and then?", "why", "so"):
        fresh = open_session(model, chat=True)
        fresh.messages = list(session.messages)
        assert say(session, text) == say(fresh, text)


def test_a_reset_conversation_equals_a_new_one():
    model = loud(llama())
    session = open_session(model, chat=True)
    say(session, "hello there")
    session.reset()
    assert say(session, "hello you") == say(open_session(model, chat=True), "hello you")


def test_only_new_tokens_are_computed():
    model = loud(llama())
    session = open_session(model, chat=True)
    say(session, "x" * 40)
    with counted_tokens(model) as counts:
        session.reset()
        say(session, "x" * 30 + "y")
    assert counts[0] == len("y\na:")
    assert set(counts[1:]) == {1}


def test_a_sliding_window_cache_is_recomputed_after_a_reset():
    model = loud(mistral())
    session = open_session(model, chat=True)
    say(session, "x" * 40)
    with counted_tokens(model) as counts:
        session.reset()
        say(session, "x" * 30 + "y")
    assert counts[0] == len("u:" + "x" * 30 + "y\na:")


def test_a_repetition_penalty_gives_the_reply_of_generate():
    model = loud(llama())
    session = open_session(model, settings=dataclasses.replace(GREEDY, repetition_penalty=1.7))
    written, expected = reply_and_generate(session, model, "aaaa", do_sample=False, repetition_penalty=1.7)
    assert written == expected


def test_sampling_with_a_seed_gives_the_reply_of_generate():
    model = loud(llama())
    choice = {"temperature": 0.9, "top_p": 0.8, "top_k": 40}
    session = open_session(model, settings=ChatSettings(**choice, max_new_tokens=24, seed=7))
    torch.manual_seed(7)
    written, expected = reply_and_generate(session, model, "Once", do_sample=True, **choice)
    assert written == expected


def test_replies_without_a_seed_differ():
    session = open_session(settings=ChatSettings(max_new_tokens=24))
    assert len({say(session, "x") for _ in range(3)}) > 1


def test_a_reply_ends_at_any_end_token():
    model = loud(llama())
    session = open_session(model)
    say(session, "Once")
    third = session.last_ids[len("Once") + 2]
    model.generation_config.eos_token_id = [END, third]
    session = open_session(model)
    say(session, "Once")
    assert session.last_stats.stop == "end"
    assert session.last_stats.tokens <= 2
    assert third not in session.last_ids


def test_inference_mode_is_off_while_a_reply_is_read():
    for _ in open_session().reply("hello"):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()


def test_the_stats_have_length_speed_and_stop_reason():
    session = open_session()
    say(session, "hello")
    stats = session.last_stats
    assert (stats.tokens, stats.prompt_tokens, stats.stop) == (24, 5, "length")
    assert stats.seconds_to_first_token > 0
    assert stats.tokens_per_second > 0


def test_an_empty_prompt_starts_with_the_bos_token():
    model = loud(llama())
    written, expected = reply_and_generate(open_session(model), model, "", do_sample=False)
    assert written == expected
    assert written[0] == END


def test_nan_logits_raise_an_error_and_change_nothing():
    model = loud(llama())
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    session = open_session(model)
    with pytest.raises(UserError, match="NaN"):
        say(session, "hello")
    assert session.messages == []


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused():
    with pytest.raises(UserError, match="another model"):
        open_session(loud(llama(vocab_size=100, eos_token_id=1, bos_token_id=1)))


# Decoding a stream of tokens


@pytest.mark.parametrize("text", ["né à Zürich", "你好，世界", "🎉👩‍👩‍👧 ok", "plain\n\ttext "])
def test_multi_byte_characters_are_returned_whole(text):
    tokenizer = make_byte_tokenizer()
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokenizer(text)["input_ids"]]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) == text
    assert stream.rest() == ""


def test_any_bytes_stream_to_the_text_they_decode_to():
    tokenizer = make_byte_tokenizer()
    torch.manual_seed(0)
    for _ in range(50):
        ids = torch.randint(100, 257, (40,)).tolist()
        stream = TextStream(tokenizer)
        text = "".join(stream.push(token) for token in ids) + stream.rest()
        assert text == tokenizer.decode(ids, skip_special_tokens=True)


def test_invalid_bytes_are_not_held_back_forever():
    stream = TextStream(make_byte_tokenizer())
    assert len("".join(stream.push(0xFF) for _ in range(100))) >= 97


def test_the_space_between_a_text_and_its_continuation_is_kept():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"▁Once": 0, "▁there": 1, "▁a": 2}, unk_token="▁a"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    stream = TextStream(tokenizer, [0])
    assert [stream.push(1), stream.push(2)] == [" there", " a"]
    assert TextStream(tokenizer).push(1) == "there"


# Messages and context


def test_a_base_model_starts_a_new_text_after_an_end_token(tmp_path):
    model = loud(llama())
    session = open_session(model)
    usual = session._predictor.logits
    session._predictor.logits = lambda ids: torch.nn.functional.one_hot(torch.tensor([END]), 257) * 1e4
    assert say(session, "Once") == ""
    session.save(tmp_path / "talk.json")
    session._predictor.logits = usual
    loaded = open_session(model)
    loaded.load(tmp_path / "talk.json")
    expected = say(open_session(model), "")
    assert say(session, "") == expected
    assert say(loaded, "") == expected


@pytest.mark.parametrize("cut", [1, 7, 24, 30])
def test_a_base_model_continues_the_text_so_far(cut):
    model = loud(llama())
    session = open_session(model, settings=dataclasses.replace(GREEDY, max_new_tokens=cut))
    first = say(session, "Once")
    session.settings = dataclasses.replace(GREEDY, max_new_tokens=48 - cut)
    second = say(session, "")
    whole = open_session(model, settings=dataclasses.replace(GREEDY, max_new_tokens=48))
    assert say(whole, "Once") == first + second


def test_a_character_cut_by_the_length_limit_is_completed_by_the_next_reply():
    tokens = iter([*"你".encode(), END])
    session = open_session(settings=ChatSettings(max_new_tokens=2))
    session._predictor.logits = lambda ids: torch.nn.functional.one_hot(torch.tensor([next(tokens)]), 257) * 1e4
    assert say(session, "Once") == ""
    assert say(session, "") == "你"
    assert [message["content"] for message in session.messages] == ["Once", "", "", "你"]


def test_a_stopped_reply_keeps_its_text():
    session = open_session(chat=True)
    reply = session.reply("hello")
    said = next(reply) + next(reply)
    reply.close()
    stopped = {"role": "assistant", "content": said, "stopped": True}
    assert session.messages == [{"role": "user", "content": "hello"}, stopped]
    assert session.last_stats.stop == "stopped"


def test_a_new_reply_that_is_stopped_before_its_first_word_leaves_the_old_one():
    session = open_session(chat=True)
    say(session, "hello")
    before = list(session.messages)
    session._predictor.logits = lambda ids: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        next(session.regenerate())
    assert session.messages == before


def test_a_base_model_continues_again_from_the_same_text():
    session = open_session()
    first = say(session, "hello")
    assert "".join(session.regenerate()) == first
    assert "".join(session.regenerate("and")) == session.messages[-1]["content"]
    assert [m["content"] for m in session.messages[::2]] == ["and"]


def test_a_reply_interrupted_inside_the_model_does_not_corrupt_the_cache():
    model = loud(llama())
    session = open_session(model, chat=True)
    say(session, "hello")
    before = list(session.messages)
    layer = model.model.layers[1]

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = layer.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        say(session, "more")
    handle.remove()
    assert session.messages == before
    fresh = open_session(model, chat=True)
    fresh.messages = list(before)
    assert say(session, "more") == say(fresh, "more")


def test_the_oldest_tokens_are_dropped_when_the_context_is_full():
    model = loud(llama(max_position_embeddings=64))
    session = open_session(model)
    for _ in range(4):
        say(session, "some words")
    assert "no longer sees" in session.notice
    assert len(session.messages) == 8
    assert session.last_stats.prompt_tokens + session.last_stats.tokens <= 64


def test_the_oldest_turns_are_dropped_and_the_system_prompt_is_kept():
    model = loud(llama(max_position_embeddings=96))
    session = open_session(model, chat=True)
    session.set_system("be kind")
    for _ in range(4):
        session.messages += [
            {"role": "user", "content": "u" * 10},
            {"role": "assistant", "content": "a" * 10},
        ]
    expected = open_session(model, chat=True)
    expected.set_system("be kind")
    expected.messages = session.messages[-4:]
    assert say(session, "now") == say(expected, "now")
    assert "first 4 messages" in session.notice
    assert expected.notice is None


def test_a_reply_stops_when_the_context_is_full():
    session = open_session(loud(llama(max_position_embeddings=32)), settings=ChatSettings(temperature=0))
    say(session, "x" * 30)
    assert session.last_stats.stop in ("context", "end")
    assert session.last_stats.tokens <= 2


@pytest.mark.parametrize("chat", [True, False])
def test_a_message_longer_than_the_context_is_refused_and_changes_nothing(chat):
    session = open_session(loud(llama(max_position_embeddings=32)), chat=chat)
    say(session, "hi")
    before = list(session.messages)
    with pytest.raises(UserError, match="context holds 32"):
        say(session, "x" * 40)
    assert session.messages == before


def test_a_chat_prompt_has_the_tokens_used_in_training():
    session = open_session(chat=True)
    say(session, "hello <|endoftext|>")
    say(session, "and?")
    ids = session._prompt("more")
    assert ids == encode_prompt(session.tokenizer, [*session.messages, {"role": "user", "content": "more"}])
    assert session.tokenizer.eos_token_id not in ids  # a special token typed by the user is plain text


def test_a_system_prompt_changes_the_reply():
    session = open_session(chat=True)
    plain = say(session, "hello")
    session.reset()
    session.set_system("be kind")
    system = [{"role": "system", "content": "be kind"}]
    assert render_conversation(session.tokenizer, system) == "s:be kind\n"
    assert session.system == "be kind"
    assert say(session, "hello") != plain


def test_a_system_prompt_that_the_template_ignores_is_refused():
    with pytest.raises(UserError, match="base models do not support"):
        open_session().set_system("be kind")
    session = open_session(chat=True)
    session.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    )
    with pytest.raises(UserError, match="ignores system prompts"):
        session.set_system("be kind")
    session.tokenizer.chat_template = "{{ raise_exception('no system role here') }}"
    with pytest.raises(UserError, match="no system role here"):
        session.set_system("be kind")


# Settings and saved conversations


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("temperature", text) for text in ("-1", "nan", "hot", "11", "")),
        *(("top_p", text) for text in ("0", "1.1")),
        *(("top_k", text) for text in ("-1", "2.5")),
        ("max_new_tokens", "0"),
        ("repetition_penalty", "0"),
        ("seed", "-3"),
    ],
)
def test_an_invalid_setting_is_refused_with_the_allowed_values(name, text):
    session = open_session()
    before = session.settings
    with pytest.raises(UserError, match="Allowed"):
        session.change_setting(name, text)
    assert session.settings == before


def test_settings_are_parsed_from_text():
    session = open_session()
    for name, text in (("temperature", "0.5"), ("top_k", "1_000"), ("seed", "3")):
        session.change_setting(name, text)
    assert (session.settings.temperature, session.settings.top_k, session.settings.seed) == (0.5, 1000, 3)
    session.change_setting("seed", "none")
    assert session.settings.seed is None
    with pytest.raises(UserError, match="Did you mean temperature"):
        session.change_setting("temprature", "1")


def test_a_loaded_conversation_continues_like_the_saved_one(tmp_path):
    model = loud(llama())
    session = open_session(model, chat=True)
    session.set_system("be kind")
    say(session, "hello")
    session.save(tmp_path / "deep" / "talk.json")
    other = open_session(model, chat=True)
    other.load(tmp_path / "deep" / "talk.json")
    assert (other.messages, other.system) == (session.messages, "be kind")
    assert say(other, "and?") == say(session, "and?")


def test_saving_replaces_only_a_saved_conversation(tmp_path):
    session = open_session()
    session.save(tmp_path / "talk.json")
    say(session, "hello")
    session.save(tmp_path / "talk.json")
    assert len(json.loads((tmp_path / "talk.json").read_text())["messages"]) == 2
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not replaced"):
        session.save(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(UserError, match=r"can't be written: this is a folder.*Name a file in it, such as .*chat\.json"):
        session.save(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"messages": []}',
        '{"kind": "llm-lab conversation", "mode": "completion", "messages": []}',
        '{"kind": "llm-lab conversation", "mode": "chat", "system": null, "messages": [{"role": "user"}, 3]}',
    ],
)
def test_a_file_that_is_not_a_conversation_is_not_loaded(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    session = open_session()
    say(session, "hello")
    before = list(session.messages)
    with pytest.raises(UserError, match="not a saved conversation"):
        session.load(tmp_path / "x.json")
    with pytest.raises(UserError, match="No such file"):
        session.load(tmp_path / "nothing.json")
    assert session.messages == before


def test_a_conversation_in_the_other_mode_is_not_loaded(tmp_path):
    open_session(chat=True).save(tmp_path / "x.json")
    with pytest.raises(UserError, match="saved in chat mode"):
        open_session().load(tmp_path / "x.json")


def test_trust_in_the_code_of_a_model_is_not_trust_in_the_models_opened_later(in_tmp_path, capfd, monkeypatch):
    write_model_with_code("theirs")
    write_model_with_code("others", body="raise SystemExit('the code of another model ran')\n")
    lines = "hello\n/model others\n/compare others hello\n/compare others\nhello again\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert main(["chat", "theirs", "--device", "cpu", "--trust-remote-code", "--max-new-tokens", "2"]) == 0
    said = capfd.readouterr()
    assert said.err.count("contains custom code") == 3
    assert said.out.count("\n") >= 2


def test_bytes_that_are_not_a_character_are_replaced():
    assert valid_text("caf\udce9 and \ud83d\ude00, na\u00efve") == "caf\ufffd and \U0001f600, na\u00efve"


def test_a_small_base_model_leaves_room_for_further_texts_and_a_chat_model_keeps_its_setting():
    small, chat = open_session(settings=ChatSettings()), open_session(chat=True, settings=ChatSettings())
    for session in (small, chat):
        session.context_length = 256
        session.leave_room()
    assert (small.settings.max_new_tokens, chat.settings.max_new_tokens) == (64, 256)
