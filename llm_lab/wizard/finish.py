"""The end of a flow of questions: the review, the data as tokens, the plan, the start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from llm_lab.errors import LabError, MachineError
from llm_lab.recipe.resolve import require_device
from llm_lab.terminal.console import make_console, print_error, say_wait
from llm_lab.terminal.plan_panel import plan_panel
from llm_lab.terminal.prompts import Back, confirm, wait_for_enter
from llm_lab.terminal.screens import begin_screen

from .actions import Actions
from .asking import Show, Step, run_steps
from .draft import Draft
from .review import Action, require_no_problem, review

PLAN_LINES = 20  # the panel's most
PLAN_WHY = "Ctrl-C stops the run at any time and saves it; Checkpoints goes on with it."  # one line: it is full


def ask_run(
    steps: Sequence[Step],
    draft: Draft,
    finish: Callable[[Draft], tuple[Draft, bool]],
    *,
    keep: Callable[[Draft], None],
) -> Draft | None:
    """Ask the questions of a run, then for its start. Returns the draft to start, or None for the menu.

    finish: the function below, with all but the draft. keep: takes the draft as it is, so that a Ctrl-C loses no
    answer. Raises Back at the first question.
    """
    started: list[Draft] = []

    def end(draft: Draft) -> Draft:
        draft, start = finish(draft)
        started[:] = [draft] if start else []
        return draft

    run_steps([*steps, end], draft, first=draft.step, keep=keep)
    return started[0] if started else None


def finish(
    draft: Draft,
    *,
    title: str,
    changes: Mapping[str, tuple[str, Step]],
    asker_of: Callable[[str], Step | None],
    actions: Actions,
    save: Callable[[Draft], None],
    keep: Callable[[Draft], None],
    show: Show,
) -> tuple[Draft, bool]:
    """Review, look at the data, save, and show the plan; True where the run is to be started. Raises Back.

    changes: {name: (line, question)} of what can be changed at once. asker_of: the question of a key in the review
    that has one of its own. save: writes the recipe to a file.
    """
    lines = [Action("start", "Start: see the plan first", why_not_start)]
    if "data" in changes:
        lines.append(Action("xray", "Look at the data as tokens (X-ray)", require_no_problem))
    lines.append(Action("save", "Save the recipe to a file", require_no_problem))
    lines += [Action(name, line) for name, (line, _) in changes.items()]
    lines.append(Action("menu", "Back to the menu, keeping the draft"))
    while True:
        action, draft = review(draft, title=title, actions=lines, show=show, asker_of=asker_of)
        keep(draft)
        try:
            if action == "menu":
                return draft, False
            if action == "save":
                save(draft)
            elif action == "xray":
                show_tokens(draft, title, actions)
            elif action in changes:
                draft = changes[action][1](draft)
                keep(draft)
            elif confirm_plan(draft):
                return draft, True
        except Back:
            continue


def why_not_start(draft: Draft) -> str | None:
    """Return why a draft can't be started now, or None."""
    resolved, problems = draft.look()
    if problems or resolved is None:
        return require_no_problem(draft)
    try:
        require_device(resolved)
    except MachineError as error:
        return error.problems[0].why
    return None


def show_tokens(draft: Draft, title: str, actions: Actions) -> None:
    """Show what the draft's data are as tokens, a screen at a time. Raises Back."""
    from llm_lab.terminal.xray_view import page_xray

    begin_screen(title, "the data as tokens")
    say_wait("Reading the data ...")
    resolved, _ = draft.look()
    try:
        stages = actions.xray(resolved.values)
    except LabError as error:
        print_error(error)
        wait_for_enter("Enter goes back to the review")
        return
    page_xray(stages, lambda: begin_screen(title, "the data as tokens"), end="Enter goes back to the review")


def confirm_plan(draft: Draft) -> bool:
    """Show what is going to happen, and ask for the start. Raises Back."""
    console = make_console()
    console.clear()
    resolved, _ = draft.look()
    console.print(plan_panel(resolved))
    return confirm("Start now?", yes="Yes, start", no="No, back to the review", why=PLAN_WHY, above=PLAN_LINES)
