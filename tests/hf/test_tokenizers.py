"""Tokenizers: bytes and a trained BPE, and the errors if one can't be loaded."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llm_lab.errors import UserError
from llm_lab.hf.hub import hub_problem
from llm_lab.hf.tokenizers import END_OF_TEXT, load_tokenizer, make_byte_tokenizer, train_bpe

BYTES = make_byte_tokenizer()
TEXTS = ["the old tree falls near the old stone\n", "  a bird sings;\tfish run – naïve 🐟 12,345\n"] * 20
BPE = train_bpe(TEXTS, 300)


@given(st.text().filter(lambda text: END_OF_TEXT not in text))
def test_bytes_round_trip_any_text_and_ids_are_byte_values(text):
    ids = BYTES(text).input_ids
    assert ids == list(text.encode())
    assert BYTES.decode(ids) == text


@given(st.text().filter(lambda text: END_OF_TEXT not in text))
def test_a_bpe_round_trips_any_text(text):
    ids = BPE(text).input_ids
    assert BPE.decode(ids) == text
    assert all(0 <= token < len(BPE) for token in ids)


@settings(max_examples=10)
@given(st.integers(257, 400))
def test_a_bpe_has_at_most_the_requested_number_of_entries(entries):
    tokenizer = train_bpe(TEXTS, entries)
    assert len(tokenizer) <= entries
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == len(tokenizer) - 1


def test_the_byte_tokenizer_has_257_entries_and_ends_a_text_with_the_last():
    assert len(BYTES) == 257
    assert BYTES.eos_token_id == BYTES.bos_token_id == 256
    assert BYTES(f"a{END_OF_TEXT}b").input_ids == [97, 256, 98]
    assert BYTES.decode([97, 256, 98], skip_special_tokens=True) == "ab"
    assert BYTES("").input_ids == []


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
def test_a_saved_tokenizer_is_the_same_in_transformers(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)):
        assert loaded.get_vocab() == tokenizer.get_vocab()
        assert (loaded.eos_token, loaded.eos_token_id) == (END_OF_TEXT, len(tokenizer) - 1)
        for text in (*TEXTS, "a , b", " double  spaces "):
            assert loaded(text).input_ids == tokenizer(text).input_ids
            assert loaded.decode(loaded(text).input_ids) == text


def test_a_bpe_is_deterministic_and_merges_frequent_pairs():
    assert train_bpe(TEXTS, 300).get_vocab() == BPE.get_vocab()
    assert len(BPE(TEXTS[0]).input_ids) < len(TEXTS[0]) / 2
    splitter = json.loads(BPE.backend_tokenizer.to_str())["pre_tokenizer"]
    assert (splitter["type"], splitter["use_regex"]) == ("ByteLevel", True), "GPT-2's, which llama.cpp supports"


def test_a_bpe_can_be_trained_on_long_documents_but_not_on_none():
    # One word of 100,000 letters: if it were not cut, every merge would scan all of it again.
    assert train_bpe(["ab" * 50_000], 260).get_vocab().keys() >= {"ab", "abab"}
    assert len(train_bpe([], 300)) == 257


def test_a_tokenizer_is_loaded_from_a_run_or_its_model_folder(tmp_path):
    BPE.save_pretrained(tmp_path / "run" / "model")
    assert len(load_tokenizer(tmp_path / "run")) == len(load_tokenizer(tmp_path / "run" / "model")) == len(BPE)


def test_a_tokenizer_json_alone_is_enough(tmp_path):
    BPE.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert isinstance(load_tokenizer(tmp_path), PreTrainedTokenizerFast)


def test_a_tokenizer_that_cannot_be_loaded_is_reported(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"this folder has no tokenizer\.json"):
        load_tokenizer(tmp_path / "empty")
    with pytest.raises(UserError, match=r"tokenizer = org/no-such-name.*Hub can't be reached"):
        load_tokenizer("org/no-such-name")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="the tokenizer can't be loaded"):
        load_tokenizer(tmp_path / "broken")


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("You are trying to access a gated repo.\nMake sure", "gated or private. Accept its terms"),
        ("401 Client Error: Unauthorized for url", "gated or private"),
        ("Please pass the argument `trust_remote_code=True`", "contains custom code"),
        ("x is not a local folder and is not a valid model identifier listed on", "no model with this name"),
        ("We couldn't connect to 'https://huggingface.co'", "can't be reached"),
        ("\nodd size 3 != 4\nmore", "can't be loaded: odd size 3 != 4."),
        ("", "can't be loaded: RuntimeError"),
    ],
)
def test_load_errors_are_explained(message, words):
    problem = hub_problem(RuntimeError(message), "model.checkpoint", "org/name", "model")
    assert str(problem).startswith("model.checkpoint = org/name: ")
    assert words in str(problem)


def test_files_that_git_lfs_did_not_download_are_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    problem = hub_problem(ValueError("header too large"), "model.checkpoint", str(tmp_path), "model")
    assert "model.safetensors is a Git LFS pointer" in problem.why
    assert problem.fix == "Download it: git lfs pull, in that folder."
