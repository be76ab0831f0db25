"""A run's recipe, read from any folder: its relative paths lead to where they led when the run was made.

They are relative to the folder that holds checkpoints/, in which the run was started.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_lab.recipe.files import read_recipe_file
from llm_lab.recipe.registry import named_in

from .folder import ROOT, RunFolder

DATA = ("data", "score", "forgetting")  # groups of a recipe whose `path` names data


def read_run_recipe(run: RunFolder) -> dict[str, Any]:
    """Read the recipe.yaml of a run, with paths that are valid in the working folder. UserError as for any recipe."""
    return with_paths_of(read_recipe_file(run.recipe_path), run.path)


def with_paths_of(values: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """Return the values of a recipe that was found in a run's folder, with paths that are valid in the working folder.

    A path of which nothing is there in the folder where the run was made is left as it is.
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
    """Return a path, a glob, or FILE.py:function, as an absolute path if there is something at home."""
    file, colon, function = text.rpartition(":")
    path = file if file.endswith(".py") else text
    if Path(path).expanduser().is_absolute() or path.startswith("~") or not path:
        return text
    place = home / path
    if not place.exists() and not (any(sign in path for sign in "*?[") and glob.glob(str(place), recursive=True)):
        return text
    return f"{place}{colon}{function}" if file.endswith(".py") else str(place)
