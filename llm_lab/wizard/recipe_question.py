"""The question which recipe: those that there are, each with what it does, or another file."""

from __future__ import annotations

from pathlib import Path

from llm_lab.errors import UserError
from llm_lab.recipe.files import read_recipe_file

from .model_questions import ANOTHER
from .questions import Choice, Flow, Question, Screen


def ask_recipe(title: str, why: str) -> Flow[str]:
    """Ask for a recipe file; returns its path."""
    from llm_lab.job import list_recipes

    files = list_recipes()
    width = max((len(file.stem) for file in files), default=0) + 2
    choices = [_recipe_choice(file, width) for file in files]
    path = yield Question("recipe", "Which recipe?", choices=(*choices, Choice(ANOTHER, "another file")),
                          why=why, screen=Screen(title))  # fmt: skip
    if path == ANOTHER:
        path = yield Question(
            "recipe.path",
            "Which file?",
            "path",
            default="",
            why=why,
            allowed="A recipe file, or the folder of a run.",
            look_for="recipes",
            check=lambda text: None if text.strip() and Path(text.strip()).expanduser().exists()
            else f"{text.strip() or 'An empty path'} does not exist.",
            screen=Screen(title),
        )  # fmt: skip
        path = path.strip()
    return path


def _recipe_choice(file: Path, width: int) -> Choice:
    """Return a recipe with the comment at its top; its effect says where it is."""
    return Choice(str(file), f"{file.stem:<{width}}{recipe_summary(file)}", effect=str(file))


def recipe_summary(file: Path) -> str:
    """Return a recipe's first comment line, or what it does."""
    try:
        first = file.read_text(encoding="utf-8").splitlines()[0]
        if first.startswith("#"):
            return first.lstrip("# ").rstrip()
        raw = read_recipe_file(file)
        return str(raw.get("stage") or f"pipeline of {len(raw.get('stages', []))} stages")
    except (OSError, IndexError, UnicodeDecodeError, UserError):
        return "(not readable)"
