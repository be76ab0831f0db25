"""Conversation files: what they store, and that none is replaced by one with fewer messages."""

import copy

import pytest

from llm_lab.chat.conversation_files import MessagesLostError, read_conversation, write_conversation
from llm_lab.chat.conversation_turns import turns_from
from llm_lab.chat.decoding import ChatSettings


def answered(text, model, **more):
    return {
        "variants": [{"model": model, "label": model, "mode": "chat", "text": text, "state": "done", **more}],
        "at": 0,
    }


NUMBERS = {"tokens": 5, "prompt_tokens": 9, "seconds_to_first_token": 0.1, "tokens_per_second": 7.5, "stop": "context"}
TURNS = [
    {"text": "one", "seed": 1, "answers": {"a": answered("first", "x", notice="The context is full.", stats=NUMBERS)}},
    {"text": "two", "seed": 2, "answers": {"a": answered("second", "x"), "b": answered("other", "y")}},
]


def messages(*texts):
    return [{"role": "assistant" if at % 2 else "user", "content": text} for at, text in enumerate(texts)]


def write(file, said=("one", "first", "two", "second"), *, other=("two", "other"), turns=TURNS):
    against = {"mode": "chat", "model": "y", "messages": messages(*other)} if other else None
    found = turns_from(turns)
    assert found is not None
    write_conversation(file, "chat", "x", ChatSettings(), None, messages(*said), against=against, turns=found)


def test_a_file_keeps_which_prompt_each_model_answered_and_the_numbers_of_the_answers(tmp_path):
    file = tmp_path / "talk.json"
    write(file)
    found = read_conversation(file)
    assert [sorted(turn["answers"]) for turn in found["turns"]] == [["a"], ["a", "b"]]
    first = found["turns"][0]["answers"]["a"]["variants"][0]
    assert (first["text"], first["notice"], first["stats"]) == ("first", "The context is full.", NUMBERS)
    assert found["messages"] == messages("one", "first", "two", "second")


def test_no_file_is_replaced_by_a_conversation_with_fewer_messages(tmp_path):
    file = tmp_path / "talk.json"
    write(file)
    before = file.read_text()
    regenerated = copy.deepcopy(TURNS)
    regenerated[1]["answers"]["b"] = answered("something else", "y")
    for less in (
        {"said": ("one", "first"), "other": (), "turns": TURNS[:1]},
        {"other": ("two", "something else"), "turns": regenerated},
        {"said": ("two", "first", "two", "second"), "turns": []},
    ):
        with pytest.raises(MessagesLostError, match="so it is not replaced"):
            write(file, **less)
        assert file.read_text() == before
    more = [*TURNS, {"text": "three", "answers": {"b": answered("third", "y")}}]
    write(file, turns=more)
    assert [turn["text"] for turn in read_conversation(file)["turns"]] == ["one", "two", "three"]


@pytest.mark.parametrize(
    "turns",
    [
        "text",
        [{"text": 1}],
        [{"text": "x", "answers": {"c": answered("y", "z")}}],
        [{"text": "x", "answers": {"a": {"variants": [], "at": 0}}}],
        [{"text": "x", "answers": {"a": {**answered("y", "z"), "at": 1}}}],
        [{"text": "x", "answers": {"a": answered("y", "z", sources=[{"url": 1}])}}],
    ],
)
def test_invalid_turns_are_not_read(turns):
    assert turns_from(turns) is None
