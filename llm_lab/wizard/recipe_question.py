"""The question for a recipe: those of the newest runs, the others with what they do, or another file."""

from __future__ import annotations

from pathlib import Path

from llm_lab.errors import UserError
from llm_lab.recipe.files import read_recipe_file
from llm_lab.recipe.registry import stage_of
from llm_lab.runs.folder import RunFolder, list_runs

from .home import short_name, stage_or_kind, when_last_active
from .model_questions import ANOTHER
from .questions import Choice, FileHead, Flow, Question, Screen

WIDEST = 36  # columns of a name


def ask_recipe(
    title: str, why: str, *, key: str = "recipe", text: str = "Which recipe?", compares: bool = False
) -> Flow[str]:
    """Ask for a recipe: returns the path of its file, or the folder of a run.

    compares: offer only runs that train, because others have no results to compare.
    """
    from llm_lab.job import list_recipes

    files = list_recipes()
    with_recipe = (run for run in list_runs() if (run.path / "recipe.yaml").is_file() and not run.facts().get("study"))
    runs = [run for run in with_recipe if not compares or _trains(run)]
    stems = [file.stem for file in files]
    # A run with the same name as a recipe is shown with its folder.
    names = [str(run.path) if run.path.name in stems else short_name(run.path.name, WIDEST) for run in runs]
    width = max(map(len, [*stems, *names]), default=0) + 2
    choices = [_run_choice(run, name, width) for run, name in zip(runs, names, strict=True)]
    choices += [_recipe_choice(file, width) for file in files]
    path = yield Question(key, text, choices=(*choices, Choice(ANOTHER, "another file")),
                          why=why, screen=Screen(title))  # fmt: skip
    if path == ANOTHER:
        path = yield Question(
            f"{key}.path",
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


def _trains(run: RunFolder) -> bool:
    """Whether a run trains a model; a pipeline does."""
    stage = stage_of(run.facts())
    return stage is None or stage.trains


def _run_choice(run: RunFolder, name: str, width: int) -> Choice:
    about = ", ".join(filter(None, ("your run", stage_or_kind(run.facts()), when_last_active(run))))
    return Choice(str(run.path), f"{name:<{width}}{about}", effect=str(run.path / "recipe.yaml"),
                  next_to=FileHead(str(run.path / "recipe.yaml")))  # fmt: skip


def recipe_name(path: str) -> str:
    """Return the name of a recipe on a screen: a shipped one by its name, any other by its path."""
    from llm_lab.job import list_recipes

    return next((file.stem for file in list_recipes() if str(file) == path), path)


def _recipe_choice(file: Path, width: int) -> Choice:
    """Return a recipe with the comment at its top; its effect is its path."""
    return Choice(
        str(file), f"{file.stem:<{width}}{recipe_summary(file)}", effect=str(file), next_to=FileHead(str(file))
    )


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
