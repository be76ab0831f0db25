"""Models to compare: a run with its checkpoints, a pipeline, an adapter and its base, a reward model, a GPT-2."""

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


def write_gpt2(folder: Path) -> None:
    """Write a GPT-2 of transformers, with a tokenizer of whole words."""
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
    """Make random weights large enough that the top token differs from step to step."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.4)


@pytest.fixture(scope="session")
def compared_models(tmp_path_factory) -> Path:
    """checkpoints/tiny (steps 20 to 80), checkpoints/life (a pipeline), checkpoints/reward, plain, adapter, gpt2."""
    world, before = tmp_path_factory.mktemp("compared"), Path.cwd()
    os.chdir(world)
    try:
        write_text("text.txt")
        write_text("other.txt", sentences=30, seed=5)
        changes = {
            "model.max_position_embeddings": 128,
            "train.save_steps": 20,
            "train.save_total_limit": 3,
            "samples.prompts": ["the old", "a"],
        }
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
        write_gpt2(world / "gpt2")
    finally:
        os.chdir(before)
    return world


@pytest.fixture
def models(compared_models, monkeypatch) -> Path:
    """Work in the folder of the shared models; a test may only add evaluations to them."""
    monkeypatch.chdir(compared_models)
    return compared_models
