"""Resolve what a user wrote into a recipe in which every value is set and has an origin."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_lab.errors import MachineError, Problem, UserError, similar_path
from llm_lab.estimate.cost import Estimate
from llm_lab.estimate.formatting import sizes_apart
from llm_lab.estimate.gguf_header import SUFFIX, file_on_the_hub, how_to_download
from llm_lab.estimate.machine import Machine, find_machine
from llm_lab.estimate.measurements import Measurement
from llm_lab.estimate.parameters import ModelShape
from llm_lab.estimate.tuning_cost import ExampleSizes

from .eval import missing_packages
from .fields import flatten
from .files import to_yaml
from .forgetting import expand_forgetting
from .parts import model_source
from .registry import expand_model, named_in
from .stage import PartialRecipe, Stage, StageRecipe, ToEstimate, Values
from .train_loop import missing_trackers, rows_longer_than_context
from .validate import ALWAYS_SHOWN, applies, build, check_rules, require_stage, validate_as

LOCAL_PREFIXES = (".", "/", "~", "checkpoints/", "configs/")


@dataclass(frozen=True)
class Origin:
    """Where a value comes from: answer, override, default or derived. Derived values have a reason."""

    kind: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}" if self.reason else self.kind


@dataclass(frozen=True)
class Resolved:
    """A recipe in which every value is set."""

    stage: Stage
    recipe: StageRecipe
    values: dict[str, Any]  # the same as nested dicts, without the keys that have no effect
    given: dict[str, Any]  # what the user wrote
    origins: dict[str, Origin]  # by dotted key
    shape: ModelShape | None
    estimate: Estimate
    machine: Machine
    examples: ExampleSizes | None = None  # number and lengths of the examples, once the data was read

    @property
    def is_upper_estimate(self) -> bool:
        """Whether the estimate counts all sequences as the longest allowed: the examples have not been measured yet."""
        return self.examples is None and self.stage.examples not in (None, "text")

    def to_yaml(self, header: tuple[str, ...] = ()) -> str:
        """Return the recipe as YAML, with the reasons of derived values. It can be run as it is."""

        def comment(path: str, help_text: str) -> str | None:
            origin = self.origins.get(path)
            return f"derived: {origin.reason}" if origin and origin.kind == "derived" else None

        return to_yaml(self.values, type(self.recipe), comment, header)


def diagnose(
    raw: Mapping[str, Any],
    *,
    machine: Machine | None = None,
    name: str = "run",
    overrides: Collection[str] = (),
    before: Resolved | None = None,
) -> tuple[Resolved | None, list[Problem]]:
    """Resolve as far as possible; returns the result and every problem, instead of stopping at the first.

    before: the stage whose result is this one's model; its shape is known before its weights exist. Raises UserError if
    the recipe names an unknown stage.
    """
    machine = machine or find_machine()
    given = expand_forgetting(expand_model(raw))
    stage = require_stage(given)
    recipe, problems, wrong = validate_as(stage.recipe, given)
    if recipe is None:
        return None, problems
    values, reasons, shape = derive(stage, recipe, machine, name=name, known=before.shape if before else None)
    broken = [*check_rules(values, given), *_missing_models(values), *rows_longer_than_context(values, shape)]
    # Rules ran without the wrong keys of a group, so what they report about that group may be wrong too.
    problems += [p for p in broken if not any(f"{key}.".startswith(f"{p.key}.") for key in wrong)]
    values = _without_idle_keys(values)
    final, more = build(stage.recipe, values)
    if final is None:
        return None, problems or more
    origins = _origins(given, values, reasons, overrides)
    cost = stage.estimate(stage, ToEstimate(final.model_dump(by_alias=True), shape, machine))
    return Resolved(stage, final, values, given, origins, shape, cost, machine), problems


def resolve(
    raw: Mapping[str, Any],
    *,
    machine: Machine | None = None,
    name: str = "run",
    overrides: Collection[str] = (),
) -> Resolved:
    """Return the recipe with every value set. Raises UserError with all problems, if there are any."""
    resolved, problems = diagnose(raw, machine=machine, name=name, overrides=overrides)
    if problems or resolved is None:
        raise UserError(*problems)
    return resolved


def derive(
    stage: Stage, recipe: StageRecipe, machine: Machine, *, name: str = "run", known: ModelShape | None = None
) -> tuple[dict[str, Any], dict[str, str], ModelShape | None]:
    """Fill in what is left out; returns the values, {dotted key: reason}, and the model's shape.

    known: the shape of a checkpoint that an earlier stage will make.
    """
    partial = PartialRecipe(recipe.model_dump(by_alias=True))
    partial.fill("name", name, "the recipe file's name")
    if partial.get("device") == "auto":
        problem = machine.cuda_problem
        partial.set("device", machine.best_device, f"auto: {problem}" if problem else "auto: bf16 CUDA is available")
    shape = stage.derive(stage, partial, machine, known)
    return partial.values, partial.reasons, shape


def estimate_again(resolved: Resolved, *, first_step: int = 0, own: Measurement | None = None) -> Resolved:
    """Return the recipe with a new estimate: from new measurements, or only for the steps after `first_step`.

    own: what the run measured before that step.
    """
    stage, values = resolved.stage, resolved.recipe.model_dump(by_alias=True)
    work = ToEstimate(values, resolved.shape, resolved.machine, first_step, resolved.examples, own)
    return replace(resolved, estimate=stage.estimate(stage, work))


def require_cuda(machine: Machine, fix: str) -> None:
    """Raise MachineError if there is no CUDA GPU with bf16 support."""
    if machine.cuda_problem:
        why = f"not available on this machine: {machine.cuda_problem}"
        raise MachineError(Problem("device", why, value="cuda", fix=fix))


def require_device(resolved: Resolved) -> None:
    """Raise MachineError if this machine lacks what the recipe requires: a device, a package, or memory."""
    values = resolved.values
    if values["device"] == "cuda":
        fix = "Set device=cpu for CPU mode, or device=auto to use what is available."
        require_cuda(resolved.machine, fix)
        gpus, processes = len(resolved.machine.gpus), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if processes > gpus:
            why = f"each process needs a GPU of its own, and this machine has {gpus}"
            raise MachineError(Problem("--nproc", why, value=processes, fix=f"Use at most {gpus}."))
    problems = [*_missing_packages(values, resolved.machine)] or [*_memory_problem(resolved)]
    if problems:
        raise MachineError(*problems)


def _missing_packages(values: Values, machine: Machine) -> Iterator[Problem]:
    train, optimizer = values.get("train") or {}, (values.get("optimizer") or {}).get("name")
    if train.get("attn_implementation") == "flash_attention_2" and not machine.has_flash_attention:
        why = "the package flash-attn is not installed"
        fix = "Install it (pip install flash-attn --no-build-isolation), or leave the key out for sdpa."
        yield Problem("train.attn_implementation", why, value="flash_attention_2", fix=fix)
    if missing := missing_trackers(values):
        why, fix = f"not installed: {', '.join(missing)}", "pip install 'llm-lab[tracking]', or leave the key out."
        yield Problem("train.report_to", why, value=train["report_to"], fix=fix)
    for package, key in missing_packages(values).items():
        yield Problem(key, f"not installed: {package}", fix="pip install 'llm-lab[eval]', or leave the key out.")
    why = "the package bitsandbytes is not installed"
    if values["device"] == "cuda" and optimizer == "adamw_8bit" and not machine.has_bitsandbytes:
        yield Problem("optimizer.name", why, value=optimizer, fix="pip install 'llm-lab[cuda]', or use adamw.")
    if (values.get("lora") or {}).get("load_in_4bit") and not machine.has_bitsandbytes:
        fix = "pip install 'llm-lab[cuda]', or set lora.load_in_4bit=false: the base then takes more memory."
        yield Problem("lora.load_in_4bit", why, value=True, fix=fix)


def _memory_problem(resolved: Resolved) -> Iterator[Problem]:
    cost, train = resolved.estimate, resolved.values.get("train") or {}
    if cost.fits or not cost.memory_bytes:
        return
    needed, available = sizes_apart(cost.memory_bytes, cost.memory_available_bytes)
    if not train:
        why = f"the model in float32 needs about {needed}, and {available} are available"
        fix = "Use a smaller model, or a machine with more memory."
        yield Problem("model.checkpoint", why, value=resolved.values["model"]["checkpoint"], fix=fix)
        return
    has_size = resolved.stage.from_scratch and model_source(resolved.values) == "parts"
    yield Problem(
        "train.per_device_train_batch_size",
        f"the run needs about {needed}, and {available} are available",
        value=train["per_device_train_batch_size"],
        fix="Set a smaller batch size with more train.gradient_accumulation_steps, a shorter train.max_length, "
        + ("" if train.get("gradient_checkpointing") else "train.gradient_checkpointing=true, ")
        + ("or a smaller model.size." if has_size else "or choose a smaller model."),
    )


def _missing_models(values: Values) -> Iterator[Problem]:
    """Yield a problem for each local model or tokenizer that does not exist. Names on the Hub are checked there."""
    reported: set[str] = set()
    for key, name in (*named_in(values, "model", "config"), *named_in(values, "tokenizer")):
        looks_local = name.startswith(LOCAL_PREFIXES) or name.count("/") > 1 or name.endswith((".json", SUFFIX))
        if looks_local and name not in reported and not Path(name).expanduser().exists():
            reported.add(name)
            usual = "Name a run by its folder in checkpoints/, or a design by its config.json."
            usual = "Name a folder with a tokenizer.json." if key == "tokenizer" else usual
            remote = file_on_the_hub(name)
            fix = f"If it is a file on the Hub, download it. {how_to_download(*remote)}" if remote else usual
            yield Problem(key, "there is no such file or folder", value=name, fix=similar_path(name) or fix)


def _without_idle_keys(values: dict[str, Any]) -> dict[str, Any]:
    """Remove keys that have no effect with the other values, such as the YaRN factor of a RoPE model."""

    def keep(node: Any, prefix: str) -> Any:
        if isinstance(node, Mapping):
            return {
                key: keep(value, f"{prefix}{key}.")
                for key, value in node.items()
                if isinstance(value, Mapping) or f"{prefix}{key}" == ALWAYS_SHOWN or applies(f"{prefix}{key}", values)
            }
        if isinstance(node, tuple | list):
            return [_without_none(keep(item, f"{prefix}{index}.")) for index, item in enumerate(node)]
        return node

    return keep(values, "")


def _without_none(item: Any) -> Any:
    """Remove the keys that an entry of a list does not set, to keep it short."""
    return {key: value for key, value in item.items() if value is not None} if isinstance(item, dict) else item


def _origins(
    given: Mapping[str, Any], values: Mapping[str, Any], reasons: Mapping[str, str], overrides: Collection[str]
) -> dict[str, Origin]:
    written = {path for path, value in flatten(given) if value != {}}
    holds_written = {group for path in written for group in _groups_around(path)}
    origins = {}
    for path, _ in flatten(values):
        around = {path, *_groups_around(path)}
        if not around.isdisjoint(overrides):
            origins[path] = Origin("override")
        elif path in reasons:
            origins[path] = Origin("derived", reasons[path])
        elif path in holds_written or not around.isdisjoint(written):
            origins[path] = Origin("answer")
        else:
            parent = next((r for r in reasons if path.startswith(r + ".")), None)
            origins[path] = Origin("derived", reasons[parent]) if parent else Origin("default")
    return origins


def _groups_around(path: str) -> Iterator[str]:
    """Yield the paths of the groups and list entries that a key is in: train.dtype is in train."""
    while "." in path:
        path = path.rpartition(".")[0]
        yield path
