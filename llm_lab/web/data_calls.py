"""What the worker of recipes and data answers: it may import what the server must not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_lab.job import check

from . import study_calls


def check_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Check a recipe with its data, as `llm-lab check` does. UserError with every problem."""
    job = check(recipe)
    return {"name": job.name, "remarks": list(job.remarks)}


CALLS = {"check_recipe": check_recipe, **study_calls.CALLS}
