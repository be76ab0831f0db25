"""Rules across the keys of the stages after pretraining; rules.py tells them with the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llm_lab.errors import Problem, one_of

from .scoring import REWARDS

Values = Mapping[str, Any]
# Which key belongs to which reward function, and whether the function can do without it.
OPTIONS = {"pattern": (("regex", "format"), True), "length": (("length",), True), "ngram": (("repetition",), False)}


def _rewards_are_whole(values: Values) -> Iterator[Problem]:
    terms = [("rewards", values.get("rewards"))]
    if isinstance(values.get("score"), Mapping):
        terms.append(("score.rewards", values["score"].get("rewards")))
    if terms[0][1] is not None and len(terms) > 1 and terms[0][1] == terms[1][1]:
        terms = terms[:1]
    for group, rewards in terms:
        for index, term in enumerate(rewards or ()):
            yield from _one_reward(f"{group}.{index}", term)


def _one_reward(key: str, term: Values) -> Iterator[Problem]:
    ways = [way for way in ("name", "model", "python") if term.get(way) is not None]
    if len(ways) != 1:
        why = "a reward is one of a name, a model and a python function"
        value = ", ".join(ways) if ways else None
        yield Problem(key, f"{why}, and this is {value or 'none'}", allowed=one_of(REWARDS), fix="Give each its line.")
        return
    name = term.get("name")
    for option, (owners, needed) in OPTIONS.items():
        if name in owners and needed and term.get(option) is None:
            yield Problem(f"{key}.{option}", f"the reward {name} needs it")
        elif name not in owners and term.get(option) is not None:
            fix = f"Leave it out; it belongs to {' and '.join(owners)}."
            yield Problem(f"{key}.{option}", f"does nothing with {name or ways[0]}", value=term[option], fix=fix)


def _groups_fill_a_step(values: Values) -> Iterator[Problem]:
    group = (values.get("grpo") or {}).get("num_generations")
    train = values.get("train") or {}
    rows, times = train.get("per_device_train_batch_size"), train.get("gradient_accumulation_steps")
    if group and rows and times and (rows * times) % group:
        legal = [n for n in range(1, 65) if (n * times) % group == 0][:6]
        yield Problem(
            "train.per_device_train_batch_size",
            f"a row is one answer, and the {rows * times} of a step are no whole number of groups of "
            f"grpo.num_generations = {group}",
            value=rows,
            allowed=", ".join(map(str, legal)) + ", ...",
            fix=f"Try {min(legal, key=lambda n: abs(n - rows))}.",
        )


def _answers_fit_the_context(values: Values) -> Iterator[Problem]:
    length = (values.get("train") or {}).get("max_length")
    for group in ("grpo", "ppo"):
        longest = (values.get(group) or {}).get("max_completion_length")
        if longest and length and longest >= length:
            yield Problem(
                f"{group}.max_completion_length",
                f"prompt and answer together have room for train.max_length = {length} tokens",
                value=longest,
                allowed=f"1 to {length - 1}",
                fix=f"Try {max(1, length // 2)}.",
            )


def _custom_layers_are_named(values: Values) -> Iterator[Problem]:
    lora = values.get("lora") or {}
    if lora.get("preset") == "custom" and not lora.get("target_modules"):
        fix = "List them, as in [q_proj, v_proj], or take another preset."
        yield Problem("lora.target_modules", "preset custom needs the names of the layers", fix=fix)


def _four_bits_need_cuda(values: Values) -> Iterator[Problem]:
    if (values.get("lora") or {}).get("load_in_4bit") and values.get("device") == "cpu":
        fix = "Leave it out: on a CPU the base stays whole."
        yield Problem("lora.load_in_4bit", "a base in 4 bits needs a CUDA GPU", value=True, fix=fix)


def _what_compares_has_no_dropout(values: Values) -> Iterator[Problem]:
    dropout, stage = (values.get("lora") or {}).get("dropout"), values.get("stage")
    if dropout and stage in ("dpo", "grpo", "ppo"):
        why = f"{stage} compares probabilities of the same answer, and dropout would make them differ"
        yield Problem("lora.dropout", why, value=dropout, allowed="0", fix="Leave it out.")


def _something_is_scored(values: Values) -> Iterator[Problem]:
    score, stage = values.get("score"), values.get("stage")
    if not isinstance(score, Mapping) or score.get("path"):
        return
    if stage in ("pretrain", "dpo", "eval"):
        why = f"the data of {stage} holds no prompts to score on"
        yield Problem("score.path", why, fix="Name a set of prompts, or leave score out.")
    elif not (values.get("validation") or {}).get("fraction"):
        why = "validation.fraction = 0 keeps no prompts to score on"
        yield Problem("score.path", why, fix="Name a set of prompts, keep a fraction, or set score: null.")


def _length_is_said_once(values: Values) -> Iterator[Problem]:
    train = values.get("train") or {}
    epochs, steps = train.get("num_train_epochs"), train.get("max_steps")
    if epochs is not None and steps is not None:
        why = f"train.max_steps = {steps} already says how long the run is"
        yield Problem("train.num_train_epochs", why, value=epochs, fix="Leave one of the two out.")


def _robust_knows_the_share(values: Values) -> Iterator[Problem]:
    dpo = values.get("dpo") or {}
    if dpo.get("loss_type") == "robust" and not dpo.get("label_smoothing"):
        why = "the robust loss corrects for the share of wrong labels, and it is 0"
        yield Problem("dpo.label_smoothing", why, value=0.0, allowed="above 0, below 0.5", fix="Try 0.1.")


TUNING_RULES: tuple[Callable[[Values], Iterator[Problem]], ...] = (
    _rewards_are_whole,
    _groups_fill_a_step,
    _answers_fit_the_context,
    _custom_layers_are_named,
    _four_bits_need_cuda,
    _what_compares_has_no_dropout,
    _something_is_scored,
    _length_is_said_once,
    _robust_knows_the_share,
)
