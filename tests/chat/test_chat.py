"""A conversation with a model: what is generated, what is kept, and the screen it happens on."""

import contextlib
import dataclasses
import io
import json
import sys
import textwrap

import pytest
import torch
from conftest import spawn_program
from support.chat_keys import no_other, typed
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from llm_lab.chat.decoding import TextOfTokens
from llm_lab.chat.session import ChatSession, ChatSettings
from llm_lab.errors import UserError
from llm_lab.hf.conversations import encode_prompt, render_conversation
from llm_lab.hf.tokenizers import make_byte_tokenizer
from llm_lab.model.configuration_lab import LabConfig
from llm_lab.model.modeling_lab import LabForCausalLM
from llm_lab.terminal.chat_screen import answer_once, run_chat

END = 256
TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)
SHAPE = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "eos_token_id": END,
    "bos_token_id": END,
}
GREEDY = ChatSettings(temperature=0, max_new_tokens=24)


def llama(**options):
    return LlamaForCausalLM(LlamaConfig(**{**SHAPE, "max_position_embeddings": 256, **options}))


def mistral():
    return MistralForCausalLM(MistralConfig(**SHAPE, max_position_embeddings=256, sliding_window=12))


def lab(**options):
    return LabForCausalLM(LabConfig(**SHAPE, max_position_embeddings=256, **options))


MODELS = {
    "llama": llama,
    "mistral, sliding window": mistral,
    "alibi": lambda: lab(position_embedding="alibi"),
    "sinusoidal": lambda: lab(position_embedding="sinusoidal", norm="layernorm", activation="gelu"),
    "rope, sliding window": lambda: lab(sliding_window=12),
}


def loud(model):
    """Give random weights enough spread that the likeliest token differs from step to step."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return model.eval()


def chat_tokenizer():
    tokenizer = make_byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def open_session(model=None, *, chat=False, settings=GREEDY, name="tiny"):
    tokenizer = chat_tokenizer() if chat else make_byte_tokenizer()
    return ChatSession(model or loud(llama()), tokenizer, name=name, settings=settings)


def say(session, text):
    return "".join(session.reply(text))


def written_and_generated(session, model, text, **options):
    """Return the tokens of a reply, and those that `generate` makes of the same text."""
    ids = session._tokenizer(text)["input_ids"] or [END]
    given = torch.tensor([ids])
    out = model.generate(given, attention_mask=torch.ones_like(given), pad_token_id=0, max_new_tokens=24, **options)
    expected = out[0].tolist()
    if len(expected) > len(ids) and expected[-1] == END:
        expected.pop()
    say(session, text)
    return session._written.ids, expected


@contextlib.contextmanager
def counted_tokens(model):
    """Note how many tokens each forward is given."""
    counts = []
    handle = model.register_forward_pre_hook(
        lambda _, __, kwargs: counts.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    yield counts
    handle.remove()


# What is generated


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_a_greedy_reply_equals_generate(make):
    model = loud(make())
    written, expected = written_and_generated(open_session(model), model, "Once upon", do_sample=False)
    assert written == expected


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_later_turns_equal_those_of_a_session_without_a_cache(make):
    model = loud(make())
    session = open_session(model, chat=True)
    for text in ("hello", "and then?", "why", "so"):
        fresh = open_session(model, chat=True)
        fresh.messages = list(session.messages)
        assert say(session, text) == say(fresh, text)


def test_a_conversation_taken_back_and_begun_otherwise_equals_a_fresh_one():
    model = loud(llama())
    session = open_session(model, chat=True)
    say(session, "hello there")
    session.reset()
    assert say(session, "hello you") == say(open_session(model, chat=True), "hello you")


def test_only_what_is_new_is_computed():
    model = loud(llama())
    session = open_session(model, chat=True)
    say(session, "x" * 40)
    with counted_tokens(model) as counts:
        session.reset()
        say(session, "x" * 30 + "y")
    assert counts[0] == len("y\na:")
    assert set(counts[1:]) == {1}


def test_a_sliding_window_that_let_go_of_the_past_is_computed_anew():
    model = loud(mistral())
    session = open_session(model, chat=True)
    say(session, "x" * 40)
    with counted_tokens(model) as counts:
        session.reset()
        say(session, "x" * 30 + "y")
    assert counts[0] == len("u:" + "x" * 30 + "y\na:")


def test_a_repetition_penalty_equals_that_of_generate():
    model = loud(llama())
    session = open_session(model, settings=dataclasses.replace(GREEDY, repetition_penalty=1.7))
    written, expected = written_and_generated(session, model, "aaaa", do_sample=False, repetition_penalty=1.7)
    assert written == expected


def test_sampling_with_a_seed_equals_generate():
    model = loud(llama())
    choice = {"temperature": 0.9, "top_p": 0.8, "top_k": 40}
    session = open_session(model, settings=ChatSettings(**choice, max_new_tokens=24, seed=7))
    torch.manual_seed(7)
    written, expected = written_and_generated(session, model, "Once", do_sample=True, **choice)
    assert written == expected


def test_without_a_seed_replies_differ():
    session = open_session(settings=ChatSettings(max_new_tokens=24))
    assert len({say(session, "x") for _ in range(3)}) > 1


def test_a_reply_ends_at_any_of_the_end_tokens():
    model = loud(llama())
    session = open_session(model)
    say(session, "Once")
    third = session._written.ids[len("Once") + 2]
    model.generation_config.eos_token_id = [END, third]
    session = open_session(model)
    say(session, "Once")
    assert session.last_stats.stop == "end"
    assert session.last_stats.tokens <= 2
    assert third not in session._written.ids


def test_inference_mode_does_not_leak_to_whoever_reads_the_stream():
    for _ in open_session().reply("hello"):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()


def test_the_stats_tell_length_speed_and_why_it_stopped():
    session = open_session()
    say(session, "hello")
    stats = session.last_stats
    assert (stats.tokens, stats.prompt_tokens, stats.stop) == (24, 5, "length")
    assert stats.seconds_to_first_token > 0
    assert stats.tokens_per_second > 0


def test_an_empty_prompt_begins_a_text_with_the_begin_token():
    model = loud(llama())
    written, expected = written_and_generated(open_session(model), model, "", do_sample=False)
    assert written == expected
    assert written[0] == END


def test_a_model_that_diverged_is_told_and_changes_nothing():
    model = loud(llama())
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    session = open_session(model)
    with pytest.raises(UserError, match="NaN"):
        say(session, "hello")
    assert session.messages == []


def test_a_tokenizer_of_another_model_is_refused():
    with pytest.raises(UserError, match="another model"):
        open_session(loud(llama(vocab_size=100, eos_token_id=1, bos_token_id=1)))


# Text out of tokens


@pytest.mark.parametrize("text", ["né à Zürich", "你好，世界", "🎉👩‍👩‍👧 ok", "plain\n\ttext "])
def test_characters_of_several_bytes_come_whole(text):
    tokenizer = make_byte_tokenizer()
    stream = TextOfTokens(tokenizer)
    pieces = [stream.push(token) for token in tokenizer(text)["input_ids"]]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) == text
    assert stream.rest() == ""


def test_any_bytes_at_all_stream_to_what_they_decode_to():
    tokenizer = make_byte_tokenizer()
    torch.manual_seed(0)
    for _ in range(50):
        ids = torch.randint(100, 257, (40,)).tolist()
        stream = TextOfTokens(tokenizer)
        text = "".join(stream.push(token) for token in ids) + stream.rest()
        assert text == tokenizer.decode(ids, skip_special_tokens=True)


def test_bytes_that_never_become_text_are_not_held_back_for_ever():
    stream = TextOfTokens(make_byte_tokenizer())
    assert len("".join(stream.push(0xFF) for _ in range(100))) >= 97


def test_the_space_between_a_text_and_its_continuation_stays():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"▁Once": 0, "▁upon": 1, "▁a": 2}, unk_token="▁a"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    stream = TextOfTokens(tokenizer, [0])
    assert [stream.push(1), stream.push(2)] == [" upon", " a"]
    assert TextOfTokens(tokenizer).push(1) == "upon"


# The history


def test_after_the_end_of_a_text_a_base_model_begins_another(tmp_path):
    model = loud(llama())
    session = open_session(model)
    usual = session._predictor.logits
    session._predictor.logits = lambda ids: torch.nn.functional.one_hot(torch.tensor([END]), 257) * 1e4
    assert say(session, "Once") == ""
    session.save(tmp_path / "talk.json")
    session._predictor.logits = usual
    loaded = open_session(model)
    loaded.load(tmp_path / "talk.json")
    anew = say(open_session(model), "")
    assert say(session, "") == anew
    assert say(loaded, "") == anew


@pytest.mark.parametrize("cut", [1, 7, 24, 30])
def test_a_base_model_continues_the_text_so_far(cut):
    model = loud(llama())
    session = open_session(model, settings=dataclasses.replace(GREEDY, max_new_tokens=cut))
    first = say(session, "Once")
    session.settings = dataclasses.replace(GREEDY, max_new_tokens=48 - cut)
    second = say(session, "")
    whole = open_session(model, settings=dataclasses.replace(GREEDY, max_new_tokens=48))
    assert say(whole, "Once") == first + second


def test_a_character_that_a_cut_falls_into_is_finished_by_the_next_reply():
    tokens = iter([*"你".encode(), END])
    session = open_session(settings=ChatSettings(max_new_tokens=2))
    session._predictor.logits = lambda ids: torch.nn.functional.one_hot(torch.tensor([next(tokens)]), 257) * 1e4
    assert say(session, "Once") == ""
    assert say(session, "") == "你"
    assert [message["content"] for message in session.messages] == ["Once", "", "", "你"]


def test_a_stopped_reply_leaves_what_was_said():
    session = open_session(chat=True)
    reply = session.reply("hello")
    said = next(reply) + next(reply)
    reply.close()
    assert session.messages == [{"role": "user", "content": "hello"}, {"role": "assistant", "content": said}]
    assert session.last_stats.stop == "stopped"


def test_a_reply_that_is_interrupted_inside_the_model_spoils_nothing_after_it():
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


def test_the_oldest_tokens_give_way_in_a_full_context():
    model = loud(llama(max_position_embeddings=64))
    session = open_session(model)
    for _ in range(4):
        say(session, "some words")
    assert "no longer sees" in session.notice
    assert len(session.messages) == 8
    assert session.last_stats.prompt_tokens + session.last_stats.tokens <= 64


def test_the_oldest_turns_give_way_and_the_system_prompt_stays():
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


def test_a_reply_stops_where_the_context_is_full():
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


def test_a_chat_asks_with_the_tokens_that_training_uses():
    session = open_session(chat=True)
    say(session, "hello <|endoftext|>")
    say(session, "and?")
    ids = session._prompt("more")
    assert ids == encode_prompt(session._tokenizer, [*session.messages, {"role": "user", "content": "more"}])
    assert session._tokenizer.eos_token_id not in ids  # what the user wrote is text


def test_a_system_prompt_is_seen_by_the_model():
    session = open_session(chat=True)
    plain = say(session, "hello")
    session.reset()
    session.set_system("be kind")
    system = [{"role": "system", "content": "be kind"}]
    assert render_conversation(session._tokenizer, system) == "s:be kind\n"
    assert session.system == "be kind"
    assert say(session, "hello") != plain


def test_a_system_prompt_that_would_be_lost_is_refused():
    with pytest.raises(UserError, match="base model"):
        open_session().set_system("be kind")
    session = open_session(chat=True)
    session._tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    )
    with pytest.raises(UserError, match="leaves the system prompt out"):
        session.set_system("be kind")
    session._tokenizer.chat_template = "{{ raise_exception('no system role here') }}"
    with pytest.raises(UserError, match="no system role here"):
        session.set_system("be kind")


# Settings and files


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
def test_a_wrong_setting_is_refused_with_what_is_allowed(name, text):
    session = open_session()
    before = session.settings
    with pytest.raises(UserError, match="Allowed"):
        session.change_setting(name, text)
    assert session.settings == before


def test_settings_are_read_from_text():
    session = open_session()
    for name, text in (("temperature", "0.5"), ("top_k", "1_000"), ("seed", "3")):
        session.change_setting(name, text)
    assert (session.settings.temperature, session.settings.top_k, session.settings.seed) == (0.5, 1000, 3)
    session.change_setting("seed", "none")
    assert session.settings.seed is None
    with pytest.raises(UserError, match="Did you mean temperature"):
        session.change_setting("temprature", "1")


def test_a_saved_conversation_goes_on_as_the_same(tmp_path):
    model = loud(llama())
    session = open_session(model, chat=True)
    session.set_system("be kind")
    say(session, "hello")
    session.save(tmp_path / "deep" / "talk.json")
    other = open_session(model, chat=True)
    other.load(tmp_path / "deep" / "talk.json")
    assert (other.messages, other.system) == (session.messages, "be kind")
    assert say(other, "and?") == say(session, "and?")


def test_saving_replaces_a_conversation_and_nothing_else(tmp_path):
    session = open_session()
    session.save(tmp_path / "talk.json")
    say(session, "hello")
    session.save(tmp_path / "talk.json")
    assert len(json.loads((tmp_path / "talk.json").read_text())["messages"]) == 2
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not replaced"):
        session.save(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(UserError, match="can't be"):
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
def test_a_file_that_is_no_conversation_is_not_loaded(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    session = open_session()
    say(session, "hello")
    before = list(session.messages)
    with pytest.raises(UserError, match="no saved conversation"):
        session.load(tmp_path / "x.json")
    with pytest.raises(UserError, match="No such file"):
        session.load(tmp_path / "nothing.json")
    assert session.messages == before


def test_a_conversation_of_the_other_mode_is_not_loaded(tmp_path):
    open_session(chat=True).save(tmp_path / "x.json")
    with pytest.raises(UserError, match="made in chat mode"):
        open_session().load(tmp_path / "x.json")


# The screen


def test_a_conversation_is_typed_and_left_with_ctrl_d(capsys):
    session = open_session(chat=True)
    typed(session, "hello\r//slash\r\x04")
    assert [m["content"] for m in session.messages[::2]] == ["hello", "/slash"]
    out = capsys.readouterr().out
    assert "chat mode" in out
    assert "24 tokens" in out


def test_a_message_can_have_several_lines():
    session = open_session(chat=True)
    typed(session, "one\\\rtwo\x1b\rthree\r/quit\r")
    assert session.messages[0]["content"] == "one\ntwo\nthree"


def test_ctrl_c_at_the_prompt_says_how_to_leave_and_leaves_the_second_time(capsys):
    session = open_session(chat=True)
    typed(session, "half a thought\x03hello\r\x03\x03")
    assert len(session.messages) == 2
    assert capsys.readouterr().out.count("Ctrl-D or /quit leaves.") == 2


def test_commands_change_the_session(capsys, tmp_path):
    session = open_session(chat=True)
    file = tmp_path / "talk.json"
    typed(
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


def test_a_mistake_is_told_and_changes_nothing(capsys):
    session = open_session(chat=True)
    typed(session, "/temprature 1\r/top_p 7\r/save\r/load nothing.json\r/model nowhere\r/nonsense\r/quit\r")
    assert session.settings == GREEDY
    assert session.messages == []
    errors = capsys.readouterr().err
    assert "Did you mean /temperature?" in errors
    for word in ("Allowed", "/save FILE", "No such file", "no such checkpoint", "/help lists them"):
        assert word in " ".join(errors.split()), word


def test_another_model_is_opened_and_the_settings_stay(capsys):
    session, other = open_session(chat=True), open_session(name="the other", settings=ChatSettings())
    typed(session, "/model there\rhello\r/quit\r", load=lambda path: other)
    assert session.messages == []
    assert len(other.messages) == 2
    assert other.settings == GREEDY
    out = capsys.readouterr().out
    assert "the other" in out
    assert "completion mode" in out


def test_lines_from_a_pipe_are_answered_with_nothing_else_on_standard_output(capsys, monkeypatch):
    session = open_session(chat=True)
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n\n/top_k 5\n/oops\nmore\n"))
    run_chat(session, load=no_other, beside=None)
    replies = [m["content"] for m in session.messages[1::2]]
    from llm_lab.terminal.console import printable

    assert len(replies) == 2
    captured = capsys.readouterr()
    assert captured.out == "".join(printable(reply) + "\n" for reply in replies)
    assert "top_k = 5" in captured.err


def test_one_answer_is_streamed_and_nothing_else(capsys):
    class Rude:
        def reply(self, text):
            yield from ("fine\n", "\x1b[2J", text)

    answer_once(Rude(), "x")
    captured = capsys.readouterr()
    assert captured.out == "fine\n␛[2Jx\n"
    assert captured.err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="pexpect needs a Unix terminal")
def test_ctrl_c_stops_a_reply_and_the_conversation_goes_on():
    import pexpect

    program = textwrap.dedent(
        """
        import time
        from types import SimpleNamespace
        from llm_lab.terminal.chat_screen import run_chat

        class Endless:
            name, mode, notice, context_length = "endless", "chat", None, None
            last_stats = SimpleNamespace(tokens=3, tokens_per_second=None, stop="stopped")

            def reply(self, text):
                while True:
                    time.sleep(0.02)
                    yield "word "

        run_chat(Endless(), load=None, beside=None)
        """
    )
    child = spawn_program(program)
    child.expect(">")
    child.send("go on\r")
    child.expect("word word")
    child.sendintr()
    child.expect(r"3 tokens; stopped")
    child.expect(">")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
