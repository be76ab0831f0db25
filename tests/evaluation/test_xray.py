"""The data X-ray: it shows exactly the tokens and masks that the stages train on."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import tiny_recipe, write_text
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from llm_lab.cli import main
from llm_lab.data.examples import open_examples
from llm_lab.evaluation.xray import xray_stages
from llm_lab.hf.chat_templates import apply_chat_template_choice
from llm_lab.hf.conversations import encode_conversation
from llm_lab.hf.tokenizers import make_byte_tokenizer
from llm_lab.job import check

TALKS = [
    {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good <|im_end|> day."}]},
    *(
        {"messages": [{"role": "user", "content": f"{i}+1?"}, {"role": "assistant", "content": str(i + 1)}]}
        for i in (1, 2, 3, 3)
    ),
    {"messages": [{"role": "user", "content": "And you?"}]},
]
PREFERENCES = [{"prompt": f"{i}+1?", "chosen": str(i + 1), "rejected": "seven"} for i in range(20)]
PROMPTS = [{"prompt": f"{i}+1?", "answer": i + 1} for i in range(20)]
STAGES = {
    "sft": {"data": [{"path": "talks.jsonl"}], "validation": {"fraction": 0.0}},
    "dpo": {"data": [{"path": "preferences.jsonl"}]},
    "reward": {"data": [{"path": "preferences.jsonl"}]},
    "grpo": {
        "data": [{"path": "prompts.jsonl"}],
        "rewards": [{"name": "exact_match"}],
        "grpo": {"max_completion_length": 8},
    },
    "ppo": {
        "data": [{"path": "prompts.jsonl"}],
        "rewards": [{"name": "exact_match"}],
        "ppo": {"max_completion_length": 8},
    },
}


@pytest.fixture(autouse=True)
def _data(in_tmp_path):
    write_text("text.txt")
    for name, rows in (("talks", TALKS), ("preferences", PREFERENCES), ("prompts", PROMPTS)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def pipeline(*stages, **changes):
    base = tiny_recipe(**{"model.max_position_embeddings": 64}) | {"name": "base"}
    later = [{"stage": stage, "device": "cpu", **STAGES[stage]} for stage in stages]
    for stage in later:
        stage["train"] = {"max_length": 64} | changes
    return {"stages": [base, *later]}


def xray(*stages, **changes):
    job = check(pipeline(*stages, **changes))
    return xray_stages([resolved.recipe for resolved in job.stages])


def test_an_evaluation_shows_its_progress():
    said = []
    job = check(pipeline("sft"))
    xray_stages([resolved.recipe for resolved in job.stages], say=said.append)
    assert said[0] == "Turning the data into tokens: data.0, document 1"
    assert any(text.startswith("Turning the data into tokens: data.0, example 1 of ") for text in said)


def shown(example, **kind):
    return "".join(span.text for span in example.spans if all(getattr(span, k) == v for k, v in kind.items()))


def test_trained_tokens_of_a_conversation_are_shown():
    _, sft = xray("sft")
    (found,) = sft.sets
    first = found.examples[0]
    assert shown(first) == found.rendered
    assert shown(first, trained=True) == "Good <|im_end|> day.<|im_end|>"
    assert shown(first, trained=True, special=True) == "<|im_end|>"
    assert shown(first, special=True) == "<|im_start|><|im_end|><|im_start|><|im_end|>"
    assert "every trained answer ends with the end-of-turn token" in found.checks


def test_lengths_and_shares_are_those_of_the_encoded_examples():
    _, sft = xray("sft")
    (found,) = sft.sets
    tokenizer = make_byte_tokenizer()
    apply_chat_template_choice(tokenizer)
    examples = open_examples("talks.jsonl", kind="conversation").examples
    encoded = [encode_conversation(tokenizer, example.messages) for example in examples]
    assert found.lengths == {"conversation": tuple(row.length for row in encoded)}
    trained, tokens = (sum(counts) for counts in zip(*((r.trained_tokens, r.length) for r in encoded), strict=True))
    assert found.trained_share == pytest.approx(trained / tokens)
    assert "5 of 6 rows; 1: no answer" in found.description
    assert found.split == "5 for training, 0 for validation"
    assert found.warnings == ("1 duplicate examples",)


def test_truncation_is_a_warning_before_the_run():
    (_, sft) = xray("sft", max_length=21)
    (found,) = sft.sets
    text = " ".join(found.warnings)
    assert "5 are longer than train.max_length = 21 tokens; their end is cut off" in text
    assert "5 have no tokens in the loss left" in text
    assert not found.checks
    (_, sft) = xray("sft", max_length=40)
    assert "1 are trained without an end-of-turn token" in " ".join(sft.sets[0].warnings)


def test_both_answers_of_a_preference_are_trained_and_its_prompt_is_masked():
    _, dpo = xray("dpo")
    (found,) = dpo.sets
    assert [example.label for example in found.examples] == ["chosen", "rejected"] * 2
    assert shown(found.examples[0], trained=True).endswith("<|im_end|>")
    assert shown(found.examples[1], trained=True) == "seven<|im_end|>"
    assert set(found.lengths) == {"chosen", "rejected"}


def test_no_token_of_a_reward_models_data_is_trained():
    _, reward = xray("reward", max_length=20)
    (found,) = reward.sets
    assert found.trained_share is None
    assert all(example.trained_tokens == 0 for example in found.examples)
    assert "their beginning is cut off" in found.warnings[0]
    assert shown(found.examples[1]).endswith("seven<|im_end|>\n")


def test_an_encoder_gets_pairs_of_prompt_and_answer():
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"0123456789+?",
        *(f"##{c}" for c in "0123456789+?"),
        "seven",
    ]
    Path("vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab="vocab.txt").save_pretrained("encoder")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=64, num_labels=1, **sizes)
    BertForSequenceClassification(config).save_pretrained("encoder")
    recipe = {"stage": "reward", "device": "cpu", "model": {"checkpoint": "encoder"}, **STAGES["reward"]}
    job = check(recipe | {"train": {"max_length": 32}})
    (reward,) = xray_stages([job.stages[0].recipe])
    assert "reads pairs" in reward.template
    assert shown(reward.sets[0].examples[1]).replace(" ", "").endswith("[SEP]seven[SEP]")
    assert reward.sets[0].rendered is None


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_prompts_are_shown_with_their_reference_answers(stage):
    _, found = xray(stage)
    example = found.sets[0].examples[0]
    assert shown(example).endswith("?<|im_end|>\n<|im_start|>assistant\n")
    assert example.reference is not None
    assert example.reference.isdigit()
    assert found.sets[0].trained_share is None
    _, short = xray(stage, max_length=16)
    assert "leave no room for an output, and are skipped" in short.sets[0].warnings[0]


def test_texts_are_shown_with_the_token_that_ends_a_document():
    (pretrain,) = xray()
    (found,) = pretrain.sets
    assert shown(found.examples[0], special=True) == "<|endoftext|>"
    assert "tokens ..." in shown(found.examples[0])  # for a long document, the beginning and the end are shown
    assert found.lengths["document"] == (len(Path("text.txt").read_bytes()) + 1,)


def test_a_stage_uses_the_tokenizer_of_the_stage_before_it():
    pretrain, sft, dpo = xray("sft", "dpo")
    assert "new tokens: <|im_end|>, <|im_start|>, <|pad|>" in sft.template
    assert "own chat template" in dpo.template
    assert [stage.stage for stage in (pretrain, sft, dpo)] == ["pretrain", "sft", "dpo"]


def xray_output(capsys, *arguments):
    Path("life.yaml").write_text(yaml.safe_dump(pipeline("sft", "grpo")))
    assert main(["xray", "life.yaml", *arguments]) == 0
    return capsys.readouterr().out


def test_without_colors_brackets_mark_trained_tokens(capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    text = xray_output(capsys)
    assert "⟦Good <|im_end|> day.‹<|im_end|>›⟧" in text
    assert "⟦trained⟧  masked  ‹special token›" in text
    assert "reference answer: " in text
    assert "\x1b[" not in text


def test_with_colors_trained_tokens_are_also_underlined(capsys, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    text = xray_output(capsys)
    assert "\x1b[1;4;32mGood <|im_end|> day.\x1b[0m" in text
    assert "⟦" not in text


def test_the_requested_number_of_examples_is_shown(capsys):
    assert xray_output(capsys, "--examples", "1").count("conversation: ") == 2  # the lengths and one example
    assert xray_output(capsys, "--examples", "3").count("conversation: ") == 4


def test_unreadable_data_is_the_same_error_as_in_a_run(capsys):
    Path("talks.jsonl").write_text('{"foo": 1}\n')
    Path("life.yaml").write_text(yaml.safe_dump(pipeline("sft")))
    assert main(["xray", "life.yaml"]) == 2
    assert "are not recognized: foo" in capsys.readouterr().err


def test_plain_text_shows_where_each_token_ends(capsys, monkeypatch):
    Path("accents.txt").write_text("Été à Köln\n")
    recipe = tiny_recipe(tokenizer="bytes", data=[{"path": "accents.txt"}])
    example = xray_stages([check(recipe).stages[0].recipe], examples=1)[0].sets[0].examples[0]
    assert example.by_token
    assert [span.text for span in example.spans[:5]] == ["É", "t", "é", " ", "à"]
    monkeypatch.setenv("NO_COLOR", "1")
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["xray", "recipe.yaml"]) == 0
    assert "É│t│é│ │à" in capsys.readouterr().out
