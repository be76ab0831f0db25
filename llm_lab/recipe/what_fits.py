"""What fits in this machine's memory: ways to train a recipe, and models of the library."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from llm_lab.estimate.adapter_base import read_adapter_json
from llm_lab.estimate.cost import Estimate
from llm_lab.estimate.formatting import plural, size, sizes_apart
from llm_lab.estimate.gguf_header import is_gguf
from llm_lab.estimate.machine import Machine, find_machine
from llm_lab.estimate.model_library import MODELS, LibraryModel, find_in_library
from llm_lab.estimate.parameters import shape_at

from .fields import flatten
from .resolve import Origin, Resolved, diagnose, estimate_again
from .sft import SFT
from .stage import ToEstimate

FULL, LORA, QLORA = "full", "lora", "qlora"
METHODS = {FULL: "all weights", LORA: "LoRA", QLORA: "QLoRA"}
# An adapter on every matrix comes closest to training all weights (Dettmers et al. 2023).
INSTEAD_OF_ALL = {"preset": "all"}
ROWS, ACCUMULATION, CHECKPOINTING = (
    f"train.{key}" for key in ("per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing")
)
FOUR_BITS = "lora.load_in_4bit"
BUSY_TOKENS = 4096  # per batch: matrix products with fewer rows do not use the GPU fully


@dataclass(frozen=True)
class Fit:
    """Whether a way of training fits. method: full, lora or qlora.

    memory_bytes: of the first way that fits, else of the one that needs least. is_most: whether this is an upper limit,
    for sequences of the maximum length, because the data has not been measured. rows: sequences in a batch;
    gradient_checkpointing: whether activations are computed again. why_not: why it can't be done here, or None. note:
    what it requires, or "".
    """

    method: str
    memory_bytes: int
    available_bytes: int
    rows: int
    gradient_checkpointing: bool
    why_not: str | None = None
    note: str = ""
    is_most: bool = False

    @property
    def fits(self) -> bool:
        return self.why_not is None

    @property
    def reason(self) -> str:
        """The memory needed and available, or why it does not fit, in words."""
        needs, there = sizes_apart(self.memory_bytes, self.available_bytes)
        needs = f"{'up to' if self.is_most else 'about'} {needs} of {there}"
        if self.why_not:
            return f"{self.why_not}: {needs}" if self.memory_bytes else self.why_not
        how = ", gradient checkpointing" if self.gradient_checkpointing else ""
        return f"{needs}, {plural(self.rows, 'sequence')} at a time{how}{self.note and f'; {self.note}'}"


@dataclass(frozen=True)
class LibraryEntry:
    """A model of the library, and what fits on a machine: one Fit for each of full, lora and qlora."""

    model: LibraryModel
    fits: tuple[Fit, ...]

    @property
    def best(self) -> Fit | None:
        """The first method that fits: all weights, else LoRA, else QLoRA."""
        return next((fit for fit in self.fits if fit.fits), None)

    @property
    def is_comfortable(self) -> bool:
        """Whether the best method needs at most half of the available memory."""
        return self.best is not None and self.best.memory_bytes <= self.best.available_bytes / 2

    @property
    def reason(self) -> str:
        """What fits, and what it needs; or why nothing does."""
        shown = self.best or [fit for fit in self.fits if fit.memory_bytes][-1]
        return f"{METHODS[shown.method]}: {shown.reason}"


@dataclass(frozen=True)
class _Way:
    """A way to train: a method, and the keys that it sets in addition to what the user wrote."""

    method: str
    changes: Mapping[str, Any]
    rows: int
    checkpointing: bool


def library(machine: Machine | None = None) -> list[LibraryEntry]:
    """Return the library with what fits on a machine (default: this one) in SFT, with 1,024-token sequences."""
    machine = machine or find_machine()
    return [_entry(model, machine) for model in MODELS]


def fits_of(model: LibraryModel, machine: Machine | None = None) -> LibraryEntry:
    """Return one model of the library with what fits on a machine (default: this one)."""
    return _entry(model, machine or find_machine())


@functools.lru_cache(maxsize=256)
def _entry(model: LibraryModel, machine: Machine) -> LibraryEntry:
    costs = [
        (way, SFT.estimate(SFT, ToEstimate(values, model.shape, machine))) for way, values in _library_ways(machine)
    ]
    return LibraryEntry(model, tuple(_fit(method, costs, machine) for method in METHODS))


@functools.lru_cache(maxsize=4)
def _library_ways(machine: Machine) -> tuple[tuple[_Way, Mapping[str, Any]], ...]:
    """Return each way to train any model of the library, with the values of its recipe."""
    raw = {"stage": SFT.name, "device": machine.best_device, "data": [{"path": "builtin:instruct"}]}
    template, _ = diagnose(raw | {"model": {"checkpoint": MODELS[0].name}}, machine=machine)
    assert template is not None
    ways = [(way, _resolve(template, way)) for way in _ways(template, four_bits=True)]
    return tuple((way, found.recipe.model_dump(by_alias=True)) for way, found in ways if found)


def fits_in(resolved: Resolved) -> dict[str, Fit]:
    """Return {method: whether it fits} of a recipe, with the adapter that it names; {} for one with problems."""
    given = {key: value for key, value in resolved.given.items() if key != "lora"}
    opened, _ = diagnose(given, machine=resolved.machine, name=resolved.values["name"])  # before make_it_fit
    if opened is None:
        return {}
    open_recipe = replace(opened, examples=resolved.examples)
    adapter = resolved.given.get("lora")
    if adapter is None:  # left out: on every matrix if memory required an adapter, else the defaults
        adapter = {} if resolved.values["lora"] is None else INSTEAD_OF_ALL
    costs = []
    for way in _ways(open_recipe, four_bits=True):
        if way.method != FULL:
            way = replace(way, changes={**way.changes, "lora": {**adapter, "load_in_4bit": way.method == QLORA}})
        found = _resolve(open_recipe, way)
        costs += [(way, found.estimate)] if found else []
    if not costs or not costs[0][1].memory_bytes:
        return {}
    most = resolved.is_upper_estimate
    fits = {method: replace(_fit(method, costs, resolved.machine), is_most=most) for method in METHODS}
    if not _has_weights_to_quantize(resolved):
        fits[QLORA] = replace(fits[QLORA], why_not="requires a whole model in a Hugging Face folder or on the Hub")
    elif resolved.values["train"]["distributed"] == "fsdp" and resolved.values["device"] == "cuda":
        fits[QLORA] = replace(fits[QLORA], why_not="not supported with fsdp")
    return fits


def _fit(method: str, costs: list[tuple[_Way, Estimate]], machine: Machine) -> Fit:
    """Return the first way of a method that fits, or the last."""
    here = [(way, cost) for way, cost in costs if way.method == method]
    if not here:  # QLoRA on a CPU
        return Fit(method, 0, 0, 1, False, "requires a CUDA GPU")
    way, cost = next(((way, cost) for way, cost in here if cost.fits), here[-1])
    why_not = None if cost.fits else "does not fit"
    note = "requires pip install 'llm-lab[cuda]'" if method == QLORA and not machine.has_bitsandbytes else ""
    return Fit(method, cost.memory_bytes, cost.memory_available_bytes, way.rows, way.checkpointing, why_not, note)


def make_it_fit(resolved: Resolved) -> Resolved:
    """If a trained stage does not fit in memory, return it with other values for keys that the user left out.

    Tried in this order, for all weights, LoRA and QLoRA: fewer sequences at a time with the same number per step, as
    long as they keep the device busy; gradient checkpointing; both. Returned unchanged if it fits already, or if
    nothing makes it fit.
    """
    if resolved.estimate.fits or resolved.stage.from_scratch or not resolved.stage.trains:
        return resolved
    least: dict[str, Estimate] = {}
    for way in _ways(resolved, four_bits=_has_weights_to_quantize(resolved)):
        found = _resolve(resolved, way)
        if found is None:
            continue
        if found.estimate.fits:
            return _with_reasons(found, resolved, way, least)
        least[way.method] = found.estimate
    return resolved


def _ways(resolved: Resolved, *, four_bits: bool) -> Iterator[_Way]:
    """Yield the ways to train that change only what was left out, the best one first."""
    values = resolved.values
    train, lora = values["train"], values.get("lora")
    rows, steps = train["per_device_train_batch_size"], train["gradient_accumulation_steps"]
    sizes = [rows]
    if _is_left_out(resolved, ROWS) and _is_left_out(resolved, ACCUMULATION):
        while sizes[-1] % 2 == 0:
            sizes.append(sizes[-1] // 2)
    batches = [(size, bool(train["gradient_checkpointing"])) for size in sizes]
    if _is_left_out(resolved, CHECKPOINTING) and not train["gradient_checkpointing"]:
        # Smaller batches cost nothing while they keep the device busy; computing activations again costs a third more
        # time.
        kept = [(size, False) for size in sizes if size == rows or size * train["max_length"] >= BUSY_TOKENS]
        batches = kept + [(size, True) for size in sizes]
    methods: list[tuple[str, dict[str, Any]]] = []
    if lora is None:
        methods.append((FULL, {}))
        if _is_left_out(resolved, "lora"):
            methods.append((LORA, {"lora": INSTEAD_OF_ALL}))
            methods.append((QLORA, {"lora": {**INSTEAD_OF_ALL, "load_in_4bit": True}}))
    else:
        methods.append((QLORA if lora["load_in_4bit"] else LORA, {}))
        if not lora["load_in_4bit"] and _is_left_out(resolved, FOUR_BITS):
            methods.append((QLORA, {FOUR_BITS: True}))
    for method, how in methods:
        if method == QLORA and how and (values["device"] != "cuda" or not four_bits):
            continue
        for smaller, checkpointing in batches:
            changes: dict[str, Any] = {}
            if smaller != rows:
                changes = {ROWS: smaller, ACCUMULATION: steps * rows // smaller}
            if checkpointing != train["gradient_checkpointing"]:
                changes[CHECKPOINTING] = checkpointing
            yield _Way(method, {**how, **changes}, smaller, checkpointing)


def _is_left_out(resolved: Resolved, path: str) -> bool:
    """Return whether the user wrote nothing for a key; null counts as a value."""
    node: Any = resolved.given
    for step in path.split("."):
        if not isinstance(node, Mapping) or step not in node:
            return True
        node = node[step]
    return False


def _has_weights_to_quantize(resolved: Resolved) -> bool:
    """Return whether the model is one that can be loaded in 4 bits: whole, and not a GGUF file."""
    checkpoint = resolved.values["model"]["checkpoint"]
    if find_in_library(checkpoint):
        return True
    return shape_at(checkpoint) is not None and not is_gguf(checkpoint) and read_adapter_json(checkpoint) is None


def _resolve(resolved: Resolved, way: _Way) -> Resolved | None:
    """Return a recipe with the changes of a way; None if they contradict the rest of it."""
    raw: dict[str, Any] = dict(resolved.given)
    for key, value in _nested(way.changes).items():
        raw[key] = {**(raw.get(key) or {}), **value}
    overrides = {path for path, origin in resolved.origins.items() if origin.kind == "override"}
    found, problems = diagnose(
        raw, machine=resolved.machine, name=resolved.values["name"], overrides=overrides, before=resolved
    )
    if found is None or problems:
        return None
    return estimate_again(replace(found, examples=resolved.examples), first_step=resolved.estimate.first_step)


def estimate_with(resolved: Resolved, changes: Mapping[str, Any]) -> Estimate | None:
    """Return the estimate of a recipe with other values; None if they contradict the rest of it."""
    found = _resolve(resolved, _Way("", changes, 0, False))
    return found.estimate if found else None


def _with_reasons(found: Resolved, before: Resolved, way: _Way, least: Mapping[str, Estimate]) -> Resolved:
    """Return a recipe that fits, with the reasons why its values differ from the usual ones."""
    room = before.estimate.memory_available_bytes
    available = size(room)
    rows = before.values["train"]["per_device_train_batch_size"]
    in_a_step = rows * before.values["train"]["gradient_accumulation_steps"]
    reasons = {
        CHECKPOINTING: f"saves memory: without it, the run does not fit in {available}",
        ROWS: f"{plural(rows, 'sequence')} at a time would not fit in {available}",
        ACCUMULATION: f"still {in_a_step:,} sequences in a step",
    }
    if FULL in least:
        needs, there = sizes_apart(least[FULL].memory_bytes, room)
        reasons["lora"] = f"training all weights needs at least {needs}, and {there} are available"
    if LORA in least:
        needs, there = sizes_apart(least[LORA].memory_bytes, room)
        reasons[FOUR_BITS] = f"with a base in 16 bits, LoRA needs at least {needs}, and {there} are available"
    origins = dict(found.origins)
    for path, _ in flatten(_nested(way.changes)):
        origins[path] = Origin("derived", reasons.get(path) or reasons["lora"])
    return replace(found, origins=origins, given=before.given)


def _nested(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted keys as groups of keys."""
    nested: dict[str, Any] = {}
    for path, value in changes.items():
        group, _, key = path.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[key] = value
    return nested
