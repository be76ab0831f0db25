"""The training step and its memory: LLM Lab against the alternatives, one process after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .candidates import HEADS, LAYERS, LENGTH, NAMES, ROWS, VOCABULARY, WIDTH, Trained, llama_config, train_in_process
from .timing import Timing

ROUNDS, STEPS = 3, 120


def bench(full: bool) -> None:
    """Print step time and peak memory of the four implementations."""
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    last: dict[str, Trained] = {}
    for _ in range(ROUNDS * (2 if full else 1)):
        for name in NAMES:
            last[name] = train_in_process(name, STEPS)
            seconds[name] += last[name].seconds
    ours = Timing(tuple(seconds["ours"]))
    print(f"Training step, {ROWS} × {LENGTH} tokens, {LAYERS} × {WIDTH}, AdamW, float32, eager, on the CPU:\n")
    print("| implementation | step | relative to ours | peak memory | allocated by training | parameters |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, words in NAMES.items():
        timing, trained = Timing(tuple(seconds[name])), last[name]
        print(
            f"| {words} | {timing.spread()} | {timing.median / ours.median:.2f} × "
            f"| {trained.peak_bytes / 2**20:,.0f} MiB | {trained.training_bytes / 2**20:,.0f} MiB "
            f"| {trained.parameters:,} |"
        )


def bench_memory(full: bool) -> None:
    """Print the peak memory of tensors in forward and backward, without weights and optimizer state."""
    print("Peak memory of tensors in forward and backward, by torch's profiler (float32, CPU):\n")
    print("| tokens × vocabulary | LLM Lab | LlamaForCausalLM | GPT-2-shaped |\n| --- | --- | --- | --- |")
    shapes = [(ROWS * LENGTH, VOCABULARY), (2048, 8_192)] + ([(4096, 65_536)] if full else [])
    for tokens, vocabulary in shapes:
        cells = (f"{peak / 2**20:,.1f} MiB" for peak in _peaks(tokens, vocabulary))
        print(f"| {tokens:,} × {vocabulary:,} | {' | '.join(cells)} |")


def _peaks(tokens: int, vocabulary: int) -> list[int]:
    """Return the peak bytes of LLM Lab, LlamaForCausalLM and the GPT-2-shaped model."""
    import torch
    from transformers import LlamaForCausalLM

    from llm_lab.estimate.machine import find_machine
    from llm_lab.hf.load import build_from_config
    from llm_lab.training.cpu import speed_up_products
    from llm_lab.training.loss import detach_large_head, next_token_loss

    from .gpt import Gpt

    config = llama_config()
    config.vocab_size = vocabulary
    ids = torch.randint(0, vocabulary, (tokens // LENGTH, LENGTH + 1))
    x, y = ids[:, :-1], ids[:, 1:].contiguous()
    ours, stock = build_from_config(config).train(), LlamaForCausalLM(config).train()
    gpt = Gpt(vocabulary, LENGTH, LAYERS, WIDTH, HEADS)
    speed_up_products(ours, find_machine().cpu_name)

    def our_loss() -> Any:
        with detach_large_head(ours, x.numel()) as head:
            return next_token_loss(ours, x, y, "cpu", "float32", head)

    losses = our_loss, lambda: stock(input_ids=x, labels=x, shift_labels=y).loss, lambda: gpt.loss(x, y)
    return [peak_tensor_bytes(loss) for loss in losses]


def peak_tensor_bytes(loss_of: Callable[[], Any]) -> int:
    """Return the peak bytes of tensors while a loss and its gradients are computed."""
    import torch

    with torch.profiler.profile(profile_memory=True) as profile:
        loss_of().backward()
    current = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    return peak
