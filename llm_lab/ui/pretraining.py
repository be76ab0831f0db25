"""Pretrain: which model, which texts, how long; then the review, the plan, and the start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llm_lab.plan.hardware import Machine
from llm_lab.plan.resolve import demand_device
from llm_lab.recipe.errors import MachineError

from .asking import Step, ask_key, run_steps, skip
from .console import make_console
from .design import ask_tokenizer
from .draft import Draft
from .plan_panel import plan_panel
from .prompts import Back, confirm
from .review import Action, demand_no_problem, review
from .screens import begin_screen, print_run_numbers
from .sources import BUILTIN, ask_data, ask_model

TITLE = "Pretrain"
KEYS = (
    "optimizer.name",
    "optimizer.learning_rate",
    "scheduler.name",
    "scheduler.power",
    "scheduler.decay_ratio",
    "train.max_length",
    "train.per_device_train_batch_size",
    "train.max_steps",
    "name",
)
PLAN_LINES = 20  # the panel's most
PLAN_WHY = "Ctrl-C stops the run at any time and saves it; Checkpoints goes on with it."  # one line: it is full


def new_draft(machine: Machine) -> Draft:
    """Return the draft a pretraining begins with; the device is what this machine has."""
    return Draft(
        {"stage": "pretrain", "name": "my-run", "device": machine.best_device, "data": [{"path": BUILTIN}]},
        machine,
    )


def show_run(draft: Draft) -> None:
    """Draw the screen above a question."""
    console = begin_screen(TITLE, draft.raw.get("name", ""))
    print_run_numbers(console, draft.look()[0])
    console.print()


def pretrain(
    draft: Draft,
    *,
    describe_data: Callable[[Mapping[str, Any]], str],
    save: Callable[[Draft], None],
    keep: Callable[[Draft], None],
) -> Draft | None:
    """Ask for a pretraining run. Returns the draft to start, or None for the menu.

    describe_data: looks at a data source and says what was found. save: writes the recipe to a file.
    keep: takes the draft as it is, so that a Ctrl-C loses no answer. Raises Back at the first question.
    """
    started: list[Draft] = []
    first = (
        lambda draft: ask_model(draft, show=show_run),
        lambda draft: ask_data(draft, describe_data, show=show_run),
        _ask_tokenizer,
    )
    askers: dict[str, Step] = dict(zip(("model", "data", "tokenizer"), first, strict=True))

    def finish(draft: Draft) -> Draft:
        draft, start = _finish(draft, askers=askers, save=save, keep=keep)
        started[:] = [draft] if start else []
        return draft

    run_steps([*first, *map(_asker, KEYS), finish], draft, first=draft.step, keep=keep)
    return started[0] if started else None


def _finish(
    draft: Draft, *, askers: Mapping[str, Step], save: Callable[[Draft], None], keep: Callable[[Draft], None]
) -> tuple[Draft, bool]:
    """Review, save, and show the plan; True where the run is to be started."""
    while True:
        action, draft = review(
            draft, title=TITLE, actions=ACTIONS, show=show_run, asker_of=lambda path: _asker_of(path, askers)
        )
        keep(draft)
        try:
            if action == "menu":
                return draft, False
            if action == "save":
                save(draft)
            elif action in askers:
                draft = askers[action](draft)
                keep(draft)
            elif confirm_plan(draft):
                return draft, True
        except Back:
            continue


def _why_not_start(draft: Draft) -> str | None:
    resolved, problems = draft.look()
    if problems or resolved is None:
        return demand_no_problem(draft)
    try:
        demand_device(resolved)
    except MachineError as error:
        return error.problems[0].why
    return None


ACTIONS = (
    Action("start", "Start: see the plan first", _why_not_start),
    Action("save", "Save the recipe to a file", demand_no_problem),
    Action("data", "Change the texts"),
    Action("model", "Change the model"),
    Action("menu", "Back to the menu, keeping the draft"),
)


def _asker_of(path: str, askers: Mapping[str, Step]) -> Step | None:
    """Return the question of a value in the review that is more than its key."""
    if path == "optimizer.name":
        return ask_optimizer
    if path.endswith(".path") or path.startswith("tokenizer"):
        return askers[path.split(".")[0]]
    return askers["model"] if path in ("model.config", "model.checkpoint") else None


def confirm_plan(draft: Draft) -> bool:
    """Show what is going to happen, and ask for the start. Raises Back."""
    console = make_console()
    console.clear()
    resolved, _ = draft.look()
    console.print(plan_panel(resolved))
    return confirm("Start now?", yes="Yes, start", no="No, back to the review", why=PLAN_WHY, above=PLAN_LINES)


def _asker(path: str) -> Step:
    def ask(draft: Draft) -> Draft:
        return ask_key(draft, path, show=show_run) if draft.applies(path) else skip(draft)

    return ask_optimizer if path == "optimizer.name" else ask


def ask_optimizer(draft: Draft) -> Draft:
    """Ask for the optimizer; another one brings its own keys and its own scale of learning rates."""
    before, rate = draft.value("optimizer.name"), draft.value("optimizer.learning_rate")
    answered = ask_key(draft, "optimizer.name", show=show_run)
    name = answered.value("optimizer.name")
    if name == before:
        return answered
    now = answered.value("optimizer.learning_rate")
    return answered.with_notice(f"{name} has its own scale: its learning rate is now {now:g}; {before}'s was {rate:g}.")


def _ask_tokenizer(draft: Draft) -> Draft:
    # A checkpoint brings its own.
    return skip(draft) if "checkpoint" in (draft.raw.get("model") or {}) else ask_tokenizer(draft, show=show_run)
