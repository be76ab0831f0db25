"""What the recipes of the stages after pretraining leave out, and what these stages cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_lab.estimate.cost import PROGRAM_BYTES, Estimate, available_bytes, memory_by_part
from llm_lab.estimate.machine import Machine
from llm_lab.estimate.parameters import ModelShape, read_config_json, shape_at

from .filling import Draft
from .pace import faster_dtype, fill_intervals
from .score_defaults import derive_score

MAX_LENGTH = 1024
EPOCHS = {"sft": 3.0, "reward": 1.0, "dpo": 1.0}
ROLLOUT_STEPS = 200
EVALUATIONS = 5  # in a run, where it is long enough
ROLLOUT_PROMPTS = 8
EXAMPLES = 8
VALIDATION_EXAMPLES = {"cpu": 200, "cuda": 1000}
LORA_DROPOUT = 0.05
# A tuned model is moved less than one from scratch; an adapter, small and new, more than whole weights.
LEARNING_RATE_SHARE = {"sft": 0.02, "reward": 0.01, "dpo": 0.001, "grpo": 0.001, "ppo": 0.001}
LORA_SHARE = 10
PRETRAINING_RATES = {"adamw": 1e-3, "adamw_8bit": 1e-3, "muon": 0.02, "lion": 2e-4, "adafactor": 0.02}
MUON_ADAMW_RATE = 3e-3
CRITIC_SHARE = 5


def derive_tuning(draft: Draft, machine: Machine, known: ModelShape | None) -> ModelShape | None:
    """Fill in what a recipe after pretraining leaves out; returns the model's shape where it is at hand."""
    stage, on_cpu = draft.get("stage"), draft.get("device") == "cpu"
    shape = known or shape_at(draft.get("model.checkpoint"))
    _derive_lora(draft, stage)
    _derive_learning_rates(draft, stage)
    _derive_train(draft, machine, shape, stage, on_cpu)
    derive_score(draft, stage, shape)
    return shape


def _derive_lora(draft: Draft, stage: str) -> None:
    if draft.get("lora") is None:
        return
    compares = stage in ("dpo", "grpo", "ppo")
    reason = "it compares probabilities, which dropout would blur" if compares else "the usual"
    draft.fill("lora.dropout", 0.0 if compares else LORA_DROPOUT, reason)


def _derive_learning_rates(draft: Draft, stage: str) -> None:
    name, lora = draft.get("optimizer.name"), draft.get("lora") is not None
    share = LEARNING_RATE_SHARE[stage] * (LORA_SHARE if lora else 1)
    reason = f"{share:g} of what {name} takes in pretraining: {stage}{', an adapter' if lora else ', all weights'}"
    draft.fill("optimizer.learning_rate", _rounded(PRETRAINING_RATES[name] * share), reason)
    if name == "muon":
        draft.fill("optimizer.adamw_learning_rate", _rounded(MUON_ADAMW_RATE * share), reason)
    if stage == "ppo":
        rate = draft.get("optimizer.learning_rate")
        draft.fill("ppo.critic_learning_rate", _rounded(CRITIC_SHARE * rate), f"{CRITIC_SHARE} times the model's")


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _derive_train(draft: Draft, machine: Machine, shape: ModelShape | None, stage: str, on_cpu: bool) -> None:
    config = read_config_json(draft.get("model.checkpoint")) or {}
    longest = (shape and shape.max_position_embeddings) or config.get("max_position_embeddings")
    length = min(longest or MAX_LENGTH, MAX_LENGTH)
    draft.fill("train.max_length", length, "the model's context" if longest == length else f"at most {MAX_LENGTH:,}")
    if on_cpu and stage != "sft":
        # Ratios and preferences are small differences of log-probabilities: bf16 would save little of the time here.
        draft.fill("train.dtype", "float32", "probabilities are compared, on a CPU")
    draft.fill("train.dtype", *faster_dtype(machine, shape, on_cpu))
    draft.fill("train.attn_implementation", "sdpa", "fused, and right for every combination of parts")
    draft.fill("train.gradient_checkpointing", False, "set it to true where memory does not do")
    rollouts = stage in ("grpo", "ppo")
    group = draft.get("grpo.num_generations") or 1
    rows = group * max(1, ROLLOUT_PROMPTS // machine.processes) if rollouts else EXAMPLES
    draft.fill(
        "train.per_device_train_batch_size", rows, f"{ROLLOUT_PROMPTS} prompts a step" if rollouts else "the usual"
    )
    accumulation = 1 if on_cpu or rollouts else max(1, 2 // machine.processes)
    draft.fill("train.gradient_accumulation_steps", accumulation, "one batch a step" if accumulation == 1 else "safe")
    if stage in ("sft", "reward", "dpo"):
        draft.fill(
            "validation.max_examples",
            VALIDATION_EXAMPLES["cpu" if on_cpu else "cuda"],
            f"enough to tell models apart, and soon done {'on a CPU' if on_cpu else 'on a GPU'}",
        )
    if rollouts and draft.get("train.num_train_epochs") is None:
        draft.fill("train.max_steps", ROLLOUT_STEPS, "enough to see whether the reward rises")
    elif draft.get("train.max_steps") is None:
        draft.fill("train.num_train_epochs", EPOCHS.get(stage, 1.0), f"the usual for {stage}")
    if draft.get("train.max_steps") is not None:
        fill_intervals(draft, evaluations=EVALUATIONS)


def settle(values: Mapping[str, Any], *, examples: int, processes: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values with the steps that so many training examples come to, and the reasons of what was filled in.

    Until the examples are read, a recipe that counts in epochs leaves its steps open.
    """
    draft = Draft(values)
    epochs = draft.get("train.num_train_epochs")
    if draft.get("train.max_steps") is None:
        group = (draft.get("grpo.num_generations") or 1) if "grpo" in values else 1
        rows = draft.get("train.per_device_train_batch_size") * draft.get("train.gradient_accumulation_steps")
        steps = max(1, round(epochs * examples * group / (rows * processes)))
        draft.fill("train.max_steps", steps, f"{epochs:g} times {examples:,} examples, {rows * processes} rows a step")
        fill_intervals(draft, evaluations=EVALUATIONS)
    return draft.values, draft.reasons


def estimate_tuning(recipe: Mapping[str, Any], shape: ModelShape | None, machine: Machine) -> Estimate:
    """Work out the memory of a stage after pretraining. Time is left open: it hangs on how long the answers get."""
    available = available_bytes(recipe["device"], machine)
    train, stage = recipe["train"], recipe["stage"]
    rows = train["per_device_train_batch_size"]
    if shape is None:
        return Estimate(None, {}, 0, rows * train["max_length"], None, {}, 0, available, {}, 0)
    rows *= 2 if stage in ("dpo", "reward") else 1  # chosen and rejected
    optimizer = recipe["optimizer"]["name"]
    memory = memory_by_part(
        shape,
        rows=rows,
        length=train["max_length"],
        optimizer=optimizer,
        dtype=train["dtype"],
        checkpointing=bool(train["gradient_checkpointing"]),
    )
    trained = 1.0
    lora = recipe.get("lora")
    if lora:
        trained = min(1.0, _adapter_parameters(shape, lora) / shape.parameters)
        width = 0.6 if lora["load_in_4bit"] else 2 if train["dtype"] == "bfloat16" else 4
        memory["weights"] = int(width * shape.parameters)
        memory["gradients"] = int(memory["gradients"] * trained)
        memory["optimizer"] = int(memory["optimizer"] * trained)
    frozen = 4 * shape.parameters
    compares = stage in ("dpo", "ppo") or (stage == "grpo" and recipe["grpo"]["beta"] > 0)
    if compares and not lora:  # with an adapter the reference is the model without it
        memory["reference"] = frozen
    if stage == "ppo":
        memory["critic"] = int(frozen * (1 + 3 * trained))
    if recipe["device"] == "cpu":
        memory["program"] = PROGRAM_BYTES
    per_step = rows * train["gradient_accumulation_steps"] * machine.processes * train["max_length"]
    steps = train["max_steps"] or 0
    saved = int(4 * shape.parameters * trained) + memory["optimizer"]
    return Estimate(
        parameters=shape.parameters,
        parameters_by_part=shape.parameters_by_part,
        tokens=per_step * steps,
        tokens_per_step=per_step,
        flops_per_token=shape.training_flops_per_token(train["max_length"]),
        memory_by_part=memory,
        memory_bytes=sum(memory.values()),
        memory_available_bytes=available,
        seconds_by_part={},
        disk_bytes=saved * (train["save_total_limit"] + 1),
    )


def _adapter_parameters(shape: ModelShape, lora: Mapping[str, Any]) -> int:
    """Return about how many weights an adapter has: r times the two sides of each matrix."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    heads, kv = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    sides = {"minimal": 2 * hidden + heads + kv, "attention_only": 4 * hidden + 2 * heads + 2 * kv}
    sides["ffn_only"] = (3 if shape.gated else 2) * (hidden + inner)
    sides["all"] = sides["custom"] = sides["attention_only"] + sides["ffn_only"]
    return lora["r"] * sides[lora["preset"]] * shape.num_hidden_layers
