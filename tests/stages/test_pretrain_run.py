"""A tiny pretraining run from recipe to results, on the same path as every run."""

import itertools
import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_recipe, write_text
from support.pretrain_runs import losses, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_lab.data.builtin import builtin_documents
from llm_lab.data.encoding import default_cache_dir
from llm_lab.errors import UserError
from llm_lab.events import Notice
from llm_lab.hf.tokenizers import make_byte_tokenizer
from llm_lab.runner import load, run
from llm_lab.runs.folder import RunFolder
from llm_lab.training import pretrain_trainer
from llm_lab.training.loss import next_token_loss

LOG_KEYS = {"step", "train_tokens", "wall_seconds", "loss", "learning_rate", "grad_norm", "tokens_per_second"}


@pytest.fixture(autouse=True)
def _text(in_tmp_path):
    write_text("text.txt")


def test_a_run_learns_and_writes_a_complete_folder(finished_run):
    facts = finished_run
    folder = RunFolder(Path("checkpoints/tiny"))
    rows = folder.metrics()
    logged = [row for row in rows if "loss" in row]
    measured = [row for row in rows if "eval_loss" in row]
    assert [row["step"] for row in logged] == [1, 5, 10, 15, 20]
    assert all(set(row) == LOG_KEYS for row in logged)
    assert [row["step"] for row in measured] == [10, 20]
    assert all({"eval_loss", "bits_per_byte"} < set(row) for row in measured)
    assert logged[0]["loss"] == pytest.approx(math.log(257), abs=0.2)
    assert logged[-1]["loss"] < logged[0]["loss"] - 2
    assert measured[-1]["eval_loss"] < measured[0]["eval_loss"]
    assert rows[-1]["train_tokens"] == 20 * 4 * 16

    assert facts["status"] == folder.status() == "done"
    results = folder.facts()["results"]
    assert {key: results[key] for key in ("step", "eval_loss", "bits_per_byte", "train_tokens")} == {
        "step": 20,
        "eval_loss": measured[-1]["eval_loss"],
        "bits_per_byte": measured[-1]["bits_per_byte"],
        "train_tokens": 1280,
    }
    assert {"loss", "tokens_per_second", "wall_seconds"} < set(results)
    assert {"seed", "device", "machine", "versions", "predicted", "created_at", "ended_at"} < set(facts)
    assert [step for step, _ in folder.checkpoints()] == [10, 20]
    assert folder.samples_path.read_text().count("## Step ") == 2
    assert "validation loss" in folder.report_path.read_text()
    ElementTree.parse(folder.path / "curves.svg")
    assert not list(folder.path.rglob(".*"))


def test_every_checkpoint_and_the_model_open_as_plain_hugging_face_folders(finished_run):
    facts = finished_run
    final = Path(facts["path"]) / "model"
    for folder in (final, *(path for _, path in RunFolder(Path(facts["path"])).checkpoints())):
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert type(model).__name__ == "LlamaForCausalLM"
        assert len(AutoTokenizer.from_pretrained(folder)) == model.config.vocab_size == 257
        assert not list(folder.glob("*.bin"))
    model, tokenizer = load("checkpoints/tiny")
    ids = tokenizer("the old tree", return_tensors="pt").input_ids
    plain = AutoModelForCausalLM.from_pretrained(final)
    assert torch.allclose(model(ids).logits, plain(ids).logits, atol=1e-5)


def test_checkpoints_are_loaded_with_weights_only(finished_run, monkeypatch):
    calls = []
    original = torch.load

    def watched(*args, **kwargs):
        calls.append(kwargs.get("weights_only"))
        return original(*args, **kwargs)

    monkeypatch.setattr(torch, "load", watched)
    run(tiny_recipe(**{"train.max_steps": 20}), resume=True)
    for file in Path("checkpoints/tiny/steps").rglob("*.pt*"):
        torch.load(file, weights_only=True) if not file.name.startswith("rng") else None
    assert all(calls)


def test_a_step_is_an_optimizer_update(monkeypatch):
    steps = []
    original = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: (steps.append(1), original(self, *a, **k))[1])
    facts = run(tiny_recipe(**{"train.gradient_accumulation_steps": 3, "train.max_steps": 7}))
    assert len(steps) == 7
    assert facts["results"]["train_tokens"] == 7 * 3 * 4 * 16


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_accumulating_four_batches_of_one_equals_a_batch_of_four(optimizer, monkeypatch):
    # Its rounding amplifies differences in the last digit of a sum.
    monkeypatch.setattr("llm_lab.optim.muon._multiplies_bf16", lambda device_type: False)
    changes = {"optimizer": {"name": optimizer}}
    four = run(tiny_recipe(**changes, name="four"))
    ones = tiny_recipe(**changes, name="ones")
    ones["train"] |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    ones = run(ones)
    assert four["results"]["train_tokens"] == ones["results"]["train_tokens"]
    for mine, other in zip(losses(four), losses(ones), strict=True):
        assert dict(mine) == pytest.approx(dict(other), rel=2e-4)
    theirs = weights(ones)
    for name, tensor in weights(four).items():
        assert torch.allclose(tensor, theirs[name], atol=2e-3), name


def test_replaying_the_recipe_of_a_run_gives_the_same_losses_exactly():
    raw = tiny_recipe(**{"model.dropout": 0.1, "optimizer": {"name": "muon", "learning_rate": 0.1 / 3}})
    first = run(raw)
    again = run(Path(first["path"]) / "recipe.yaml")
    assert again["path"] != first["path"]
    assert losses(first) == losses(again)
    replaced = run(raw, ["name=tiny"], overwrite=True)
    assert replaced["path"] == first["path"]
    assert losses(replaced) == losses(again)
    other = run(raw, ["seed=1"])
    assert losses(other) != losses(first)


def test_the_recipe_of_a_run_names_its_own_folder():
    paths = [run(tiny_recipe(**{"train.max_steps": 1, "scheduler": {}}))["path"] for _ in range(2)]
    assert paths == ["checkpoints/tiny", "checkpoints/tiny-2"]
    for path in paths:
        assert f"name: {Path(path).name}\n" in (Path(path) / "recipe.yaml").read_text()
        assert RunFolder(Path(path)).facts()["name"] == Path(path).name


def test_evaluation_equals_a_brute_force_sum_over_the_same_tokens(finished_run):
    facts = finished_run
    text = Path("text.txt").read_text()
    held_out = text[int(len(text) * 0.9) :]
    tokenizer = make_byte_tokenizer()
    ids = [*tokenizer(held_out).input_ids, tokenizer.eos_token_id]
    model = AutoModelForCausalLM.from_pretrained(Path(facts["path"]) / "model")
    nats, text_nats, count = 0.0, 0.0, 0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, 16):
            block = torch.tensor([ids[start : start + 17]])
            logits = model(block[:, :-1]).logits.log_softmax(-1)
            each = logits.gather(-1, block[:, 1:, None])[0, :, 0].double()
            nats -= each.sum().item()
            text_nats -= each[block[0, 1:] != tokenizer.eos_token_id].sum().item()
            count += block.shape[1] - 1
    assert count == len(ids) - 1
    assert facts["results"]["eval_loss"] == pytest.approx(nats / count, rel=1e-5)
    by_hand = text_nats / math.log(2) / len(held_out.encode()[1:])
    assert facts["results"]["bits_per_byte"] == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("take", ["end", "random"])
def test_validation_is_disjoint_from_training_and_stable(take):
    stories = itertools.islice(builtin_documents("stories"), 60)
    Path("rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in stories))
    raw = tiny_recipe("rows.jsonl", validation={"from": take}, scheduler={}, **{"train.max_steps": 2})
    run(raw)
    (folder,) = default_cache_dir().iterdir()
    train, validation = (set_of_documents(folder, part) for part in ("train", "validation"))
    assert validation
    assert not train & validation
    run(raw, ["seed=2"])
    assert [folder] == list(default_cache_dir().iterdir())


def set_of_documents(folder: Path, part: str) -> set[bytes]:
    tokens = np.fromfile(folder / f"{part}.bin", dtype="<u2")
    ends = np.flatnonzero(tokens == 256)
    return {
        bytes(document[document < 256].astype(np.uint8)) for document in np.split(tokens, ends + 1) if len(document)
    }


def test_a_run_without_validation_is_not_evaluated():
    facts = run(tiny_recipe(validation={"fraction": 0}))
    assert "eval_loss" not in facts["results"]
    assert facts["results"]["loss"] < 4
    assert "## Step 20" in (Path(facts["path"]) / "samples.md").read_text()


@pytest.mark.usefixtures("own_code")
def test_without_held_out_text_the_last_step_is_scored_too():
    asked = [{"prompt": f"{number}?", "answer": str(number)} for number in range(8)]
    Path("asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    Path("mine.py").write_text("def score(completions, **columns): return [float(len(text)) for text in completions]")
    score = {"path": "asked.jsonl", "prompts": 2, "max_completion_length": 4, "rewards": [{"python": "mine.py:score"}]}
    facts = run(tiny_recipe(validation={"fraction": 0}, score=score, **{"train.max_steps": 15}))
    rows = RunFolder(Path(facts["path"])).metrics()
    assert [row["step"] for row in rows if "eval_reward" in row] == [10, 15]


def test_two_sources_are_mixed_by_their_weights():
    write_text("other.txt", seed=1)

    notices = []

    def listener(event):
        if isinstance(event, Notice):
            notices.append(event.text)

    data = [{"path": "text.txt", "weight": 3.0}, {"path": "other.txt", "weight": 1.0}]
    facts = run(tiny_recipe(data=data, **{"train.max_steps": 40}), listener=listener)
    assert [entry["path"] for entry in facts["data"]] == ["text.txt", "other.txt"]
    epochs = [float(text.split(": ")[1].split()[0]) for text in notices if "epochs over the run" in text]
    assert epochs[0] == pytest.approx(3 * epochs[1], rel=0.1)


def test_a_diverging_loss_stops_the_run_with_advice(monkeypatch):
    calls = []

    def diverging(*arguments):
        calls.append(1)
        return next_token_loss(*arguments) * (math.nan if len(calls) > 11 else 1.0)

    monkeypatch.setattr(pretrain_trainer, "next_token_loss", diverging)
    advice = r"optimizer\.learning_rate.*the loss became nan at step \d+ .*smaller learning rate"
    with pytest.raises(UserError, match=advice):
        run(tiny_recipe())
    folder = RunFolder(Path("checkpoints/tiny"))
    assert folder.status() == "failed"
    assert "the loss became nan" in folder.facts()["error"]
    assert [step for step, _ in folder.checkpoints()] == [10]


def test_a_text_that_is_too_short_leaves_no_run_behind():
    Path("short.txt").write_text("too short")
    with pytest.raises(UserError, match="training split has"):
        run(tiny_recipe("short.txt"))
    assert not list(Path("checkpoints").iterdir())


def test_bf16_works_on_a_cpu():
    full, half = (run(tiny_recipe(**{"train.dtype": dtype, "name": dtype})) for dtype in ("float32", "bfloat16"))
    assert half["results"]["eval_loss"] == pytest.approx(full["results"]["eval_loss"], rel=0.05)
    assert losses(half) != losses(full)
    assert {tensor.dtype for tensor in weights(half).values()} == {torch.float32}


@pytest.mark.slow
def test_a_compiled_run_gives_the_same_losses():
    plain, compiled = (run(tiny_recipe(**{"train.compile": on, "name": f"c{on}"})) for on in (False, True))
    for mine, other in zip(losses(plain), losses(compiled), strict=True):
        assert dict(mine) == pytest.approx(dict(other), rel=1e-3)
