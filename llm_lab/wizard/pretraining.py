"""Pretrain: which model, which texts, how long; then the review, the plan, and the start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from llm_lab.estimate.machine import Machine
from llm_lab.recipe.pretrain import PRETRAIN
from llm_lab.terminal.screens import begin_screen, print_run_numbers

from .actions import Actions
from .asking import Show, Step, ask_key, skip
from .design import ask_tokenizer
from .draft import Draft
from .examples import ask_score, is_score_source
from .finish import ask_run, finish
from .reward_terms import ask_rewards
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


def new_draft(machine: Machine) -> Draft:
    """Return the draft a pretraining begins with; the device is what this machine has."""
    return Draft(
        {"stage": PRETRAIN.name, "name": "my-run", "device": machine.best_device, "data": [{"path": BUILTIN}]},
        machine,
    )


def show_run(draft: Draft) -> None:
    """Draw the screen above a question."""
    console = begin_screen(TITLE, draft.raw.get("name", ""))
    print_run_numbers(console, draft.look()[0])
    console.print()


def pretrain(
    draft: Draft, actions: Actions, *, save: Callable[[Draft], None], keep: Callable[[Draft], None]
) -> Draft | None:
    """Ask for a pretraining run, as ask_run does."""
    first = (
        lambda draft: ask_model(draft, show=show_run),
        lambda draft: ask_data(draft, actions.describe_data, show=show_run),
        _ask_tokenizer,
    )
    askers: dict[str, Step] = dict(zip(("model", "data", "tokenizer"), first, strict=True))
    askers["score"] = partial(ask_score, actions=actions, show=show_run)
    askers["score.rewards"] = partial(ask_rewards, actions=actions, show=show_run, path="score.rewards")
    changes = {"data": ("Change the texts", askers["data"]), "model": ("Change the model", askers["model"])}
    end = partial(
        finish,
        title=TITLE,
        changes=changes,
        asker_of=lambda path: _asker_of(path, askers),
        actions=actions,
        save=save,
        keep=keep,
        show=show_run,
    )
    return ask_run([*first, *map(_asker, KEYS)], draft, end, keep=keep)


def _asker_of(path: str, askers: Mapping[str, Step]) -> Step | None:
    """Return the question of a value in the review that is more than its key."""
    if path == "optimizer.name":
        return ask_optimizer
    if path.startswith("score.rewards"):
        return askers["score.rewards"]
    if is_score_source(path):
        return askers["score"]
    if path.endswith(".path") or path.startswith("tokenizer"):
        return askers[path.split(".")[0]]
    return askers["model"] if path in ("model.config", "model.checkpoint") else None


def _asker(path: str) -> Step:
    def ask(draft: Draft) -> Draft:
        return ask_key(draft, path, show=show_run) if draft.applies(path) else skip(draft)

    return ask_optimizer if path == "optimizer.name" else ask


def ask_optimizer(draft: Draft, show: Show | None = None) -> Draft:
    """Ask for the optimizer; another one brings its own keys and its own scale of learning rates."""
    before, rate = draft.value("optimizer.name"), draft.value("optimizer.learning_rate")
    answered = ask_key(draft, "optimizer.name", show=show or show_run)
    name = answered.value("optimizer.name")
    if name == before:
        return answered
    now = answered.value("optimizer.learning_rate")
    return answered.with_notice(f"{name} has its own scale: its learning rate is now {now:g}; {before}'s was {rate:g}.")


def _ask_tokenizer(draft: Draft) -> Draft:
    # A checkpoint brings its own.
    return skip(draft) if "checkpoint" in (draft.raw.get("model") or {}) else ask_tokenizer(draft, show=show_run)
