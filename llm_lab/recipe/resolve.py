"""From what a user wrote to a recipe in which every value stands, with where each came from."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_lab.errors import MachineError, Problem, UserError
from llm_lab.estimate.cost import Estimate, estimate
from llm_lab.estimate.machine import Machine, find_machine
from llm_lab.estimate.parameters import ModelShape

from .derive import derive, model_source, named_context
from .evaluation import SCORE_PACKAGES
from .files import to_yaml
from .finetune import estimate_tuning
from .rules import applies, check_rules, flatten
from .schema import StageRecipe
from .sizes import SIZES
from .untrained import UNTRAINED, estimate_untrained
from .validate import validate

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Origin:
    """Where a value came from: answer, override, default or derived; derived ones have a reason."""

    kind: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}" if self.reason else self.kind


@dataclass(frozen=True)
class Resolved:
    """A recipe in which nothing is left open."""

    recipe: StageRecipe
    values: dict[str, Any]  # the same as a plain nested dict, keys that do nothing left out
    given: dict[str, Any]  # what the user wrote
    origins: dict[str, Origin]  # by dotted path
    shape: ModelShape | None
    estimate: Estimate
    machine: Machine

    def to_yaml(self, header: tuple[str, ...] = ()) -> str:
        """Write every value, a derived one with its reason; replays as it is."""

        def comment(path: str, help_text: str) -> str | None:
            origin = self.origins.get(path)
            return f"derived: {origin.reason}" if origin and origin.kind == "derived" else None

        return to_yaml(self.values, type(self.recipe), comment, header)


def normalise(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Spell out shorthands: `model: NAME` is a size of the dial, a checkpoint where there are weights, or a config."""
    result = dict(raw)
    model = result.get("model")
    if isinstance(model, str) and model in SIZES and not Path(model).exists():
        result["model"] = {"size": model}
    elif isinstance(model, str):
        folder = Path(model).expanduser()
        exists = folder.exists()
        has_weights = any((folder / sub / f).exists() for sub in ("", "model") for f in WEIGHT_FILES)
        is_config = exists and not has_weights
        result["model"] = {"config" if is_config else "checkpoint": model}
    return result


def diagnose(
    raw: Mapping[str, Any],
    *,
    machine: Machine | None = None,
    name: str = "run",
    overrides: Collection[str] = (),
    before: Resolved | None = None,
) -> tuple[Resolved | None, list[Problem]]:
    """Resolve as far as possible and return every problem found, instead of stopping at the first.

    before: the stage whose result this one's model will be; its shape is known before its weights are there.
    """
    machine = machine or find_machine()
    given = normalise(raw)
    recipe, problems, wrong = validate(given)
    if recipe is None:
        return None, problems
    known = before.shape if before else None
    values, reasons, shape = derive(recipe.model_dump(by_alias=True), machine, name=name, known=known)
    broken = check_rules(values, given) + _missing_models(values) + _too_long_rows(values, shape)
    # Of a group in which a key is wrong, the rules saw only the rest.
    problems += [p for p in broken if not any(key == p.key or key.startswith(f"{p.key}.") for key in wrong)]
    values = _without_idle_keys(values)
    final, more, _ = validate(values)
    if final is None or more:
        return None, problems + (more if not problems else [])
    origins = _origins(given, values, reasons, overrides)
    cost = _cost(final, shape, machine)
    return Resolved(final, values, given, origins, shape, cost, machine), problems


def resolve(
    raw: Mapping[str, Any],
    *,
    machine: Machine | None = None,
    name: str = "run",
    overrides: Collection[str] = (),
) -> Resolved:
    """Return the recipe with every value in place. UserError with all problems where there are any."""
    resolved, problems = diagnose(raw, machine=machine, name=name, overrides=overrides)
    if problems or resolved is None:
        raise UserError(*problems)
    return resolved


def estimate_again(resolved: Resolved, *, first_step: int = 0) -> Resolved:
    """Return the same with what was measured since, or with only what is left after `first_step`."""
    return replace(resolved, estimate=_cost(resolved.recipe, resolved.shape, resolved.machine, first_step))


def _cost(recipe: StageRecipe, shape: ModelShape | None, machine: Machine, first_step: int = 0) -> Estimate:
    values = recipe.model_dump(by_alias=True)
    if recipe.stage in UNTRAINED:
        return estimate_untrained(values, shape, machine)
    if recipe.stage != "pretrain":
        return estimate_tuning(values, shape, machine)
    return estimate(values, shape, machine, first_step=first_step)


def require_cuda(machine: Machine, fix: str) -> None:
    """Raise MachineError where there is no CUDA GPU that does bf16."""
    if machine.cuda_problem:
        raise MachineError(Problem("device", f"this machine can't: {machine.cuda_problem}", value="cuda", fix=fix))


def require_device(resolved: Resolved) -> None:
    """Raise MachineError where the recipe's device can't be had here."""
    if resolved.values["device"] == "cuda":
        require_cuda(
            resolved.machine, "Set device=cpu for the rehearsal at toy size, or device=auto to take what there is."
        )
    train = resolved.values.get("train") or {}
    if train.get("attn_implementation") == "flash_attention_2" and not resolved.machine.has_flash_attention:
        raise MachineError(
            Problem(
                "train.attn_implementation",
                "the package flash-attn is not installed here",
                value="flash_attention_2",
                fix="Install it (pip install flash-attn --no-build-isolation), or leave the key out for sdpa.",
            )
        )
    trackers = resolved.recipe.train.trackers if train else ()
    missing = [name for name in trackers if not _is_installed(name)]
    if missing:
        why, fix = (
            f"not installed here: {', '.join(missing)}",
            "pip install 'llm-lab[tracking]', or leave the key out.",
        )
        raise MachineError(Problem("train.report_to", why, value=train["report_to"], fix=fix))
    _require_measuring(resolved.values)
    optimizer = (resolved.values.get("optimizer") or {}).get("name")
    on_cuda = resolved.values["device"] == "cuda"
    if on_cuda and optimizer == "adamw_8bit" and not resolved.machine.has_bitsandbytes:
        why, fix = "the package bitsandbytes is not installed here", "pip install 'llm-lab[cuda]', or take adamw."
        raise MachineError(Problem("optimizer.name", why, value=optimizer, fix=fix))
    in_4bit = (resolved.values.get("lora") or {}).get("load_in_4bit")
    if in_4bit and not resolved.machine.has_bitsandbytes:
        why = "the package bitsandbytes is not installed here"
        fix = "pip install 'llm-lab[cuda]', or set lora.load_in_4bit=false: only the base takes more memory."
        raise MachineError(Problem("lora.load_in_4bit", why, value=True, fix=fix))
    if not resolved.estimate.fits and resolved.estimate.memory_bytes and not train:
        needed, there = resolved.estimate.memory_bytes / 2**30, resolved.estimate.memory_available_bytes / 2**30
        why = f"the model in float32 needs about {needed:.1f} GiB, and there are {there:.1f} GiB"
        raise MachineError(Problem("model.checkpoint", why, value=resolved.values["model"]["checkpoint"]))
    if not resolved.estimate.fits and resolved.estimate.memory_bytes:
        raise MachineError(
            Problem(
                "train.per_device_train_batch_size",
                f"the run needs about {resolved.estimate.memory_bytes / 2**30:.1f} GiB and there are "
                f"{resolved.estimate.memory_available_bytes / 2**30:.1f} GiB",
                value=resolved.values["train"]["per_device_train_batch_size"],
                fix="Take fewer rows with more train.gradient_accumulation_steps, a shorter train.max_length, "
                + ("" if train.get("gradient_checkpointing") else "train.gradient_checkpointing=true, ")
                + "or a smaller model.size.",
            )
        )


def _require_measuring(values: Mapping[str, Any]) -> None:
    """Raise MachineError where a package that an evaluation measures with is missing."""
    wanted = {SCORE_PACKAGES[name]: "eval.text_scores" for name in (values.get("eval") or {}).get("text_scores") or ()}
    wanted |= {"lm_eval": "tasks"} if values.get("tasks") else {}
    missing = {package: key for package, key in wanted.items() if not _is_installed(package)}
    if missing:
        fix = "pip install 'llm-lab[eval]', or leave the key out."
        raise MachineError(*(Problem(key, f"not installed here: {name}", fix=fix) for name, key in missing.items()))


def _is_installed(package: str) -> bool:
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None  # a folder of that name is no package


def _missing_models(values: Mapping[str, Any]) -> list[Problem]:
    """Named local models that are not there; a Hub name can only be checked when it is fetched."""
    problems = []
    for key, name in _named_models(values):
        looks_local = name.startswith((".", "/", "~", "checkpoints/", "configs/")) or name.count("/") > 1
        if (looks_local or name.endswith(".json")) and not Path(name).expanduser().exists():
            fix = "`llm-lab list runs` shows the checkpoints; Design a model writes configs."
            problems.append(Problem(key, "there is no such file or folder", value=name, fix=fix))
    return problems


def _named_models(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, file, folder or Hub name) of every model that a recipe names."""
    for group, keys in (("model", ("config", "checkpoint")), ("dpo", ("reference",)), ("ppo", ("critic",))):
        held = values.get(group)
        yield from ((f"{group}.{key}", held[key]) for key in keys if isinstance(held, Mapping) and held.get(key))
    scored = values.get("score") or {}
    for group, terms in (("rewards", values.get("rewards")), ("score.rewards", scored.get("rewards"))):
        same = group == "score.rewards" and terms == values.get("rewards")
        for index, term in enumerate(() if same else terms or ()):
            if term.get("model"):
                yield f"{group}.{index}.model", term["model"]


def _too_long_rows(values: Mapping[str, Any], shape: ModelShape | None) -> list[Problem]:
    """Rows longer than the context of a model that is named by config or checkpoint; parts have a rule."""
    longest = (shape and shape.max_position_embeddings) or named_context(values)
    length = (values.get("train") or {}).get("max_length")
    if model_source(values) == "parts" or not longest or not length or length <= longest:
        return []
    return [
        Problem(
            "train.max_length",
            f"rows are longer than the model's context of {longest} tokens",
            value=length,
            fix=f"Set it to at most {longest}, or leave it out.",
        )
    ]


def _without_idle_keys(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out keys that do nothing with the other values (the YaRN factor of a RoPE model)."""

    def keep(node: Any, prefix: str) -> Any:
        if isinstance(node, Mapping):
            return {
                key: keep(value, f"{prefix}{key}.")
                for key, value in node.items()
                if isinstance(value, Mapping) or f"{prefix}{key}" in _ALWAYS or applies(f"{prefix}{key}", values)
            }
        if isinstance(node, tuple | list):
            return [_without_none(keep(item, f"{prefix}{index}.")) for index, item in enumerate(node)]
        return node

    return keep(values, "")


def _without_none(item: Any) -> Any:
    """Leave out what an entry of a list does not set: a line each would bury what it does."""
    return {key: value for key, value in item.items() if value is not None} if isinstance(item, dict) else item


# Written out for every attention, though only grouped-query asks for it: a reader wants the number.
_ALWAYS = {"model.num_key_value_heads"}


def _origins(
    given: Mapping[str, Any], values: Mapping[str, Any], reasons: Mapping[str, str], overrides: Collection[str]
) -> dict[str, Origin]:
    written = {path: value for path, value in flatten(given) if value != {}}
    origins = {}
    for path, _ in flatten(values):
        if any(path == key or path.startswith(key + ".") for key in overrides):
            origins[path] = Origin("override")
        elif path in reasons:
            origins[path] = Origin("derived", reasons[path])
        elif any(path == key or path.startswith(key + ".") or key.startswith(path + ".") for key in written):
            origins[path] = Origin("answer")
        else:
            parent = next((r for r in reasons if path.startswith(r + ".")), None)
            origins[path] = Origin("derived", reasons[parent]) if parent else Origin("default")
    return origins
