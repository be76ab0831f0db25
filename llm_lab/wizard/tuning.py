"""The stages after pretraining: which model, which data, what is done; then the review, the plan, and the start."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from llm_lab.estimate.machine import Machine
from llm_lab.recipe.fields import groups_of, keys_of
from llm_lab.recipe.registry import STAGES
from llm_lab.terminal.screens import begin_screen, print_run_numbers

from . import untrained
from .actions import Actions
from .asking import Step, ask_key, skip
from .draft import Draft
from .examples import BUILTIN, NOUNS, ask_examples, ask_score, is_score_source
from .finish import ask_run, finish
from .pretraining import ask_optimizer
from .reward_terms import ask_rewards
from .start_model import ask_other_model, ask_policy, first_name, with_model
from .tuning_answers import LORA_KEYS, ask_batch, ask_finer, ask_generations, ask_length, ask_lora, own_keys

FIRST_REWARD = "exact_number"
ASKED = (
    "optimizer.name",
    "optimizer.learning_rate",
    "train.num_train_epochs",
    "train.max_steps",
    "train.per_device_train_batch_size",
    "score.path",
    "name",
)


def new_draft(machine: Machine, stage: str, *, model: str | None = None, reward: str | None = None) -> Draft:
    """Return the draft a stage begins with. model: what it goes on from; reward: a reward model to score by."""
    raw = {"stage": stage, "name": first_name(stage, None), "device": machine.best_device}
    if STAGES[stage].trains:
        raw["data"] = [{"path": BUILTIN}]
    if STAGES[stage].has("rewards"):
        raw["rewards"] = [{"model": reward} if reward else {"name": FIRST_REWARD}]
    draft = Draft(raw, machine)
    return draft if model is None else with_model(draft, model)


def show_tuning(draft: Draft) -> None:
    """Draw the screen above a question."""
    console = begin_screen(STAGES[draft.raw["stage"]].title, draft.raw.get("name", ""))
    if draft.raw.get("model"):
        print_run_numbers(console, draft.look()[0])
    console.print()


def tune(
    draft: Draft, actions: Actions, *, save: Callable[[Draft], None], keep: Callable[[Draft], None]
) -> Draft | None:
    """Ask for a run of a stage after pretraining, as ask_run does."""
    stage = draft.raw["stage"]
    askers = askers_of(stage, actions)
    lines = {"data": f"Change the {NOUNS.get(STAGES[stage].examples, '')}", "model": "Change the model"}
    lines |= {"rewards": "Change the rewards", "lora": "Train all weights, or an adapter", "score": "Change the score"}
    changes = {name: (line, askers[name]) for name, line in lines.items() if name in askers}
    if STAGES[stage].makes is None:
        # Nothing is trained on the texts: no X-ray.
        changes = {"model": changes["model"], "measured": ("Change what it is measured on", askers["data"])}
    end = partial(
        finish,
        title=STAGES[stage].title,
        changes=changes,
        asker_of=partial(asker_of, askers),
        actions=actions,
        save=save,
        keep=keep,
        show=show_tuning,
    )
    return ask_run(steps_of(stage, askers), draft, end, keep=keep)


def askers_of(stage: str, actions: Actions) -> dict[str, Step]:
    """Return the questions that are more than one key, by the group or key they are about."""
    if not STAGES[stage].trains:
        return untrained.askers_of(stage, actions, show=show_tuning)
    askers: dict[str, Step] = {"model": partial(ask_policy, show=show_tuning)}
    askers["data"] = partial(ask_examples, actions=actions, show=show_tuning)
    if STAGES[stage].has("rewards"):
        askers["rewards"] = partial(ask_rewards, actions=actions, show=show_tuning)
    askers["lora"] = partial(ask_lora, show=show_tuning)
    if STAGES[stage].has("score"):
        askers["score"] = partial(ask_score, actions=actions, show=show_tuning)
        askers["score.rewards"] = partial(ask_rewards, actions=actions, show=show_tuning, path="score.rewards")
    if key := STAGES[stage].rows_per_example:
        askers[key] = partial(ask_generations, show=show_tuning)
    for path in other_models(stage):
        askers[path] = partial(ask_other_model, path=path, show=show_tuning)
    askers["optimizer.name"] = partial(ask_optimizer, show=show_tuning)
    askers["train.num_train_epochs"] = askers["train.max_steps"] = partial(ask_length, show=show_tuning)
    askers["train.per_device_train_batch_size"] = partial(ask_batch, show=show_tuning)
    return askers


def other_models(stage: str) -> list[str]:
    """Return the keys of a stage's own group that name a second model, such as a reference."""
    keys = keys_of(groups_of(STAGES[stage].recipe.model_fields[stage])[0], f"{stage}.")
    return [key.path for key in keys if key.names == "model"]


def steps_of(stage: str, askers: dict[str, Step]) -> list[Step]:
    """Return the questions of a stage, in order."""
    if not STAGES[stage].trains:
        finer = partial(ask_finer, asked=tuple(untrained.ASKED), askers=askers, show=show_tuning)
        return untrained.steps_of(stage, askers, finer=finer, show=show_tuning)
    first = [askers[name] for name in ("model", "data", "rewards", "lora") if name in askers]
    paths = [*own_keys(stage), "optimizer.name", "optimizer.learning_rate", "train.max_steps"]
    paths += ["train.per_device_train_batch_size", *(["score"] if "score" in askers else [])]
    asked = (*ASKED, *LORA_KEYS, *own_keys(stage))
    finer = partial(ask_finer, asked=asked, askers=askers, show=show_tuning)
    return [*first, *(_asker(path, askers) for path in paths), finer, _asker("name", askers)]


def _asker(path: str, askers: dict[str, Step]) -> Step:
    def ask(draft: Draft) -> Draft:
        return ask_key(draft, path, show=show_tuning) if draft.applies(path) else skip(draft)

    return askers.get(path, ask)


def asker_of(askers: dict[str, Step], path: str) -> Step | None:
    """Return the question of a value in the review that is more than its key."""
    if path in askers:
        return askers[path]
    group = path.split(".")[0]
    if path.startswith("score.rewards"):
        return askers["score.rewards"]
    return askers[group] if group in ("model", "data", "rewards") or is_score_source(path) else None
