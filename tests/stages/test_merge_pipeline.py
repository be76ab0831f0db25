"""A pipeline with adapters: one is trained, a second one is trained on it, and both are merged into one model."""

import json
from pathlib import Path

import torch
from support.adapters import save_base
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_lab.hf.adapter import read_adapter
from llm_lab.hf.load import load_model
from llm_lab.runner import run
from llm_lab.runs.folder import RunFolder, find_model


def stage(name: str) -> dict:
    train = {"max_steps": 4, "max_length": 64, "eval_steps": 4, "save_steps": 2, "per_device_train_batch_size": 2}
    return {
        "stage": "sft",
        "name": name,
        "data": [{"path": "chats.jsonl"}],
        "samples": {"prompts": ["3?"], "max_new_tokens": 3},
        "train": train,
        "optimizer": {"learning_rate": 0.01},
        "lora": {"preset": "all", "r": 4, "use_dora": name == "second"},
    }


def test_two_stacked_adapters_are_merged_into_one_model(in_tmp_path):
    save_base(Path("checkpoints/base/model"), tie_word_embeddings=True)
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}."}]}
        for n in range(20)
    ]
    Path("chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = {**stage("first"), "model": {"checkpoint": "checkpoints/base"}}
    facts = run({"name": "life", "device": "cpu", "stages": [first, stage("second"), {"stage": "merge"}]})
    assert facts["status"] == "done"
    life = Path("checkpoints/life").resolve()
    assert read_adapter(life / "first" / "model").base == str(Path("checkpoints/base/model").resolve())
    assert read_adapter(life / "second" / "model").base == str(life / "first" / "model")
    # The name of the pipeline refers to the merged model, which transformers loads.
    folder = find_model("life")
    assert folder.resolve() == life / "merge" / "model"
    whole, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(rows[0]["messages"], return_tensors="pt")["input_ids"]
    attached = load_model(life / "second" / "model")
    torch.testing.assert_close(whole(ids).logits, attached(ids).logits, rtol=1e-4, atol=1e-4)
    before = load_model(life / "first" / "model")
    assert (attached(ids).logits - before(ids).logits).abs().max() > 1e-3
    merge = RunFolder(life / "merge").facts()
    assert merge["results"]["relative_logit_difference"] < 1e-4
    assert Path(merge["parent"]["path"]).resolve() == life / "second" / "model"
    assert Path(merge["base"]["path"]).resolve() == life / "first" / "model"
