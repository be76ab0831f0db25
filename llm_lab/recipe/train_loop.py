"""What every trained stage sets: learning-rate schedule, batches, evaluations, checkpoints, precision, kernels."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Tag

from llm_lab.errors import Problem, leave_out
from llm_lab.estimate.machine import Machine
from llm_lab.estimate.parameters import ModelShape

from .fields import Bool, Derived, Float, Group, Int, OneOf, option
from .optimizers import eight_bits_require_cuda
from .parts import model_source, named_context, parts_of
from .stage import PartialRecipe, Rule, Values

SCHEDULERS = {
    "cosine": "half a cosine; the standard",
    "linear": "a straight line down",
    "polynomial": "(1 - progress) to a power",
    "wsd": "warm-up, stable, decay: constant, then a drop at the end",
    "none": "constant after warm-up",
}
SPLITS = {
    "end": "the last part of the data, in its order",
    "random": "chosen by a hash of the content",
}
DTYPES = {
    "bfloat16": "autocast over float32 master weights",
    "float32": "full precision",
}
TRACKERS = {
    "tensorboard": "event files in the run folder",
    "wandb": "Weights & Biases; without a login the run is stored in the run folder, to sync later",
    "trackio": "trackio by Hugging Face; stored on this machine",
}
ATTENTION_KERNELS = {
    "sdpa": "PyTorch's fused attention",
    "flash_attention_2": "the flash-attn package (CUDA)",
    "flex_attention": "PyTorch's compiled flex attention (CUDA)",
    "eager": "plain matrix products; slow",
}
ON_DIVERGENCE = {
    "stop": "stop and keep the last checkpoint",
    "roll_back": "return to the last checkpoint with half the learning rate, at most three times",
}
DISTRIBUTED = {
    "ddp": "each process has the whole model; the fastest where it fits",
    "fsdp": "each process has a part of every weight, gradient and moment (FSDP2)",
}
SHARDED_OPTIMIZERS = ("adamw", "muon", "lion")  # tested with sharded weights
FLASH_MAX_HEAD_DIM = 256
# Measured on an AMD CPU with AVX-512 BF16: 12 x 64 tokens at width 128 take 21 ms in float32 and 25 in bf16,
# 16 x 128 tokens at width 384 take 548 and 400.
BF16_PAYS_FROM_WIDTH = 256
SHARES = {5: "a fifth", 10: "a tenth"}


DECAYS = {
    "constant": "the same in every step",
    "linear": "falls to zero over the run",
}


class Scheduler(Group):
    """The learning rate over the run: up during warm-up, then down to the floor, never up again."""

    name: Annotated[str, OneOf(SCHEDULERS)] = option(
        "cosine",
        help="the learning-rate schedule after warm-up",
        question="Which learning-rate schedule?",
        choices=SCHEDULERS,
        why="The last, small steps bring most of the gain, so all but `none` end at min_ratio. A wsd run can "
        "be continued from its constant part; the others fit only the length that they start with.",
    )
    warmup_steps: Derived[Int] = option(
        help="warm-up steps",
        question="Warm-up steps?",
        derived="warmup_ratio × max_steps, else 5 % of max_steps, at most 2,000",
        ge=0,
    )
    warmup_ratio: Float | None = option(
        help="warm-up as a share of the run, instead of warmup_steps",
        question="Warm-up as a share of the run (empty: in steps)?",
        ge=0.0,
        lt=1.0,
        advanced=True,
    )
    min_ratio: Float = option(
        0.1,
        help="final learning rate, as a share of the peak",
        question="Final learning rate, as a share of the peak?",
        ge=0.0,
        le=1.0,
        when={"scheduler.name": ("cosine", "linear", "polynomial", "wsd")},
        advanced=True,
    )
    power: Float = option(
        2.0,
        help="polynomial: its power; 1 is linear",
        question="Power of the polynomial?",
        gt=0.0,
        le=10.0,
        when={"scheduler.name": ("polynomial",)},
    )
    decay_ratio: Float = option(
        0.2,
        help="wsd: share of the run, at its end, in which the learning rate decays",
        question="Share of the run in which the learning rate decays?",
        why="10 to 20 % is enough (Hu et al. 2024). The constant part can be continued later.",
        gt=0.0,
        le=1.0,
        when={"scheduler.name": ("wsd",)},
    )
    weight_decay: Annotated[str, OneOf(DECAYS)] = option(
        "constant",
        help="how the optimizer's weight decay changes over the run",
        question="Weight decay over the run?",
        choices=DECAYS,
        why="Decay keeps weights small while the learning rate is high. Letting it fall to zero, as in "
        "nanochat and modded-nanogpt, gave lower final losses there. It costs nothing.",
        advanced=True,
    )


ReportTo = Annotated[
    Annotated[str, OneOf(("none", *TRACKERS)), Tag("one")]
    | Annotated[tuple[Annotated[str, OneOf(("none", *TRACKERS))], ...], Tag("several")],
    Discriminator(lambda value: "several" if isinstance(value, list | tuple) else "one"),
]


class TrainLoop(Group):
    """What every trained stage sets: batches, evaluations, checkpoints, precision."""

    per_device_train_batch_size: Derived[Int] = option(
        help="batch size per device, in sequences (in pairs for DPO and reward models, in outputs for GRPO and PPO)",
        question="Batch size per device?",
        derived="pretraining: 16 on a CPU, as many as fit on a GPU; other stages: 8, fewer where they don't fit "
        "(GRPO and PPO: the outputs for 8 prompts per step)",
        ge=1,
    )
    gradient_accumulation_steps: Derived[Int] = option(
        help="batches per optimizer step",
        question="Batches per optimizer step (gradient accumulation)?",
        derived="1 on a CPU; on a GPU for pretraining up to about 0.25 M tokens per step, else 1 or 2",
        ge=1,
        advanced=True,
    )
    max_grad_norm: Float = option(
        1.0, help="clip gradients to this norm", question="Maximum gradient norm?", gt=0.0, advanced=True
    )
    eval_steps: Derived[Int] = option(
        help="steps between evaluations",
        question="Steps between evaluations?",
        derived="a tenth of max_steps (a fifth in stages after pretraining), at least 10",
        ge=1,
    )
    save_steps: Derived[Int] = option(
        help="steps between checkpoints; a crash loses at most the steps since the last one",
        question="Steps between checkpoints?",
        derived="same as eval_steps",
        ge=1,
    )
    save_total_limit: Int = option(
        4,
        help="number of checkpoints to keep: the last two, the first, and others evenly spaced between them; 1: only "
        "the last one",
        question="How many checkpoints to keep?",
        ge=1,
        advanced=True,
    )
    logging_steps: Derived[Int] = option(
        help="steps between log lines",
        question="Steps between log lines?",
        derived="a fiftieth of max_steps, 1 to 50",
        ge=1,
        advanced=True,
    )
    dtype: Derived[Annotated[str, OneOf(DTYPES)]] = option(
        help="precision of matrix products; master weights are always float32",
        question="Precision?",
        choices=DTYPES,
        derived="bfloat16 on CUDA; on a CPU whichever is faster, but float32 for reward models, DPO, GRPO and PPO",
        advanced=True,
    )
    attn_implementation: Derived[Annotated[str, OneOf(ATTENTION_KERNELS)]] = option(
        help="the attention kernel",
        question="Attention kernel?",
        choices=ATTENTION_KERNELS,
        derived="sdpa; pretraining on a GPU: flash_attention_2 where flash-attn is installed and supports the parts",
        advanced=True,
    )
    gradient_checkpointing: Derived[Bool] = option(
        help="recompute activations to save memory, for about a third more time",
        question="Recompute activations to save memory?",
        derived="true only if the run does not fit without it",
        advanced=True,
    )
    threads: Int | None = option(
        help="CPU threads; null: OMP_NUM_THREADS where it is set, else the number of cores that are free when "
        "the run starts",
        question="How many CPU threads (empty: the number of free cores)?",
        when={"device": ("cpu",)},
        ge=1,
        le=4096,
        advanced=True,
    )
    deterministic: Bool = option(
        False,
        help="on a GPU: use only deterministic kernels, so that every run on the same machine gives the same bits. "
        "Some are slower, and an operation without one ends the run. On a CPU, runs with the same number of threads "
        "are always the same",
        question="The same bits in every run on this GPU?",
        advanced=True,
    )
    distributed: Annotated[str, OneOf(DISTRIBUTED)] = option(
        "ddp",
        help="how several processes share the model (DeepSpeed is not supported: fsdp does what its ZeRO 3 does); "
        "no effect with one process",
        question="How do several processes share the model?",
        choices=DISTRIBUTED,
        why="With ddp, every GPU holds the whole model and its optimizer, and only the batch is divided. fsdp divides "
        "these too, so that larger models fit, and sends all weights three times per batch.",
        advanced=True,
    )
    on_divergence: Annotated[str, OneOf(ON_DIVERGENCE)] = option(
        "stop",
        help="what happens if the loss is not a number or explodes",
        question="What if the loss explodes?",
        choices=ON_DIVERGENCE,
        advanced=True,
    )
    report_to: ReportTo = option(
        "none",
        help="experiment trackers that also get the metrics; one, or a list",
        question="Also report to a tracker?",
        choices={"none": "metrics.jsonl and the report only"} | TRACKERS,
        why="Trackers are an extra: pip install 'llm-lab[tracking]'. Without this key no tracker is imported.",
        advanced=True,
    )

    @property
    def trackers(self) -> tuple[str, ...]:
        """The trackers that are named, each once."""
        named = (self.report_to,) if isinstance(self.report_to, str) else self.report_to
        return tuple(name for name in dict.fromkeys(named) if name != "none")


# --- derived values


def faster_dtype(machine: Machine, shape: ModelShape | None, on_cpu: bool) -> tuple[str, str]:
    """Return the precision that trains faster, and the reason."""
    if not on_cpu:
        return "bfloat16", "CUDA"
    if not machine.cpu_bf16_is_fast:
        return "float32", "this CPU has no bf16 in hardware"
    if shape is not None and shape.hidden_size < BF16_PAYS_FROM_WIDTH:
        return "float32", f"faster on a CPU below a width of {BF16_PAYS_FROM_WIDTH}"
    return "bfloat16", "this CPU has bf16 in hardware"


def fill_intervals(recipe: PartialRecipe, *, evaluations: int) -> None:
    """Fill in what follows from train.max_steps: warm-up, and how often to evaluate, save and log.

    evaluations: their number in a run that is long enough.
    """
    steps: int = recipe.get("train.max_steps")
    ratio = recipe.get("scheduler.warmup_ratio")
    if ratio is not None:
        recipe.fill("scheduler.warmup_steps", warmup_steps_of(ratio, steps), "warmup_ratio × max_steps")
    constant = steps - round((recipe.get("scheduler.decay_ratio") or 0.0) * steps)
    if recipe.get("scheduler.name") == "wsd" and constant < min(2000, steps // 20):
        recipe.fill("scheduler.warmup_steps", constant, "the part of the run before decay_ratio")
    recipe.fill("scheduler.warmup_steps", min(2000, steps // 20), "5 % of max_steps, at most 2,000")
    every = max(min(steps, 10), steps // evaluations)
    share = f"{SHARES[evaluations]} of max_steps, at least 10"
    recipe.fill("train.eval_steps", every, share if steps >= 10 else "at the end of a run this short")
    recipe.fill("train.save_steps", recipe.get("train.eval_steps"), "same as eval_steps")
    recipe.fill("train.logging_steps", min(50, max(1, steps // 50)), "a fiftieth of max_steps, 1 to 50")


def warmup_steps_of(ratio: float, max_steps: int) -> int:
    """Return the warm-up steps of a warm-up ratio; the last step is never a warm-up step."""
    return min(max_steps - 1, round(ratio * max_steps))


# --- rules


def _train(values: Values) -> Mapping[str, Any]:
    return values.get("train") or {}


def _warmup_ends_within_the_run(values: Values) -> Iterator[Problem]:
    warmup, steps = (values.get("scheduler") or {}).get("warmup_steps"), _train(values).get("max_steps")
    if warmup is not None and steps is not None and warmup >= steps:
        yield Problem(
            "scheduler.warmup_steps",
            f"the warm-up must be shorter than the run of train.max_steps = {steps}",
            value=warmup,
            allowed=f"0 to {steps - 1}",
            fix=f"Try {max(0, steps // 20)}.",
        )


def _warmup_leaves_room_for_the_decay(values: Values) -> Iterator[Problem]:
    scheduler, steps = values.get("scheduler") or {}, _train(values).get("max_steps")
    warmup, ratio = scheduler.get("warmup_steps"), scheduler.get("decay_ratio")
    if scheduler.get("name") != "wsd" or not steps or warmup is None or ratio is None or warmup >= steps:
        return
    decay = round(ratio * steps)
    if warmup + decay > steps:
        yield Problem(
            "scheduler.decay_ratio",
            f"{warmup} warm-up steps and {decay} decay steps are more than train.max_steps = {steps}",
            value=ratio,
            allowed=f"above 0, up to {(steps - warmup) / steps:.4g}",
            fix="Or set fewer scheduler.warmup_steps.",
        )


# If a run counts in epochs, these are checked again once its steps are known.
LENGTH_RULES = (_warmup_ends_within_the_run, _warmup_leaves_room_for_the_decay)


def _warmup_is_set_once(values: Values) -> Iterator[Problem]:
    scheduler, steps = values.get("scheduler") or {}, _train(values).get("max_steps")
    ratio, warmup = scheduler.get("warmup_ratio"), scheduler.get("warmup_steps")
    if ratio is not None and warmup is not None and steps and warmup != warmup_steps_of(ratio, steps):
        yield Problem(
            "scheduler.warmup_ratio",
            f"this is {warmup_steps_of(ratio, steps)} of {steps} steps, but scheduler.warmup_steps = {warmup}",
            value=ratio,
            fix="Remove one of the two.",
        )


def _flash_attention_has_no_alibi(values: Values) -> Iterator[Problem]:
    kernel = _train(values).get("attn_implementation")
    if parts_of(values).get("position_embedding") == "alibi" and kernel == "flash_attention_2":
        yield Problem(
            "train.attn_implementation",
            "FlashAttention silently drops ALiBi's position penalties",
            value=kernel,
            allowed="sdpa, flex_attention, eager",
            fix=leave_out("train.attn_implementation"),
        )


def _kernel_runs_on_the_device(values: Values) -> Iterator[Problem]:
    kernel = _train(values).get("attn_implementation")
    if values.get("device") == "cpu" and kernel in ("flash_attention_2", "flex_attention"):
        reason = "requires CUDA" if kernel == "flash_attention_2" else "has no backward pass on a CPU"
        yield Problem("train.attn_implementation", f"{kernel} {reason}", value=kernel, allowed="sdpa, eager")


def _kernel_supports_the_model(values: Values) -> Iterator[Problem]:
    train, parts = _train(values), parts_of(values)
    kernel, head_dim = train.get("attn_implementation"), parts.get("head_dim")
    if values.get("device") == "cpu" or (kernel == "flash_attention_2" and parts.get("position_embedding") == "alibi"):
        return  # other rules check these
    if kernel == "flex_attention" and parts.get("attention_dropout"):
        why = f"flex attention has no dropout, and model.attention_dropout = {parts['attention_dropout']:g}"
    elif kernel == "flex_attention" and (head_dim or 16) < 16:
        why = f"flex attention requires a head size of at least 16, and model.head_dim = {head_dim}"
    elif kernel == "flash_attention_2" and (head_dim or 1) > FLASH_MAX_HEAD_DIM:
        why = f"FlashAttention supports head sizes up to {FLASH_MAX_HEAD_DIM}, and model.head_dim = {head_dim}"
    elif kernel == "flash_attention_2" and train.get("dtype") == "float32":
        why = "FlashAttention does not support float32"
    else:
        return
    key = "train.attn_implementation"
    yield Problem(key, why, value=kernel, allowed="sdpa, eager", fix=leave_out(key))


def _there_is_a_sample_prompt(values: Values) -> Iterator[Problem]:
    prompts = (values.get("samples") or {}).get("prompts")
    if prompts is not None and not prompts:
        yield Problem(
            "samples.prompts", "at least one prompt is required", allowed='a list of strings; [""]: no prompt'
        )


def _sharding_supports_the_run(values: Values) -> Iterator[Problem]:
    """Yield a problem for each setting whose result is wrong, or was not tested, with a sharded model."""
    train, optimizer = _train(values), (values.get("optimizer") or {}).get("name")
    fix = "Set train.distributed=ddp"
    if train.get("distributed") != "fsdp":
        return
    if optimizer not in (None, *SHARDED_OPTIMIZERS):
        why = f"fsdp is not supported with {optimizer}, whose step needs whole weights"
        yield Problem("optimizer.name", why, value=optimizer, allowed=", ".join(SHARDED_OPTIMIZERS), fix=f"Or: {fix}.")
    if train.get("compile"):
        why = "fsdp is not supported in a compiled step"
        yield Problem("train.compile", why, value=True, fix=f"Leave the key out. Or: {fix}.")
    if train.get("ema_decay"):
        why = "fsdp is not supported with an average of the weights, because each process would need the whole average"
        yield Problem("train.ema_decay", why, value=train["ema_decay"], fix=f"Leave the key out. Or: {fix}.")
    if (values.get("lora") or {}).get("load_in_4bit"):
        why = "fsdp is not supported with a base in 4 bits, because each process would need the whole base"
        yield Problem("lora.load_in_4bit", why, value=True, fix=f"Set it to false. Or: {fix}.")


LOOP_RULES: tuple[Rule, ...] = (
    _sharding_supports_the_run,
    *LENGTH_RULES,
    _warmup_is_set_once,
    _flash_attention_has_no_alibi,
    _kernel_runs_on_the_device,
    _kernel_supports_the_model,
    eight_bits_require_cuda,
    _there_is_a_sample_prompt,
)


def rows_longer_than_context(values: Values, shape: ModelShape | None) -> Iterator[Problem]:
    """Yield a problem if sequences exceed the model's context. shape: the resolved model's, if it is known."""
    longest = (shape and shape.max_position_embeddings) or named_context(values)
    length = _train(values).get("max_length")
    if longest and length and length > longest:
        other = "leave it out"
        if model_source(values) == "parts":
            other = f"the model's context, model.max_position_embeddings, to {length}"
        why = f"sequences are longer than the model's context of {longest} tokens"
        yield Problem("train.max_length", why, value=length, fix=f"Set it to at most {longest}, or {other}.")


def missing_trackers(values: Values) -> list[str]:
    """Return the trackers of train.report_to that are not installed."""
    named = _train(values).get("report_to") or ()
    names = (named,) if isinstance(named, str) else named
    return [name for name in dict.fromkeys(names) if name != "none" and not is_installed(name)]


def is_installed(package: str) -> bool:
    """Return whether a package can be imported, without importing it."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None  # a folder of that name is not a package
