"""Examples are read from all common column layouts; unusable rows are counted, unreadable ones are errors."""

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_lab.chat.conversation_files import write_conversation
from llm_lab.chat.decoding import ChatSettings
from llm_lab.data import builtin
from llm_lab.data.examples import look_at_examples, open_examples
from llm_lab.errors import UserError

SHARED = Path(__file__).resolve().parents[3] / "shared/data"
USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "So."}
SYSTEM = {"role": "system", "content": "Be kind."}


pytestmark = pytest.mark.usefixtures("in_tmp_path")


def write(*rows, name="rows.jsonl"):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def read(*rows, kind="conversation", **settings):
    return open_examples(write(*rows), kind=kind, **settings)


def only(*rows, kind="conversation", **settings):
    (example,) = read(*rows, kind=kind, **settings).examples
    return example


def refusal(*rows, kind="conversation", **settings) -> str:
    with pytest.raises(UserError) as caught:
        read(*rows, kind=kind, **settings)
    return str(caught.value)


CONVERSATIONS = {
    "messages": {"messages": [SYSTEM, USER, ANSWER]},
    "sharegpt": {
        "conversations": [
            {"from": "system", "value": "Be kind."},
            {"from": "human", "value": "Why?"},
            {"from": "gpt", "value": "So."},
        ]
    },
    "prompt/completion": {"prompt": "Why?", "completion": "So.", "system": "Be kind.", "id": 7},
    "prompt/response": {"prompt": [SYSTEM, USER], "response": [ANSWER]},
    "instruction": {"instruction": "Why?", "input": "", "output": "So.", "system": "Be kind.", "text": "Below is"},
    "question/answer": {"question": "Why?", "answer": "So.", "system": "Be kind."},
    "question/response": {"id": 1, "system_prompt": "Be kind.", "question": "Why?", "response": "So."},
    "problem/solution": {"problem": "Why?", "solution": "So.", "answer": "1", "system": "Be kind."},
    "prompt/chosen/rejected": {"system": "Be kind.", "prompt": "Why?", "chosen": "So.", "rejected": "No."},
}


@pytest.mark.parametrize("name", list(CONVERSATIONS))
def test_a_conversation_is_recognized_by_its_columns(name):
    source = read(CONVERSATIONS[name])
    assert source.format == name
    assert source.examples[0].messages == [SYSTEM, USER, ANSWER]
    assert source.examples[0].prompt == (SYSTEM, USER)
    assert source.examples[0].completion == "So."


PREFERENCES = {
    "prompt/chosen/rejected": {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
    "with lists of messages": {
        "prompt": [USER],
        "chosen": [ANSWER],
        "rejected": [{"role": "assistant", "content": "No."}],
    },
    "prompt in the answers and in a column": {
        "prompt": "Why?",
        "chosen": [USER, ANSWER],
        "rejected": [USER, {"role": "assistant", "content": "No."}],
    },
    "chosen/rejected": {"chosen": [USER, ANSWER], "rejected": [USER, {"role": "assistant", "content": "No."}]},
    "strings with a common start": {"chosen": "Why?\n\nSo.", "rejected": "Why?\n\nNo."},
    "hh dialogue": {
        "chosen": "\n\nHuman: Why?\n\nAssistant: So.",
        "rejected": "\n\nHuman: Why?\n\nAssistant: No.",
    },
    "hh prompt in a column": {"prompt": "\n\nHuman: Why?\n\nAssistant:", "chosen": "So.", "rejected": "No."},
}


@pytest.mark.parametrize("name", list(PREFERENCES))
def test_a_preference_is_recognized_by_its_columns(name):
    example = only(PREFERENCES[name], kind="preference")
    assert example.prompt == (USER,)
    assert (example.chosen, example.rejected) == ("So.", "No.")


def test_a_dialogue_with_several_turns_and_paragraphs_is_read_completely():
    before = (
        "\n\nHuman: Hello\n\nAssistant: Good day.\n\nHow are you?\n\nHuman: Show me:\n\n1. why\n\n2. how\n\nAssistant:"
    )
    row = {"chosen": f"{before} First.\n\nSecond, Human: or not.\n", "rejected": f"{before} No.\n\nNever."}
    prompt = (
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Good day.\n\nHow are you?"},
        {"role": "user", "content": "Show me:\n\n1. why\n\n2. how"},
    )
    preference = only(row, kind="preference")
    assert preference.prompt == prompt
    assert preference.chosen == "First.\n\nSecond, Human: or not."
    assert preference.rejected == "No.\n\nNever."
    assert only(row, kind="prompt").prompt == prompt
    assert only(row, kind="conversation").messages == [*prompt, {"role": "assistant", "content": preference.chosen}]


def test_every_dialogue_has_its_own_prompt():
    rows = [
        {"chosen": f"\n\nHuman: {q}\n\nAssistant: yes", "rejected": f"\n\nHuman: {q}\n\nAssistant: no"}
        for q in ("Hi", "What is rain?", "Why?")
    ]
    prompts = [example.prompt[-1]["content"] for example in read(*rows, kind="prompt").examples]
    assert prompts == ["Hi", "What is rain?", "Why?"]


@pytest.mark.parametrize(
    ("row", "name", "answer"),
    [
        ({"prompt": "Why?", "answer": "So."}, "prompt/answer", "So."),
        ({"question": "Why?", "answer": "So.\n#### 12"}, "question/answer", "So.\n#### 12"),
        ({"problem": "Why?", "solution": "Thus 12", "answer": "12"}, "problem/answer", "12"),
        ({"instruction": "Why?", "target": 12}, "instruction/target", "12"),
        ({"prompt": [USER]}, "prompt", None),
        ({"prompt": "Why?", "answer": None}, "prompt/answer", None),
        ({"messages": [USER, ANSWER]}, "messages", "So."),
        ({"prompt": [USER], "completion": [ANSWER]}, "prompt/completion", "So."),
    ],
)
def test_a_prompt_is_recognized_by_its_columns(row, name, answer):
    source = read(row, kind="prompt")
    assert source.format == name
    assert source.examples[0].prompt == (USER,)
    assert source.examples[0].answer == answer


def test_the_other_plain_columns_of_a_prompt_are_kept():
    row = {"prompt": "Why?", "answer": "So.", "level": 3, "easy": True, "tags": ["a"], "note": None, "unit": "cm"}
    assert only(row, kind="prompt").columns == {"level": 3, "easy": True, "unit": "cm"}


def test_the_input_of_an_instruction_follows_it_in_the_prompt():
    row = {"instruction": "Add them.", "input": "1 and 2", "output": "3"}
    assert only(row).prompt == ({"role": "user", "content": "Add them.\n\n1 and 2"},)
    dolly = {"instruction": "Who?", "context": "It was Ann.", "response": "Ann", "category": "qa"}
    assert only(dolly).prompt == ({"role": "user", "content": "Who?\n\nIt was Ann."},)


def test_an_instruction_with_several_instances_is_several_examples():
    both = [{"input": "ice", "output": "Cold."}, {"input": "", "output": "It depends."}]
    source = read({"id": 1, "instruction": "How warm?", "instances": both, "is_classification": False})
    assert source.format == "instruction"
    assert [example.prompt[0]["content"] for example in source.examples] == ["How warm?\n\nice", "How warm?"]
    assert [example.completion for example in source.examples] == ["Cold.", "It depends."]
    assert read({"instruction": "How warm?", "output": "Cold.", "instances": 3}).counts.kept == 1


@pytest.mark.skipif(not (SHARED / "seed_tasks.jsonl").exists(), reason="the Self-Instruct seed tasks are not available")
def test_the_self_instruct_seed_tasks_are_read_completely():
    source = open_examples(str(SHARED / "seed_tasks.jsonl"), kind="conversation")
    assert source.counts.kept == source.counts.read == 175


def test_a_named_column_that_this_kind_of_example_does_not_use_is_refused():
    message = refusal({"prompt": "Why?", "body": "So."}, kind="prompt", columns={"text": "body"})
    assert "data.0.columns.text = body: Not used for prompt examples. Allowed: messages, prompt, " in message


def test_plain_text_is_a_conversation_example(tmp_path):
    assert only({"text": "Once upon a time."}).text == "Once upon a time."
    Path("story.txt").write_text("Once.\n")
    source = open_examples("story.txt", kind="conversation")
    assert (source.format, source.examples[0].text) == ("text", "Once.\n")
    with pytest.raises(UserError, match="preference examples need them"):
        open_examples("story.txt", kind="preference")


def test_columns_with_other_names_can_be_named():
    row = {"dialog": [USER, ANSWER], "q": "Why?", "a": "So.", "bad": "No.", "gold": 12, "body": "Once."}
    assert only(row, columns={"messages": "dialog"}).messages == [USER, ANSWER]
    assert only(row, columns={"prompt": "q", "completion": "a"}).messages == [USER, ANSWER]
    assert only(row, columns={"text": "body"}).text == "Once."
    preference = only(row, kind="preference", columns={"prompt": "q", "chosen": "a", "rejected": "bad"})
    assert (preference.prompt, preference.chosen, preference.rejected) == ((USER,), "So.", "No.")
    assert only(row, kind="prompt", columns={"prompt": "q", "answer": "gold"}).answer == "12"


def test_columns_that_are_not_named_are_still_recognized():
    row = {"q": "Why?", "completion": "So.", "prompt": "other", "answer": "12"}
    example = only(row, columns={"prompt": "q"})
    assert example.messages == [USER, ANSWER]
    assert example.answer == "12"


def test_unrecognized_columns_are_listed_with_a_fix():
    message = refusal({"foo": "a", "bar": "b"})
    assert message.startswith("data.0.columns: The columns of rows.jsonl are not recognized: foo, bar.")
    assert "Allowed: messages; conversations (ShareGPT); prompt and completion;" in message
    assert message.endswith("for example columns: {prompt: foo, completion: bar}.")
    assert "columns: {prompt: foo, chosen: bar, rejected: YOUR_COLUMN}" in refusal(
        {"foo": "a", "bar": "b"}, kind="preference"
    )
    assert "prompt, question, problem or instruction" in refusal({"foo": "a"}, kind="prompt")


def test_a_named_column_that_does_not_exist_gets_a_suggestion():
    message = refusal({"dialogue": [USER, ANSWER]}, columns={"messages": "dialog"}, key="data.2")
    assert message == (
        "data.2.columns.messages = dialog: There is no such column. Allowed: dialogue. Did you mean dialogue?"
    )


@pytest.mark.parametrize("role", ["developer", "ipython", None])
def test_an_unknown_role_is_an_error_with_row_and_role(role):
    message = refusal({"messages": [USER, ANSWER]}, {"messages": [USER, {"role": role, "content": "x"}, ANSWER]})
    assert f"line 2 of rows.jsonl: message 2 of column 'messages' has the role {role!r}" in message
    assert "supported: system, user, human" in message


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": "hello"}, "column 'messages' is str, not a list of messages"),
        ({"messages": "[{"}, "column 'messages' is a string that is not valid JSON"),
        ({"messages": ["hello"]}, "message 1 of column 'messages' is str, not an object with role and content"),
        ({"messages": [{"speaker": "a"}]}, "has no role and content (or from and value); it has speaker"),
        ({"messages": [{**USER, "role": ["user"]}]}, "message 1 of column 'messages' has the role ['user']"),
        ({"messages": {"from": ["human", "gpt"], "value": ["Why?"]}}, "is an object of lists of different lengths"),
        ({"messages": [{**USER, "content": 7}]}, "message 1 of column 'messages' is int, not text"),
        ({"messages": [{**USER, "content": [{"type": "image"}]}]}, "has a part that is not text"),
        ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, "has weight = 0.5; only 0 (not trained) and 1 are supported"),
        ({"messages": [{**USER, "content": "\ud83d"}]}, "contains an unpaired surrogate"),
        ({"prompt": 7, "completion": "a"}, "column 'prompt' is int, not a list of messages"),
        ({"prompt": "a", "completion": {"a": 1}}, "column 'completion' is dict, not a list of messages"),
        ({"question": "Why?", "answer": ["So."]}, "message 1 of column 'answer' is str"),
    ],
)
def test_a_row_in_another_format_is_reported_with_its_location(row, why):
    message = refusal(row)
    assert "line 1 of rows.jsonl: " in message
    assert why in message
    assert "Recognized format: " in message


def test_a_reference_answer_that_is_not_text_is_an_error_for_prompts_only():
    row = {"prompt": "Why?", "completion": "So.", "ground_truth": {"a": 1}}
    message = refusal(row, kind="prompt", columns={"answer": "ground_truth"})
    assert "column 'ground_truth' is dict, not text or a number" in message
    assert only(row, columns={"answer": "ground_truth"}).answer is None


def test_a_number_is_a_valid_answer():
    assert only({"question": "6 * 7?", "answer": 42}).completion == "42"


def test_a_saved_conversation_is_an_example_with_its_system_prompt():
    file = Path("talk.json")
    said = [USER, {**ANSWER, "ended": True}]
    write_conversation(file, "chat", "checkpoints/base", ChatSettings(), SYSTEM["content"], said)
    (example,) = open_examples(str(file), kind="conversation").examples
    assert ([*example.prompt], example.completion) == ([SYSTEM, USER], ANSWER["content"])


def test_messages_as_an_object_of_lists_are_read():
    row = {"conversations": {"from": ["human", "gpt"], "value": ["Why?", "So."]}}
    assert only(row).messages == [USER, ANSWER]


def test_content_parts_are_joined_and_json_in_a_cell_is_parsed():
    parts = [{**USER, "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}]}, ANSWER]
    assert only({"messages": parts}).messages == [USER, ANSWER]
    assert only({"messages": json.dumps([USER, ANSWER])}).messages == [USER, ANSWER]


GOOD = {"messages": [USER, ANSWER]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": []}, "no messages"),
        ({"messages": None}, "no messages"),
        ({"other": 1}, "no messages"),
        ({"messages": [SYSTEM]}, "no question"),
        ({"messages": [USER]}, "no answer"),
        ({"messages": [ANSWER, USER, ANSWER]}, "the first message is from the assistant"),
        ({"messages": [USER, {**ANSWER, "content": " \n"}]}, "an empty answer"),
        ({"messages": [USER, {**ANSWER, "content": None}]}, "an empty answer"),
        ({"messages": [{**USER, "content": ""}, ANSWER]}, "an empty question"),
        ({"messages": [USER, ANSWER, ANSWER]}, "two assistant messages in a row"),
        ({"messages": [USER, USER, ANSWER]}, "two user messages in a row"),
    ],
)
def test_unusable_conversations_are_dropped_and_counted(row, reason):
    source = read(GOOD, row, GOOD)
    assert len(source.examples) == 2
    assert (source.counts.read, source.counts.kept) == (3, 2)
    assert source.counts.dropped == {reason: 1}
    assert source.description.endswith(f"2 of 3 rows; 1: {reason}")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Why?", "chosen": "So.", "rejected": "So. "}, "chosen and rejected are the same"),
        ({"prompt": "Why?", "chosen": "So.", "rejected": ""}, "an empty answer"),
        ({"prompt": "Why?", "chosen": "So."}, "no answer"),
        ({"prompt": None, "chosen": "So.", "rejected": "No."}, "no question"),
        ({"prompt": " ", "chosen": "So.", "rejected": "No."}, "an empty question"),
        (
            {
                "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
                "rejected": "\n\nHuman: a\n\nAssistant: x\n\nHuman: y\n\nAssistant: z",
            },
            "chosen and rejected differ before the last answer",
        ),
    ],
)
def test_unusable_preferences_are_dropped_and_counted(row, reason):
    good = PREFERENCES["prompt in the answers and in a column"]
    source = read(good, row, kind="preference")
    assert len(source.examples) == 1
    assert source.counts.dropped == {reason: 1}


def test_a_last_question_without_an_answer_is_removed_and_counted():
    source = read({"messages": [USER, ANSWER, {"role": "user", "content": "And?"}]})
    assert source.examples[0].messages == [USER, ANSWER]
    assert source.counts.kept == 1
    assert source.counts.shortened == {"messages after the last answer removed": 1}
    assert "1: messages after the last answer removed" in source.description


def test_a_blank_system_message_is_removed():
    assert only({"messages": [{**SYSTEM, "content": ""}, USER, ANSWER]}).prompt == (USER,)


def test_a_dataset_without_usable_rows_is_an_error():
    message = refusal({"messages": [USER]}, {"messages": []})
    assert "It has no usable example: 0 of 2 rows; 1: no answer; 1: no messages" in message


# Columns that change the prompt


def test_a_system_message_that_a_column_repeats_is_read_once():
    row = {"system": "Be kind.", "messages": [SYSTEM, USER, ANSWER]}
    assert only(row).prompt == (SYSTEM, USER)
    assert only({**row, "messages": [USER, ANSWER]}).prompt == (SYSTEM, USER)


def test_columns_that_are_not_read_are_listed_and_counted():
    rows = [{**GOOD, "id": number, "note": "late" if number > 25 else None, "tags": []} for number in range(30)]
    source = read(*rows)
    assert source.counts.unread == {"id": 30, "note": 4}
    assert source.counts.record()["unread"] == {"id": 30, "note": 4}
    assert "messages (columns: messages; not read: id, note): 30 of 30 rows" in source.description
    remark = look_at_examples("rows.jsonl", kind="conversation")
    assert remark == "data.0: columns of rows.jsonl that are not read: id, note"


def test_a_check_counts_the_rows_that_are_dropped():
    remark = look_at_examples(write(GOOD, {"messages": [USER]}), kind="conversation")
    assert remark == "data.0: 1 of the 2 rows are dropped: no answer"


def test_the_plain_columns_of_prompts_are_for_rewards_and_others_are_listed():
    row = {"prompt": "Why?", "answer": "So.", "level": 3, "input": "text"}
    assert read(row, kind="prompt").counts.unread == {"input": 1}


@pytest.mark.parametrize(
    ("late", "prompt"),
    [
        ({"input": "1 and 2"}, [{"role": "user", "content": "Why?\n\n1 and 2"}]),
        ({"system": "Be kind."}, [SYSTEM, USER]),
        ({"history": [["Who?", "Ann."]]}, [{"role": "user", "content": "Who?"}, {**ANSWER, "content": "Ann."}, USER]),
    ],
)
def test_an_optional_column_that_is_missing_in_the_first_rows_is_read(late, prompt):
    row = {"instruction": "Why?", "output": "So."}
    source = read(*[row] * 30, row | late)
    assert source.examples[-1].prompt == tuple(prompt)
    assert source.examples[0].prompt == (USER,)
    assert source.counts.unread == {}


def test_a_column_named_in_the_recipe_may_be_missing_in_the_first_rows():
    rows = [{"q": "Why?"}] * 30 + [{"q": "Why?", "a": "So."}]
    assert only(*rows, columns={"prompt": "q", "completion": "a"}).messages == [USER, ANSWER]


@pytest.mark.parametrize(
    "history",
    [
        [["Who?", "Ann."]],
        json.dumps([["Who?", "Ann."]]),
        [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann."}],
    ],
)
def test_the_turns_of_a_history_precede_the_prompt(history):
    before = ({"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann."})
    row = {"instruction": "Why?", "input": "", "output": "So.", "history": history, "system": "Be kind."}
    assert only(row).prompt == (SYSTEM, *before, USER)
    assert only({**row, "history": []}).prompt == (SYSTEM, USER)
    preference = {"prompt": "Why?", "history": history, "chosen": "So.", "rejected": "No."}
    assert only(preference, kind="preference").prompt == (*before, USER)
    assert only({"question": "Why?", "answer": "So.", "history": history}, kind="prompt").prompt == (*before, USER)


def test_a_history_in_another_format_is_an_error():
    assert "is a string that is not valid JSON" in refusal({"prompt": "Why?", "output": "So.", "history": "[" * 99_999})
    assert "message 1 of column 'history' is str" in refusal({"prompt": "Why?", "output": "So.", "history": ["Who?"]})


def test_the_context_of_a_question_follows_it_in_the_prompt():
    row = {"question": "Who?", "context": "It was Ann.", "answer": "Ann"}
    assert only(row).prompt == ({"role": "user", "content": "Who?\n\nIt was Ann."},)
    written = {**row, "question": "It was Ann. Who?"}
    assert only(written).prompt == ({"role": "user", "content": "It was Ann. Who?"},)


@pytest.mark.parametrize("column", ["tools", "functions", "images"])
def test_rows_that_use_tools_or_images_are_dropped_and_counted(column):
    source = read(GOOD, {**GOOD, column: [{"name": "search"}]}, {**GOOD, column: []}, {**GOOD, column: "[]"})
    assert source.counts.kept == 3
    assert source.counts.dropped == {f"column {column!r} is not supported": 1}


def test_an_input_alone_is_the_prompt():
    assert only({"input": "Why?", "output": "So."}).messages == [USER, ANSWER]
    row = {"system": "Be kind.", "input": "Why?", "chosen": "Sure:\nSo.", "rejected": "Sure:\nNo."}
    example = only(row, kind="preference")
    assert (example.prompt, example.chosen, example.rejected) == ((SYSTEM, USER), "Sure:\nSo.", "Sure:\nNo.")


# Preferences


def test_answers_without_a_question_need_a_prompt_column():
    rows = [{"ask": f"Name {n} birds", "chosen": f"Sure:\nrobin {n}", "rejected": f"Sure:\ncar {n}"} for n in (1, 2)]
    message = refusal(*rows, kind="preference")
    assert "data.0.columns: The answers of rows.jsonl don't contain the question" in message
    assert "Candidates: ask. Name it, for example columns: {prompt: ask}" in message
    named = read(*rows, kind="preference", columns={"prompt": "ask"}).examples[0]
    assert named.prompt[-1]["content"] == "Name 1 birds"
    split = read(*rows, kind="preference", columns={"chosen": "chosen", "rejected": "rejected"}).examples[0]
    assert split.prompt[-1]["content"] == "Sure:"


BIRDS = {"role": "user", "content": "Birds?"}
NO = {"role": "assistant", "content": "No."}
TURNS = {
    "the prompt column has the system message": ([SYSTEM], [USER], [SYSTEM, USER]),
    "the prompt column is repeated": ([USER], [USER], [USER]),
    "it is repeated without its system message": ([SYSTEM, USER], [USER], [SYSTEM, USER]),
    "it is the last question": ("Birds?", [USER, ANSWER, BIRDS], [USER, ANSWER, BIRDS]),
    "it is the first question": ("Why?", [USER, ANSWER, BIRDS], [USER, ANSWER, BIRDS]),
    "it is the whole conversation": ([USER, ANSWER, BIRDS], [USER], [USER]),
    "it is the question in a template": ("<|user|>Why?<|end|>", [USER], [USER]),
    "the answers have several turns": ([USER], [ANSWER, BIRDS], [USER, ANSWER, BIRDS]),
    "the prompt is in another column": ([USER], [], [USER]),
}


@pytest.mark.parametrize("name", list(TURNS))
def test_the_prompt_is_its_column_and_what_both_answers_begin_with(name):
    column, shared, prompt = TURNS[name]
    where = "conversations" if name.endswith("another column") else "prompt"
    row = {where: column, "chosen": [*shared, ANSWER], "rejected": [*shared, NO]}
    example = only(row, kind="preference")
    assert example.prompt == tuple(prompt)
    assert (example.chosen, example.rejected) == ("So.", "No.")


def test_answers_may_be_single_messages():
    row = {
        "conversations": [{"from": "human", "value": "Why?"}],
        "chosen": {"from": "gpt", "value": "So."},
        "rejected": {"from": "gpt", "value": "No."},
    }
    example = only(row, kind="preference")
    assert (example.prompt, example.chosen, example.rejected) == ((USER,), "So.", "No.")


def test_a_prompt_that_contradicts_the_answers_is_dropped_with_the_reason():
    good = {"prompt": [USER], "chosen": [USER, ANSWER], "rejected": [USER, NO]}
    source = read(good, {**good, "prompt": [BIRDS]}, kind="preference")
    assert source.counts.dropped == {"the prompt column differs from the prompt in the answers": 1}


# Cells


def test_answers_within_a_prompt_are_not_trained():
    shots = [USER, ANSWER]
    rows = [{"prompt": [*shots, {"role": "user", "content": f"{n}?"}], "completion": str(n)} for n in range(2)]
    first, second = read(*rows).examples
    assert first.prompt[1] == {**ANSWER, "train": False}
    assert first.opening != second.opening, "the same examples in two prompts keep them on one side of a split"
    assert only({"messages": [USER, ANSWER, BIRDS, NO]}).prompt[1] == ANSWER
    assert read(rows[0]).fingerprint != read({"messages": [*rows[0]["prompt"], {**ANSWER, "content": "0"}]}).fingerprint


def test_nan_is_an_empty_cell():
    Path("rows.jsonl").write_text('{"prompt": "Why?", "completion": NaN}\n{"prompt": "Why?", "completion": "So."}\n')
    source = open_examples("rows.jsonl", kind="conversation")
    assert (source.counts.kept, source.counts.dropped) == (1, {"no answer": 1})
    table = pa.table({"prompt": ["a", "b"], "completion": pa.array([float("nan"), 1.0])})
    pq.write_table(table, "rows.parquet")
    assert open_examples("rows.parquet", kind="conversation").counts.dropped == {"no answer": 1}


@pytest.mark.parametrize(
    "text",
    ['[{"name": "Ada"}, {"name": "Bob"}]', '[{"role": "admin", "content": "x"}]', "[{not JSON}]", "[{'name': 'Ada'}]"],
)
def test_a_list_that_is_not_messages_is_text(text):
    assert only({"prompt": text, "completion": text}).messages == [
        {**USER, "content": text},
        {**ANSWER, "content": text},
    ]


def test_messages_written_as_text_are_messages():
    for write_list in (json.dumps, repr):
        row = {"prompt": write_list([SYSTEM, USER]), "completion": write_list([ANSWER])}
        assert only(row).messages == [SYSTEM, USER, ANSWER]
        assert only({"messages": write_list([USER, ANSWER])}).messages == [USER, ANSWER]
    broken = "[{'role': 'user', 'content': 'Why?'} {'role': 'assistant'"
    assert "looks like a list of messages, but is not valid JSON" in refusal({"prompt": broken, "completion": "So."})


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("[{'content': 'a?', 1: 'user'}]", "it has content, 1"),
        ("[{'role': 'user', 'content': b'a?'}]", "not valid JSON"),
    ],
)
def test_a_python_list_that_json_cannot_hold_is_refused(written, why):
    assert why in refusal({"messages": written})


def test_all_file_types_are_read():
    Path("rows.json").write_text(json.dumps([GOOD, GOOD]))
    Path("rows.csv").write_text('prompt,completion\nWhy?,So.\n"A, b?",c\n')
    pq.write_table(pa.Table.from_pylist([GOOD, GOOD]), "rows.parquet")
    write(GOOD, name="a.jsonl")
    write(GOOD, name="b.jsonl")
    for path in ("rows.json", "rows.csv", "rows.parquet", "?.jsonl"):
        source = open_examples(path, kind="conversation")
        assert len(source.examples) == 2
        assert source.examples[0].messages == [USER, ANSWER]


def test_the_fingerprint_depends_on_the_examples_only():
    def fingerprint(*rows, **settings):
        return read(*rows, **settings).fingerprint

    assert fingerprint(GOOD) == fingerprint({**GOOD, "id": 5})
    assert fingerprint(GOOD) != fingerprint(GOOD, GOOD)
    assert fingerprint(GOOD) != fingerprint({"messages": [USER, {**ANSWER, "content": "So"}]})
    assert fingerprint(GOOD) != fingerprint(GOOD, kind="prompt")


def test_a_hub_dataset_is_read(monkeypatch):
    rows = datasets.Dataset.from_list([GOOD, {"messages": [USER]}])
    monkeypatch.setattr(datasets, "load_dataset", lambda path, subset, *, split: rows)
    source = open_examples("owner/name", kind="conversation", subset="en", split="test")
    assert source.examples[0].messages == [USER, ANSWER]
    assert source.description.startswith("Hub dataset owner/name (subset en, split test), messages (columns: messages)")
    assert source.counts.dropped == {"no answer": 1}


def test_a_built_in_dataset_has_rows_by_kind_and_split(monkeypatch):
    def rows(kind, split):
        if split == "none":
            raise KeyError("train, test")
        return iter([{"prompt": f"{kind} {split}?", "completion": "So."}])

    monkeypatch.setitem(builtin.BUILTIN_EXAMPLES, "made", rows)
    example = open_examples("builtin:made", kind="conversation", split="test").examples[0]
    assert example.prompt[0]["content"] == "conversation test?"
    with pytest.raises(
        UserError, match=r"split = none: .* no such split for conversation examples. Allowed: train, test"
    ):
        open_examples("builtin:made", kind="conversation", split="none")
    with pytest.raises(UserError, match=r"No built-in dataset of examples is named 'mode'.*Did you mean made"):
        open_examples("builtin:mode", kind="conversation")


def test_keys_without_effect_are_refused():
    with pytest.raises(UserError, match=r"data.0.subset"):
        open_examples(write(GOOD), kind="conversation", subset="en", split="test")


def test_a_check_finds_problems_in_the_first_rows_and_downloads_nothing(monkeypatch):
    assert look_at_examples(write(GOOD, GOOD), kind="conversation") is None
    with pytest.raises(UserError, match="are not recognized"):
        look_at_examples(write({"foo": 1}), kind="conversation")
    with pytest.raises(UserError, match="has the role 'developer'"):
        look_at_examples(write({"messages": [{"role": "developer", "content": "x"}]}), kind="conversation")
    assert "was not checked" in look_at_examples("owner/name", kind="conversation")


@pytest.mark.parametrize(
    "messages",
    [
        [
            USER,
            {"role": "assistant", "content": "", "tool_calls": [{"f": 1}]},
            {"role": "tool", "content": "x"},
            ANSWER,
        ],
        [USER, {"role": "assistant", "content": "x", "function_call": {"name": "f"}}],
        [USER, {"role": "function", "content": "x"}, ANSWER],
        [{"from": "human", "value": "x"}, {"from": "observation", "value": "x"}, {"from": "gpt", "value": "y"}],
    ],
)
def test_conversations_with_tools_are_left_out_and_counted(messages):
    source = open_examples(write({"messages": [USER, ANSWER]}, {"messages": messages}), kind="conversation")
    assert source.counts.kept == 1
    assert source.counts.dropped == {"tool calls, which are not supported": 1}


@pytest.mark.parametrize("excluded", [{"weight": 0}, {"weight": 0.0}, {"train": False}])
def test_an_answer_with_weight_0_is_read_but_not_trained(excluded):
    again = {"role": "user", "content": "Again?"}
    rows = [
        {"messages": [USER, {**ANSWER, **excluded}, again, {**ANSWER, "weight": 1}]},
        {"messages": [USER, {**ANSWER, **excluded}]},
    ]
    source = open_examples(write(*rows), kind="conversation")
    assert [message.get("train", True) for message in source.examples[0].messages] == [True, False, True, True]
    assert source.counts.dropped == {"no answer with weight 1": 1}
    other = open_examples(write({"messages": [USER, ANSWER, again, ANSWER]}), kind="conversation")
    assert other.fingerprint != source.fingerprint


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_the_reasoning_of_an_answer_is_kept(key):
    rows = [{"messages": [USER, {**ANSWER, key: "Think."}, USER, {**ANSWER, key: "Again."}]}]
    messages = open_examples(write(*rows), kind="conversation").examples[0].messages
    assert [message.get("reasoning_content") for message in messages] == [None, "Think.", None, "Again."]


def test_answers_inside_a_prompt_are_examples_to_read_and_only_the_completion_is_trained():
    row = {"prompt": [USER, ANSWER, {"role": "user", "content": "Next?"}], "completion": [ANSWER]}
    example = open_examples(write(row, {**row, "prompt": [*row["prompt"][:2], USER]}), kind="conversation").examples[0]
    assert [message.get("train", True) for message in example.messages] == [True, False, True, True]
    # Prompts with the same examples but other questions may be on both sides of the split.
    assert "Next?" in example.opening


@pytest.mark.skipif(not (SHARED / "gsm8k_train.jsonl").exists(), reason="GSM8K is not available")
def test_gsm8k_is_read_with_complete_answers():
    source = open_examples(str(SHARED / "gsm8k_train.jsonl"), kind="prompt")
    assert source.format == "question/answer"
    assert source.counts.kept == source.counts.read == 7473
    assert all("\n#### " in example.answer for example in source.examples)
