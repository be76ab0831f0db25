"""For every chat template that TRL ships: only the assistant's words are trained on, none of them is lost without a
reason, and the prompt in inference is token for token the beginning of the training sequence.

The checks do not depend on how answers are found: they compare tokens with the messages, and prompts with transformers.
"""

import importlib.util
import re
from datetime import date
from pathlib import Path

import pytest

from llm_lab.hf.conversations import SPLIT, encode_answer, encode_prompt, encode_sequences
from llm_lab.hf.rendering import REASONING, Refused, pin_date, reads_the_clock
from llm_lab.hf.turns import EMPTY, NO_END, NO_PROMPT, NO_REASONING

ROOT = Path(__file__).resolve().parents[2]


def generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DOCS = generator()
SHAPES, TEMPLATES = DOCS.SHAPES, DOCS.shipped_templates()
# Text that templates write within an answer, apart from control tokens and white space.
SCAFFOLD = re.compile(
    r"</?think>|final|analysis|thought|assistant|commentary|json|to=(user|self|functions\.|)|"
    r"</?(tool_call|arg_key|arg_value|function|parameter|atem:\w+)[^>]*>|call:|response|function|"
    r"type|name|arguments|parameters|python_tag|first|second|add_up|zwölf|30|[\[\]{}()\"':=,;`|<>/_.]"
)


def tokenizer_of(name):
    tokenizer = DOCS.tokenizer_with(TEMPLATES[name])
    pin_date(tokenizer, date.today().isoformat())
    return tokenizer


def squash(text):
    return "".join(text.split())


def runs(sequence):
    """Yield (start, tokens) of each stretch of trained tokens."""
    start = None
    for number, mask in enumerate([*sequence.labels_mask, 0]):
        if mask and start is None:
            start = number
        elif not mask and start is not None:
            yield start, sequence.input_ids[start:number]
            start = None


def said_by(message):
    """Return the text of an assistant's message: its reasoning and its content."""
    content = message["content"]
    thought = re.match(r"<think>\s*(.*?)\s*</think>\s*", content, re.DOTALL)
    reasoning = next((message[key] for key in REASONING if message.get(key)), thought[1] if thought else "")
    return squash(reasoning), squash(content[thought.end() :] if thought else content)


def prompt_of_transformers(tokenizer, messages):
    """Return the text of the prompt in inference; templates for images read content as parts."""
    parts = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in messages]
    options = {"tokenize": False, "add_generation_prompt": True}
    try:
        text = tokenizer.apply_chat_template(messages, **options)
        return text if messages[0]["content"].strip() in text else tokenizer.apply_chat_template(parts, **options)
    except Exception:
        return tokenizer.apply_chat_template(parts, **options)


def check(tokenizer, messages):
    """Check every sequence of a conversation; return the numbers of the messages that are trained, and the remarks."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    found = encode_sequences(tokenizer, messages)
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    prompts = {number: encode_prompt(tokenizer, messages[:number]) for number in answers if number}
    trained = []
    for sequence in found.sequences:
        for start, ids in runs(sequence):
            number = next(n for n in prompts if len(prompts[n]) == start and n not in trained)
            trained.append(number)
            # The prompt in inference is the beginning of the sequence, and equals that of transformers.
            assert sequence.input_ids[:start] == prompts[number]
            assert tokenizer.decode(prompts[number]) == prompt_of_transformers(tokenizer, messages[:number])
            # The answer ends with exactly one control token, and nothing before that end is one.
            assert ids[-1] in special
            reasoning, content = said_by(messages[number])
            text = squash(tokenizer.decode(ids))
            assert content in text, (content, text)
            left = text[: text.rindex(content)] + " " + text[text.rindex(content) + len(content) :]
            if NO_REASONING not in found.remarks:
                assert reasoning in left, (reasoning, left)
                left = left.replace(reasoning, " ", 1)
            # The rest belongs to the template, and not to another message.
            for control in sorted((tokenizer.added_tokens_decoder[i].content for i in special), key=len, reverse=True):
                left = left.replace(control, " ")
            assert not SCAFFOLD.sub(" ", left).split(), (left, text)
    assert sorted(trained) == sorted(set(trained))
    return trained, found.remarks


@pytest.mark.parametrize("name", TEMPLATES)
def test_only_the_words_of_the_assistant_are_trained_after_the_prompt_of_inference(name):
    tokenizer = tokenizer_of(name)
    refusals = []
    for shape, messages in SHAPES.items():
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        try:
            trained, remarks = check(tokenizer, messages)
        except Refused as refused:
            refusals.append(str(refused))
            continue
        reasons = set(remarks) - {SPLIT, NO_REASONING}
        assert not set(answers) - set(trained) or reasons, f"{shape}: an answer is lost without a reason"
        empty = [
            number for number in answers if not messages[number]["content"] and "tool_calls" not in messages[number]
        ]
        assert not set(empty) & set(trained)
        assert not empty or EMPTY in remarks
        assert 0 not in answers or NO_PROMPT in remarks
    assert all(text.startswith("chat_template: ") and len(text) > 80 for text in refusals)


def test_nine_of_ten_templates_train_conversations_of_several_turns():
    reasons = []
    for name in TEMPLATES:
        try:
            assert len(check(tokenizer_of(name), SHAPES["several"])[0]) == 2
        except Refused as refused:
            reasons.append(refused.reason)
    assert len(TEMPLATES) >= 40
    assert set(reasons) <= {NO_END}
    assert len(reasons) <= 0.1 * len(TEMPLATES)


@pytest.mark.parametrize("name", ["gptoss", "qwen3", "deepseekv3", "glm4moe", "nemotron_3_nano", "cohere2", "phi3"])
def test_an_answer_of_a_preference_follows_its_prompt_and_ends_its_turn(name):
    tokenizer = tokenizer_of(name)
    messages = SHAPES["several"]
    prompt, answer = encode_answer(tokenizer, messages[:3], "Since Monday, I think.")
    assert prompt == encode_prompt(tokenizer, messages[:3])
    assert prompt + answer == encode_sequences(tokenizer, messages).sequences[-1].input_ids[: len(prompt + answer)]
    assert answer[-1] in tokenizer.all_special_ids or answer[-1] in tokenizer.added_tokens_decoder
    assert squash("Since Monday, I think.") in squash(tokenizer.decode(answer))


def test_each_answer_ends_with_its_own_end_of_turn():
    tokenizer = tokenizer_of("gptoss")
    ends = []
    for messages in (SHAPES["several"], SHAPES["tool call"]):
        for sequence in encode_sequences(tokenizer, messages).sequences:
            ends += [tokenizer.decode(ids[-1:]) for _, ids in runs(sequence)]
    assert ends == ["<|return|>", "<|return|>", "<|call|>", "<|return|>"]


def test_reasoning_is_trained_if_the_template_writes_it_and_reported_otherwise():
    messages = SHAPES["reasoning key"]
    trained = {}
    for name in ("qwen3", "gptoss", "deepseekv3", "chatml-like"):
        template = TEMPLATES["qwen2_5"] if name == "chatml-like" else TEMPLATES[name]
        tokenizer = DOCS.tokenizer_with(template)
        found = encode_sequences(tokenizer, messages)
        texts = "".join(tokenizer.decode(ids) for sequence in found.sequences for _, ids in runs(sequence))
        trained[name] = "They want a name." in texts and "What day was it?" in texts
        assert trained[name] == (NO_REASONING not in found.remarks)
    assert trained == {"qwen3": True, "gptoss": True, "deepseekv3": True, "chatml-like": False}


def test_an_answer_of_a_preference_whose_reasoning_the_template_leaves_out_is_refused():
    tokenizer = tokenizer_of("qwen3_5_nothink")
    question, answer = SHAPES["`<think>`"][:2]
    with pytest.raises(Refused, match="reasoning is not trained"):
        encode_answer(tokenizer, [question], answer["content"])
    assert encode_answer(tokenizer_of("qwen3_5_think"), [question], answer["content"])


def test_an_answer_that_its_data_excludes_is_read_and_not_trained():
    tokenizer = tokenizer_of("llama3")
    messages = [dict(message) for message in SHAPES["several"]]
    messages[1]["train"] = False
    whole = encode_sequences(tokenizer, SHAPES["several"]).sequences[0]
    found = encode_sequences(tokenizer, messages).sequences[0]
    assert found.input_ids == whole.input_ids
    assert [tokenizer.decode(ids) for _, ids in runs(found)] == ["Since Monday, I think.<|eot_id|>"]


def test_a_template_that_reads_the_clock_gets_one_date_for_good(tmp_path):
    from llm_lab.hf.tokenizers import load_tokenizer

    tokenizer = DOCS.tokenizer_with(TEMPLATES["llama3_2"])
    assert reads_the_clock(tokenizer)
    assert pin_date(tokenizer, "2024-02-03") == "2024-02-03"
    assert "Today Date: 03 Feb 2024" in tokenizer.decode(encode_prompt(tokenizer, SHAPES["one answer"][:1]))
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert pin_date(again) == "2024-02-03"
    assert encode_prompt(again, SHAPES["one answer"][:1]) == encode_prompt(tokenizer, SHAPES["one answer"][:1])
    assert pin_date(DOCS.tokenizer_with(TEMPLATES["llama3"])) is None
