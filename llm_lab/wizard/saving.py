"""Save a draft as a recipe file."""

from __future__ import annotations

from pathlib import Path

from llm_lab.recipe.files import to_yaml
from llm_lab.runs.folder import write_atomically
from llm_lab.terminal.console import make_console
from llm_lab.terminal.prompts import type_in, wait_for_enter

from .draft import Draft


def save_recipe(draft: Draft) -> None:
    """Ask for a file and write the draft as a commented recipe: what was answered; what is derived, as remarks."""
    resolved, _ = draft.look()
    path = Path(
        type_in(
            "Save the recipe where?",
            default=f"configs/{draft.raw.get('name') or 'my-run'}.yaml",
            why="A file in configs/ is listed by `llm-lab list recipes` and by Replay a recipe.",
            about="Tab completes paths.",
            validate=_why_no_file,
            paths=True,
        )
    ).expanduser()
    path = path if path.suffix in (".yaml", ".yml") else path.with_name(path.name + ".yaml")
    fields = type(resolved.recipe).model_fields
    # An empty group switches on what is off by default, and null switches off what is on: both say something.
    answers = {
        key: value
        for key, value in draft.raw.items()
        if value not in ({}, None) or (value is None) != (fields[key].default is None)
    }
    header = (
        f"{draft.raw['stage']}: {draft.raw.get('name')}",
        "",
        f"llm-lab run {path}",
        "",
        "Derived for now:",
    )
    derived = tuple(f"  {key}: {origin.reason}" for key, origin in resolved.origins.items() if origin.kind == "derived")
    write_atomically(path, to_yaml(answers, type(resolved.recipe), lambda _, help_text: help_text, header + derived))
    make_console().print(f"Written: {path}    replay it with: llm-lab run {path}", style="good")
    wait_for_enter("Enter goes back to the review")


def _why_no_file(text: str) -> str | None:
    path = Path(text.strip()).expanduser()
    if not text.strip():
        return "A file name is needed."
    if path.exists() or path.with_name(path.name + ".yaml").exists():
        return f"{path} exists, and is not overwritten."
    # configs/ itself is made where it is missing; a longer path that is missing is more likely a slip.
    return None if path.parent.is_dir() or path.parent.parent.is_dir() else f"There is no folder {path.parent}."
