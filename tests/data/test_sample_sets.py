"""The sample sets written for LLM Lab: enough rows, all different, with held-out ones that are not trained on."""

import re

import pytest

from llm_lab.data.builtin import BUILTIN_EXAMPLES
from llm_lab.data.examples import open_examples
from llm_lab.terminal.listing import DATA_FORMS

NAMES = ("support-chat", "instruct")


def rows(name, split, kind="conversation"):
    return open_examples(f"builtin:{name}", kind=kind, split=split).examples


@pytest.mark.parametrize("name", NAMES)
def test_there_are_enough_rows_and_no_two_are_alike(name):
    train, test = rows(name, "train"), rows(name, "test")
    assert len(train) >= 40
    assert len(test) >= 8
    asked = [example.prompt[0]["content"] for example in [*train, *test]]
    kept = [row for split in ("train", "test") for row in BUILTIN_EXAMPLES[name]("conversation", split)]
    answers = [row["completion"] if name == "instruct" else row["messages"][-1]["content"] for row in kept]
    assert len(answers) == len(asked)
    assert len(set(asked)) == len(asked)
    assert len(set(answers)) == len(answers)
    assert all(text == text.strip() and text for text in [*asked, *answers])


def test_a_support_conversation_has_several_turns_that_alternate():
    for row in [*BUILTIN_EXAMPLES["support-chat"]("conversation", "train")]:
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert len(roles) >= 4


@pytest.mark.parametrize("name", NAMES)
def test_the_held_out_rows_are_the_same_for_training_and_scoring(name):
    asked = [example.prompt for example in rows(name, "test", "prompt")]
    assert len(asked) == len(rows(name, "test"))
    first = [str(prompt[0]) for prompt in asked]
    assert not set(first) & {str(example.prompt[0]) for example in rows(name, "train")}


def test_the_answers_of_the_support_desk_do_not_contradict_each_other():
    answers = [
        message["content"]
        for split in ("train", "test")
        for row in BUILTIN_EXAMPLES["support-chat"]("conversation", split)
        for message in row["messages"]
        if message["role"] == "assistant"
    ]
    text = "\n".join(answers)
    assert set(re.findall(r"Plus[^.]{0,30}?(\d+ devices)", text)) == {"5 devices"}
    assert set(re.findall(r"\$(\d+) a month", text)) == {"4", "9", "2"}  # Plus, Family, and Plus for students
    assert set(re.findall(r"\$(\d+) a year", text)) == {"40", "90", "20"}
    assert set(re.findall(r"[\w.]+@[\w.]+\w", text)) == {"help@tidebox.example"}
    assert set(re.findall(r"for (\d+) days", text)) <= {"30", "90"}


def test_arithmetic_in_the_instructions_is_right():
    found = {example.prompt[0]["content"]: example.answer for example in rows("instruct", "train")}
    found |= {example.prompt[0]["content"]: example.answer for example in rows("instruct", "test")}
    assert found["What is 17 times 6?"].endswith(str(17 * 6) + ".")
    assert f"{25 * 9 // 5 + 32} °F" in found["Convert 25 degrees Celsius to Fahrenheit."]
    code = next(answer for prompt, answer in found.items() if "returns the square" in prompt)
    scope = {}
    exec(code, scope)
    assert scope["square"](7) == 49


@pytest.mark.parametrize("name", NAMES)
def test_the_list_of_data_names_the_set_with_the_size_of_its_training_split(name):
    assert DATA_FORMS[f"builtin:{name}"].startswith(f"{len(rows(name, 'train'))} ")


@pytest.mark.parametrize(("kind", "split"), [("preference", "train"), ("conversation", "validation")])
def test_what_a_set_does_not_have_is_an_error(kind, split):
    for name in NAMES:
        with pytest.raises(ValueError, match="no such split"):
            rows(name, split, kind)
