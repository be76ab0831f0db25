"""What every trained stage derives alike: its precision, and what follows from the number of its steps."""

from __future__ import annotations

from llm_lab.estimate.machine import Machine
from llm_lab.estimate.parameters import ModelShape

from .filling import Draft
from .rules import warmup_steps_of

# Measured on an AMD CPU with AVX-512 BF16: 12 x 64 tokens at width 128 take 21 ms in float32 and 25 in bf16,
# 16 x 128 tokens at width 384 take 548 and 400.
BF16_PAYS_FROM_WIDTH = 256
SHARES = {5: "a fifth", 10: "a tenth"}


def faster_dtype(machine: Machine, shape: ModelShape | None, on_cpu: bool) -> tuple[str, str]:
    """Return the precision that trains faster, and why."""
    if not on_cpu:
        return "bfloat16", "CUDA"
    if not machine.cpu_bf16_is_fast:
        return "float32", "this CPU has no bf16 in hardware"
    if shape is not None and shape.hidden_size < BF16_PAYS_FROM_WIDTH:
        return "float32", f"faster on a CPU below a width of {BF16_PAYS_FROM_WIDTH}"
    return "bfloat16", "this CPU multiplies bf16 in hardware"


def fill_intervals(draft: Draft, *, evaluations: int) -> None:
    """Fill in what follows from train.max_steps: warm-up, and how often to evaluate, save and log.

    evaluations: how many there are in a run that is long enough.
    """
    steps: int = draft.get("train.max_steps")
    ratio = draft.get("scheduler.warmup_ratio")
    if ratio is not None:
        draft.fill("scheduler.warmup_steps", warmup_steps_of(ratio, steps), "warmup_ratio × max_steps")
    flat_from = steps - round((draft.get("scheduler.decay_ratio") or 0.0) * steps)
    if draft.get("scheduler.name") == "wsd" and flat_from < min(2000, steps // 20):
        draft.fill("scheduler.warmup_steps", flat_from, "what decay_ratio leaves of the run")
    draft.fill("scheduler.warmup_steps", min(2000, steps // 20), "5 % of max_steps, at most 2,000")
    every = max(min(steps, 10), steps // evaluations)
    draft.fill("train.eval_steps", every, f"{SHARES[evaluations]} of max_steps, at least 10")
    draft.fill("train.save_steps", draft.get("train.eval_steps"), "as eval_steps")
    draft.fill("train.logging_steps", min(50, max(1, steps // 50)), "a fiftieth of max_steps, 1 to 50")
