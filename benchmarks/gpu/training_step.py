"""Time variants of the compiled training step: tokens/s, model-FLOPs utilization (MFU), peak memory.

python -m benchmarks.gpu.training_step VARIANT ... [--results FOLDER]

Each variant has a process and a compile cache of its own, because a graph in a shared cache keeps the attention kernel
of the variant that was compiled first. All variants compile at once; then each is timed alone.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .cuda import require_gpu, time_once

GPT2_VOCABULARY = 50_257
SHAPES: dict[str, dict[str, Any]] = {
    "124M": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "tie_word_embeddings": True,
    },
    "1B": {
        "hidden_size": 2048,
        "intermediate_size": 5472,
        "num_hidden_layers": 20,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
}
BATCHES, UPDATES, WARMUP = 12, 5, 3
ATTENTION_WORDS = ("sdpa", "flash", "fmha", "attention")  # in the names of kernels


@dataclass(frozen=True)
class Variant:
    """A training step: its sizes, and its differences from the step that LLM Lab runs."""

    shape: str = "124M"
    rows: int = 32
    length: int = 1024
    optimizer: str = "muon"
    accumulation: int = 16  # micro-batches in an optimizer step
    bf16_residual: bool = False  # keep the residual stream in bf16
    cudnn: bool = True


VARIANTS = {
    "baseline": Variant(),
    "no-cudnn": Variant(cudnn=False),
    "bf16-residual": Variant(bf16_residual=True),
    "1b": Variant("1B", 8, 2048, "adamw", 8),
}


@dataclass(frozen=True)
class StepTimes:
    """Milliseconds of each forward and backward pass and of each update; bytes at the peak of both."""

    batches: tuple[float, ...]
    updates: tuple[float, ...]
    peak_bytes: int

    def seconds_per_batch(self, accumulation: int) -> float:
        """Return the seconds of a micro-batch with its share of the update."""
        return (statistics.median(self.batches) + statistics.median(self.updates) / accumulation) / 1e3


def time_step(batch: Callable[[], object], update: Callable[[], object], *, rounds: int = BATCHES) -> StepTimes:
    """Time a micro-batch, whose gradients accumulate, and the update. Each timed update has new gradients."""
    import torch

    for _ in range(WARMUP):
        batch()
    update()
    torch.cuda.reset_peak_memory_stats()
    batches = tuple(time_once(batch) for _ in range(rounds))
    updates = []
    for _ in range(UPDATES):
        batch()
        updates.append(time_once(update))
    return StepTimes(batches, tuple(updates), torch.cuda.max_memory_allocated())


def measure(name: str) -> None:
    """Compile a variant, print "compiled", wait for a line, then time it and print one line of JSON.

    Only these lines go to standard output; the output of libraries goes to standard error.
    """
    import torch

    from llm_lab.estimate.cost import memory_by_part
    from llm_lab.estimate.parameters import shape_of_parts
    from llm_lab.hf.load import build_from_config
    from llm_lab.model.configuration_lab import LabConfig
    from llm_lab.optim.factory import build_optimizer
    from llm_lab.recipe.optimizers import AdamW, Muon
    from llm_lab.training.loss import detach_large_head
    from llm_lab.training.pretrain_trainer import compiled_loss

    output, sys.stdout = sys.stdout, sys.stderr
    variant, machine = VARIANTS[name], require_gpu()
    torch.backends.cuda.enable_cudnn_sdp(variant.cudnn)
    parts, rows, length = SHAPES[variant.shape], variant.rows, variant.length
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    config = LabConfig(vocab_size=GPT2_VOCABULARY, max_position_embeddings=length, **parts)
    with torch.device("cuda"):
        model = build_from_config(config, attn_implementation="sdpa").train()
    if variant.bf16_residual:
        model.get_input_embeddings().register_forward_hook(lambda module, inputs, states: states.to(torch.bfloat16))
    optimizer = build_optimizer(model, Muon() if variant.optimizer == "muon" else AdamW())
    loss_of = compiled_loss()
    ids = torch.randint(0, GPT2_VOCABULARY, (rows, length + 1), device="cuda")

    def batch() -> torch.Tensor:
        with detach_large_head(model, rows * length) as head:
            loss = loss_of(model, ids[:, :-1], ids[:, 1:], "cuda", "bfloat16", head)
        loss.backward()
        return loss.detach()

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    start = time.perf_counter()
    first_loss = batch().item()
    compile_seconds = time.perf_counter() - start
    torch.cuda.empty_cache()
    print("compiled", file=output, flush=True)
    if not sys.stdin.readline():
        return
    times = time_step(batch, update)
    shape = shape_of_parts(
        parts | {"head_dim": config.head_dim, "activation": config.activation, "norm": config.norm}, GPT2_VOCABULARY
    )
    assert shape is not None
    plan = memory_by_part(
        shape,
        rows=rows,
        length=length,
        optimizer=variant.optimizer,
        dtype="bfloat16",
        checkpointing=False,
        in_pieces=True,
        compiled=True,
    )
    flops, peak = rows * length * shape.training_flops_per_token(length), machine.gpus[0].bf16_peak_flops
    batch_seconds = statistics.median(times.batches) / 1e3
    seconds = times.seconds_per_batch(variant.accumulation)
    found = {
        "variant": name,
        **asdict(variant),
        "batch_ms": times.batches,
        "update_ms": times.updates,
        "tokens_per_second": rows * length / seconds,
        "mfu": flops / seconds / peak if peak else None,
        "mfu_without_update": flops / batch_seconds / peak if peak else None,
        "peak_bytes": times.peak_bytes,
        "plan_bytes": sum(plan.values()),
        "first_batch_seconds": compile_seconds,
        "first_loss": first_loss,
    }
    found["attention_kernel"] = profile_kernels(batch, Path(os.environ["RESULTS"], f"kernels-{name}.txt"))
    print(json.dumps(found), file=output, flush=True)


def profile_kernels(work: Callable[[], object], file: Path) -> str | None:
    """Write the kernels that take the most time to a file; return the name of the largest attention kernel."""
    import torch

    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            work()
            torch.cuda.synchronize()
        averages = profile.key_averages()
        file.write_text(averages.table(sort_by="self_cuda_time_total", row_limit=30, max_name_column_width=90))
    except RuntimeError as error:  # the timing is worth reporting without the profile
        file.write_text(f"The profiler failed: {error}\n")
        return None
    kernels = sorted(averages, key=lambda kernel: -kernel.self_device_time_total)
    names = (kernel.key for kernel in kernels if any(word in kernel.key.lower() for word in ATTENTION_WORDS))
    return next(names, None)


def compare(names: list[str], results: Path, compile_limit: float) -> bool:
    """Run the variants, print a table, and return whether all were measured."""
    results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as caches:
        processes = {name: _start(name, results, Path(caches, name)) for name in names}
        try:
            deadline = time.monotonic() + compile_limit
            ready = [name for name, process in processes.items() if _read_line(process, deadline) == "compiled"]
            for name in set(names) - set(ready):  # before the timing, so that they do not disturb it
                processes[name].kill()
            print(
                "| variant | batch | update | tokens/s | MFU | MFU without update | peak GiB | plan GiB | first batch |"
            )
            print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
            failed = [name for name in names if not (name in ready and _time(name, processes[name], results))]
        finally:
            for process in processes.values():
                process.kill()
                process.wait()
    for name in failed:
        print(f"{name}: not measured; see {results / f'step-{name}.log'}", flush=True)
    return not failed


def _start(name: str, results: Path, cache: Path) -> subprocess.Popen[str]:
    with open(results / f"step-{name}.log", "w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.training_step", name, "--single"],
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache), "RESULTS": str(results.resolve())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )


def _read_line(process: subprocess.Popen[str], deadline: float) -> str:
    """Return the next line of a process, empty if it ended or the deadline passed."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
    return process.stdout.readline().strip() if ready else ""


def _time(name: str, process: subprocess.Popen[str], results: Path) -> bool:
    """Let a compiled variant run, print its row, and return whether there was one."""
    assert process.stdin is not None
    try:
        process.stdin.write("start\n")
        process.stdin.flush()
    except BrokenPipeError:
        return False
    line = _read_line(process, time.monotonic() + 60)
    if not line:
        return False
    with open(results / "steps.jsonl", "a") as file:
        file.write(line + "\n")
    found = json.loads(line)
    batch, update = (statistics.median(found[key]) for key in ("batch_ms", "update_ms"))
    mfu, without = (f"{found[key]:.1%}" if found[key] else "-" for key in ("mfu", "mfu_without_update"))
    peak, plan = (found[key] / 2**30 for key in ("peak_bytes", "plan_bytes"))
    print(
        f"| {name} | {batch:.2f} ms | {update:.2f} ms | {found['tokens_per_second']:,.0f} | {mfu} | {without} "
        f"| {peak:.2f} | {plan:.2f} | {found['first_batch_seconds']:.0f} s |",
        flush=True,
    )
    return True


def main() -> None:
    """Measure the named variants."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.training_step", description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="+", choices=VARIANTS, metavar="VARIANT", help=", ".join(VARIANTS))
    parser.add_argument("--results", type=Path, default=Path("gpu-results"), help="folder (default: gpu-results)")
    parser.add_argument("--compile-limit", type=float, default=120, help="seconds in which all have to compile")
    parser.add_argument("--single", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    require_gpu()
    if arguments.single:
        measure(arguments.variants[0])
    elif not compare(arguments.variants, arguments.results, arguments.compile_limit):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
