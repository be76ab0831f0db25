"""The data X-ray: what it shows of a recipe's data is what the stages learn from."""

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
from llm_lab.runner import check

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
    job, _ = check(pipeline(*stages, **changes))
    return xray_stages([resolved.recipe for resolved in job.stages])


def shown(specimen, **which):
    return "".join(run.text for run in specimen.runs if all(getattr(run, k) == v for k, v in which.items()))


def test_the_tokens_of_a_conversation_are_shown_as_they_are_learnt():
    _, sft = xray("sft")
    (found,) = sft.sets
    first = found.specimens[0]
    assert shown(first) == found.rendered
    assert shown(first, learnt=True) == "Good <|im_end|> day.<|im_end|>"
    assert shown(first, learnt=True, control=True) == "<|im_end|>"
    assert shown(first, control=True) == "<|im_start|><|im_end|><|im_start|><|im_end|>"
    assert "every answer that is learnt ends with the end of its turn" in found.good


def test_the_numbers_are_those_of_the_encoded_examples():
    _, sft = xray("sft")
    (found,) = sft.sets
    tokenizer = make_byte_tokenizer()
    apply_chat_template_choice(tokenizer)
    examples = open_examples("talks.jsonl", kind="conversation").examples
    encoded = [encode_conversation(tokenizer, example.messages) for example in examples]
    assert found.lengths == {"conversation": tuple(row.length for row in encoded)}
    learnt, tokens = (sum(counts) for counts in zip(*((r.trained_tokens, r.length) for r in encoded), strict=True))
    assert found.learnt_share == pytest.approx(learnt / tokens)
    assert "5 of 6 rows; 1: no answer" in found.description
    assert found.sides == "5 to train on, 0 for validation"
    assert found.warnings == ("1 stand in the set more than once",)


def test_what_is_cut_off_is_told_before_the_run():
    (_, sft) = xray("sft", max_length=21)
    (found,) = sft.sets
    said = " ".join(found.warnings)
    assert "5 are longer than train.max_length = 21 tokens and lose their end" in said
    assert "5 have nothing left to learn" in said
    assert not found.good
    (_, sft) = xray("sft", max_length=40)
    assert "1 are learnt without the end of a turn" in " ".join(sft.sets[0].warnings)


def test_of_a_preference_both_answers_are_learnt_and_nothing_of_the_prompt():
    _, dpo = xray("dpo")
    (found,) = dpo.sets
    assert [specimen.label for specimen in found.specimens] == ["chosen", "rejected"] * 2
    assert shown(found.specimens[0], learnt=True).endswith("<|im_end|>")
    assert shown(found.specimens[1], learnt=True) == "seven<|im_end|>"
    assert set(found.lengths) == {"chosen", "rejected"}


def test_a_reward_model_reads_all_and_learns_no_token():
    _, reward = xray("reward", max_length=20)
    (found,) = reward.sets
    assert found.learnt_share is None
    assert all(specimen.learnt == 0 for specimen in found.specimens)
    assert "lose their beginning" in found.warnings[0]
    assert shown(found.specimens[1]).endswith("seven<|im_end|>\n")


def test_an_encoder_is_shown_the_pairs_that_it_reads():
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
    BertTokenizerFast(vocab="vocab.txt").save_pretrained("judge")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=64, num_labels=1, **sizes)
    BertForSequenceClassification(config).save_pretrained("judge")
    recipe = {"stage": "reward", "device": "cpu", "model": {"checkpoint": "judge"}, **STAGES["reward"]}
    job, _ = check(recipe | {"train": {"max_length": 32}})
    (reward,) = xray_stages([job.stages[0].recipe])
    assert "reads pairs" in reward.template
    assert shown(reward.sets[0].specimens[1]).replace(" ", "").endswith("[SEP]seven[SEP]")
    assert reward.sets[0].rendered is None


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_of_prompts_it_shows_what_the_model_is_asked_and_what_its_answer_is_compared_with(stage):
    _, found = xray(stage)
    specimen = found.sets[0].specimens[0]
    assert shown(specimen).endswith("?<|im_end|>\n<|im_start|>assistant\n")
    assert specimen.note is not None
    assert specimen.note.isdigit()
    assert found.sets[0].learnt_share is None
    _, short = xray(stage, max_length=16)
    assert "leave no room for an answer, and are left out" in short.sets[0].warnings[0]


def test_texts_are_shown_with_what_ends_a_document():
    (pretrain,) = xray()
    (found,) = pretrain.sets
    assert shown(found.specimens[0], control=True) == "<|endoftext|>"
    assert "tokens ..." in shown(found.specimens[0])  # a long one is shown with its beginning and its end
    assert found.lengths["document"] == (len(Path("text.txt").read_bytes()) + 1,)


def test_a_stage_takes_the_tokenizer_that_the_one_before_will_leave():
    pretrain, sft, dpo = xray("sft", "dpo")
    assert "new tokens: <|im_end|>, <|im_start|>, <|pad|>" in sft.template
    assert "own chat template" in dpo.template
    assert [stage.stage for stage in (pretrain, sft, dpo)] == ["pretrain", "sft", "dpo"]


def printed(capsys, *arguments):
    Path("life.yaml").write_text(yaml.safe_dump(pipeline("sft", "grpo")))
    assert main(["xray", "life.yaml", *arguments]) == 0
    return capsys.readouterr().out


def test_without_colours_brackets_tell_what_is_learnt(capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    said = printed(capsys)
    assert "⟦Good <|im_end|> day.‹<|im_end|>›⟧" in said
    assert "⟦learnt⟧  only read  ‹control token›" in said
    assert "the answer to compare with: " in said
    assert "\x1b[" not in said


def test_with_colours_what_is_learnt_is_underlined_too(capsys, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    said = printed(capsys)
    assert "\x1b[1;4;32mGood <|im_end|> day.\x1b[0m" in said
    assert "⟦" not in said


def test_as_many_examples_are_shown_as_one_asks_for(capsys):
    assert printed(capsys, "--examples", "1").count("conversation: ") == 2  # the lengths, and one example
    assert printed(capsys, "--examples", "3").count("conversation: ") == 4


def test_what_can_not_be_read_is_an_error_as_in_a_run(capsys):
    Path("talks.jsonl").write_text('{"foo": 1}\n')
    Path("life.yaml").write_text(yaml.safe_dump(pipeline("sft")))
    assert main(["xray", "life.yaml"]) == 2
    assert "can't be told: foo" in capsys.readouterr().err
