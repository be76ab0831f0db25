"""Reads a run's recipe from any folder, so that its relative paths still lead to the same files.

The paths are relative to the folder that holds checkpoints/, in which the run was started.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError
from llm_lab.recipe.files import read_recipe_file
from llm_lab.recipe.pretrain import PretrainRecipe
from llm_lab.recipe.registry import named_in, stage_of
from llm_lab.recipe.sft import SftRecipe
from llm_lab.recipe.stage import StageRecipe
from llm_lab.recipe.validate import validate

from .folder import ROOT, RunFolder, run_of

DATA = ("data", "score", "forgetting")  # groups of a recipe whose `path` names data
NAME_DATA = (
    "For a loss, give a text: `--data FILE` (in a recipe: data). "
    "For scored outputs, give prompts: `--prompts FILE` (in a recipe: score.path)."
)


def read_run_recipe(run: RunFolder) -> dict[str, Any]:
    """Read the recipe.yaml of a run, with paths that are valid in the working folder. UserError as for any recipe."""
    return with_paths_of(read_recipe_file(run.recipe_path), run.path)


def read_run(folder: str | Path) -> tuple[RunFolder, StageRecipe] | None:
    """Return the run that trained a model, and its recipe; merges and exports are followed back to training."""
    run = run_of(folder) if Path(folder).is_dir() else None
    while run is not None and (stage := stage_of(run.facts())) and stage.makes and not stage.trains:
        parent = (run.facts().get("parent") or {}).get("path")
        run = run_of(parent) if parent and Path(parent).is_dir() else None
    if run is None or not run.recipe_path.is_file():
        return None
    raw = read_run_recipe(run)
    recipe, problems, _ = validate(raw) if "stage" in raw else (None, [], set())
    return None if recipe is None or problems else (run, recipe)


def require_own_data(folder: str, key: str = "data") -> tuple[RunFolder, StageRecipe]:
    """Return a model's run and recipe. Raises UserError if it has no run, or the run had no validation data."""
    found = read_run(folder)
    if found is None:
        why = f"{folder} does not belong to a run of LLM Lab, so there is no data to repeat its evaluation on"
        raise UserError(Problem(key, why, fix=NAME_DATA))
    run, recipe = found
    if not has_validation(recipe) and getattr(recipe, "score", None) is None:
        can_hold_out = isinstance(recipe, PretrainRecipe | SftRecipe)
        kept = "has no validation data" if can_hold_out else "has no held-out text"
        why = f"{run.path} {kept} and scored no prompts"
        raise UserError(Problem(key, why, fix=NAME_DATA))
    return found


def has_validation(recipe: StageRecipe) -> bool:
    """Return whether a run held out texts or conversations on which a language model's loss can be measured."""
    return isinstance(recipe, PretrainRecipe | SftRecipe) and recipe.validation.fraction > 0


def with_paths_of(values: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """Return the values of a recipe that was found in a run's folder, with paths that are valid in the working folder.

    A path that does not exist in the folder where the run was made is not changed.
    """
    home = next((folder.parent for folder in run.absolute().parents if folder.name == ROOT.name), None)
    if home is None or home.resolve() == Path.cwd():
        return dict(values)
    if isinstance(values.get("stages"), list):
        stages = [_of_stage(one, home) if isinstance(one, Mapping) else one for one in values["stages"]]
        return {**_of_stage(values, home), "stages": stages}
    return _of_stage(values, home)


def _of_stage(values: Mapping[str, Any], home: Path) -> dict[str, Any]:
    named = dict(named_in(values))

    def placed(node: Any, path: str) -> Any:
        if isinstance(node, Mapping):
            return {key: placed(value, f"{path}.{key}" if path else str(key)) for key, value in node.items()}
        if isinstance(node, list):
            return [placed(value, f"{path}.{index}") for index, value in enumerate(node)]
        is_data = path.split(".")[0] in DATA and path.split(".")[-1] == "path"
        return _placed(node, home) if isinstance(node, str) and (path in named or is_data) else node

    return placed(values, "")


def _placed(text: str, home: Path) -> str:
    """Return a path, a glob, or FILE.py:function as an absolute path, if it exists in `home`."""
    file, colon, function = text.rpartition(":")
    path = file if file.endswith(".py") else text
    if Path(path).expanduser().is_absolute() or path.startswith("~") or not path:
        return text
    place = home / path
    if not place.exists() and not (any(sign in path for sign in "*?[") and glob.glob(str(place), recursive=True)):
        return text
    return f"{place}{colon}{function}" if file.endswith(".py") else str(place)
