"""The plan of a run as text, before it starts: what it will produce, and what it needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_lab.estimate.compatibility import what_loads
from llm_lab.estimate.cost import Estimate
from llm_lab.estimate.formatting import about, count, plural, size, sizes_apart
from llm_lab.estimate.parameters import read_config_json, vocabulary_size
from llm_lab.estimate.tuning_cost import ExampleSizes
from llm_lab.recipe.eval import EVAL, measures_itself
from llm_lab.recipe.export import FORMS
from llm_lab.recipe.forgetting import describe_forgetting
from llm_lab.recipe.plan_warnings import plan_warnings
from llm_lab.recipe.post_training import fill_steps
from llm_lab.recipe.registry import STAGES
from llm_lab.recipe.resolve import Resolved
from llm_lab.recipe.scoring import describe_term
from llm_lab.recipe.train_loop import DISTRIBUTED

from .folder import ROOT, RunFolder, free_name

DATA_LINES = 2
MEMORY_PARTS = 4
BANNER = "CPU mode: every stage works, for tiny models. Real training requires CUDA."
USUAL_TOKENS_PER_PARAMETER = 20


def plan_lines(resolved: Resolved, folder: Path | None = None) -> Iterator[tuple[str, str, str]]:
    """Yield (name, text, style) for each line of a plan; style: warn, bad, or "". Without a name, it is a continuation.

    folder: that of the run; by default a new one in checkpoints/, with a free name.
    """
    values, cost, examples = resolved.values, resolved.estimate, resolved.examples
    reasons: dict[str, str] = {}
    if examples:
        values, reasons = fill_steps(
            resolved.stage, values, examples=examples.training, processes=resolved.machine.processes
        )
    if values.get("model") is not None:  # a user's own stage may not have one
        yield "model", _model(values), ""
    if cost.parameters:
        parts = sorted(cost.parameters_by_part.items(), key=lambda item: -item[1])
        many = ", ".join(f"{part} {count(number)}" for part, number in parts if number)
        shape = resolved.shape if resolved.shape and resolved.shape.parameters == cost.parameters else None
        total = shape.describe_parameters() if shape else count(cost.parameters)
        yield "parameters", f"{_at_most(values)}{total}: {many}", ""
    if values.get("tokenizer") is not None:
        yield "tokenizer", _tokenizer(values["tokenizer"]), ""
    validation = {} if examples else values.get("validation") or {}
    for index, line in enumerate(_data(values.get("data") or (), validation)):
        yield "" if index else "data", line, ""
    if examples:
        yield "examples", examples.describe(), ""
    if values["stage"] == EVAL.name and measures_itself(values):
        yield "evaluated on", "the validation data of the run that trained it", ""
    for line in examples.dropped if examples else ():
        yield "dropped", line, "warn"
    if reasons.get("train.max_steps"):
        yield "steps", f"{values['train']['max_steps']:,}: {reasons['train.max_steps']}", ""
    train = values.get("train") or {}
    if train.get("max_steps"):
        if cost.first_step:
            yield "resumes", f"after step {cost.first_step:,}; the numbers below are for the remaining steps", ""
        yield (
            "training",
            _training(train, cost, scratch=STAGES[values["stage"]].from_scratch, seen=examples is not None),
            "",
        )
    elif train:
        yield "training", f"{plural(train['num_train_epochs'], 'epoch')}; the number of steps depends on the data", ""
    yield from _trained_part(values)
    yield from _form(values)
    for name, text in _rewards(values, examples):
        yield name, text, ""
    if values.get("optimizer"):
        yield "optimizer", _optimizer(values), ""
    if train.get("eval_steps"):
        yield "evaluation", _evaluation(values, train, examples), ""
    if cost.memory_bytes:
        yield (
            "memory",
            _memory(cost, assumed=values.get("device") == "cuda" and not resolved.machine.gpus),
            "" if cost.fits else "bad",
        )
    if cost.wall_seconds is not None:
        yield "time", _time(cost), ""
    if cost.disk_bytes:
        name = str(values.get("name"))
        folder = folder or ROOT / free_name(name)
        taken = f"; {folder.with_name(name)}/ is taken" if folder.name != name and not folder.exists() else ""
        kinds = f" ({', '.join(cost.disk_by_part)})" if cost.disk_by_part else ""
        yield "disk", f"{size(cost.disk_bytes)} in {folder}/{kinds}{taken}", ""
    for _, text in plan_warnings(resolved):
        yield "warning", text, "warn"
    yield "device", f"{values.get('device')}: {resolved.machine.describe()}", ""
    if resolved.stage.trains and (processes := resolved.machine.processes) > 1:
        how = values["train"]["distributed"]
        yield "processes", f"{processes}, with {how}: {DISTRIBUTED[how]}", ""


def _trained_part(values: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield which weights are trained, if that is a choice."""
    lora = values.get("lora")
    if lora:
        extra = ", DoRA" if lora["use_dora"] else ""
        extra += ", on a 4-bit base" if lora["load_in_4bit"] else ""
        yield "trained", f"LoRA adapter: preset {lora['preset']}, r {lora['r']}, alpha {lora['alpha']:g}{extra}", ""
    elif "lora" in values:
        yield "trained", "all weights", ""


def _form(values: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the format of an export, whether it supports the model, and where it will be pushed."""
    form = values.get("export")
    if not form:
        return
    weights = f", weights in {form['weights']}" if form.get("weights") else ""
    yield "format", f"{FORMS[form['to']]}{weights}", ""
    config = read_config_json(values["model"]["checkpoint"])
    if config is not None:
        loads = what_loads(config)
        gguf = form["to"] == "gguf"
        yield "result", loads.gguf_reason if gguf else loads.native_reason, "" if loads.gguf or not gguf else "bad"
    if form.get("push"):
        yield "pushed to", f"{form['push']} on the Hub ({'private' if form['private'] else 'public'})", ""


def _rewards(values: Mapping[str, Any], examples: ExampleSizes | None) -> Iterator[tuple[str, str]]:
    """Yield the reward terms, the held-out prompts that are scored, and the evaluation tasks."""
    terms = values.get("rewards") or ()
    if terms:
        yield "reward", ", ".join(map(describe_term, terms))
    score = values.get("score")
    if score:
        when = "" if values["stage"] == EVAL.name else " at each evaluation"
        number = score["prompts"]
        if examples and not score.get("path"):
            number = min(number, examples.held_out)
        yield "score", f"{plural(number, 'prompt')} of {score.get('path') or 'the held-out data'}{when}"
    if values.get("forgetting"):
        yield "forgetting", describe_forgetting(values["forgetting"])
    tasks = values.get("tasks")
    if tasks:
        part = f", {tasks['limit']:,} documents each" if tasks.get("limit") else ""
        yield "tasks", f"{', '.join(tasks['names'])}{part}"


def _model(values: Mapping[str, Any]) -> str:
    model = values.get("model")
    if not isinstance(model, Mapping):
        return str(model)
    if "checkpoint" in model:
        run = RunFolder(Path(model["checkpoint"]).expanduser())
        newest = run.saved_models()[-1:]
        step = next((f", after step {step:,}" for step, folder in newest if folder != run.model_path), "")
        return f"{model['checkpoint']}{step}{': starts from its weights' if STAGES[values['stage']].trains else ''}"
    if "config" in model:
        return f"{model['config']}, from scratch"
    parts = " · ".join(str(model[key]) for key in ("position_embedding", "norm", "attention", "activation"))
    return (
        f"{parts}; {model['num_hidden_layers']} layers × {model['hidden_size']}, "
        f"context of up to {model['max_position_embeddings']:,} tokens"
    )


def _at_most(values: Mapping[str, Any]) -> str:
    """Return "about " if the tokenizer is yet to be trained, because its vocabulary may turn out smaller."""
    certain = vocabulary_size(values.get("tokenizer"))[1]
    return "" if certain else "about "


def _tokenizer(tokenizer: Any) -> str:
    if isinstance(tokenizer, Mapping):
        return f"BPE of at most {tokenizer.get('bpe', 0):,} entries, trained on this data"
    return "bytes (257 entries)" if tokenizer == "bytes" else str(tokenizer)


def _data(sources: Any, validation: Mapping[str, Any]) -> Iterator[str]:
    held_out = validation.get("fraction") or 0
    share_of_each = f"{100 * held_out:.3g} % of {'it' if len(sources) == 1 else 'each'} held out"
    if streams := sum(bool(source.get("streaming")) for source in sources):
        first = f"at most {validation.get('stream_documents') or 0:,} documents"
        share_of_each = f"{first} held out" if streams == len(sources) else f"{share_of_each}; of a stream {first}"
    whole = sum(source.get("weight", 1.0) for source in sources) or 1.0
    for source in sources[:DATA_LINES] if len(sources) > DATA_LINES + 1 else sources:
        mixed = len(sources) > 1 and "weight" in source  # texts that are only evaluated have no weights
        share = f", {100 * source['weight'] / whole:.0f} % of the mix" if mixed else ""
        subset = f" ({source['subset']})" if source.get("subset") else ""
        only = f", {share_of_each}" if held_out and len(sources) == 1 else ""
        yield f"{source.get('path')}{subset}{share}{only}"
    if len(sources) > DATA_LINES + 1:
        yield f"and {len(sources) - DATA_LINES} more"
    if held_out and len(sources) > 1:
        yield share_of_each


def _training(train: Mapping[str, Any], cost: Estimate, *, scratch: bool, seen: bool) -> str:
    steps = max(0, train["max_steps"] - cost.first_step)
    many = f"{steps:,} step{'' if steps == 1 else 's'}"
    if not scratch:  # shorter examples are padded
        most, padding = ("about", ", with padding") if seen else ("at most", "")
        return f"{many} × {most} {cost.tokens_per_step:,} tokens = {most} {count(cost.tokens)} tokens{padding}"
    most = "up to " if cost.tokens < steps * cost.tokens_per_step else ""
    length = train["max_length"]
    rows = plural(cost.tokens_per_step // length, "sequence")
    text = f"{many} × {most}{rows} of {length:,} tokens = {count(cost.tokens)} tokens"
    ratio = cost.tokens_per_parameter
    if ratio and not cost.first_step:
        digits = max(1, 1 - math.floor(math.log10(ratio))) if ratio < 100 else 0
        text += f", {ratio:,.{digits}f} tokens per parameter ({USUAL_TOKENS_PER_PARAMETER} is usual)"
    return text


def _optimizer(values: Mapping[str, Any]) -> str:
    optimizer, scheduler = values["optimizer"], values.get("scheduler") or {}
    text = f"{optimizer.get('name')}, learning rate {optimizer.get('learning_rate'):g}"
    if scheduler:
        shape = "constant" if scheduler["name"] == "none" else scheduler["name"]
        text += f", {shape} after {_warmup(scheduler)}"
    return text


def _warmup(scheduler: Mapping[str, Any]) -> str:
    steps = scheduler.get("warmup_steps")
    return "warm-up" if steps is None else f"{steps:,} warm-up step{'' if steps == 1 else 's'}"


def _evaluation(values: Mapping[str, Any], train: Mapping[str, Any], examples: ExampleSizes | None) -> str:
    validation = values.get("validation") or {}
    limits = {what: validation.get(f"max_{what}") for what in ("tokens", "examples")}
    most = "".join(f", on at most {count(number)} {what}" for what, number in limits.items() if number)
    if examples and limits["examples"]:
        most = f", on {plural(min(examples.held_out, limits['examples']), 'example')}"
    if validation.get("fraction") == 0 and STAGES[values["stage"]].measures_loss:
        most = ", without a validation loss: no data is held out"
    saved = f"; checkpoint every {train['save_steps']:,}" if train.get("save_steps") else ""
    every = train["eval_steps"]
    return f"every {'step' if every == 1 else plural(every, 'step')}{most}{saved}"


def _time(cost: Estimate) -> str:
    """Return the total time, the basis of the estimate, and the parts in percent; those of at most 2 % are one part."""
    whole = cost.wall_seconds or 0.0
    if not whole:
        return about(whole)
    parts = sorted(cost.seconds_by_part.items(), key=lambda item: -item[1])
    shares = {name: round(100 * seconds / whole) for name, seconds in parts if seconds > 0.02 * whole}
    shares["other"] = round(100 * sum(seconds for name, seconds in parts if name not in shares) / whole)
    shares[parts[0][0]] += 100 - sum(shares.values())  # rounded numbers may not add up to 100
    return f"{about(whole)} ({cost.basis}): {', '.join(f'{name} {share} %' for name, share in shares.items() if share)}"


def _memory(cost: Estimate, *, assumed: bool) -> str:
    parts = sorted(cost.memory_by_part.items(), key=lambda item: -item[1])
    need = ", ".join(f"{part} {size(number)}" for part, number in parts[:MEMORY_PARTS])
    need += f", other {size(sum(number for _, number in parts[MEMORY_PARTS:]))}" if len(parts) > MEMORY_PARTS else ""
    fits = "" if cost.fits else "Does not fit: "
    needs, there = sizes_apart(cost.memory_bytes, cost.memory_available_bytes)
    there += " (assumed)" if assumed else ""
    if cost.measurement and cost.measurement.memory_bytes:  # the parts are not measured, so they don't sum to it
        more = cost.unpredicted_bytes
        beyond = f"{size(abs(more))} {'more' if more >= 0 else 'less'} than estimated"
        return f"{fits}about {needs} (measured here, {beyond}) of {there}; estimated parts: {need}"
    return f"{fits}about {needs} of {there}: {need}"
