"""The result by which the runs of a sweep are compared, and when it can't be compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llm_lab.errors import Problem, UserError, did_you_mean, one_of, with_article
from llm_lab.job import Job
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.glossary import OF_THE_MACHINE, QUANTITIES, quantity

# The usual results to compare runs by; --measure also takes others.
MEASURES = ("eval_accuracy", "eval_loss", "exact_match_sampled", "eval_reward_sampled", "bits_per_byte", "exact_match")
# Keys that decide the text or the unit of the validation loss.
CHANGES_THE_MEASURE = {
    "tokenizer": "the validation loss is per token, and their tokens are different: compare bits per byte",
    "train.max_length": "the validation loss is measured with a context of train.max_length tokens",
    "validation": "the validation data is different",
    "data": "the validation data is held out from data that is different",
    "score": "the held-out prompts or their scores are different",
    "rewards": "the reward is different",
    "dpo.beta": "the loss of DPO depends on beta: compare the accuracy",
}


def choose_measure(wanted: str | None, jobs: Mapping[str, Job], keys: Sequence[str]) -> str:
    """Return the result to compare by. UserError for an unknown one, and if the runs won't have it."""
    last = [job.stages[-1] for job in jobs.values()]
    if wanted is not None:
        found = quantity(wanted)
        if found.more_is_better is None and wanted not in OF_THE_MACHINE:
            known = [key for key, entry in QUANTITIES.items() if entry.more_is_better is not None]
            why = "there is no such result" if not found.meaning else "neither a higher nor a lower value is better"
            shown = [key for key in MEASURES if key in known]
            fix = did_you_mean(wanted, known)
            raise UserError(Problem("--measure", why, value=wanted, allowed=f"{one_of(shown)}, ...", fix=fix))
        return wanted
    stage, values = last[0].stage, last[0].values
    inner = {key.split(".", 2)[-1] if key.startswith("stages.") else key for key in keys}
    if stage.makes is None:
        return "eval_loss" if values.get("data") else "exact_match"
    if not stage.trains:
        why = f"{with_article(stage.name)} recipe has no result to compare by"
        raise UserError(Problem("stage", why, value=stage.name, fix="Name one with --measure."))
    if any((one.values.get("validation") or {}).get("fraction") == 0 for one in last):
        why = "without validation data there is nothing to compare"
        fix = "Set validation.fraction, or name another result with --measure."
        raise UserError(Problem("validation.fraction", why, value=0, fix=fix))
    if not stage.measures_loss:
        return "eval_reward_sampled"
    if any(key == "tokenizer" or key.startswith("tokenizer.") for key in inner):
        return "bits_per_byte"
    by_pairs = stage.makes == "reward model" or any(key.startswith("dpo.") for key in inner)
    return "eval_accuracy" if by_pairs else "eval_loss"


def caveats(keys: Iterable[str], jobs: Mapping[str, Job], measure: str) -> list[str]:
    """Return reasons why the results are hard to compare, because the measure itself differs between configurations."""
    found = []
    solved = {"bits_per_byte": ("tokenizer",), "eval_accuracy": ("dpo.beta",)}.get(measure, ())
    for key in keys:
        inner = key.split(".", 2)[-1] if key.startswith("stages.") else key
        for start, why in CHANGES_THE_MEASURE.items():
            is_weight = start == "data" and inner.endswith(".weight")  # it leaves validation as it is
            if (inner == start or inner.startswith(f"{start}.")) and start not in solved and not is_weight:
                found.append(f"{key} is compared, so {why}.")
    compared = {key.split(".", 2)[-1] if key.startswith("stages.") else key for key in keys}
    if "optimizer.name" in compared and "optimizer.learning_rate" not in compared:
        found.append(
            "Each optimizer has its default learning rate, or the recipe's. An optimizer whose rate is not tuned "
            "looks worse than it is: first find the best rate of each, with a sweep of its learning rate."
        )
    tokens = {sum(one.estimate.tokens for one in job.stages) for job in jobs.values()}
    if len(tokens) > 1:
        found.append("The configurations train on different numbers of tokens; the table shows how many.")
    return found


def value_of(run: RunFolder, measure: str) -> float | None:
    """Return a result of a finished run; None if it has none, or one that is not a finite number."""
    facts = run.facts()
    value = (facts.get("results") or {}).get(measure) if facts.get("status") == "done" else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def rows_of(run: RunFolder) -> list[dict[str, Any]]:
    """Return the metrics of a run; for a pipeline, those of the last stage that has any."""
    found = [stage.metrics() for stage in run.stages()]
    return next((rows for rows in reversed(found) if rows), run.metrics())


def less_is_better(measure: str) -> bool:
    """Return whether a smaller result is better, as for time and memory."""
    return not quantity(measure).more_is_better
