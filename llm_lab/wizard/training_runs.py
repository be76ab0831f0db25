"""Pretraining and the stages after it: which questions, in which order; then the review, the plan, and the start."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import gcd
from typing import Any

from llm_lab.estimate.machine import find_machine
from llm_lab.recipe.fields import Key, groups_of, keys_of
from llm_lab.recipe.registry import STAGES
from llm_lab.recipe.stage import StageRecipe
from llm_lab.recipe.what_fits import FULL, LORA, QLORA, fits_in

from . import eval_and_export
from .data_questions import EXAMPLES, NOUNS, TEXTS, ask_data, ask_forgetting, ask_score, is_score_source
from .draft import Ask, Draft
from .key_questions import OTHER, ask_key, ask_keys
from .model_design import ask_tokenizer
from .model_questions import ask_model, ask_model_to_pretrain, ask_other_model, first_name, with_model
from .questions import Choice, Flow, Next, Question
from .review import review_and_start
from .reward_questions import ask_rewards

FIRST_REWARD = "exact_number"
PRETRAIN_KEYS = (
    "optimizer.name",
    "optimizer.learning_rate",
    "scheduler.name",
    "scheduler.power",
    "scheduler.decay_ratio",
    "train.max_length",
    "train.per_device_train_batch_size",
    "train.max_steps",
)
LORA_KEYS = ("lora.preset", "lora.target_modules", "lora.r", "lora.alpha")
ASKED = (
    "optimizer.name",
    "optimizer.learning_rate",
    "train.num_train_epochs",
    "train.max_steps",
    "train.per_device_train_batch_size",
    "score.path",
    "name",
    *LORA_KEYS,
)
LORA_WHY = (
    "LoRA trains small matrices added to the frozen weights (Hu et al. 2021): a fraction of the memory, a file of "
    "a few megabytes, and the base model stays unchanged; Merge combines both into one model. Training all weights "
    "learns more. QLoRA keeps the frozen weights in 4 bits (Dettmers et al. 2023)."
)
EPOCHS, STEPS, ROWS = "train.num_train_epochs", "train.max_steps", "train.per_device_train_batch_size"
LENGTH_WHY = (
    "An epoch is one pass over all examples; small datasets are often trained for three. A step is one "
    "optimizer update."
)
BATCH_WHY = (
    "The outputs for a prompt are compared with each other, so a step contains all outputs of each prompt. More "
    "prompts in a step make training steadier and slower."
)
GROUPS_OF_ANSWERS = (1, 2, 3, 4, 6, 8, 12, 16)
FIRST_STEPS = 100
NO_GROUP = "done"
GROUP_NAMES = {
    "": "Device, seed, chat template",
    "train": "Training: lengths, batches, evaluation, precision",
    "optimizer": "Advanced optimizer settings",
    "scheduler": "Learning-rate schedule",
    "lora": "Advanced adapter settings",
    "validation": "Validation data",
    "samples": "Samples",
    "score": "Held-out score",
    "tasks": "Task settings",
}
ADVANCED_WHY = "Choose a group to go through its settings one by one; Esc returns here. All have defaults."


def new_draft(
    stage: str,
    *,
    model: str | None = None,
    reward: str | None = None,
    values: Mapping[str, Any] | None = None,
    **answers: Any,
) -> Draft:
    """Return the draft that a stage begins with.

    model: what it continues from. reward: a reward model to score with. values: of a recipe, by top-level key, as
    answers are.
    """
    answers |= values or {}
    machine, facts = find_machine(), STAGES[stage]
    name = "my-run" if facts.from_scratch else first_name(stage, None)
    raw: dict[str, Any] = {"stage": stage, "name": name, "device": machine.best_device}
    if facts.trains:
        raw["data"] = [{"path": TEXTS if facts.examples == "text" else EXAMPLES}]
    if facts.has("rewards"):
        raw["rewards"] = [{"model": reward} if reward else {"name": FIRST_REWARD}]
    draft = Draft(raw | answers, machine, facts.title)
    return draft if model is None else with_model(draft, model)


def run_of_stage(stage: str, **known: Any) -> Flow[Next]:
    """Ask for a run of a stage, then review and start it. known: as new_draft takes it."""
    draft, askers = new_draft(stage, **known), askers_of(stage)
    for path in paths_of(stage):
        draft = yield from _asker(askers, path)(draft)
    return (yield from review_and_start(draft, changes_of(stage, askers), partial(special_asker, stage, askers)))


def _asker(askers: Mapping[str, Ask], path: str) -> Ask:
    return askers.get(path) or partial(ask_key, path=path)


def paths_of(stage: str) -> list[str]:
    """Return what a stage's run is asked, in order: keys, and groups with questions of their own."""
    facts = STAGES[stage]
    if not facts.trains:
        return eval_and_export.PATHS.get(stage, ["model", "advanced", "name"])
    if facts.from_scratch:
        return ["model", "data", "tokenizer", *PRETRAIN_KEYS, "name"]
    rewards, score = ([group] if facts.has(group) else [] for group in ("rewards", "score"))
    paths = ["model", "data", *rewards, "lora", *own_keys(stage), "optimizer.name", "optimizer.learning_rate"]
    return [*paths, STEPS, ROWS, *score, "advanced", "name"]


def askers_of(stage: str) -> dict[str, Ask]:
    """Return the questions that are more than one key, by the group or key they are about."""
    facts = STAGES[stage]
    askers: dict[str, Ask] = {"model": ask_model_to_pretrain if facts.from_scratch else ask_model}
    asked: tuple[str, ...] = (*ASKED, *own_keys(stage)) if facts.trains else eval_and_export.ASKED
    askers["advanced"] = lambda draft: ask_advanced(draft, asked, askers)
    if not facts.trains:
        return askers | eval_and_export.askers_of(stage)
    askers["data"] = partial(ask_data, kind=facts.examples or "text")
    askers["optimizer.name"] = ask_optimizer
    if facts.has("forgetting"):
        askers |= dict.fromkeys(("forgetting", "forgetting.path"), ask_forgetting)
    if facts.has("score"):
        askers["score"] = ask_score
        askers["score.rewards"] = partial(ask_rewards, path="score.rewards")
    if facts.from_scratch:
        return askers | {"tokenizer": _ask_tokenizer}
    askers |= {"lora": ask_lora, EPOCHS: ask_length, STEPS: ask_length, ROWS: ask_batch}
    if facts.has("rewards"):
        askers["rewards"] = ask_rewards
    if facts.rows_per_example:
        askers[facts.rows_per_example] = ask_generations
    for key in _keys_of_group(stage):
        if key.names == "model":
            askers[key.path] = partial(ask_other_model, path=key.path)
    return askers


def changes_of(stage: str, askers: Mapping[str, Ask]) -> dict[str, tuple[str, Ask]]:
    """Return {name: (line, question)} of what the review changes at once."""
    facts = STAGES[stage]
    if facts.makes is None:  # nothing is trained on the texts: no X-ray
        return {"model": ("Change the model", askers["model"]), "measured": ("Change the data", askers["data"])}
    lines = {"data": f"Change the {NOUNS[facts.examples]}"} if facts.examples else {}
    lines |= {
        "model": "Change the model",
        "rewards": "Change the rewards",
        "lora": "Choose between all weights and LoRA",
    }
    if not facts.from_scratch:
        lines |= {"score": "Change the held-out score", "forgetting": "Measure what it forgets of a general text"}
    return {name: (line, askers[name]) for name, line in lines.items() if name in askers}


def special_asker(stage: str, askers: Mapping[str, Ask], path: str) -> Ask | None:
    """Return the question of a value in the review that is more than its key."""
    if path in askers:
        return askers[path]
    group = path.split(".")[0]
    if path.startswith("score.rewards"):
        return askers["score.rewards"]
    if is_score_source(path):
        return askers["score"]
    if STAGES[stage].from_scratch:  # a part of the model, or the weight of a text, is a key like others
        whole = path in ("model.config", "model.checkpoint") or path.endswith(".path") or group == "tokenizer"
        return askers.get(group) if whole else None
    return askers.get(group) if group in ("model", "data", "rewards") else None


def _ask_tokenizer(draft: Draft) -> Flow[Draft]:
    # A checkpoint brings its own.
    return draft if "checkpoint" in (draft.raw.get("model") or {}) else (yield from ask_tokenizer(draft))


def ask_optimizer(draft: Draft) -> Flow[Draft]:
    """Ask for the optimizer; another one brings its own keys and its own scale of learning rates."""
    before, rate = draft.value("optimizer.name"), draft.value("optimizer.learning_rate")
    answered = yield from ask_key(draft, "optimizer.name")
    name = answered.value("optimizer.name")
    if name == before:
        return answered
    now = answered.value("optimizer.learning_rate")
    return answered.with_notice(
        f"{name} has its own scale: its learning rate is now {now:g}; for {before} it was {rate:g}."
    )


def ask_lora(draft: Draft) -> Flow[Draft]:
    """Ask whether all weights are trained or an adapter, and which one."""
    now = draft.raw.get("lora")
    with_adapter = draft if now is not None else draft.with_answer("lora", {"preset": "minimal"})
    resolved, _ = draft.look()
    fits = fits_in(resolved) if resolved else {}
    effects = {method: f"{fit.reason[0].upper()}{fit.reason[1:]}." for method, fit in fits.items() if fit.memory_bytes}
    four_bits_why_not = with_adapter.why_not("lora.load_in_4bit", True)
    choices = (
        Choice("all", "all weights", effect=effects.get(FULL, "")),
        Choice("lora", "LoRA: an adapter", effect=effects.get(LORA, "")),
        Choice("qlora", "QLoRA: an adapter on a 4-bit base", four_bits_why_not, effects.get(QLORA, "")),
    )
    best = next((method for method, fit in fits.items() if fit.fits), FULL)
    suggested = "all" if best == FULL or "lora" in draft.raw else best
    picked = yield draft.ask(
        "lora",
        "What is trained?",
        choices=choices,
        default=suggested if now is None else "qlora" if now.get("load_in_4bit") else "lora",
        help="lora: train all weights, or a LoRA adapter only",
        why=LORA_WHY,
    )
    if picked == "all":
        if best != FULL:
            return draft.with_none("lora")  # left out, it would become an adapter
        return draft.with_notice("") if now is None else draft.with_answer("lora", None)
    four_bits = True if picked == "qlora" else None
    return (yield from ask_keys(with_adapter.with_answer("lora.load_in_4bit", four_bits), LORA_KEYS))


def ask_length(draft: Draft) -> Flow[Draft]:
    """Ask how long the run is: in epochs, or in steps."""
    picked = yield draft.ask(
        "train.length",
        "Set the length in epochs or in steps?",
        choices=(Choice(EPOCHS, "in epochs"), Choice(STEPS, "in steps")),
        default=EPOCHS if draft.value(STEPS) is None else STEPS,
        help="train: the length of the run",
        why=LENGTH_WHY,
    )
    other = STEPS if picked == EPOCHS else EPOCHS
    draft = draft.with_answer(other, None) if draft.is_answered(other) else draft.with_notice("")
    if draft.value(picked) is None:
        draft = draft.with_answer(picked, 1.0 if picked == EPOCHS else FIRST_STEPS)
    return (yield from ask_key(draft, picked))


def ask_generations(draft: Draft) -> Flow[Draft]:
    """Ask how many answers a prompt gets; rows that no longer hold whole groups are derived again."""
    answered = yield from ask_key(draft, _group_key(draft))
    wrong = [getattr(problem, "key", "") for problem in answered.look()[1]]
    if answered.is_answered(ROWS) and ROWS in wrong:
        fresh = answered.with_answer(ROWS, None)
        return fresh.with_notice(f"The batch size is now {fresh.value(ROWS)}: a multiple of the outputs per prompt.")
    return answered


def ask_batch(draft: Draft) -> Flow[Draft]:
    """Ask for the rows of a batch; for GRPO only those that hold whole groups of answers are offered."""
    key = _group_key(draft)
    group = draft.value(key) if key else None
    if not group:
        return (yield from ask_key(draft, ROWS))
    now, times = draft.value(ROWS), draft.value("train.gradient_accumulation_steps") or 1
    least = group // gcd(group, times)
    valid = sorted({least * n for n in GROUPS_OF_ANSWERS} | ({now} if now and now % least == 0 else set()))
    choices = [Choice(n, f"{n:<6,}{_in_groups(n * times, group)}", draft.why_not(ROWS, n)) for n in valid]
    picked = yield draft.ask(
        f"{ROWS}.groups",
        "Batch size per device?",
        choices=(*choices, Choice(OTHER, OTHER)),
        default=now,
        help=f"{draft.help(ROWS)}; each is one output",
        why=BATCH_WHY,
    )
    draft = draft.with_notice("")
    if picked == OTHER:
        return (yield from ask_key(draft, ROWS))
    return draft if picked == now and not draft.is_answered(ROWS) else draft.with_answer(ROWS, picked)


def _group_key(draft: Draft) -> str:
    """Return the key that says how many rows of a batch an example makes, or ""."""
    return STAGES[draft.raw["stage"]].rows_per_example or ""


def _in_groups(rows: int, group: int) -> str:
    prompts = rows // group
    return f"{prompts} prompt{'' if prompts == 1 else 's'} per step, {group} outputs each"


def own_keys(stage: str) -> list[str]:
    """Return the keys of a stage's own group that are always asked."""
    return [key.path for key in _keys_of_group(stage) if key.question and not key.meta.get("advanced")]


def _keys_of_group(stage: str) -> list[Key]:
    info = STAGES[stage].recipe.model_fields.get(stage)
    return list(keys_of(groups_of(info)[0], f"{stage}.")) if info else []


def advanced_paths(draft: Draft, asked: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the keys with a question that were not asked, by group; those without an effect now left out."""
    found: dict[str, list[str]] = {}
    for path in _paths_with_a_question(draft, STAGES[draft.raw["stage"]].recipe):
        if path not in asked and draft.applies(path):
            found.setdefault(path.split(".")[0] if "." in path else "", []).append(path)
    return found


def _paths_with_a_question(draft: Draft, schema: type[StageRecipe]) -> list[str]:
    paths = []
    for key in keys_of(schema):
        inner = [] if key.name in ("model", "data", "rewards") else groups_of(key.info)
        if inner and draft.value(key.name) is not None:
            name = draft.value(f"{key.name}.name")
            group = next((g for g in inner if len(inner) > 1 and g.model_fields["name"].default == name), inner[0])
            paths += [each.path for each in keys_of(group, f"{key.name}.") if each.question]
        elif not inner and key.question:
            paths.append(key.path)
    return paths


def ask_advanced(draft: Draft, asked: tuple[str, ...], askers: Mapping[str, Ask]) -> Flow[Draft]:
    """Ask for the advanced settings, group by group, until there is nothing more to change."""
    at = NO_GROUP
    while (picked := (yield _advanced_question(draft, asked, at))) != NO_GROUP:
        at = picked
        draft = draft.with_notice("")
        for path in advanced_paths(draft, asked)["" if at == "recipe" else at]:
            draft = yield from _asker(askers, path)(draft)
    return draft.with_notice("")


def _group_name(group: str) -> str:
    return GROUP_NAMES.get(group) or f"Advanced {STAGES[group].label if group in STAGES else group} settings"


def _advanced_question(draft: Draft, asked: tuple[str, ...], at: str) -> Question:
    choices = [Choice(NO_GROUP, "no, the defaults are fine" if at == NO_GROUP else "no, continue")]
    choices += [
        Choice(name or "recipe", f"{_group_name(name)} ({len(paths)})")
        for name, paths in advanced_paths(draft, asked).items()
    ]
    return draft.ask(
        "advanced",
        "Change advanced settings?",
        choices=tuple(choices),
        default=at,
        help="All other settings have defaults; you can also change them in the review",
        why=ADVANCED_WHY,
    )
