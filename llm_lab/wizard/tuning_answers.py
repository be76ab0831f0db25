"""Questions of the stages after pretraining that are more than one key: an adapter or not, how long, how many rows."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from math import gcd
from typing import Any

from llm_lab.recipe.fields import groups_of, keys_of
from llm_lab.recipe.registry import STAGES
from llm_lab.recipe.stage import StageRecipe
from llm_lab.terminal.prompts import Back, Option, choose

from .asking import OTHER, Show, Step, ask_key, ask_keys, begin_question, run_steps, skip
from .draft import Draft

LORA_WHY = (
    "LoRA trains small matrices beside the frozen ones (Hu et al. 2021): a fraction of the memory, a file of a few "
    "megabytes, and the base stays as it was; Merge makes one model of both. All weights learn more. QLoRA keeps the "
    "frozen ones in 4 bits (Dettmers et al. 2023)."
)
LORA_KEYS = ("lora.preset", "lora.target_modules", "lora.r", "lora.alpha")
LENGTH_WHY = (
    "A pass shows every example once; small sets are often read three times. Steps say the length directly: a step is "
    "one optimizer update."
)
BATCH_WHY = (
    "A row is one answer. All answers to a prompt are compared with each other, so a step holds whole groups of them. "
    "More prompts in a step make it steadier, and slower."
)
GROUPS_OF_ANSWERS = (1, 2, 3, 4, 6, 8, 12, 16)
FIRST_STEPS = 100
GROUP_NAMES = {
    "train": "the run: lengths, batches, evaluation, precision",
    "optimizer": "the optimizer's own",
    "scheduler": "the learning-rate curve",
    "lora": "the adapter's",
    "validation": "what is kept from training",
    "samples": "the samples",
    "score": "the held-out score",
    "tasks": "the tasks' own",
} | {name: f"Advanced {stage.label} settings" for name, stage in STAGES.items()}


def ask_lora(draft: Draft, *, show: Show) -> Draft:
    """Ask whether all weights are trained or an adapter, and which one. Raises Back."""
    now = draft.raw.get("lora")
    kind = "all" if now is None else "qlora" if now.get("load_in_4bit") else "lora"
    with_adapter = draft if now is not None else draft.with_answer("lora", {"preset": "minimal"})
    while True:
        begin_question(draft, "lora: train all weights, or an adapter beside them", show=show)
        options = [
            Option("all", "all weights"),
            Option("lora", "LoRA: an adapter"),
            Option("qlora", "QLoRA: an adapter beside 4 bits", with_adapter.why_not("lora.load_in_4bit", True)),
        ]
        picked = choose("What is trained?", options, default=kind, why=LORA_WHY)
        if picked == "all":
            return draft if now is None else draft.with_answer("lora", None)
        four_bits = True if picked == "qlora" else None
        with contextlib.suppress(Back):
            return ask_keys(with_adapter.with_answer("lora.load_in_4bit", four_bits), LORA_KEYS, show=show)


def ask_length(draft: Draft, *, show: Show) -> Draft:
    """Ask how long the run is: in passes over the examples, or in steps. Raises Back."""
    passes, steps = "train.num_train_epochs", "train.max_steps"
    kind = passes if draft.value(steps) is None else steps
    while True:
        begin_question(draft, "train: how long it goes on", show=show)
        options = [Option(passes, "in passes over the examples"), Option(steps, "in steps")]
        picked = choose("How long?", options, default=kind, why=LENGTH_WHY)
        other = steps if picked == passes else passes
        fresh = draft if draft.raw.get("train", {}).get(other.split(".")[1]) is None else draft.with_answer(other, None)
        if fresh.value(picked) is None:
            fresh = fresh.with_answer(picked, 1.0 if picked == passes else FIRST_STEPS)
        with contextlib.suppress(Back):
            return ask_key(fresh, picked, show=show)


def ask_generations(draft: Draft, *, show: Show) -> Draft:
    """Ask how many answers a prompt gets; rows that no longer hold whole groups are derived again."""
    answered = ask_key(draft, "grpo.num_generations", show=show)
    rows = "train.per_device_train_batch_size"
    if answered.is_answered(rows) and any(problem.key == rows for problem in answered.look()[1]):
        fresh = answered.with_answer(rows, None)
        return fresh.with_notice(f"Rows in a batch are {fresh.value(rows)} now: whole groups of answers.")
    return answered


def ask_batch(draft: Draft, *, show: Show) -> Draft:
    """Ask for the rows of a batch; of GRPO only those that hold whole groups of answers are offered."""
    path = "train.per_device_train_batch_size"
    group = draft.value("grpo.num_generations")
    if not group:
        return ask_key(draft, path, show=show)
    now, times = draft.value(path), draft.value("train.gradient_accumulation_steps") or 1
    least = group // gcd(group, times)
    legal = sorted({least * n for n in GROUPS_OF_ANSWERS} | ({now} if now and now % least == 0 else set()))
    begin_question(draft, f"{path}: {draft.key(path).help}, each one answer", show=show)
    options = [Option(n, f"{n:<6,}{_in_groups(n * times, group)}", draft.why_not(path, n)) for n in legal]
    picked = choose("Rows in a batch?", [*options, Option(OTHER, OTHER)], default=now, why=BATCH_WHY)
    if picked == OTHER:
        return ask_key(draft, path, show=show)
    return draft if picked == now and not draft.is_answered(path) else draft.with_answer(path, picked)


def _in_groups(rows: int, group: int) -> str:
    prompts = rows // group
    return f"{prompts} prompt{'' if prompts == 1 else 's'} a step, {group} answers each"


def own_keys(stage: str) -> list[str]:
    """Return the keys of a stage's own group that are always asked."""
    group = groups_of(STAGES[stage].recipe.model_fields[stage])[0]
    return [key.path for key in keys_of(group, f"{stage}.") if key.question and not key.meta.get("advanced")]


def finer_paths(draft: Draft, asked: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the keys with a question that were not asked, by group; those that do nothing now left out."""
    found: dict[str, list[str]] = {}
    for path in _questions(draft, STAGES[draft.raw["stage"]].recipe):
        if path not in asked and draft.applies(path):
            found.setdefault(path.split(".")[0] if "." in path else "", []).append(path)
    return found


def _questions(draft: Draft, schema: type[StageRecipe]) -> list[str]:
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


def ask_finer(draft: Draft, asked: tuple[str, ...], *, askers: Mapping[str, Step], show: Show) -> Draft:
    """Ask for the finer settings, group by group, until there is nothing more to change. Raises Back.

    askers: the questions of keys that have one of their own.
    """

    def asker(path: str) -> Step:
        def ask(draft: Draft) -> Draft:
            return ask_key(draft, path, show=show) if draft.applies(path) else skip(draft)

        return askers.get(path, ask)

    at: Any = None
    while True:
        begin_question(draft, "Everything else has a sensible value, and stands in the review too", show=show)
        groups = finer_paths(draft, asked)
        options = [Option(None, "no, the usual ones are fine" if at is None else "no, that is all")]
        options += [
            Option(name, f"{GROUP_NAMES.get(name, 'device, seed, template')} ({len(paths)})")
            for name, paths in groups.items()
        ]
        picked = choose("Look at the finer settings too?", options, default=at, why=FINER_WHY)
        if picked is None:
            return draft.with_notice("")
        at = picked
        with contextlib.suppress(Back):
            draft = run_steps(list(map(asker, groups[picked])), draft)


FINER_WHY = "Pick a group to be asked its settings one by one; Escape leads back here. All of them have defaults."
