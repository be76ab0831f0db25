"""What the data of a recipe is now, to hold against what a run once read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llm_lab.data.examples import open_examples
from llm_lab.recipe.schema import StageRecipe

from .xray import KINDS


def changed_data(recipe: StageRecipe, facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield in words which of a recipe's sets are not what the run with these facts read.

    UserError where a set can't be opened.
    """
    before = [source.get("fingerprint") for source in facts.get("data") or ()]
    for (path, now), then in zip(fingerprints(recipe), before, strict=False):
        if now != then:
            yield f"{path} has changed since ({str(then)[:12]}, now {now[:12]})"


def fingerprints(recipe: StageRecipe) -> list[tuple[str, str]]:
    """Return (path, fingerprint) of each set that a recipe trains on; [] where it trains on none."""
    if recipe.stage == "pretrain":
        from llm_lab.stages.pretrain import open_sources

        return [(source.path, source.fingerprint) for source in open_sources(recipe)]
    found = []
    for index, given in enumerate(getattr(recipe, "data", ()) if recipe.stage in KINDS else ()):
        columns = given.columns.model_dump(exclude_none=True) if given.columns else None
        where = {"key": f"data.{index}", "subset": given.subset, "split": given.split}
        source = open_examples(given.path, kind=KINDS[recipe.stage], columns=columns, **where)
        found.append((given.path, source.fingerprint))
    return found
