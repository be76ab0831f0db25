"""The run that a model belongs to, and what it measured itself on."""

from __future__ import annotations

from pathlib import Path

from llm_lab.errors import Problem, UserError
from llm_lab.recipe.files import read_recipe_file
from llm_lab.recipe.schema import PretrainRecipe, StageRecipe
from llm_lab.recipe.validate import validate
from llm_lab.runs.folder import RunFolder, run_of

NAME_DATA = "Name what it is measured on: `--data FILE` for its loss on a text, `--prompts FILE` for its answers."


def read_run(folder: str | Path) -> tuple[RunFolder, StageRecipe] | None:
    """Return the run that trained a model, with its recipe; of a merged or exported model, the run before that."""
    run = run_of(folder) if Path(folder).is_dir() else None
    while run is not None and run.facts().get("stage") in ("merge", "export"):
        parent = (run.facts().get("parent") or {}).get("path")
        run = run_of(parent) if parent and Path(parent).is_dir() else None
    if run is None or not run.recipe_path.is_file():
        return None
    raw = read_recipe_file(run.recipe_path)
    recipe, problems, _ = validate(raw) if "stage" in raw else (None, [], set())
    return None if recipe is None or problems else (run, recipe)


def require_own(folder: str, key: str = "data") -> tuple[RunFolder, StageRecipe]:
    """Return a model's run and recipe. UserError where it has none, or where that measured nothing."""
    found = read_run(folder)
    if found is None:
        why = f"{folder} belongs to no run of LLM Lab that could say what it is measured on"
        raise UserError(Problem(key, why, fix=NAME_DATA))
    run, recipe = found
    if not has_validation(recipe) and getattr(recipe, "score", None) is None:
        why = f"{run.path} kept nothing from training to measure itself on, and scored no prompts"
        raise UserError(Problem(key, why, fix=NAME_DATA))
    return found


def has_validation(recipe: StageRecipe) -> bool:
    """Tell whether a run kept texts from training."""
    return isinstance(recipe, PretrainRecipe) and recipe.validation.fraction > 0
