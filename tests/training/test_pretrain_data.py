"""The data of a pretraining run: resumed streams, sources that are exhausted, the measured mix."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_recipe, write_text
from support.listeners import Handlers
from support.pretrain_runs import losses, start, wait_until, weights

from llm_lab.data import block_dataset
from llm_lab.data.block_dataset import BlockStream
from llm_lab.errors import UserError
from llm_lab.hf.tokenizers import make_byte_tokenizer
from llm_lab.optim.schedule import factor_of
from llm_lab.recipe.resolve import resolve
from llm_lab.runner import run
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.report import write_report
from llm_lab.training.pretrain_data import STREAMS_FILE, open_sources, tokenize_sources, validation_tokens

TINY = RunFolder(Path("checkpoints/tiny"))


class Listening(Handlers):
    def __init__(self):
        self.said = []

    def notice(self, text):
        self.said.append(text)

    def containing(self, words: str) -> list[str]:
        return [text for text in self.said if words in text]


@pytest.fixture(autouse=True)
def _texts(in_tmp_path):
    write_text("text.txt")
    lines = Path(write_text("words.txt", 400, seed=3)).read_text().splitlines()
    Path("set").mkdir()
    for index in range(4):
        rows = (json.dumps({"text": text}) + "\n" for text in lines[index * 100 : index * 100 + 100])
        Path(f"set/{index}.jsonl").write_text("".join(rows))


def streamed(**changes) -> dict:
    data = [{"path": "set", "streaming": True, "weight": 2.0}, {"path": "text.txt", "weight": 1.0}]
    validation = {"stream_documents": 30}
    return tiny_recipe(**{"data": data, "validation": validation, "train.save_steps": 5} | changes)


def assert_same(mine: dict, other: dict) -> None:
    assert losses(mine) == losses(other)
    theirs = weights(other)
    for name, tensor in weights(mine).items():
        assert torch.equal(tensor, theirs[name]), name


# Validation


def tokens_of(**changes) -> tuple:
    recipe = resolve(tiny_recipe(**changes)).recipe
    sources = open_sources(recipe)
    return tokenize_sources(recipe, sources, make_byte_tokenizer(), Listening()), recipe


def test_bits_per_byte_count_only_the_bytes_of_the_measured_tokens():
    english, japanese = "a small red river " * 20, "川が流れる" * 60
    Path("two.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in ("a " * 500, english + japanese))
    )
    tokens, _ = tokens_of(data=[{"path": "two.jsonl"}], validation={"fraction": 0.4})
    assert len(tokens[0].validation) == len((english + japanese).encode()) + 1
    for count in (2, 100, len(english) + 31, 10_000):
        [measured], size = validation_tokens(tokens, count)
        # A token is one byte, and EOS is none. A character that is cut counts in full.
        assert 0 <= size - (len(measured) - 1 - (count == 10_000)) <= 2


def test_a_document_that_one_set_trains_on_is_validation_of_no_other():
    lines = Path("words.txt").read_text().splitlines()
    for name, part in (("first", lines[:200]), ("second", lines[180:] + lines[195:200])):
        Path(f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    data = [{"path": "first.jsonl"}, {"path": "second.jsonl"}]
    tokens, _ = tokens_of(data=data, validation={"fraction": 0.2})
    decode = make_byte_tokenizer().decode
    sides = [[decode(side.astype(int)).split("<|endoftext|>")[:-1] for side in (t.train, t.validation)] for t in tokens]
    trained = {text for train, _ in sides for text in train}
    held_out = [set(validation) for _, validation in sides]
    assert all(held_out)
    assert not any(texts & trained for texts in held_out)
    assert tokens[0].duplicates > 10
    again, _ = tokens_of(data=data, validation={"fraction": 0.2})
    assert all(found.cached for found in again)
    alone, _ = tokens_of(data=data[:1], validation={"fraction": 0.2})
    assert alone[0].duplicates == 0


# Streams


def test_a_stream_and_a_file_are_mixed_by_their_weights():
    listener = Listening()
    facts = run(streamed(**{"train.max_steps": 30}), listener=listener)
    assert facts["status"] == "done"
    rows = TINY.metrics()
    assert [row["mix"] for row in rows if "loss" in row][-1] == [
        pytest.approx(2 / 3, abs=1e-4),
        pytest.approx(1 / 3, abs=1e-4),
    ]
    assert rows[-1]["step"] == 30
    assert facts["mix"][0] == {"path": "set", "share": pytest.approx(2 / 3), "epochs": None}
    assert facts["mix"][1]["epochs"] > 0
    (notice,) = listener.containing("streamed: 4 jsonl files")
    assert "its first 30 documents" in notice
    assert listener.containing("1,280 tokens of the stream are read over the run")
    assert facts["data"][0]["fingerprint"]
    kept = list(Path(os.environ["LLM_LAB_CACHE"]).rglob("train.bin"))
    assert len(kept) == 1, "no token file is written for the stream"


def test_resume_in_the_middle_of_a_stream_is_bitwise(monkeypatch):
    monkeypatch.setattr(block_dataset, "CHUNK_CHARACTERS", 500)
    raw = streamed(
        **{
            "model.dropout": 0.1,
            "train.max_steps": 40,
            "train.logging_steps": 3,
            "train.gradient_accumulation_steps": 2,
        }
    )
    whole = run(raw)
    shutil.copytree("checkpoints/tiny", "checkpoints/whole")
    for late in (40, 35):
        shutil.rmtree(TINY.steps_path / f"checkpoint-{late}")
    shutil.rmtree(TINY.model_path)
    first = TINY.checkpoints()[-1]
    assert first[0] < 40
    state = json.loads((first[1] / STREAMS_FILE).read_text())["0"]
    used = first[0] * 8 * 2 // 3 * 16
    assert used - 1000 < state["tokens"] <= used, "prefetched tokens do not count"
    resumed = run(raw, resume=True)
    assert resumed["path"] == whole["path"]
    assert_same(resumed, {**whole, "path": "checkpoints/whole"})


@pytest.mark.slow  # kill -9 of any run, and resuming in a stream, are tested quickly elsewhere
def test_a_killed_run_on_a_stream_resumes_bitwise():
    raw = streamed(optimizer={"name": "muon"}, **{"train.logging_steps": 1})
    process = start(raw)
    wait_until(lambda: any(row["step"] >= 12 for row in TINY.metrics()), process)
    process.kill()
    process.wait()
    assert TINY.checkpoints()[-1][0] >= 10
    resumed = run(raw, resume=True)
    assert_same(resumed, run({**raw, "name": "whole"}))


def test_a_stream_reports_the_start_of_its_second_epoch():
    listener = Listening()
    data = [{"path": "set/0.jsonl", "streaming": True}]
    facts = run(streamed(data=data, **{"train.max_steps": 150}), listener=listener)
    times = facts["mix"][0]["epochs"]
    assert times > 2
    (notice,) = listener.containing("the second one starts")
    step = int(notice.split("at step ")[1].split(";")[0])
    assert step == pytest.approx(150 / times, abs=1)


def test_a_run_is_not_resumed_with_a_changed_stream():
    run(streamed())
    shutil.rmtree(TINY.steps_path / "checkpoint-20")
    file = Path("set/0.jsonl")
    file.write_text(file.read_text().replace("the", "teh", 1))
    with pytest.raises(UserError, match=r"data\.0\.path.*has changed since the run began"):
        run(streamed(), resume=True)


def test_a_bpe_is_trained_on_the_first_texts_of_a_stream(monkeypatch):
    monkeypatch.setattr("llm_lab.stages.pretrain.BPE_STREAM_CHARACTERS", 2_000)
    listener = Listening()
    data = [{"path": "set", "streaming": True}]
    facts = run(streamed(data=data, tokenizer={"bpe": 280}), listener=listener)
    assert facts["status"] == "done"
    assert listener.containing("using the first 2,000 characters")


def test_all_problems_of_the_data_are_reported_at_once():
    Path("rows.csv").write_text("id,body\n1,word\n")
    data = [
        {"path": "rows.csv", "text_column": "text"},
        {"path": "nowhere.txt"},
        {"path": "set", "streaming": True, "text_column": "words", "subset": "en"},
        {"path": "text.txt", "text_column": "text", "split": "test"},
    ]
    with pytest.raises(UserError) as caught:
        run(streamed(data=data, **{"train.max_step": 5, "model.num_attention_heads": 3}))
    keys = {problem.key for problem in caught.value.problems}
    assert keys >= {
        "data.0.text_column",
        "data.1.path",
        "data.2.subset",
        "data.3.text_column",
        "data.3.split",
        "train.max_step",
        "model.num_attention_heads",
    }


# Exhausted sources


def test_a_run_and_its_schedule_stop_at_the_end_of_the_shorter_source():
    listener = Listening()
    Path("short.txt").write_text(Path("text.txt").read_text()[:2500])
    data = [{"path": "text.txt", "weight": 1.0}, {"path": "short.txt", "weight": 1.0}]
    raw = tiny_recipe(data=data, when_exhausted="stop", validation={"fraction": 0.0}, **{"train.max_steps": 500})
    raw["train"] |= {"logging_steps": 1, "eval_steps": 500, "save_steps": 500}
    facts = run(raw, listener=listener)
    steps = 2500 // 16 * 2 // 4  # 2,500 bytes and an EOS are 156 blocks, which fill half of each step's four rows
    assert facts["status"] == "done"
    assert facts["results"]["step"] == steps
    assert facts["exhausted"] == {"path": "short.txt", "step": steps, "max_steps": 500}
    assert listener.containing(f"short.txt: exhausted after {steps} steps, so the run stops there instead of at 500")
    assert facts["mix"][1]["epochs"] == 1.0
    assert not listener.containing("second epoch")
    factor = factor_of({"name": "cosine", "warmup_steps": 2, "min_ratio": 0.1}, steps)
    rates = [row["learning_rate"] for row in TINY.metrics() if "loss" in row]
    assert rates == pytest.approx([0.01 * factor(step) for step in range(steps)])
    assert rates[-1] == pytest.approx(0.001)
    assert (TINY.model_path / "model.safetensors").exists()
    assert TINY.checkpoints()[-1][0] == steps
    assert run(raw, resume=True)["results"]["step"] == steps


def test_a_run_with_enough_data_is_not_shortened():
    raw = tiny_recipe(when_exhausted="stop")
    facts = run(raw)
    assert facts["results"]["step"] == 20
    assert "exhausted" not in facts


def test_a_warm_up_longer_than_the_run_is_shortened():
    listener = Listening()
    Path("short.txt").write_text("word " * 300)
    raw = tiny_recipe("short.txt", when_exhausted="stop", **{"train.max_steps": 500, "scheduler.warmup_steps": 90})
    facts = run(raw, listener=listener)
    assert facts["results"]["step"] == (int(1500 * 0.9) // 16) // 4
    assert listener.containing("warm-up is shortened to 1 steps")


def test_a_source_that_does_not_fill_a_step_is_refused():
    Path("short.txt").write_text("word " * 10)
    raw = tiny_recipe("short.txt", when_exhausted="stop", validation={"fraction": 0.0})
    with pytest.raises(UserError, match=r"short\.txt ends within the first step of 4 sequences"):
        run(raw)


def test_epochs_are_reported_before_the_run_and_at_the_second_epoch():
    listener = Listening()
    Path("short.txt").write_text("word " * 300)
    facts = run(tiny_recipe("short.txt", **{"train.max_steps": 50}), listener=listener)
    assert facts["results"]["step"] == 50
    assert listener.containing("data.0: 2.38 epochs over the run")
    (notice,) = listener.containing("the second one starts")
    assert "at step 22;" in notice, "84 blocks fill 21 steps of 4 rows"
    assert facts["mix"][0]["epochs"] == pytest.approx(200 / 84, abs=1e-3)


def test_the_end_of_a_stream_ends_the_run_if_when_exhausted_is_stop():
    listener = Listening()
    data = [{"path": "set/0.jsonl", "streaming": True}, {"path": "text.txt"}]
    raw = streamed(
        data=data, when_exhausted="stop", **{"train.max_steps": 500, "train.eval_steps": 100, "train.save_steps": 100}
    )
    facts = run(raw, listener=listener)
    rows = [json.loads(line)["text"] for line in Path("set/0.jsonl").read_text().splitlines()][30:]
    tokens = sum(len(text.encode()) + 1 for text in rows)
    steps = (tokens - 1) // 16 * 2 // 4
    assert facts["status"] == "done"
    assert facts["results"]["step"] == steps
    assert facts["exhausted"] == {"path": "set/0.jsonl", "step": steps, "max_steps": 500}
    assert listener.containing(f"set/0.jsonl: exhausted, so the run stops at step {steps} of 500")
    assert TINY.metrics()[-1]["step"] == steps
    assert "eval_loss" in TINY.metrics()[-1]
    assert TINY.checkpoints()[-1][0] == steps
    again = run(raw, resume=True)
    assert again["status"] == "done"
    assert again["results"]["step"] == steps, "no step is added on resume"


def test_a_stream_that_does_not_fill_a_step_is_refused():
    Path("few.jsonl").write_text('{"text": "some words"}\n' * 3)
    data = [{"path": "few.jsonl", "streaming": True}]
    with pytest.raises(UserError, match=r"few\.jsonl ends within the first step of 4 sequences"):
        run(tiny_recipe(data=data, when_exhausted="stop", validation={"fraction": 0.0}))


def test_the_report_shows_the_epochs_of_a_stream():
    run(streamed())
    write_report(TINY)
    assert "67.5 % of the tokens trained on, less than one epoch" in TINY.report_path.read_text()


def test_training_does_not_wait_for_a_stream(monkeypatch):
    """The next chunk is tokenized while steps are computed, so blocks are ready before they are needed."""
    monkeypatch.setattr(block_dataset, "CHUNK_CHARACTERS", 500)
    seen = []
    original = BlockStream.block

    def watched(self, k):
        seen.append(self._ready.qsize())
        return original(self, k)

    monkeypatch.setattr(BlockStream, "block", watched)
    run(streamed())
    assert np.mean([waiting > 0 for waiting in seen[10:]]) > 0.9
