"""The end of a run's questions: the review, the data as tokens, saving, the plan, the start."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_lab.errors import MachineError
from llm_lab.recipe.fields import flatten
from llm_lab.recipe.files import format_value, to_yaml
from llm_lab.recipe.resolve import Resolved, require_device

from .draft import Ask, Draft
from .key_questions import ask_key, effect
from .questions import (
    BackTo,
    Choice,
    Flow,
    Leave,
    Line,
    Next,
    Plan,
    Question,
    RecipePlan,
    Screen,
    ShowTokens,
    StartRun,
    Wait,
    WriteRecipe,
    yes_no,
)

COLUMNS = 79
VALUE_COLUMNS = 14
LINE_COLUMNS = 73
REVIEW = "review"
WHY = (
    "answer: you chose it. default: the built-in default. derived: computed from the other values, for the reason "
    "given, and updated with them. Enter edits a line; Page Up and Page Down move faster."
)
PLAN_WHY = (
    "Ctrl-C stops the run at any time and saves it; resume it from the menu entry Runs."  # one line: the screen is full
)


@dataclass(frozen=True)
class Action:
    """A line above the values. why_not: why it isn't possible now, or None."""

    name: str
    line: str
    why_not: Callable[[Draft], str | None] = lambda draft: None


def require_no_problem(draft: Draft) -> str | None:
    """Return why nothing can be made of the draft yet, or None."""
    return "first fix the problem above" if draft.look()[1] else None


def review(
    draft: Draft,
    actions: Sequence[Action],
    *,
    only: tuple[str, ...] = ("",),
    asker_of: Callable[[str], Ask | None] = lambda path: None,
    changes: Mapping[str, Ask] | None = None,
) -> Flow[tuple[str, Draft]]:
    """Show all values, each of which can be changed, until an action is chosen; return (action, draft).

    only: how the shown keys begin. asker_of: the question of a key that has its own, else None. changes: {action:
    question} of actions that only change the draft.
    """
    changes = changes or {}
    done = [action.name for action in actions if action.name not in changes]
    at = actions[0].name
    while (picked := (yield _review_question(draft, actions, only, at))) not in done:
        at = picked
        asker = changes.get(picked) or asker_of(picked)
        draft = draft.with_notice("")
        draft = yield from asker(draft) if asker else ask_key(draft, picked)
    return picked, draft.with_notice("")


def _review_question(draft: Draft, actions: Sequence[Action], only: tuple[str, ...], at: str) -> Question:
    resolved, problems = draft.look()
    texts = [(str(problem), "bad") for problem in problems] + [(draft.notice, "warn"), (effect(resolved), "dim")]
    lines = tuple(Line(line, style) for text, style in texts for line in textwrap.wrap(text, COLUMNS))
    choices = [Choice(action.name, action.line, action.why_not(draft)) for action in actions]
    return Question(
        REVIEW,
        "Review: Enter edits a line",
        choices=(*choices, *value_choices(draft, only)),
        default=at,
        why=WHY,
        screen=Screen(draft.title, "review", lines=lines),
    )


def value_choices(draft: Draft, only: tuple[str, ...] = ("",)) -> list[Choice]:
    """Return one line for each value, with its origin; its effect is the whole of it and its help."""
    resolved, _ = draft.look()
    choices = []
    for path, value in flatten(resolved.values if resolved else draft.raw):
        if not path.startswith(only) or path == "stage":
            continue
        origin = str(resolved.origins.get(path)) if resolved else "answer"
        shown = format_value(value).replace("\n", "⏎")
        key = draft.key(path)
        about = f"{path} = {shown} ({origin})" + (f": {key.help}." if key else "")
        line = f"{path:<33} {_cut(shown, VALUE_COLUMNS):<{VALUE_COLUMNS}} {origin}"
        choices.append(Choice(path, _cut(line, LINE_COLUMNS), effect=about))
    return choices


def _cut(text: str, columns: int) -> str:
    return text if len(text) <= columns else text[: columns - 1] + "…"


def review_and_start(
    draft: Draft, changes: Mapping[str, tuple[str, Ask]], asker_of: Callable[[str], Ask | None]
) -> Flow[Next]:
    """Review, look at the data, save, show the plan, and run.

    changes: {name: (line, question)} of what can be changed at once. asker_of: the question of a key that has its own.
    """
    actions = [Action("start", "Continue to the plan", why_not_start)]
    if "data" in changes:
        actions.append(Action("xray", "Look at the data as tokens (X-ray)", require_no_problem))
    actions.append(Action("save", "Save the recipe to a file", require_no_problem))
    actions += [Action(name, line) for name, (line, _) in changes.items()]
    actions.append(Action("menu", "Back to the menu, keep the draft"))
    action, draft = yield from review(
        draft, actions, asker_of=asker_of, changes={name: ask for name, (_, ask) in changes.items()}
    )
    if action == "menu":
        yield Leave()
    resolved, _ = draft.look()
    assert resolved is not None
    if action == "xray":
        yield ShowTokens(resolved, draft.title)
        yield BackTo(REVIEW)
    if action == "save":
        yield from _save(draft, resolved)
        yield BackTo(REVIEW)
    from llm_lab.job import with_sizes

    yield Wait("Reading the data ...")
    if not (yield start_question(Plan(with_sizes(resolved)))) or not (yield StartRun(draft.raw)):
        yield BackTo(REVIEW)
    return Next("after a run", {"name": draft.raw["name"]})


def why_not_start(draft: Draft) -> str | None:
    """Return why a draft can't be started now, or None."""
    resolved, problems = draft.look()
    if problems or resolved is None:
        return require_no_problem(draft)
    try:
        require_device(resolved)
    except MachineError as error:
        problem = error.problems[0]
        return getattr(problem, "why", str(problem))
    return None


def start_question(plan: Plan | RecipePlan) -> Question:
    """Return the question that shows a plan and asks for the start."""
    return yes_no("start", "Start now?", default=True, yes="Yes, start", no="No, go back", why=PLAN_WHY,
                  screen=Screen(panel=plan))  # fmt: skip


def _save(draft: Draft, resolved: Resolved) -> Flow[None]:
    """Ask for a file and write the draft as a recipe."""
    text = yield draft.ask(
        "save",
        "Where should the recipe be saved?",
        kind="path",
        default=f"configs/{draft.raw.get('name') or 'my-run'}.yaml",
        why="`llm-lab list recipes` and Run a recipe list the files in configs/.",
        look_for="new file",
        check=_why_no_file,
    )
    path = _with_suffix(Path(text.strip()).expanduser())
    yield WriteRecipe(path, recipe_text(draft.raw, resolved, path))


def recipe_text(raw: Mapping[str, Any], resolved: Resolved, path: Path) -> str:
    """Return a draft as the text of a recipe file: the answers, with comments; derived values as remarks."""
    header = (f"{raw['stage']}: {raw.get('name')}", "", f"llm-lab run {path}", "", "Derived values:")
    derived = tuple(f"  {key}: {origin.reason}" for key, origin in resolved.origins.items() if origin.kind == "derived")
    answers = answers_of(raw, resolved)
    return to_yaml(answers, type(resolved.recipe), lambda _, help_text: help_text, header + derived)


def answers_of(raw: Mapping[str, Any], resolved: Resolved) -> dict[str, Any]:
    """Return what a draft's recipe file says: its answers, without those that mean nothing."""
    fields = type(resolved.recipe).model_fields
    # Null switches off what would be on, also an adapter that memory would require. An empty group switches on what is
    # off by default.
    return {key: value for key, value in raw.items() if value != {} or (key in fields and fields[key].default is None)}


def _with_suffix(path: Path) -> Path:
    return path if path.suffix in (".yaml", ".yml") else path.with_name(path.name + ".yaml")


def _why_no_file(text: str) -> str | None:
    if not text.strip():
        return "A file name is required."
    path = Path(text.strip()).expanduser()
    if path.exists() or _with_suffix(path).exists():
        return f"{path} already exists. Choose another name."
    # configs/ itself is created where it is missing; a longer path that is missing is more likely a typo.
    return None if path.parent.is_dir() or path.parent.parent.is_dir() else f"There is no folder {path.parent}."
