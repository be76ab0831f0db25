"""Tiny chat and base models on disk whose replies are words, and a run with several checkpoints."""

import json
import string
from pathlib import Path

import torch
from support.chat_sessions import chat_tokenizer, llama

from llm_lab.hf.tokenizers import make_byte_tokenizer


def speller(seed: int = 0):
    """Return a random model that endlessly writes words of lower-case letters."""
    model = llama(max_position_embeddings=4096)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
        model.lm_head.weight[[token for token in range(257) if chr(token) not in string.ascii_lowercase + " "]] = 0
        model.lm_head.weight[ord(" ")] *= 2
    return model.eval()


def write_speller(folder: Path, *, chat: bool = True, seed: int = 0) -> Path:
    """Write such a model and its tokenizer. chat: without it, the model continues texts."""
    speller(seed).save_pretrained(folder)
    (chat_tokenizer() if chat else make_byte_tokenizer()).save_pretrained(folder)
    return folder


def write_run(home: Path, name: str, *, steps=(10, 20, 30), chat: bool = True) -> None:
    """Write a finished run with a checkpoint at each step; each is a different model."""
    run = home / "checkpoints" / name
    for seed, step in enumerate(steps):
        folder = run / "model" if step == steps[-1] else run / "steps" / f"checkpoint-{step}"
        write_speller(folder, chat=chat, seed=seed)
        (folder / "trainer_state.json").write_text("{}")
    facts = {"name": name, "stage": "sft", "status": "done", "created_at": 1.0, "results": {"step": steps[-1]}}
    (run / "run.json").write_text(json.dumps(facts))
