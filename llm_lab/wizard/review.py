"""The end of a run's questions: the page of its settings, the data as tokens, saving, the plan, and the start."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llm_lab.errors import MachineError, UserError
from llm_lab.estimate.formatting import plural
from llm_lab.recipe.export import EXPORT
from llm_lab.recipe.files import to_yaml
from llm_lab.recipe.plan_warnings import enough_epochs
from llm_lab.recipe.registry import STAGES
from llm_lab.recipe.resolve import Resolved, require_device
from llm_lab.recipe.what_fits import make_it_fit
from llm_lab.runs.card_answers import OF_ALL_MODELS

from .draft import Draft
from .draft_page import Page, ask_page
from .eval_and_export import CARD, ask_card, is_card_open
from .home import AFTER
from .questions import (
    Choice,
    Flow,
    Leave,
    Next,
    Plan,
    Question,
    RecipePlan,
    Screen,
    ShowTokens,
    StartRun,
    Wait,
    WriteRecipe,
)

EPOCHS = "train.num_train_epochs"
START, YES, NO = "Start now?", "Yes, start", "No, go back"  # below every plan
PLAN_WHY = (
    "Ctrl-C stops the run at any time and saves it; resume it from the menu entry Runs."  # it must fit on one line
)


def require_no_problem(draft: Draft) -> str | None:
    """Return why the draft can't be used yet, or None."""
    return "first fix the problem above" if draft.look()[1] else None


def run_actions(draft: Draft) -> tuple[Choice, ...]:
    """Return the actions that end the page of a run."""
    stage, why_not = STAGES[draft.raw["stage"]], require_no_problem(draft)
    tokens = [Choice("xray", "See the data as tokens", why_not)] if stage.makes is not None and stage.trains else []
    return (
        Choice("start", "Continue to the plan", why_not_start(draft)),
        *tokens,
        *([Choice("card", "Author, license, use")] if stage is EXPORT else []),
        Choice("save", "Save the recipe", why_not),
        Choice("menu", "Menu (keeps the draft)"),
    )


def draft_recipe(draft: Draft) -> str:
    """Return the recipe of a draft, or its problems."""
    resolved, problems = draft.look()
    if resolved is None:
        return "\n".join(map(str, problems))
    return to_yaml(answers_of(draft.raw, resolved), type(resolved.recipe), lambda _, help_text: help_text)


def settings_and_start(draft: Draft, page: Page) -> Flow[Next]:
    """Show the page of a run, the data as tokens, the plan; save, and run."""
    start = draft
    while True:
        action, draft = yield from ask_page(start, draft, page)
        if action == "menu":
            yield Leave()
        resolved, _ = draft.look()
        assert resolved is not None
        if action == "xray":
            yield ShowTokens(resolved, draft.title)
        elif action == "card":
            yield (yield from ask_card(draft, *CARD))
        elif action == "save":
            yield from _save(draft, resolved)
        else:
            is_started, draft = yield from _start(draft, resolved)
            if is_started:
                return Next(AFTER, {"name": draft.raw["name"]})


def _start(draft: Draft, resolved: Resolved) -> Flow[tuple[bool, Draft]]:
    """Show the plan and start after a yes; return whether it started, and the draft with the changes from the plan.

    What is missing on the model card of an export is asked before the plan, so that nothing is asked after the yes.
    """
    from llm_lab.job import look_at_data, problems_of_length, problems_of_push, with_sizes

    yield Wait("Reading the data ...")
    problems, remarks = look_at_data(resolved)
    problems = [*problems, *problems_of_push(resolved)]
    notice = notes(remarks)
    resolved = make_it_fit(with_sizes(resolved)) if not problems else resolved
    if problems := problems or [*problems_of_length(resolved)]:
        raise UserError(*problems)
    card = (yield from ask_card(draft, *OF_ALL_MODELS)) if is_card_open(draft) else None
    while (answer := (yield start_question(Plan(resolved), enough_epochs(resolved), notice))) == EPOCHS:
        draft = draft.with_answer(EPOCHS, float(enough_epochs(resolved) or 0))
        longer, _ = draft.look()
        assert longer is not None
        resolved = make_it_fit(with_sizes(longer))
    if not answer:
        return False, draft
    if card:
        yield card
    return (yield StartRun(draft.raw)), draft


def notes(remarks: Iterable[str]) -> str:
    """Return the remarks about a plan, a line each."""
    return "\n".join(f"Note: {remark}" for remark in remarks)


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


def start_question(plan: Plan | RecipePlan, epochs: int | None = None, notice: str = "") -> Question:
    """Return the question that shows a plan and asks for the start.

    epochs: how many of them give enough steps. notice: what could not be checked.
    """
    more = [Choice(EPOCHS, f"Train for {plural(epochs, 'epoch')} instead (more steps)")] if epochs else []
    choices = (Choice(True, YES), *more, Choice(False, NO))
    return Question("start", START, choices=choices, default=True, why=PLAN_WHY,
                    screen=Screen(panel=plan), notice=notice)  # fmt: skip


def _save(draft: Draft, resolved: Resolved) -> Flow[None]:
    """Ask for a file and write the draft as a recipe."""
    text = yield draft.ask(
        "save",
        "Where should the recipe be saved?",
        kind="path",
        default=f"configs/{draft.raw.get('name') or 'my-run'}.yaml",
        why="Run a recipe lists the files in configs/.",
        look_for="new file",
        check=_why_no_file,
    )
    path = _with_suffix(Path(text.strip()).expanduser())
    yield WriteRecipe(path, recipe_text(draft.raw, resolved, path))


def recipe_text(raw: Mapping[str, Any], resolved: Resolved, path: Path) -> str:
    """Return a draft as the text of a recipe file: the answers, with comments; derived values as comments."""
    header = (f"{raw['stage']}: {raw.get('name')}", "", f"llm-lab run {shlex.quote(str(path))}", "", "Derived values:")
    derived = tuple(f"  {key}: {origin.reason}" for key, origin in resolved.origins.items() if origin.kind == "derived")
    answers = answers_of(raw, resolved)
    return to_yaml(answers, type(resolved.recipe), lambda _, help_text: help_text, header + derived)


def answers_of(raw: Mapping[str, Any], resolved: Resolved) -> dict[str, Any]:
    """Return the answers in a draft's recipe file, without those that have no effect."""
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
    # configs/ itself is created if it is missing; a longer path that is missing is more likely a typo.
    return None if path.parent.is_dir() or path.parent.parent.is_dir() else f"There is no folder {path.parent}."
