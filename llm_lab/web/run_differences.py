"""Several runs side by side: the differences of their recipes, their results, and where they come from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from llm_lab.errors import UserError
from llm_lab.recipe.fields import flatten
from llm_lab.recipe.files import format_value, read_recipe_file
from llm_lab.recipe.registry import stage_of
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.glossary import OF_THE_MACHINE, name_of, quantity, rank, write
from llm_lab.runs.lineage import describe_line
from llm_lab.runs.record import is_number
from llm_lab.safe_text import printable, shorten

from .addresses import address_of, name_in
from .run_texts import derived_of

NOT_A_CHOICE = ("name",)  # keys that always differ
LONGEST_VALUE = 120
# Results on the run's own held-out data, per token or per byte; others are measured on the prompts of `score`.
ON_ITS_DATA = ("loss", "eval_loss", "token_accuracy", "perplexity", "bits_per_byte", "eval_accuracy", "eval_margin")
PER_TOKEN = ("loss", "eval_loss", "token_accuracy", "perplexity")


def differences_of(runs: Sequence[RunFolder]) -> dict[str, Any]:
    """Return the differences of runs as tables of texts, one column per run."""
    facts = [run.facts() for run in runs]
    recipes = [_recipe(run, known) for run, known in zip(runs, facts, strict=True)]
    return {
        "runs": [_column(run, known) for run, known in zip(runs, facts, strict=True)],
        "recipe": _recipe_rows(runs, recipes),
        "results": _result_rows(facts, recipes),
        "lineage": [
            printable(describe_line(run)) if known.get("stage") else "" for run, known in zip(runs, facts, strict=True)
        ],
    }


def _lineage(run: RunFolder, facts: Mapping[str, Any]) -> str:
    return printable(describe_line(run)) if facts.get("stage") else ""


def _column(run: RunFolder, facts: Mapping[str, Any]) -> dict[str, Any]:
    stage = stage_of(facts)
    name = name_in(run)
    return {
        "name": name,
        "label": printable(name),
        "href": address_of(name),
        "status": run.status(),
        "stage": stage.label if stage else "",
    }


def _recipe(run: RunFolder, facts: Mapping[str, Any]) -> Mapping[str, Any]:
    recipe = facts.get("recipe")
    if isinstance(recipe, Mapping):
        return recipe
    try:
        return read_recipe_file(run.recipe_path)  # recipe of a run of an older version
    except UserError:
        return {}


def _recipe_rows(runs: Sequence[RunFolder], recipes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each key whose value differs between recipes; keys that all recipes have come first."""
    flat = [{key: value for key, value in flatten(recipe) if key not in NOT_A_CHOICE} for recipe in recipes]
    derived = [_derived_keys(run) for run in runs]
    rows = []
    for key in dict.fromkeys(key for values in flat for key in values):
        texts = [format_value(values[key]) if key in values else None for values in flat]
        if len(set(texts)) > 1:
            bare = re.sub(r"\.\d+(?=\.|$)", "", key)
            rows.append(
                {
                    "key": printable(key),
                    "values": [None if text is None else printable(shorten(text, LONGEST_VALUE)) for text in texts],
                    "derived": [bare in known for known in derived],
                }
            )
    return sorted(rows, key=lambda row: None in row["values"])


def _derived_keys(run: RunFolder) -> set[str]:
    try:
        return {key for key, _, _ in derived_of(run.recipe_path.read_text(encoding="utf-8"))}
    except (OSError, UnicodeDecodeError):
        return set()


def _result_rows(facts: Sequence[Mapping[str, Any]], recipes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each result; the best value is marked only if the values can be compared."""
    results = [known.get("results") or {} for known in facts]
    keys = dict.fromkeys(key for found in results for key, value in found.items() if is_number(value))
    rows = []
    for key in sorted(keys, key=lambda key: (key in OF_THE_MACHINE, rank(key), key)):
        values = [found[key] if is_number(found.get(key)) else None for found in results]
        rows.append(
            {
                "key": key,
                "name": printable(name_of(key)),
                "meaning": quantity(key).meaning,
                "values": [write(key, value) for value in values],
                "best": _best(key, values, facts, recipes),
            }
        )
    return rows


def _best(
    key: str, values: Sequence[float | None], facts: Sequence[Mapping[str, Any]], recipes: Sequence[Mapping[str, Any]]
) -> list[int]:
    """Return which values are the best; none if they were not measured on the same data in the same way."""
    more_is_better = quantity(key).more_is_better
    known = [at for at, value in enumerate(values) if value is not None]
    if more_is_better is None or len({values[at] for at in known}) < 2:
        return []
    if len({str(_measured_on(key, facts[at], recipes[at])) for at in known}) > 1:
        return []
    best = (max if more_is_better else min)(value for value in values if value is not None)
    return [at for at in known if values[at] == best]


def _measured_on(key: str, facts: Mapping[str, Any], recipe: Mapping[str, Any]) -> Any:
    """Return what must be equal for two values of a result to be comparable."""
    if key not in ON_ITS_DATA:
        return recipe.get("score")
    data = [source.get("fingerprint") for source in facts.get("data") or ()]
    tokens = (recipe.get("tokenizer"), (facts.get("parent") or {}).get("digest")) if key in PER_TOKEN else None
    return facts.get("stage"), data, recipe.get("validation"), tokens
