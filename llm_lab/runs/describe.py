"""Descriptions of what run.json records, for reports, model cards, `show` and replays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from llm_lab.estimate.compatibility import TRANSFORMERS, WRITTEN_CLASSES, WRITTEN_FOR
from llm_lab.estimate.formatting import percent
from llm_lab.recipe.registry import stage_of

from .evaluations import named_results
from .folder import RunFolder
from .glossary import name_of, rank, write
from .record import is_number

# The text for each verdict of an export in run.json.
VERDICTS = {"proven": "verified", "failed": "verification failed", "not tried": "not verified"}
# The results that summarize a run, if it has them.
HEADLINES = (
    *("eval_loss", "text_loss", "bits_per_byte", "eval_accuracy", "exact_match", "exact_match_sampled"),
    *("eval_reward_sampled", "relative_logit_difference"),
)


def headline_results(results: Mapping[str, Any]) -> list[str]:
    """Return the results that summarize a run, as short texts: ["validation loss 1.2345", ...]."""
    return [
        f"{name_of(key)} {write(key, results[key])}"
        for key in HEADLINES
        if is_number(results.get(key)) and not (key == "eval_reward_sampled" and _repeats_exact_match(results))
    ]


def _repeats_exact_match(results: Mapping[str, Any]) -> bool:
    return results.get("eval_reward_sampled") == results.get("exact_match_sampled")


def data_rows(facts: Mapping[str, Any]) -> list[list[str]]:
    """Return a row for each data source: its path, its fingerprint, and how much of it was used."""
    mix = {item["path"]: item for item in facts.get("mix") or ()}
    rows = []
    for source in facts.get("data") or ():
        amount = ""
        if source["path"] in mix:
            item = mix[source["path"]]
            epochs = "less than one epoch" if item["epochs"] is None else f"{item['epochs']:.2f} epochs"
            amount = f"{percent(item['share'])} of the tokens trained on, {epochs}"
        elif "read" in source:
            dropped = ", ".join(f"{count:,} dropped: {why}" for why, count in (source.get("dropped") or {}).items())
            amount = f"{source['kept']:,} of {source['read']:,} rows kept" + (f" ({dropped})" if dropped else "")
            unread = ", ".join(f"{name} ({count:,} rows)" for name, count in (source.get("unread") or {}).items())
            amount += f"; columns not read: {unread}" if unread else ""
        rows.append([source["path"], source["fingerprint"][:12], amount])
    return rows


def versions(facts: Mapping[str, Any]) -> str:
    """Return the versions of the packages that a run used, on one line."""
    return ", ".join(f"{name} {version}" for name, version in (facts.get("versions") or {}).items())


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def warnings_of(run: RunFolder, broken: Sequence[int] | None = None) -> list[str]:
    """Return remarks for readers of a run's results: limits that its record shows, then its warnings.

    broken: the lines of metrics.jsonl that can't be read, if they are already known.
    """
    lines = run.broken_metrics() if broken is None else broken
    return list(dict.fromkeys([*_limits(run, lines), *run.facts().get("warnings", ())]))


def _limits(run: RunFolder, broken: Sequence[int]) -> Iterator[str]:
    facts, status = run.facts(), run.status()
    if damage := run.damage():
        yield f"run.json can't be read ({damage}): what it recorded is not shown."
    if broken:
        count = f"{len(broken)} lines" if len(broken) > 1 else "1 line"
        yield f"metrics.jsonl: {count} can't be read (line {', '.join(map(str, broken[:5]))})."
    stage, results = stage_of(facts), facts.get("results") or {}
    if collapsed := collapse_of(facts):
        yield f"Incomplete: {describe_collapse(collapsed)}."
    elif status in ("stopped", "interrupted", "failed"):
        at = f" at step {results['step']:,}" if "step" in results else ""
        yield f"Incomplete: {status}{at}." + (f" {facts['error']}" if facts.get("error") else "")
    if facts.get("device") == "cpu" and "step" in results:
        yield "Trained in CPU mode, with a tiny model: the speed on a GPU will be different."
    exhausted = facts.get("exhausted")
    if exhausted:
        step, planned = exhausted["step"], exhausted["max_steps"]
        yield f"{exhausted['path']} ran out of data: the run ended at step {step:,} of {planned:,}."
    if stage is not None and stage.measures_loss and "step" in results and "eval_loss" not in results:
        held_out = _holds_out(facts)  # the first evaluation may be yet to come
        if held_out is False or status == "done" or (held_out is None and status != "running"):
            yield "No data was held out: there is no validation loss."


def _holds_out(facts: Mapping[str, Any]) -> bool | None:
    """Return whether the recipe of a run holds out data; None if run.json does not record it."""
    validation = (facts.get("recipe") or {}).get("validation")
    return validation.get("fraction") != 0 if isinstance(validation, Mapping) else None


def collapse_of(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how a run collapsed, if it stopped for that and has not been resumed since."""
    collapsed, step = facts.get("collapsed"), (facts.get("results") or {}).get("step")
    return collapsed if collapsed and facts.get("status") == "stopped" and collapsed["model_of_step"] == step else None


def describe_collapse(collapsed: Mapping[str, Any]) -> str:
    """Return where a collapsed run has stopped, and which step its model and its results belong to."""
    by = f"{name_of(collapsed['by'])} {write(collapsed['by'], collapsed['value'])}"
    return (
        f"the run collapsed and was stopped at step {collapsed['step']:,}; its model and its results are those of "
        f"step {collapsed['model_of_step']:,}, the best checkpoint ({by})"
    )


def describe_evaluation(row: Mapping[str, Any], most: int | None = None) -> str:
    """Describe one line of evaluations.jsonl: its time, checkpoint, data and results.

    most: how many results to show.
    """
    results = named_results(row)
    shown = headline_results(results)
    rest = sorted((key for key in results if key not in HEADLINES), key=rank)
    shown += [f"{name_of(key)} {write(key, results[key])}" for key in rest]
    left = len(shown) - most if most is not None else 0
    shown = [*shown[:most], f"{left} more"] if left > 0 else shown
    when = f"{datetime.fromtimestamp(row['time']):%d %b %Y}" if is_number(row.get("time")) else ""
    step = re.search(r"checkpoint-(\d+)$", str(row.get("checkpoint", "")))
    checkpoint = f"step {int(step[1]):,}" if step else ""
    # The loss depends on the context length.
    texts = (row.get("measured") or {}).get("texts") or ()
    lengths = {text["path"]: f", context {text['max_length']:,}" for text in texts if text.get("max_length")}
    sets = [
        f"{item['path']} ({item['fingerprint'][:12]}{lengths.get(item['path'], '')})" for item in row.get("data") or ()
    ]
    data = f"on {', '.join(dict.fromkeys(sets))}" if sets else ""
    head = ", ".join(part for part in (when, checkpoint, data) if part)
    return f"{head}: {', '.join(shown)}" if head else ", ".join(shown)


def name_program(check: Mapping[str, Any]) -> str:
    """Return the program of an export's check, with its version, and the versions that the folder supports."""
    name, version = check["program"], check.get("version")
    tested = name == TRANSFORMERS and str(check.get("loaded_as")) in WRITTEN_CLASSES
    written_for = f", written for {WRITTEN_FOR}" if tested else ""
    return f"{name} {version}{written_for}" if version else name


def describe_proof(proof: Mapping[str, Any]) -> list[str]:
    """Return the outcome of each program that loaded an exported model, one line each."""
    lines = []
    for check in proof.get("checks") or ():
        line = f"{name_program(check)}: {VERDICTS[check['verdict']]}"
        if check.get("logit_difference") is not None:
            line += f" ({name_of('logit_difference')} at most {check['logit_difference']:.2g}, "
            line += f"{name_of('agreement')} {100 * check['greedy_agreement']:.4g} %)"
        lines.append(line + (f": {check['reason']}" if check.get("reason") else ""))
    return lines or [VERDICTS.get(str(proof.get("verdict")), "not verified")]
