"""The stages that train nothing: what their recipes leave out, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem
from llm_lab.estimate.cost import PROGRAM_BYTES, Estimate, available_bytes
from llm_lab.estimate.machine import Machine
from llm_lab.estimate.parameters import ModelShape, read_config_json, shape_at

from .evaluation import measures_itself
from .filling import Draft
from .native import what_loads
from .score_defaults import derive_score

UNTRAINED = ("merge", "eval", "export")
# What rounding to the base's dtype may change logits by; llm_lab/hf/merge.py says why.
MERGE_TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 3e-3}
EVAL_TOKENS = {"cpu": 131_072, "cuda": 1_048_576}
EVAL_ROWS = 8
SMALL_PARAMETERS = 50_000_000  # 200 MB in f32


def derive_untrained(draft: Draft, known: ModelShape | None) -> ModelShape | None:
    """Fill in what the recipe of a merge, an evaluation or an export leaves out; returns the model's shape."""
    stage = draft.get("stage")
    shape = known or shape_at(draft.get("model.checkpoint"))
    if stage == "merge":
        _derive_merge(draft)
    elif stage == "eval":
        _derive_eval(draft, shape)
    else:
        _derive_export(draft, shape)
    return shape


def _derive_merge(draft: Draft) -> None:
    config = read_config_json(draft.get("model.checkpoint")) or {}
    kept = config.get("dtype") or config.get("torch_dtype")
    if config:
        limit = MERGE_TOLERANCES.get(kept, MERGE_TOLERANCES["float32"])
        draft.fill("merge.tolerance", limit, f"the base is kept in {kept or 'float32'}")


def _derive_eval(draft: Draft, shape: ModelShape | None) -> None:
    if measures_itself(draft.values):
        return  # as its own run measured it, which is known when that is read
    device = draft.get("device")
    if draft.get("data"):
        draft.fill(
            "eval.max_tokens", EVAL_TOKENS[device], f"for every model on {'a CPU' if device == 'cpu' else 'a GPU'}"
        )
    if draft.get("data") or draft.get("tasks"):
        draft.fill("eval.per_device_eval_batch_size", EVAL_ROWS, "few enough for any memory")
    draft.fill("eval.dtype", *(("float32", "a CPU") if device == "cpu" else ("bfloat16", "a GPU")))
    derive_score(draft, "eval", shape)


def _derive_export(draft: Draft, shape: ModelShape | None) -> None:
    if draft.get("export.to") == "gguf":
        draft.fill("export.weights", *gguf_weights(shape))


def gguf_weights(shape: ModelShape | None) -> tuple[str, str]:
    """Return how the weights of a GGUF file are kept where nobody says it, and the reason."""
    if shape is not None and shape.parameters < SMALL_PARAMETERS:
        return "f32", "small enough to stay exact"
    return "f16", "half the size, and hardly a difference"


def estimate_untrained(recipe: Mapping[str, Any], shape: ModelShape | None, machine: Machine) -> Estimate:
    """Return what such a stage takes: the model in memory, and what it writes on the disk."""
    device = recipe["device"] if recipe["stage"] == "eval" else "cpu"
    weights = 4 * shape.parameters if shape else 0
    memory = {"weights": weights, "program": PROGRAM_BYTES} if shape else {}
    return Estimate(
        parameters=shape.parameters if shape else None,
        parameters_by_part=shape.parameters_by_part if shape else {},
        tokens=0,
        tokens_per_step=0,
        flops_per_token=None,
        memory_by_part=memory,
        memory_bytes=sum(memory.values()),
        memory_available_bytes=available_bytes(device, machine),
        seconds_by_part={},
        disk_bytes=0 if recipe["stage"] == "eval" else weights,
    )


def export_problems(stages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Problem]]:
    """Yield (index, problem) of exports whose form can't hold the model, as far as its parts are known by now.

    stages: the resolved values of a pipeline's stages, or of one.
    """
    for index, values in enumerate(stages):
        parts = _parts_of(stages, index) if values["stage"] == "export" and values["export"]["to"] == "gguf" else None
        loads = what_loads(parts) if parts else None
        if loads is not None and loads.gguf is None:
            yield index, Problem("export.to", loads.gguf_reason, value="gguf", fix="Take hf, which holds every model.")


def _parts_of(stages: Sequence[Mapping[str, Any]], index: int) -> Mapping[str, Any] | None:
    """Return the parts, or the config.json, of a stage's model, from the stage that it began in."""
    model = stages[index].get("model") or {}
    if "checkpoint" not in model:
        return read_config_json(model["config"]) if "config" in model else model
    checkpoint = Path(model["checkpoint"])
    earlier = [at for at in range(index) if stages[at]["name"] == checkpoint.name and not checkpoint.exists()]
    return _parts_of(stages, earlier[-1]) if earlier else read_config_json(checkpoint)
