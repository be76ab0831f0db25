"""A folder is the same model in transformers 4.57 as in the version that wrote it."""

import json
import os
from pathlib import Path

import pytest
from support.post_runs import post_recipe, write_base
from support.tiny_models import combinations, expert_combinations, recipe_keys, tiny_experts, tiny_model
from transformers import GPT2Config, GPT2LMHeadModel

from llm_lab.estimate.compatibility import TRANSFORMERS
from llm_lab.export.verify import TOLERANCES, ask, ask_others, compare_answers, make_probe
from llm_lab.hf.load import load_model
from llm_lab.hf.save import save_model, set_special_tokens
from llm_lab.hf.tokenizers import load_tokenizer, make_byte_tokenizer
from llm_lab.runner import run
from llm_lab.stages.merge import merge_into

VARIABLE = "LLM_LAB_TRANSFORMERS_4_PYTHON"
HOW = (
    f"{VARIABLE} names no python with transformers 4.57. To make one: python -m venv older && "
    "older/bin/pip install transformers==4.57.1 torch numpy, then "
    f"{VARIABLE}=$PWD/older/bin/python"
)
PYTHON = os.environ.get(VARIABLE, "")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON, reason=HOW)]

NATIVE = {
    "llama": {"rope_theta": 500_000.0},
    "mistral": {"sliding_window": 8},
    "qwen3": {"qk_norm": True},
    "untied": {"tie_word_embeddings": False},
    "yarn": {"position_embedding": "yarn"},
    "geglu": {"activation": "geglu"},
    "windows by layer": {"qk_norm": True, "sliding_window": "SL"},
    "gpt2 by parts": {
        "position_embedding": "learned",
        "norm": "layernorm",
        "activation": "gelu",
        "tie_word_embeddings": True,
    },
}


def write_parts(folder: str, **parts) -> str:
    tokenizer = make_byte_tokenizer()
    theta = parts.pop("rope_theta", None)
    model = tiny_model(parts.pop("position_embedding", "rope"), vocab_size=len(tokenizer), **parts)
    if theta:
        model.config.rope_parameters = {"rope_type": "default", "rope_theta": theta}
    set_special_tokens(model, tokenizer)
    save_model(model, Path(folder), tokenizer)
    return folder


def write_experts(folder: str, **parts) -> str:
    tokenizer = make_byte_tokenizer()
    model = tiny_experts(len(tokenizer), **parts)
    set_special_tokens(model, tokenizer)
    save_model(model, Path(folder), tokenizer)
    return folder


def write_gpt2(folder: str) -> str:
    tokenizer = make_byte_tokenizer()
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=128))
    set_special_tokens(model, tokenizer)
    save_model(model, Path(folder), tokenizer)
    return folder


def fine_tune(name: str, **changes) -> str:
    raw = post_recipe("sft", name=name, model={"checkpoint": "base"}, **{"train.max_steps": 3}, **changes)
    return f"{run(raw)['path']}/model"


def test_older_transformers_loads_every_native_folder_with_the_same_logits_tokens_and_template(in_tmp_path):
    folders = [write_parts(name, **parts) for name, parts in NATIVE.items()]
    folders += [write_experts(f"experts-{number}", **parts) for number, parts in enumerate(expert_combinations(2))]
    folders.append(write_gpt2("gpt2"))
    write_base()
    folders.append(fine_tune("tuned"))
    fine_tune("adapter", lora={"r": 2}, **{"optimizer.learning_rate": 0.1})
    merge_into("checkpoints/adapter/model", Path("merged"), print)
    folders.append("merged")
    asked, jobs = [], []
    for folder in folders:
        model, tokenizer = load_model(folder), load_tokenizer(folder)
        probe = make_probe(model, tokenizer)
        asked.append(ask(model, tokenizer, probe))
        job = {"loader": TRANSFORMERS, "folder": folder, "file": None}
        jobs.append((job, probe))
    assert asked[-1].chat is not None, "the template of the adapter is in the merged folder"
    for (job, _), ours, theirs in zip(jobs, asked, ask_others(jobs, python=PYTHON), strict=True):
        check = compare_answers(ours, theirs, TOLERANCES[TRANSFORMERS]["f32"], 0.99)
        assert check.verdict == "proven", (job["folder"], check.describe())
        assert theirs["version"].startswith("4.57")


def test_older_transformers_loads_every_folder_with_its_own_code_with_the_same_logits_and_tokens(in_tmp_path):
    asked, jobs = [], []
    for number, parts in enumerate(combinations(2)):
        folder = write_parts(f"own-{number}", **recipe_keys(parts) | {"sliding_window": parts["sliding_window"]})
        own = json.loads(Path(folder, "config.json").read_text())["model_type"] == "llm_lab"
        model, tokenizer = load_model(folder), load_tokenizer(folder)
        probe = make_probe(model, tokenizer)
        asked.append(ask(model, tokenizer, probe))
        jobs.append(({"loader": TRANSFORMERS, "folder": folder, "file": None, "trust_remote_code": own}, probe))
    assert sum(job["trust_remote_code"] for job, _ in jobs) > 20
    for (job, _), ours, theirs in zip(jobs, asked, ask_others(jobs, python=PYTHON), strict=True):
        check = compare_answers(ours, theirs, TOLERANCES[TRANSFORMERS]["f32"], 0.99)
        assert check.verdict == "proven", (job["folder"], check.describe())
        assert check.continuation_agreement == 1.0, job["folder"]
        assert theirs["version"].startswith("4.57")
