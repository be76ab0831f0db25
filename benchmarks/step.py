"""The training step and its memory: ours against what a user would otherwise run, process by process in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .candidates import LAYERS, LENGTH, NAMES, ROWS, WIDTH, Trained, train_apart
from .timing import Timing

ROUNDS, STEPS = 3, 120


def bench(full: bool) -> None:
    """Print step time and peak memory of the four candidates."""
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    last: dict[str, Trained] = {}
    for _ in range(ROUNDS * (2 if full else 1)):
        for name in NAMES:
            last[name] = train_apart(name, STEPS)
            seconds[name] += last[name].seconds
    ours = Timing(tuple(seconds["ours"]))
    print(f"Training step, {ROWS} × {LENGTH} tokens, {LAYERS} × {WIDTH}, AdamW, float32, eager, on the CPU:\n")
    print("| who | step | of ours | peak memory | of it training | parameters |\n| --- | --- | --- | --- | --- | --- |")
    for name, words in NAMES.items():
        timing, trained = Timing(tuple(seconds[name])), last[name]
        print(
            f"| {words} | {timing.spread()} | {timing.median / ours.median:.2f} × "
            f"| {trained.peak_bytes / 2**20:,.0f} MiB | {trained.training_bytes / 2**20:,.0f} MiB "
            f"| {trained.parameters:,} |"
        )


def bench_memory(full: bool) -> None:
    """Print what a forward and backward pass holds at most beside weights and moments, by torch's profiler."""
    import torch
    from transformers import LlamaForCausalLM

    from llm_lab.estimate.machine import find_machine
    from llm_lab.hf.load import build_from_config
    from llm_lab.training.cpu import speed_up_products
    from llm_lab.training.cross_entropy import head_for_pieces
    from llm_lab.training.pretrain_trainer import next_token_loss

    from .candidates import VOCABULARY, llama_config
    from .gpt import Gpt

    print("Most bytes of tensors that stand at once in forward and backward, by torch's profiler (float32, CPU):\n")
    print("| tokens × vocabulary | ours | LlamaForCausalLM | GPT-2-shaped |\n| --- | --- | --- | --- |")
    shapes = [(ROWS * LENGTH, VOCABULARY), (2048, 8_192)] + ([(4096, 65_536)] if full else [])
    for tokens, vocabulary in shapes:
        config = llama_config()
        config.vocab_size = vocabulary
        ids = torch.randint(0, vocabulary, (tokens // LENGTH, LENGTH + 1))
        x, y = ids[:, :-1], ids[:, 1:].contiguous()
        ours, stock = build_from_config(config).train(), LlamaForCausalLM(config).train()
        speed_up_products(ours, find_machine().cpu_name)
        gpt = Gpt(vocabulary, LENGTH, LAYERS, WIDTH, 4)

        def our_loss(model=ours, x=x, y=y):
            with head_for_pieces(model, x.numel()) as head:
                return next_token_loss(model, x, y, "cpu", "float32", head)

        cells = [
            peak_tensor_bytes(our_loss),
            peak_tensor_bytes(lambda model=stock, x=x, y=y: model(input_ids=x, labels=x, shift_labels=y).loss),
            peak_tensor_bytes(lambda model=gpt, x=x, y=y: model.loss(x, y)),
        ]
        print(f"| {tokens:,} × {vocabulary:,} | " + " | ".join(f"{cell / 2**20:,.1f} MiB" for cell in cells) + " |")


def peak_tensor_bytes(loss_of: Callable[[], Any]) -> int:
    """Return the most bytes of tensors that stood at once while a loss and its gradients were made."""
    import torch

    with torch.profiler.profile(profile_memory=True) as profile:
        loss_of().backward()
    standing = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            standing += event.nbytes()
            most = max(most, standing)
    return most
