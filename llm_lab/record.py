"""What run.json says of a run: what it began with, how it ended, and what the next plan learns from it."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from llm_lab.events import Listener, WarningRecorder
from llm_lab.recipe.resolve import Resolved
from llm_lab.runs.describe import installed
from llm_lab.runs.folder import RunFolder, now, this_process
from llm_lab.runs.processes import is_first_process, process_count

LEAST_STEPS_TO_LEARN_FROM = 100
PACKAGES = ("llm-lab", "torch", "transformers", "trl", "peft", "datasets", "accelerate", "tokenizers")


@contextmanager
def record_warnings(folder: RunFolder, listener: Listener) -> Iterator[WarningRecorder]:
    """Write what a stage warns of into run.json, beside what was said before a resume."""
    heard = WarningRecorder(listener)
    try:
        yield heard
    finally:
        if heard.warnings and is_first_process():
            before = folder.facts().get("warnings", [])
            folder.update(warnings=list(dict.fromkeys([*before, *heard.warnings])))


def how_it_ended(error: BaseException) -> dict[str, str | None]:
    """Return status and error of a run that an exception has ended."""
    if isinstance(error, KeyboardInterrupt):
        return {"status": "stopped", "error": None}
    return {"status": "failed", "error": f"{type(error).__name__}: {str(error)[:500]}"}


def first_facts(resolved: Resolved, folder: RunFolder) -> dict[str, Any]:
    """Return what stands in run.json before anything is done."""
    estimate, machine = resolved.estimate, resolved.machine
    device = resolved.values["device"]
    gpu = machine.gpus[0] if device == "cuda" and machine.gpus else None
    return {
        "name": folder.path.name,
        "asked_name": resolved.values["name"],
        "stage": resolved.recipe.stage,
        "status": "running",
        "created_at": now(),
        "process": this_process(),
        "seed": resolved.recipe.seed,
        "processes": process_count(),
        "device": device,
        "machine": machine.describe(),
        "model": _describe_model(resolved.values.get("model")),
        "peak_flops": gpu.bf16_peak_flops * process_count() if gpu and gpu.bf16_peak_flops else None,
        "parameters": estimate.parameters,
        "flops_per_token": estimate.flops_per_token,
        "predicted": _predicted(resolved),
        "versions": {"python": platform.python_version(), **installed(PACKAGES)},
    }


def facts_at_start(resolved: Resolved) -> dict[str, Any]:
    """Return what is known when a stage begins: what it is predicted to take, and what it takes from elsewhere."""
    import torch

    facts: dict[str, Any] = {"predicted": _predicted(resolved)}
    if references := _references(resolved.values):
        facts["references"] = references
    if resolved.values["device"] == "cpu":
        facts["threads"] = torch.get_num_threads()  # sums come out otherwise with another number of them
    return facts


def _references(values: Mapping[str, Any]) -> dict[str, dict[str, str | None]]:
    """Return the models and files that a stage takes beside its data and the model it trains, with their digests."""
    from llm_lab.runs.lineage import file_digest, files_of, references_of
    from llm_lab.training.loop import describe_parent, find_local

    found = {key: describe_parent(find_local(name)) for key, name in references_of(values)}
    return found | {key: {"path": path, "digest": file_digest(path)} for key, path in files_of(values)}


def _predicted(resolved: Resolved) -> dict[str, Any]:
    """Return what the plan says a run will take, to hold against what it took."""
    cost = resolved.estimate
    return {
        "wall_seconds": cost.wall_seconds,
        "memory_bytes": cost.memory_bytes,
        "seconds_by_part": cost.seconds_by_part,
        "basis": cost.basis,
    }


def keep_speed(resolved: Resolved, folder: RunFolder, results: Mapping[str, Any]) -> None:
    """Let the next plan with these settings predict from how fast this run was."""
    from llm_lab.estimate.measurements import Measurement, keep_measurement

    # The first step is not like the others: a model compiles in it.
    speeds = [row["tokens_per_second"] for row in folder.metrics() if row.get("tokens_per_second") and row["step"] > 1]
    if not resolved.estimate.seconds_by_part or not speeds or results["step"] < LEAST_STEPS_TO_LEARN_FROM:
        return
    seconds = resolved.estimate.tokens_per_step / statistics.harmonic_mean(speeds)
    measurement = Measurement("run", seconds, memory_bytes=results["memory_bytes"])
    keep_measurement(measurement, resolved.recipe.model_dump(by_alias=True), resolved.shape, resolved.machine)


def _describe_model(model: Any) -> str:
    """Return the model in a few words: its parts, or where it comes from."""
    if not isinstance(model, Mapping):
        return ""
    parts = [model.get(key) for key in ("position_embedding", "norm", "attention", "activation")]
    return str(model.get("config") or model.get("checkpoint") or " · ".join(map(str, parts)))
