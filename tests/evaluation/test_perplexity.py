"""The loss of any model on any text: equal to Hugging Face's, each token measured once, bytes counted exactly."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import WORDS, write_text
from support.measured_models import STRANGE, Notices, gpt2_model, make_tokenizer

from llm_lab.data.encoding import Encoder
from llm_lab.data.sources import open_source
from llm_lab.errors import UserError
from llm_lab.evaluation.perplexity import context_length, measure_text, total_of
from llm_lab.hf.tokenizers import make_byte_tokenizer

MEASURED = {"max_tokens": 10_000, "max_length": 32, "rows": 4, "device": "cpu", "dtype": "float32"}


def write_rows(path: str, texts: list[str]) -> str:
    Path(path).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.mark.parametrize("name", ["bytes", "bpe", "no bos", "pieces", "gpt2"])
def test_the_loss_of_a_short_text_equals_hugging_faces(name, in_tmp_path):
    tokenizer = make_tokenizer(name)
    model = gpt2_model(tokenizer)
    text = "a small red river sings over the old stone."
    Path("one.txt").write_text(text)

    row = measure_text(model, tokenizer, open_source("one.txt"), **MEASURED | {"max_length": 64}, listener=Notices())

    opener = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    ids = torch.tensor([[opener, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    assert row["tokens"] == ids.shape[1] - 1
    assert row["bytes"] == len(text.encode())
    assert row["loss"] == pytest.approx(loss, rel=1e-5)
    assert row["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert row["bits_per_byte"] == pytest.approx(loss * row["tokens"] / math.log(2) / len(text.encode()), rel=1e-5)


@pytest.mark.parametrize("name", ["bytes", "bpe", "pieces", "gpt2"])
def test_every_token_of_every_document_is_a_target_exactly_once(name, in_tmp_path):
    tokenizer = make_tokenizer(name)
    model = gpt2_model(tokenizer)
    texts = ["the tree waits.", STRANGE, " ".join(WORDS) * 3, "a"]
    source = open_source(write_rows("rows.jsonl", texts), text_column="text")

    row = measure_text(model, tokenizer, source, **MEASURED, listener=Notices())

    nats = count = 0
    for text in texts:
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        for i in range(1, len(ids)):
            seen = ids[(i - 1) // 32 * 32 : i]  # a block of 32 targets starts with the token before them
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([seen])).logits[0, -1]
            nats, count = nats - logits.log_softmax(-1)[ids[i]].item(), count + 1
    assert (row["documents"], row["tokens"], row["whole"]) == (4, count, True)
    assert row["bytes"] == sum(len(text.encode()) for text in texts)
    assert row["loss"] == pytest.approx(nats / count, rel=1e-4)


@pytest.mark.parametrize("name", ["bytes", "bpe", "pieces", "gpt2"])
@pytest.mark.parametrize("max_tokens", [2, 7, 31, 100])
def test_a_truncated_text_counts_only_the_measured_bytes(name, max_tokens, in_tmp_path):
    tokenizer = make_tokenizer(name)
    source = open_source(write_rows("rows.jsonl", ["ab", STRANGE]), text_column="text")

    options = MEASURED | {"max_tokens": max_tokens}
    row = measure_text(gpt2_model(tokenizer), tokenizer, source, **options, listener=Notices())

    assert max_tokens - 4 < row["tokens"] <= max_tokens  # characters are never cut, and have at most four bytes
    second = tokenizer(STRANGE, add_special_tokens=False)["input_ids"]
    first = tokenizer("ab", add_special_tokens=False)["input_ids"]
    decoded = len(tokenizer.decode(second[: max(0, row["tokens"] - len(first))]).encode())
    assert not row["whole"]
    assert row["bytes"] == min(2, row["tokens"] - (name == "pieces")) + decoded


def test_a_text_is_never_truncated_within_a_character():
    tokenizer = make_byte_tokenizer()
    encoder, text = Encoder(tokenizer), "a「川」🌊b"
    for count in range(len(text.encode()) + 2):
        ids, decoded = encoder.beginning(text, count)
        assert len(ids) <= count
        assert bytes(ids).decode() == decoded
        assert text.startswith(decoded)
        assert count - len(ids) < 4


@pytest.mark.parametrize("stride", [1, 5, 32])
def test_with_a_stride_every_token_is_a_target_once_and_has_more_context(stride, in_tmp_path):
    tokenizer = make_tokenizer("bpe")
    model = gpt2_model(tokenizer)
    texts = [STRANGE, "a", " ".join(WORDS) * 3]
    source = open_source(write_rows("rows.jsonl", texts), text_column="text")
    row = measure_text(model, tokenizer, source, **MEASURED, stride=stride, listener=Notices())
    nats = count = 0
    for text in texts:
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        for i in range(1, len(ids)):
            first_of_window = max(0, 32 + (i - 32 + stride - 1) // stride * stride - 32) if i > 32 else 0
            window_end = min(first_of_window + 32, len(ids) - 1)
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids[max(0, window_end - 32) : i]])).logits[0, -1]
            nats, count = nats - logits.log_softmax(-1)[ids[i]].item(), count + 1
    assert row["tokens"] == count
    assert row["loss"] == pytest.approx(nats / count, rel=1e-4)
    assert row["stride"] == stride


def test_a_stride_longer_than_the_window_is_refused(in_tmp_path):
    tokenizer = make_byte_tokenizer()
    source = open_source(write_text("text.txt", 20))
    with pytest.raises(UserError, match=r"eval\.stride = 33"):
        measure_text(gpt2_model(tokenizer), tokenizer, source, **MEASURED, stride=33, listener=Notices())


def test_the_total_of_several_texts_equals_one_measurement_of_all(in_tmp_path):
    tokenizer = make_byte_tokenizer()
    model = gpt2_model(tokenizer)
    texts = [open_source(write_text(f"{seed}.txt", 4 + 9 * seed, seed=seed)) for seed in (0, 1)]
    rows = [measure_text(model, tokenizer, text, **MEASURED, listener=Notices()) for text in texts]
    both = write_rows("both.jsonl", [Path(f"{seed}.txt").read_text() for seed in (0, 1)])
    together = measure_text(model, tokenizer, open_source(both), **MEASURED, listener=Notices())
    assert total_of(rows) == pytest.approx({key: together[key] for key in ("loss", "perplexity", "bits_per_byte")})


def test_batch_size_and_padding_do_not_change_the_loss(in_tmp_path):
    tokenizer = make_byte_tokenizer()
    model = gpt2_model(tokenizer)
    source = open_source(write_rows("rows.jsonl", [("the old tree " * n)[: 5 * n] for n in range(1, 14)]))
    one, many = (
        measure_text(model, tokenizer, source, **MEASURED | {"rows": rows}, listener=Notices()) for rows in (1, 16)
    )
    assert one["loss"] == pytest.approx(many["loss"], rel=1e-6)


def test_nan_losses_are_an_error_and_short_texts_give_a_notice(in_tmp_path):
    tokenizer = make_byte_tokenizer()
    model, notices = gpt2_model(tokenizer), Notices()
    source = open_source(write_text("short.txt", 2))
    measure_text(model, tokenizer, source, **MEASURED, listener=notices)
    assert "tokens, so the numbers are not precise" in notices.notices[0]
    torch.nn.init.constant_(model.transformer.ln_f.weight, float("nan"))
    with pytest.raises(UserError, match="its loss is NaN or infinite"):
        measure_text(model, tokenizer, source, **MEASURED, listener=notices)


def test_the_context_length_never_exceeds_the_models_context():
    model = gpt2_model(make_byte_tokenizer(), positions=48)
    assert context_length(model, None) == 48
    assert context_length(model, None, trained=16) == 16
    assert context_length(model, 40, trained=16) == 40
    with pytest.raises(UserError, match=r"eval\.max_length = 64.*48"):
        context_length(model, 64)
