"""What run.json holds, in words: for the report, the model card, `show`, and what a replay came to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from llm_lab.estimate.formatting import decimal
from llm_lab.recipe.registry import STAGES

from .folder import RunFolder

# How the verdict of an export in run.json is shown.
VERDICTS = {"proven": "verified", "failed": "verification failed", "not tried": "not verified"}
# Result -> how it is shown: its format, and whether it is a share.
TOLD = {
    "eval_loss": ("loss {:.4f}", False),
    "bits_per_byte": ("{:.4f} bits a byte", False),
    "eval_accuracy": ("accuracy {:.1f} %", True),
    "exact_match": ("exact match {:.1f} %", True),
    "exact_match_sampled": ("sampled {:.1f} %", True),
    "eval_reward_sampled": ("reward {:.3f}", False),
    "relative_logit_difference": ("logits differ by {:.1e}", False),
}
# Results that are of the machine and its day, and not of the model.
OF_THE_MACHINE = {"wall_seconds", "tokens_per_second", "memory_bytes"}


def reached(results: Mapping[str, Any]) -> list[str]:
    """Return what a run came to, as short texts."""
    return [
        words.format(100 * results[key] if is_share else results[key])
        for key, (words, is_share) in TOLD.items()
        if isinstance(results.get(key), int | float)
        and not (key == "eval_reward_sampled" and _reward_is_exact(results))
    ]


def _reward_is_exact(results: Mapping[str, Any]) -> bool:
    """Whether the reward only repeats the exact match."""
    return results.get("eval_reward_sampled") == results.get("exact_match_sampled")


def data_rows(facts: Mapping[str, Any]) -> list[list[str]]:
    """Return a row for each set that was read: its path, its fingerprint, and how much of it was read."""
    mix = {item["path"]: item for item in facts.get("mix") or ()}
    rows = []
    for source in facts.get("data") or ():
        amount = ""
        if source["path"] in mix:
            item = mix[source["path"]]
            times = "less than once" if item["epochs"] is None else f"{item['epochs']:.2f} times"
            amount = f"{100 * item['share']:.1f} % of what was read, {times}"
        elif "read" in source:
            dropped = ", ".join(f"{count:,} dropped: {why}" for why, count in (source.get("dropped") or {}).items())
            amount = f"{source['kept']:,} of {source['read']:,} rows kept" + (f" ({dropped})" if dropped else "")
        rows.append([source["path"], source["fingerprint"][:12], amount])
    return rows


def versions(facts: Mapping[str, Any]) -> str:
    """Return the versions of what the run was made with, on one line."""
    return ", ".join(f"{name} {version}" for name, version in (facts.get("versions") or {}).items())


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def warnings_of(run: RunFolder) -> list[str]:
    """Return what a reader of a run's numbers should mind: what was said while it ran, and what the record shows."""
    return list(dict.fromkeys([*_seen_in(run), *run.facts().get("warnings", ())]))


def _seen_in(run: RunFolder) -> Iterator[str]:
    facts, status = run.facts(), run.status()
    stage, results = STAGES.get(str(facts.get("stage"))), facts.get("results") or {}
    if status in ("stopped", "interrupted", "failed"):
        at = f" after step {results['step']:,}" if "step" in results else ""
        yield f"It did not come to its end: {status}{at}." + (f" {facts['error']}" if facts.get("error") else "")
    if facts.get("device") == "cpu" and "step" in results:
        yield "A CPU rehearsal: the model is of toy size, and its speed says nothing of a GPU's."
    exhausted = facts.get("exhausted")
    if exhausted:
        step, planned = exhausted["step"], exhausted["max_steps"]
        yield f"{exhausted['path']} was used up: the run ended at step {step:,} of {planned:,}."
    if stage is not None and stage.measures_loss and "step" in results and "eval_loss" not in results:
        yield "It was measured on nothing kept from training: no loss tells how it does on what it has not seen."


def describe_evaluation(row: Mapping[str, Any], most: int | None = None) -> str:
    """Return one kept evaluation on one line: when, of which checkpoint, on what, and its numbers, at most so many."""
    results = row.get("results") or {}
    told = reached(results)
    told += [f"{key} {decimal(value)}" for key, value in results.items() if key not in TOLD and _is_number(value)]
    left = len(told) - most if most is not None else 0
    told = [*told[:most], f"{left} more"] if left > 0 else told
    when = f"{datetime.fromtimestamp(row['time']):%d %b %Y}" if _is_number(row.get("time")) else ""
    step = re.search(r"checkpoint-(\d+)$", str(row.get("checkpoint", "")))
    of = f"step {int(step[1]):,}" if step else ""
    # A loss is another where the model sees more at once, so it is told with it.
    texts = (row.get("measured") or {}).get("texts") or ()
    lengths = {text["path"]: f", {text['max_length']:,} tokens at once" for text in texts if text.get("max_length")}
    sets = [
        f"{item['path']} ({item['fingerprint'][:12]}{lengths.get(item['path'], '')})" for item in row.get("data") or ()
    ]
    on = f"on {', '.join(dict.fromkeys(sets))}" if sets else ""
    head = ", ".join(part for part in (when, of, on) if part)
    return f"{head}: {', '.join(told)}" if head else ", ".join(told)


def describe_proof(proof: Mapping[str, Any]) -> list[str]:
    """Return the verification of an exported model, one line per program."""
    lines = []
    for check in proof.get("checks") or ():
        text = f"{check['program']}: {VERDICTS[check['verdict']]}"
        if check.get("logit_difference") is not None:
            text += f" (largest logit difference {check['logit_difference']:.2g}, "
            text += f"{100 * check['greedy_agreement']:.4g} % of top tokens equal)"
        lines.append(text + (f": {check['reason']}" if check.get("reason") else ""))
    return lines or [VERDICTS.get(str(proof.get("verdict")), "not verified")]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
