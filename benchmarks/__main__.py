"""`make bench`: what can be measured here, each as a ratio from one run. Prints Markdown for RESULTS.md."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from llm_lab.plan.hardware import find_machine

from .timing import race

ROWS, LENGTH, VOCABULARY = 12, 64, 257


def _llama_config():
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )


def bench_training_step() -> str:
    """Forward, backward and AdamW at the Shakespeare recipe's shape: ours against stock Llama."""
    import torch
    from transformers import LlamaForCausalLM

    from llm_lab.hf.load import build_from_config
    from llm_lab.stages.pretrain_trainer import next_token_loss

    ids = torch.randint(0, VOCABULARY, (ROWS, LENGTH + 1))

    def stepper(model, loss_of: Callable) -> Callable:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        model.train()

        def step() -> None:
            loss_of(model).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def ours(model):
        return next_token_loss(model, ids[:, :-1], ids[:, 1:], "cpu", "float32")

    def stock(model):
        return model(input_ids=ids[:, :-1], labels=ids[:, :-1], shift_labels=ids[:, 1:].contiguous()).loss

    torch.manual_seed(0)
    timings = race(
        {
            "ours": stepper(build_from_config(_llama_config()), ours),
            "stock": stepper(LlamaForCausalLM(_llama_config()), stock),
        },
        rounds=60,
        warmup=5,
    )
    ratio = timings["stock"].median / timings["ours"].median
    return (
        f"| training step, 12 × 64 tokens, 4 × 128, eager float32 | {timings['ours'].spread()} "
        f"| stock LlamaForCausalLM {timings['stock'].spread()} | {ratio:.2f} × |"
    )


def bench_precision() -> str:
    """The same step in bf16 autocast and in float32: what `train.dtype` is derived from."""
    import torch

    from llm_lab.hf.load import build_from_config
    from llm_lab.stages.pretrain_trainer import next_token_loss

    ids = torch.randint(0, VOCABULARY, (16, 129))
    model = build_from_config(_llama_config()).train()

    def stepper(dtype: str) -> Callable:
        def step() -> None:
            next_token_loss(model, ids[:, :-1], ids[:, 1:], "cpu", dtype).backward()
            model.zero_grad()

        return step

    timings = race({dtype: stepper(dtype) for dtype in ("bfloat16", "float32")}, rounds=30, warmup=3)
    ratio = timings["float32"].median / timings["bfloat16"].median
    return (
        f"| forward and backward in bf16, 16 × 128 tokens, 4 × 128 | {timings['bfloat16'].spread()} "
        f"| in float32 {timings['float32'].spread()} | {ratio:.2f} × |"
    )


def bench_chat() -> str:
    """Greedy tokens a second: our streaming chat against transformers' generate, both with a cache."""
    import torch

    from llm_lab.hf.load import build_from_config
    from llm_lab.hf.save import set_special_tokens
    from llm_lab.hf.tokenizers import make_byte_tokenizer
    from llm_lab.stages.chat import ChatSession, ChatSettings

    tokenizer = make_byte_tokenizer()
    torch.manual_seed(0)
    model = build_from_config(_llama_config()).eval()
    set_special_tokens(model, tokenizer)
    model.generation_config.eos_token_id = None
    count, prompt = 128, "Once upon a time there was"
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])

    def ours() -> None:
        session = ChatSession(
            model, tokenizer, name="bench", settings=ChatSettings(temperature=0.0, max_new_tokens=count)
        )
        "".join(session.reply(prompt))

    def theirs() -> None:
        mask = torch.ones_like(ids)
        model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=256)

    timings = race({"ours": ours, "theirs": theirs}, rounds=10, warmup=1)
    ratio = timings["theirs"].median / timings["ours"].median
    return (
        f"| chat, {count} tokens, greedy | {timings['ours'].spread()} "
        f"| transformers' generate {timings['theirs'].spread()} | {ratio:.2f} × |"
    )


def bench_start() -> str:
    """Seconds from the command to the menu's imports: what stands between a user and the first prompt."""
    code = "from llm_lab.ui import wizard; from llm_lab.plan.hardware import find_machine; find_machine()"
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, cwd=tempfile.gettempdir())
        seconds.append(time.perf_counter() - start)
    spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
    return f"| start of the wizard, a fresh process | {statistics.median(seconds):.2f} s ({spread}) | wanted: 0.5 s | |"


def main() -> None:
    """Print the table."""
    import torch
    import transformers

    machine = find_machine()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    print(f"{machine.describe()} ({machine.cpu_name}); torch {torch.__version__}, ", end="")
    print(f"transformers {transformers.__version__}, commit {commit.stdout.strip()}\n")
    print("| what | ours | against | ratio (more is better) |\n| --- | --- | --- | --- |")
    for bench in (bench_training_step, bench_precision, bench_chat, bench_start):
        print(bench(), flush=True)


if __name__ == "__main__":
    main()
