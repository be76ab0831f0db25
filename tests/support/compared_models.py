"""A small world of models to compare: a run with its steps, adapters on it, a judge, and a stranger's folder."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny_recipe, write_text
from support.adapters import lora, perturb, save_base, with_chat_tokens
from support.post_runs import post_recipe
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from llm_lab import run
from llm_lab.hf.lora_layers import attach_lora
from llm_lab.hf.save import save_model

WORDS = (
    "the a small red green old tree stone river bird fish sings falls waits runs near under over . [UNK] [END]".split()
)


def write_stranger(folder: Path) -> None:
    """GPT-2 by transformers alone, with a tokenizer of whole words: nothing of it is ours."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[END]", unk_token="[UNK]")
    torch.manual_seed(3)
    ends = {"eos_token_id": len(WORDS) - 1, "bos_token_id": len(WORDS) - 1}
    config = GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2, n_positions=48, **ends)
    model = GPT2LMHeadModel(config)
    _spread(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _spread(model) -> None:
    """Give new weights enough spread that the likeliest token differs from step to step."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.4)


@pytest.fixture(scope="session")
def compared_models(tmp_path_factory) -> Path:
    """checkpoints/tiny (steps 20 to 80), checkpoints/life (a pipeline), base and adapter, judge, stranger."""
    world, before = tmp_path_factory.mktemp("compared"), Path.cwd()
    os.chdir(world)
    try:
        write_text("text.txt")
        write_text("other.txt", sentences=30, seed=5)
        changes = {"model.max_position_embeddings": 128, "train.save_steps": 20, "samples.prompts": ["the old", "a"]}
        changes |= {"tokenizer": {"bpe": 300}, "train.max_steps": 80, "train.eval_steps": 40}
        run(tiny_recipe(**changes))
        shutil.copytree("checkpoints/tiny", "base")
        sft = post_recipe(
            "sft", **{"model.checkpoint": "checkpoints/tiny", "lora.preset": "all", "train.save_steps": 2}
        )
        life = {"name": "life", "stages": [{**tiny_recipe(**changes), "name": "first"}, {**sft, "name": "second"}]}
        del life["stages"][1]["model"]
        run(life)
        run(post_recipe("reward", **{"model.checkpoint": "checkpoints/tiny"}))
        plain = save_base(world / "plain")
        _spread(plain)
        save_model(plain, world / "plain")
        grown, tokenizer = with_chat_tokens(plain)
        save_model(perturb(attach_lora(grown, lora(), seed=1)), world / "adapter", tokenizer)
        write_stranger(world / "stranger")
    finally:
        os.chdir(before)
    return world


@pytest.fixture
def models(compared_models, monkeypatch) -> Path:
    """Stand among the models that all tests share: nothing may change them but their evaluations."""
    monkeypatch.chdir(compared_models)
    return compared_models
