"""Chat: tokens/s of our streaming against generate() of transformers, both greedy and with a cache; and the time to
the first token of a model right after loading."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .candidates import llama_config
from .timing import race

COUNT, PROMPT = 128, "Once upon a time there was"
TEN_MILLION = {"hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 8, "num_attention_heads": 5}
TEN_MILLION |= {"num_key_value_heads": 5, "tie_word_embeddings": True, "max_position_embeddings": 512}


def bench(full: bool) -> None:
    """Print both measurements."""
    import torch

    from llm_lab.chat.session import ChatSession, ChatSettings
    from llm_lab.hf.load import build_from_config
    from llm_lab.hf.save import set_special_tokens
    from llm_lab.hf.tokenizers import make_byte_tokenizer

    tokenizer = make_byte_tokenizer()
    torch.manual_seed(0)
    model = build_from_config(llama_config()).eval()
    set_special_tokens(model, tokenizer)
    model.generation_config.eos_token_id = None
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])

    def ours() -> None:
        settings = ChatSettings(temperature=0.0, max_new_tokens=COUNT)
        "".join(ChatSession(model, tokenizer, name="bench", settings=settings).reply(PROMPT))

    def theirs() -> None:
        mask = torch.ones_like(ids)
        model.generate(ids, attention_mask=mask, max_new_tokens=COUNT, do_sample=False, pad_token_id=256)

    timings = race({"ours": ours, "theirs": theirs}, rounds=30 if full else 10, warmup=1)
    print(f"Chat, {COUNT} tokens, greedy, 4 × 128 on the CPU:\n")
    print("| implementation | tokens/s | time |\n| --- | --- | --- |")
    for name, words in (("ours", "llm-lab chat"), ("theirs", "generate() of transformers")):
        print(f"| {words} | {COUNT / timings[name].median:,.0f} | {timings[name].spread()} |")
    print(f"\nRatio {timings['theirs'].median / timings['ours'].median:.2f} ×")
    waits = [_measure_first_token() for _ in range(5 if full else 3)]
    parameters, seconds = waits[0][0], sorted(wait for _, wait in waits)
    print(
        f"\nFirst token of a model with {parameters / 1e6:.1f} M parameters, right after loading: "
        f"{1e3 * seconds[len(seconds) // 2]:,.1f} ms ({1e3 * seconds[0]:,.1f} to {1e3 * seconds[-1]:,.1f})"
    )


def _measure_first_token() -> tuple[int, float]:
    """Return the number of parameters, and the seconds from loading to the first text in a new process."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.chatting"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the chat with the 10 M model failed:\n{done.stderr[-2000:]}")
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def _print_first_token() -> None:
    """Save a model of 10 M parameters, load it, and print its size and the seconds to its first token."""
    import torch
    from transformers import LlamaConfig

    from llm_lab.chat.session import ChatSession, ChatSettings
    from llm_lab.hf.load import build_from_config
    from llm_lab.hf.save import save_model, set_special_tokens
    from llm_lab.hf.tokenizers import make_byte_tokenizer
    from llm_lab.runner import load

    tokenizer = make_byte_tokenizer()
    torch.manual_seed(0)
    model = build_from_config(LlamaConfig(vocab_size=len(tokenizer), **TEN_MILLION))
    set_special_tokens(model, tokenizer)
    count = sum(parameter.numel() for parameter in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder), tokenizer)
        loaded, its_tokenizer = load(folder, device="cpu")
        start = time.perf_counter()
        session = ChatSession(loaded, its_tokenizer, name="bench", settings=ChatSettings(temperature=0.0))
        next(session.reply(PROMPT))
        print(json.dumps([count, time.perf_counter() - start]))


if __name__ == "__main__":
    _print_first_token()
