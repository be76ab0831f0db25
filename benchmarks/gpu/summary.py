"""What `python -m benchmarks gpu` prints: how fast a shipped recipe trains here, next to its plan, and how far each
attention kernel is from float32."""

from __future__ import annotations

import importlib.util
import statistics
from pathlib import Path
from typing import Any

from .training_step import time_step

RECIPE = Path(__file__).resolve().parent.parent.parent / "configs" / "gpu-124m.yaml"
VOCABULARY, ROUNDS = 50_257, 20  # for GPT-2's tokenizer, which the recipe uses
KERNELS = ("eager", "sdpa", "flex_attention", "flash_attention_2")


def bench(full: bool) -> None:
    """Print both tables, or why nothing was measured."""
    from llm_lab.estimate.machine import find_machine

    machine = find_machine()
    if machine.cuda_problem:
        print(f"GPU: not measured ({machine.cuda_problem}).")
        return
    bench_training(machine)
    print()
    bench_kernels()


def bench_training(machine: Any) -> None:
    """Time the compiled bf16 step of the recipe on random tokens and compare it with the plan."""
    import torch

    from llm_lab.hf.configs import config_of_parts
    from llm_lab.hf.load import build_from_config
    from llm_lab.optim.factory import build_optimizer
    from llm_lab.recipe.files import read_recipe_file
    from llm_lab.recipe.resolve import resolve
    from llm_lab.training.loss import detach_large_head
    from llm_lab.training.pretrain_trainer import compiled_loss

    resolved = resolve(read_recipe_file(RECIPE), machine=machine)
    recipe: Any = resolved.recipe
    train, shape, estimate, gpu = recipe.train, resolved.shape, resolved.estimate, machine.gpus[0]
    assert shape is not None
    rows, length, accumulation = train.per_device_train_batch_size, train.max_length, train.gradient_accumulation_steps
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    config = config_of_parts(recipe.model.model_dump(by_alias=True), VOCABULARY)
    model = build_from_config(config, attn_implementation=train.attn_implementation).cuda().train()
    optimizer = build_optimizer(model, recipe.optimizer)
    compiled = compiled_loss()
    ids = torch.randint(0, VOCABULARY, (rows, length + 1), device="cuda")

    def batch() -> None:
        with detach_large_head(model, rows * length) as head:
            compiled(model, ids[:, :-1], ids[:, 1:], "cuda", train.dtype, head).backward()

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    times = time_step(batch, update, rounds=ROUNDS)
    seconds = times.seconds_per_batch(accumulation)
    speed, peak = rows * length / seconds, gpu.bf16_peak_flops
    utilization = f"{speed * shape.training_flops_per_token(length) / peak:.1%}" if peak else "unknown peak of this GPU"
    batch_ms, update_ms = statistics.median(times.batches), statistics.median(times.updates)
    spread = f"{min(times.batches):.1f} to {max(times.batches):.1f}"
    planned = sum(estimate.memory_by_part.values())
    hours, planned_hours = train.max_steps * accumulation * seconds / 3600, (estimate.wall_seconds or 0) / 3600
    print(f"{gpu.name}, {RECIPE.name}: {shape.parameters:,} parameters, {rows} × {length} tokens, bf16,")
    print(f"compiled, {train.attn_implementation}, {recipe.optimizer.name}:\n")
    print("| quantity | measured | predicted |\n| --- | --- | --- |")
    print(f"| tokens/s | {speed:,.0f} | |")
    print(f"| model-FLOPs utilization (MFU) | {utilization} | |")
    print(f"| forward and backward | {batch_ms:.1f} ms ({spread}) | |")
    print(f"| optimizer step | {update_ms:.1f} ms | |")
    print(f"| peak memory | {times.peak_bytes / 2**30:.1f} GiB | {planned / 2**30:.1f} GiB |")
    print(f"| all steps of the recipe | {hours:.2f} h | {planned_hours:.2f} h, with evaluations and samples |")


def bench_kernels() -> None:
    """Print the error of each attention kernel in bf16, against eager attention in float32."""
    import torch

    from llm_lab.model.configuration_lab import LabConfig
    from llm_lab.model.modeling_lab import LabForCausalLM

    config = LabConfig(vocab_size=1024, hidden_size=512, num_hidden_layers=4, num_attention_heads=8)
    torch.manual_seed(0)
    exact = LabForCausalLM._from_config(config, attn_implementation="eager").cuda().eval()
    ids = torch.randint(0, 1024, (4, 512), device="cuda")
    print("Attention kernels, bf16, 4 × 512, against eager attention in float32:\n")
    print("| kernel | mean error of the logits | error of the loss |\n| --- | --- | --- |")
    with torch.no_grad():
        expected = exact(ids, labels=ids)
        for kernel in KERNELS:
            if kernel == "flash_attention_2" and not importlib.util.find_spec("flash_attn"):
                print(f"| {kernel} | skipped: flash-attn is not installed | |")
                continue
            model = LabForCausalLM._from_config(config, attn_implementation=kernel).cuda().eval()
            model.load_state_dict(exact.state_dict())
            found = model.to(torch.bfloat16)(ids, labels=ids)
            error = (found.logits.float() - expected.logits).abs().mean() / expected.logits.abs().mean()
            print(f"| {kernel} | {error:.2%} | {(found.loss - expected.loss).abs() / expected.loss:.3%} |")
