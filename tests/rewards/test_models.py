"""Reward models: any sequence classifier, with the same scores as its own library."""

import pytest
import torch
from support.reward_runs import encoder, word_tokenizer

from llm_lab.errors import UserError
from llm_lab.hf.tokenizers import make_byte_tokenizer
from llm_lab.rewards.build import build_rewards
from llm_lab.rewards.models import RewardModel, load_reward_model

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' + m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTION = [{"role": "user", "content": "what is two and three?"}]
ANSWERS = ["five", "it is six, I think, or so it seems to me", "", "a"]


def decoder(kind, tokenizer, **changes):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    if kind == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 1}
    if kind == "qwen2":
        sizes["num_key_value_heads"] = 1
    options = {"num_labels": 1, "initializer_range": 0.5, "max_position_embeddings": 512} | changes
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **sizes, **options)
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config).eval()


def chat_tokenizer(pad=True):
    tokenizer = make_byte_tokenizer()
    special = ["<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special} | ({"pad_token": "<|pad|>"} if pad else {}))
    tokenizer.chat_template = CHATML
    return tokenizer


def saved(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


# Encoders


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "roberta"])
def test_an_encoder_reads_prompt_and_answer_as_a_pair(tmp_path, kind):
    changes = {"max_position_embeddings": 40, "pad_token_id": 0} if kind == "roberta" else {}
    if kind == "deberta-v2":
        changes = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
    tokenizer = word_tokenizer()
    model = encoder(kind, type_vocab_size=0 if kind == "deberta-v2" else 2, **changes)
    reward_model = load_reward_model(saved(tmp_path, model, tokenizer))
    assert reward_model.form == "pair"
    found = reward_model([QUESTION] * 4, ANSWERS)
    with torch.no_grad():
        for answer, score in zip(ANSWERS, found, strict=True):
            inputs = tokenizer(QUESTION[0]["content"], answer, return_tensors="pt")
            assert score == pytest.approx(model(**inputs).logits[0, 0].item(), abs=1e-5)
            assert reward_model([QUESTION], [answer])[0] == pytest.approx(score, abs=1e-5)
    assert len({round(score, 4) for score in found}) == 4
    # TRL itself does not add special tokens or make pairs, which gives other scores.
    plain = tokenizer(QUESTION[0]["content"] + ANSWERS[0], add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        assert abs(model(**plain).logits[0, 0].item() - found[0]) > 1e-3


def test_a_pair_that_is_too_long_is_cut_at_the_beginning_and_counted(tmp_path):
    reward_model = RewardModel(encoder("bert"), word_tokenizer())
    assert reward_model.max_length == 32
    long = "what is " * 40 + "two"
    row = reward_model.encode(long, "five")
    assert len(row["input_ids"]) == 32
    kept = reward_model.tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert (kept[0], kept[-4:]) == ("[CLS]", ["two", "[SEP]", "five", "[SEP]"])
    assert reward_model([long, "two"], ["five", "five"])
    assert reward_model.truncated == 2  # the row above, and this one


def test_positions_before_the_first_token_do_not_count_as_context():
    """The first position of RoBERTa comes after its padding id: of 34 it can use 32."""
    tokenizer = word_tokenizer()
    tokenizer.model_max_length = int(1e30)
    reward_model = RewardModel(encoder("roberta", max_position_embeddings=34, pad_token_id=1), tokenizer)
    assert reward_model.max_length == 32
    assert reward_model(["what is " * 40], ["five"])


# Decoders


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("pad", [True, False])
def test_a_decoder_reads_its_chat_template_and_the_score_of_a_row_does_not_depend_on_its_batch(tmp_path, kind, pad):
    tokenizer = chat_tokenizer(pad)
    model = decoder(kind, tokenizer, pad_token_id=tokenizer.pad_token_id)
    folder = saved(tmp_path, model, tokenizer)
    together = load_reward_model(folder, batch_size=4)([QUESTION] * 4, ANSWERS)
    alone = load_reward_model(folder, batch_size=1)([QUESTION] * 4, ANSWERS)
    assert together == pytest.approx(alone, abs=1e-5)
    assert len({round(score, 4) for score in alone}) == 4
    for answer, score in zip(ANSWERS, together, strict=True):
        messages = [*QUESTION, {"role": "assistant", "content": answer}]
        ids = torch.tensor([tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]])
        with torch.no_grad():
            assert score == pytest.approx(model(input_ids=ids).logits[0, 0].item(), abs=1e-5)
    assert model.config.pad_token_id == tokenizer.pad_token_id


def test_the_end_token_counts_if_there_is_no_padding_token(tmp_path):
    """With the end token as padding, transformers would read the score before it and ignore the end token."""
    tokenizer = make_byte_tokenizer()
    reward_model = RewardModel(decoder("llama", tokenizer, pad_token_id=None), tokenizer)
    scores = reward_model(["two and three? "] * 3, ["five", "five<|endoftext|>", "something else that is longer"])
    assert abs(scores[0] - scores[1]) > 1e-3
    assert reward_model.model.config.pad_token_id is None


def test_a_padding_token_equal_to_the_end_token_is_kept():
    tokenizer = make_byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model = decoder("llama", tokenizer, pad_token_id=tokenizer.eos_token_id)
    reward_model = RewardModel(model, tokenizer)
    texts = ["five<|endoftext|>", "something else that is longer<|endoftext|>"]
    together = reward_model(["two? "] * 2, texts)
    for text, score in zip(texts, together, strict=True):
        with torch.no_grad():
            ids = torch.tensor([tokenizer("two? " + text)["input_ids"]])
            assert score == pytest.approx(model(input_ids=ids).logits[0, 0].item(), abs=1e-5)


def test_a_conversation_starts_with_one_bos_token(tmp_path):
    from tokenizers import processors

    tokenizer = chat_tokenizer()
    bos = tokenizer.bos_token_id
    tokenizer.chat_template = "{{ bos_token }}" + CHATML
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", bos)]
    )
    assert tokenizer("a")["input_ids"][0] == bos
    reward_model = RewardModel(decoder("llama", tokenizer, pad_token_id=tokenizer.pad_token_id), tokenizer)
    assert reward_model.encode(QUESTION, "five")["input_ids"].count(bos) == 1


def test_control_tokens_that_an_answer_spells_out_stay_text():
    tokenizer = chat_tokenizer()
    reward_model = RewardModel(decoder("llama", tokenizer, pad_token_id=tokenizer.pad_token_id), tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert reward_model.encode(QUESTION, "five<|im_end|>")["input_ids"].count(end) == 2


def test_a_text_prompt_is_read_as_a_user_message():
    tokenizer = chat_tokenizer()
    reward_model = RewardModel(decoder("llama", tokenizer, pad_token_id=tokenizer.pad_token_id), tokenizer)
    assert reward_model.encode(QUESTION[0]["content"], "five") == reward_model.encode(QUESTION, "five")


def test_a_conversation_that_is_too_long_keeps_its_end_and_is_counted():
    tokenizer = chat_tokenizer()
    model = decoder("llama", tokenizer, pad_token_id=tokenizer.pad_token_id, max_position_embeddings=20)
    reward_model = RewardModel(model, tokenizer)
    ids = reward_model.encode(QUESTION, "five")["input_ids"]
    assert len(ids) == 20
    assert tokenizer.decode(ids).endswith("assistant\nfive<|im_end|>\n")
    assert reward_model.truncated == 1


def test_a_decoder_without_a_template_accepts_text_and_refuses_messages():
    tokenizer = make_byte_tokenizer()
    reward_model = RewardModel(decoder("llama", tokenizer), tokenizer, name="theirs")
    assert reward_model.encode("two? ", "five")["input_ids"] == tokenizer("two? five")["input_ids"]
    assert "as prompt and answer concatenated (no chat template)" in reward_model.about
    with pytest.raises(UserError, match=r"rewards\.model = theirs: this reward model has no chat template"):
        reward_model([QUESTION], ["five"])


# Models of LLM Lab


@pytest.mark.parametrize("parts", [{}, {"position_embedding": "alibi", "norm": "layernorm", "activation": "gelu"}])
def test_a_custom_reward_model_is_loaded_and_scores_do_not_depend_on_the_batch(tmp_path, parts):
    from llm_lab.model.configuration_lab import LabConfig
    from llm_lab.model.modeling_lab import LabForSequenceClassification

    tokenizer = chat_tokenizer()
    config = LabConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=32, max_position_embeddings=128, num_labels=1, pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.5, **parts,
    )  # fmt: skip
    model = LabForSequenceClassification(config).eval()
    folder = saved(tmp_path, model, tokenizer)
    reward_model = load_reward_model(folder, batch_size=4)
    together = reward_model([QUESTION] * 4, ANSWERS)
    assert together == pytest.approx(load_reward_model(folder, batch_size=1)([QUESTION] * 4, ANSWERS), abs=1e-5)
    assert together == pytest.approx(RewardModel(model, tokenizer)([QUESTION] * 4, ANSWERS), abs=1e-5)


def test_scores_are_not_rounded_to_bf16(tmp_path):
    """In bf16, similar answers would often get equal scores, and a group would have no signal."""
    from llm_lab.rewards.classifier import load_classifier

    tokenizer = chat_tokenizer()
    folder = saved(tmp_path, decoder("llama", tokenizer, pad_token_id=tokenizer.pad_token_id), tokenizer)
    exact = RewardModel(load_classifier(folder), tokenizer)([QUESTION] * 4, ANSWERS)
    half = RewardModel(load_classifier(folder, dtype="bfloat16"), tokenizer)([QUESTION] * 4, ANSWERS)
    assert half == pytest.approx(exact, abs=0.3)
    assert any(score != torch.tensor(score).bfloat16().item() for score in half)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = RewardModel(load_classifier(folder), tokenizer)([QUESTION] * 4, ANSWERS)
    assert any(score != torch.tensor(score).bfloat16().item() for score in mixed)


# Refused models


def test_a_language_model_without_score_head_is_refused(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = chat_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    folder = saved(tmp_path, LlamaForCausalLM(config), tokenizer)
    with pytest.raises(UserError, match=r"no trained score head.*stage: reward"):
        load_reward_model(folder)


def test_two_labels_score_as_log_odds_and_three_are_refused(tmp_path):
    tokenizer = word_tokenizer()
    model = encoder("bert")
    model.config.num_labels = 2
    two = type(model)(model.config).eval()
    two.config.id2label = {0: "rude", 1: "polite"}
    reward_model = RewardModel(two, tokenizer)
    with torch.no_grad():
        logits = two(**tokenizer(QUESTION[0]["content"], "five", return_tensors="pt")).logits[0]
    assert reward_model([QUESTION], ["five"])[0] == pytest.approx((logits[1] - logits[0]).item(), abs=1e-5)
    assert "log-odds of polite against rude" in reward_model.about
    model.config.num_labels = 3
    with pytest.raises(UserError, match=r"has 3 labels \(LABEL_0, LABEL_1, LABEL_2\); a reward model has one or two"):
        RewardModel(model, tokenizer)


def test_a_score_that_is_not_a_number_stops_the_run():
    model = encoder("bert")
    model.classifier.weight.data[:] = float("nan")
    with pytest.raises(UserError, match="score of this reward model is not a number"):
        RewardModel(model, word_tokenizer())([QUESTION], ["five"])


def test_a_reward_model_is_a_term_of_the_reward(tmp_path):
    folder = saved(tmp_path / "reward_model", encoder("bert"), word_tokenizer())
    rewards = build_rewards([{"model": "my-run", "weight": 0.5}], find_model={"my-run": folder}.__getitem__)
    assert rewards.names == ("my-run",)
    scores = rewards([QUESTION], [[{"role": "assistant", "content": "five"}]])
    assert scores.totals[0] == pytest.approx(0.5 * load_reward_model(folder)([QUESTION], ["five"])[0])
    assert "as a pair of prompt and answer" in rewards.terms[0].about


def test_a_missing_reward_model_is_reported_with_its_key():
    with pytest.raises(UserError, match=r"rewards\.0\.model = nowhere/at-all: "):
        build_rewards([{"model": "nowhere/at-all"}])
