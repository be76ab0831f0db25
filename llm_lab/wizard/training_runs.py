"""Pretraining and the stages after it: the model, the data, and the page of settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from math import gcd
from typing import Any

from llm_lab.estimate.machine import find_machine
from llm_lab.recipe.fields import Key, groups_of, keys_of
from llm_lab.recipe.registry import STAGES
from llm_lab.recipe.what_fits import FULL, LORA, QLORA

from . import eval_and_export
from .data_questions import EXAMPLES, TEXTS, ask_data, ask_forgetting, ask_score, is_score_source
from .draft import Ask, Draft, first_name
from .draft_page import Page
from .key_questions import answer_key, key_question
from .model_design import ask_tokenizer
from .model_questions import ask_model, ask_model_to_pretrain, ask_other_model, with_model
from .questions import UNSET, Choice, Flow, Next, Question
from .review import draft_recipe, run_actions, settings_and_start
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
LORA_WHY = (
    "LoRA trains small matrices added to the frozen weights (Hu et al. 2021): a fraction of the memory, a file of "
    "a few megabytes, and the base model stays unchanged; Merge combines both into one model. Training all weights "
    "learns more. QLoRA keeps the frozen weights in 4 bits (Dettmers et al. 2023)."
)
EPOCHS, STEPS, ROWS = "train.num_train_epochs", "train.max_steps", "train.per_device_train_batch_size"
LENGTHS = {EPOCHS: STEPS, STEPS: EPOCHS}  # only one of them is set
BATCH_WHY = (
    "The outputs for a prompt are compared with each other, so a step contains all outputs of each prompt. More "
    "prompts in a step make training steadier and slower."
)
GROUPS_OF_ANSWERS = (1, 2, 3, 4, 6, 8, 12, 16)


def new_draft(
    stage: str,
    *,
    model: str | None = None,
    reward: str | None = None,
    values: Mapping[str, Any] | None = None,
    **answers: Any,
) -> Draft:
    """Return the draft that a stage begins with.

    model: the one that it continues from. reward: a reward model to score with. values: those of a recipe, by top-level
    key, in the form of answers.
    """
    answers |= values or {}
    machine, facts = find_machine(), STAGES[stage]
    known = answers.get("model")
    name = first_name(stage, known.get("checkpoint") if isinstance(known, Mapping) else known)
    raw: dict[str, Any] = {"stage": stage, "name": name, "device": machine.best_device}
    if facts.trains:
        raw["data"] = [{"path": TEXTS if facts.examples == "text" else EXAMPLES}]
    if facts.has("rewards"):
        raw["rewards"] = [{"model": reward} if reward else {"name": FIRST_REWARD}]
    automatic = {"device": (machine.best_device, "the best device here"), "rewards": (raw.get("rewards"), "")}
    draft = Draft(raw | answers, machine, facts.title, automatic=automatic)
    return draft if model is None else with_model(draft, model)


def run_of_stage(stage: str, **known: Any) -> Flow[Next]:
    """Ask for the model and the data of a run, then for its settings on one page, and start it.

    known: as new_draft takes it; a model or data among its values are not asked for.
    """
    draft, askers = new_draft(stage, **known), askers_of(stage)
    for group in ("model", "data") if STAGES[stage].trains else ("model",):
        if group not in (known.get("values") or {}):
            draft = yield from askers[group](draft)
    return (yield from settings_and_start(draft, run_page(stage)))


def run_page(stage: str) -> Page:
    """Return the page of a stage's run."""
    askers = askers_of(stage)
    return Page(
        "settings",
        partial(essentials_of, stage),
        run_actions,
        asker_of=partial(asker_of, stage, askers),
        questions=questions_of(stage),
        change=change,
        recipe=draft_recipe,
    )


def essentials_of(stage: str, draft: Draft) -> dict[str, tuple[str, ...]]:
    """Return {section: paths} of the settings that are shown at first: keys, and groups with a flow of their own."""
    facts = STAGES[stage]
    if not facts.trains:
        return {"Run": ("name", "model"), **eval_and_export.essentials_of(stage, draft)}
    if facts.from_scratch:
        return {"Run": ("name", "model", "tokenizer", "data"), "Training": PRETRAIN_KEYS}
    groups = tuple(group for group in ("rewards", "score", "forgetting") if facts.has(group))
    training = ("optimizer.name", "optimizer.learning_rate", EPOCHS, STEPS, ROWS)
    return {
        "Run": ("name", "model", "data", *groups),
        facts.label: ("lora", *LORA_KEYS, *own_keys(stage)),
        "Training": training,
    }


def askers_of(stage: str) -> dict[str, Ask]:
    """Return the flows of groups and keys that take more than one question."""
    facts = STAGES[stage]
    askers: dict[str, Ask] = {"model": ask_model_to_pretrain if facts.from_scratch else ask_model}
    if not facts.trains:
        return askers | eval_and_export.askers_of(stage)
    askers["data"] = partial(ask_data, kind=facts.examples or "text")
    if facts.has("forgetting"):
        askers["forgetting"] = ask_forgetting
    if facts.has("score"):
        askers |= {"score": ask_score, "score.rewards": partial(ask_rewards, path="score.rewards")}
    if facts.from_scratch:
        return askers | {"tokenizer": ask_tokenizer}
    if facts.has("rewards"):
        askers["rewards"] = ask_rewards
    others = [key.path for key in _keys_of_group(stage) if key.names == "model"]
    return askers | {path: partial(ask_other_model, path=path) for path in others}


def asker_of(stage: str, askers: Mapping[str, Ask], path: str) -> Ask | None:
    """Return the flow of a row, or None if it is changed in place."""
    if path in askers:
        return askers[path]
    group = path.split(".")[0]
    if path.startswith("score.rewards"):
        return askers.get("score.rewards")
    if is_score_source(path):
        return askers.get("score")
    if path == "forgetting.path":
        return askers.get("forgetting")
    if STAGES[stage].from_scratch:  # a part of the model, or the weight of a text, is a key like others
        whole = path in ("model.config", "model.checkpoint") or path.endswith(".path") or group == "tokenizer"
        return askers.get(group) if whole else None
    return askers.get(group) if group in ("model", "data", "rewards", "tasks") else None


def questions_of(stage: str) -> dict[str, Callable[[Draft], Question]]:
    """Return the questions that differ from those of their keys."""
    facts = STAGES[stage]
    if not facts.trains:
        return eval_and_export.questions_of(stage)
    questions: dict[str, Callable[[Draft], Question]] = {"lora": lora_question} if facts.has("lora") else {}
    if not facts.from_scratch:
        questions |= {path: partial(length_question, path=path, other=other) for path, other in LENGTHS.items()}
    return questions | ({ROWS: batch_question} if facts.rows_per_example else {})


def change(draft: Draft, path: str, answer: Any) -> Draft:
    """Return the draft with the answer to a row's question, and with what follows from it."""
    if path == "lora":
        return _with_lora(draft, answer)
    changed = answer_key(draft, path, answer)
    other = LENGTHS.get(path, "")
    if other and changed.is_answered(path) and changed.is_answered(other):
        return changed.with_answer(other, None)
    if path == "optimizer.name" and changed.value(path) != draft.value(path):
        return _with_its_rate(draft, changed)
    if path == _group_key(draft):
        return _with_whole_groups(changed)
    if path == "export.push" and not changed.is_answered(path):
        return changed.with_answer("export.private", None)
    return changed


def _with_its_rate(before: Draft, draft: Draft) -> Draft:
    """Return the draft with a notice that another optimizer has its own scale of learning rates."""
    rate, old = draft.value("optimizer.learning_rate"), before.value("optimizer.learning_rate")
    name, old_name = draft.value("optimizer.name"), before.value("optimizer.name")
    return draft.with_notice(
        f"{name} has its own scale: its learning rate is now {rate:g}; for {old_name} it was {old:g}."
    )


def length_question(draft: Draft, path: str, other: str) -> Question:
    """Return the question for the length of a run in epochs, or in steps: one replaces the other."""
    question = key_question(draft.with_answer(other, None) if draft.is_answered(other) else draft, path)
    return question if draft.value(path) is not None else replace(question, default="")


def lora_question(draft: Draft) -> Question:
    """Return the question of what is trained: all weights, or an adapter."""
    now = draft.raw.get("lora")
    with_adapter = draft if now is not None else draft.with_answer("lora", {})
    fits = draft.fits()
    effects = {method: f"{fit.reason[0].upper()}{fit.reason[1:]}." for method, fit in fits.items() if fit.memory_bytes}
    choices = (
        Choice("all", "all weights", effect=effects.get(FULL, "")),
        Choice("lora", "LoRA: an adapter", effect=effects.get(LORA, "")),
        Choice("qlora", "QLoRA: an adapter on a 4-bit base", with_adapter.why_not("lora.load_in_4bit", True),
               effects.get(QLORA, "")),
    )  # fmt: skip
    # If it is left out, the run chooses what fits.
    best = "all" if "lora" in draft.raw else next((way for way, fit in fits.items() if fit.fits), FULL)
    picked = {FULL: "all", LORA: "lora", QLORA: "qlora"}.get(best, "all")
    return draft.ask(
        "lora",
        "What is trained?",
        choices=choices,
        default=picked if now is None else "qlora" if now.get("load_in_4bit") else "lora",
        help="lora: train all weights, or a LoRA adapter only",
        why=LORA_WHY,
    )


def _with_lora(draft: Draft, picked: str) -> Draft:
    if picked == UNSET:
        return draft.with_answer("lora", None)
    if picked == "all":
        return draft.with_none("lora")  # if left out, it could become an adapter to save memory
    adapter = draft if draft.raw.get("lora") is not None else draft.with_answer("lora", {})
    return adapter.with_answer("lora.load_in_4bit", True if picked == "qlora" else None)


def _with_whole_groups(draft: Draft) -> Draft:
    """Derive the batch size again if it no longer holds whole groups of outputs."""
    wrong = [getattr(problem, "key", "") for problem in draft.look()[1]]
    if not draft.is_answered(ROWS) or ROWS not in wrong:
        return draft
    fresh = draft.with_answer(ROWS, None)
    return fresh.with_notice(f"The batch size is now {fresh.value(ROWS)}: a multiple of the outputs per prompt.")


def batch_question(draft: Draft) -> Question:
    """Return the question for the rows of a batch; for GRPO, with choices that hold whole groups of outputs."""
    question, group = key_question(draft, ROWS), draft.value(_group_key(draft))
    if not group:
        return question
    now, times = draft.value(ROWS), draft.value("train.gradient_accumulation_steps") or 1
    least = group // gcd(group, times)
    valid = sorted({least * n for n in GROUPS_OF_ANSWERS} | ({now} if now and now % least == 0 else set()))
    choices = [Choice(str(n), f"{n:<6,}{_in_groups(n * times, group)}", draft.why_not(ROWS, n)) for n in valid]
    return replace(
        question, choices=tuple(choices), help=f"{question.help}; here, each sequence is one output", why=BATCH_WHY
    )


def _group_key(draft: Draft) -> str:
    """Return the key for the number of rows that an example takes in a batch, or ""."""
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
