"""On a CUDA GPU that does bf16: utilisation, predicted against actual memory and time, kernels against each other."""

from __future__ import annotations

import importlib.util
import statistics
from pathlib import Path
from typing import Any

RECIPE = Path(__file__).resolve().parent.parent / "configs" / "gpu-124m.yaml"
VOCABULARY, ROUNDS = 50_257, 20  # GPT-2's, whose tokenizer the recipe names


def bench(full: bool) -> None:
    """Print what this machine's GPU reaches, or that there is none."""
    from llm_lab.estimate.machine import find_machine

    machine = find_machine()
    if machine.cuda_problem:
        print(f"GPU: not measured ({machine.cuda_problem}).")
        return
    bench_training(machine)
    print()
    bench_kernels()


def bench_training(machine: Any) -> None:
    """Time micro-batches of the recipe's shape in bf16, compiled, on random tokens."""
    import torch

    from llm_lab.estimate.cost import memory_by_part
    from llm_lab.hf.load import build_from_config, config_of_parts
    from llm_lab.optim.build import build_optimizer
    from llm_lab.recipe.files import read_recipe_file
    from llm_lab.recipe.resolve import resolve
    from llm_lab.training.cross_entropy import head_for_pieces
    from llm_lab.training.pretrain_trainer import next_token_loss

    resolved = resolve(read_recipe_file(RECIPE), machine=machine)
    recipe, train = resolved.recipe, resolved.recipe.train
    rows, length = train.per_device_train_batch_size, train.max_length
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    config = config_of_parts(recipe.model.model_dump(by_alias=True), VOCABULARY)
    model = build_from_config(config, attn_implementation=train.attn_implementation).cuda().train()
    optimizer = build_optimizer(model, recipe.optimizer)
    compiled = torch.compile(next_token_loss, dynamic=False)
    ids = torch.randint(0, VOCABULARY, (rows, length + 1), device="cuda")

    def seconds_of(work: Any) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3

    def batch() -> None:
        with head_for_pieces(model, rows * length) as head:
            compiled(model, ids[:, :-1], ids[:, 1:], "cuda", train.dtype, head).backward()

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        batch()
        update()
    torch.cuda.reset_peak_memory_stats()
    batches, updates = [], []
    for _ in range(ROUNDS):
        batches.append(seconds_of(batch))
        updates.append(seconds_of(update))
    each = statistics.median(batches) + statistics.median(updates) / train.gradient_accumulation_steps
    shape = resolved.shape
    flops = shape.training_flops_per_token(length)
    speed, peak = rows * length / each, machine.gpus[0].bf16_peak_flops
    planned = memory_by_part(
        shape,
        rows=rows,
        length=length,
        optimizer=recipe.optimizer.name,
        dtype=train.dtype,
        checkpointing=bool(train.gradient_checkpointing),
        in_pieces=True,
    )
    steps_seconds = train.max_steps * train.gradient_accumulation_steps * each
    print(f"{machine.gpus[0].name}, {RECIPE.name}: {shape.parameters:,} parameters, {rows} × {length} tokens, bf16,")
    print(f"compiled, {train.attn_implementation}, {recipe.optimizer.name}:\n")
    print("| what | measured | predicted |\n| --- | --- | --- |")
    print(f"| tokens a second | {speed:,.0f} | |")
    print(f"| model-FLOPs utilisation | {f'{speed * flops / peak:.1%}' if peak else 'peak unknown'} | |")
    print(f"| batch, ms | {1e3 * statistics.median(batches):.1f} ({1e3 * min(batches):.1f} to ", end="")
    print(f"{1e3 * max(batches):.1f}) | |")
    print(f"| optimizer, ms | {1e3 * statistics.median(updates):.1f} | |")
    actual = torch.cuda.max_memory_allocated()
    print(f"| memory, GiB | {actual / 2**30:.1f} | {sum(planned.values()) / 2**30:.1f} |")
    print(f"| hours of the recipe's steps | {steps_seconds / 3600:.2f} | ", end="")
    print(f"{(resolved.estimate.wall_seconds or 0) / 3600:.2f} with evaluations and samples |")


def bench_kernels() -> None:
    """Print how far the attention kernels are from each other in bf16, beside float32's distance."""
    import torch

    from llm_lab.model.configuration_lab import LabConfig
    from llm_lab.model.modeling_lab import LabForCausalLM

    config = LabConfig(vocab_size=1024, hidden_size=512, num_hidden_layers=4, num_attention_heads=8)
    torch.manual_seed(0)
    exact = LabForCausalLM._from_config(config, attn_implementation="eager").cuda().eval()
    ids = torch.randint(0, 1024, (4, 512), device="cuda")
    print("Attention kernels, bf16, 4 × 512, against eager attention in float32:\n")
    print("| kernel | mean error of the logits | of the loss |\n| --- | --- | --- |")
    with torch.no_grad():
        wanted = exact(ids, labels=ids)
        for kernel in ("eager", "sdpa", "flex_attention", "flash_attention_2"):
            if kernel == "flash_attention_2" and not importlib.util.find_spec("flash_attn"):
                print(f"| {kernel} | flash-attn is not installed | |")
                continue
            model = LabForCausalLM._from_config(config, attn_implementation=kernel).cuda().eval()
            model.load_state_dict(exact.state_dict())
            found = model.to(torch.bfloat16)(ids, labels=ids)
            error = (found.logits.float() - wanted.logits).abs().mean() / wanted.logits.abs().mean()
            print(f"| {kernel} | {error:.2%} | {(found.loss - wanted.loss).abs() / wanted.loss:.3%} |")
