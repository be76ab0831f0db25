"""What eval promises: losses on any text, of any model; answers, speed; kept with the checkpoint."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import WORDS, write_text
from support.measured_models import STRANGE, Told, gpt2_model, tokenizer_named

from llm_lab.data.encoding import Encoder
from llm_lab.data.sources import open_source
from llm_lab.errors import UserError
from llm_lab.evaluation.perplexity import length_within, measure_text, total_of
from llm_lab.hf.tokenizers import make_byte_tokenizer

MEASURED = {"max_tokens": 10_000, "max_length": 32, "rows": 4, "device": "cpu", "dtype": "float32"}


def write_rows(path: str, texts: list[str]) -> str:
    Path(path).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.mark.parametrize("name", ["bytes", "bpe", "no bos", "pieces", "gpt2"])
def test_the_loss_of_a_short_text_is_hugging_faces_own_loss_of_it(name, in_tmp_path):
    tokenizer = tokenizer_named(name)
    model = gpt2_model(tokenizer)
    text = "a small red river sings over the old stone."
    Path("one.txt").write_text(text)

    row = measure_text(model, tokenizer, open_source("one.txt"), **MEASURED | {"max_length": 64}, listener=Told())

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
def test_every_token_of_every_document_is_a_target_once_in_pieces_of_the_context(name, in_tmp_path):
    tokenizer = tokenizer_named(name)
    model = gpt2_model(tokenizer)
    texts = ["the tree waits.", STRANGE, " ".join(WORDS) * 3, "a"]
    source = open_source(write_rows("rows.jsonl", texts), text_column="text")

    row = measure_text(model, tokenizer, source, **MEASURED, listener=Told())

    nats = count = 0
    for text in texts:
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        for i in range(1, len(ids)):
            seen = ids[(i - 1) // 32 * 32 : i]  # a block of 32 begins with the token before its first target
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([seen])).logits[0, -1]
            nats, count = nats - logits.log_softmax(-1)[ids[i]].item(), count + 1
    assert (row["documents"], row["tokens"], row["whole"]) == (4, count, True)
    assert row["bytes"] == sum(len(text.encode()) for text in texts)
    assert row["loss"] == pytest.approx(nats / count, rel=1e-4)


@pytest.mark.parametrize("name", ["bytes", "bpe", "pieces", "gpt2"])
@pytest.mark.parametrize("most", [2, 7, 31, 100])
def test_a_text_that_is_cut_counts_the_bytes_of_the_tokens_that_were_measured(name, most, in_tmp_path):
    tokenizer = tokenizer_named(name)
    source = open_source(write_rows("rows.jsonl", ["ab", STRANGE]), text_column="text")

    options = MEASURED | {"max_tokens": most}
    row = measure_text(gpt2_model(tokenizer), tokenizer, source, **options, listener=Told())

    assert most - 4 < row["tokens"] <= most  # no character is cut, and one has four bytes at most
    second = tokenizer(STRANGE, add_special_tokens=False)["input_ids"]
    first = tokenizer("ab", add_special_tokens=False)["input_ids"]
    spelt = len(tokenizer.decode(second[: max(0, row["tokens"] - len(first))]).encode())
    assert not row["whole"]
    assert row["bytes"] == min(2, row["tokens"] - (name == "pieces")) + spelt


def test_the_beginning_of_a_text_never_ends_within_a_character():
    tokenizer = make_byte_tokenizer()
    encoder, text = Encoder(tokenizer), "a「川」🌊b"
    for count in range(len(text.encode()) + 2):
        ids, spelt = encoder.beginning(text, count)
        assert len(ids) <= count
        assert bytes(ids).decode() == spelt
        assert text.startswith(spelt)
        assert count - len(ids) < 4


def test_several_texts_are_one_in_the_total(in_tmp_path):
    tokenizer = make_byte_tokenizer()
    model = gpt2_model(tokenizer)
    texts = [open_source(write_text(f"{seed}.txt", 4 + 9 * seed, seed=seed)) for seed in (0, 1)]
    rows = [measure_text(model, tokenizer, text, **MEASURED, listener=Told()) for text in texts]
    both = write_rows("both.jsonl", [Path(f"{seed}.txt").read_text() for seed in (0, 1)])
    together = measure_text(model, tokenizer, open_source(both), **MEASURED, listener=Told())
    assert total_of(rows) == pytest.approx({key: together[key] for key in ("loss", "perplexity", "bits_per_byte")})


def test_batches_and_their_padding_change_nothing(in_tmp_path):
    tokenizer = make_byte_tokenizer()
    model = gpt2_model(tokenizer)
    source = open_source(write_rows("rows.jsonl", [("the old tree " * n)[: 5 * n] for n in range(1, 14)]))
    one, many = (
        measure_text(model, tokenizer, source, **MEASURED | {"rows": rows}, listener=Told()) for rows in (1, 16)
    )
    assert one["loss"] == pytest.approx(many["loss"], rel=1e-6)


def test_a_model_whose_outputs_are_no_numbers_is_told_and_a_short_text_too(in_tmp_path):
    tokenizer = make_byte_tokenizer()
    model, told = gpt2_model(tokenizer), Told()
    source = open_source(write_text("short.txt", 2))
    measure_text(model, tokenizer, source, **MEASURED, listener=told)
    assert "tokens only" in told.notices[0]
    torch.nn.init.constant_(model.transformer.ln_f.weight, float("nan"))
    with pytest.raises(UserError, match="not numbers"):
        measure_text(model, tokenizer, source, **MEASURED, listener=told)


def test_a_model_is_shown_no_more_than_it_can_see():
    model = gpt2_model(make_byte_tokenizer(), positions=48)
    assert length_within(model, None) == 48
    assert length_within(model, None, trained=16) == 16
    assert length_within(model, 40, trained=16) == 40
    with pytest.raises(UserError, match=r"eval\.max_length = 64.*48"):
        length_within(model, 64)
