"""Questions for the stages that do not train: Merge LoRA, Evaluate, Export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

from llm_lab.estimate.adapter_base import read_adapter_json
from llm_lab.estimate.compatibility import what_loads
from llm_lab.estimate.parameters import read_config_json
from llm_lab.recipe.eval import EVAL, TEXT_SCORES
from llm_lab.recipe.export import EXPORT
from llm_lab.runs.card_answers import OF_ALL_MODELS, read_answers
from llm_lab.runs.folder import run_of

from .data_questions import EXAMPLES, TEXTS, ask_data, ask_score_path
from .draft import Ask, Draft
from .key_questions import key_question
from .questions import UNSET, Choice, Flow, KeepCard, Question
from .reward_questions import ask_rewards

DATA_WHY = (
    "A run holds out text or prompts from its training data; measuring on those repeats the run's own evaluation. "
    "The loss on text shows how well the model predicts it; to compare models with different tokenizers, use bits "
    "per byte: their losses per token are not comparable. Each prompt gets two outputs, a greedy and a sampled one, "
    "and both are scored."
)
MEASURED = {
    "data": "the loss on text",
    "score": "outputs for prompts, scored",
    "tasks": "tasks of lm-evaluation-harness",
}
SCORES_WHY = "They compare the greedy outputs with the reference answers, word by word; exact match is stricter."
TASKS_WHY = (
    "Tasks of lm-evaluation-harness, for example arc_easy, hellaswag: the benchmarks of model cards. They are "
    "downloaded from the Hub and can take hours on a CPU; with tasks.limit, only a part of each is used."
)
# {field of the model card: what it is, the question, why}
CARD = {
    "author": (
        "who made the model",
        "Author?",
        "A name, a team, or an account on the Hub. It is saved for all your models.",
    ),
    "license": (
        "what others may do with it",
        "License?",
        "A fine-tuned model must also follow the license of its base. The list has the names that the Hub uses; you "
        "can type any other. The license is saved for all your models.",
    ),
    "intended_use": ("what it is for", "What is it for?", "A sentence, for example: answers questions about our shop."),
    "limitations": ("what it can't do", "What can't it do?", "A sentence, for example: English only, short answers."),
}
AS_TRAINED = "as trained"
USUAL_LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0")
PUSH_WHY = (
    "The token is read from the environment (HF_TOKEN) or the login (hf auth login), and never written anywhere. "
    "Only the exported folder is uploaded."
)


def essentials_of(stage: str, draft: Draft) -> dict[str, tuple[str, ...]]:
    """Return {section: paths} of the settings that are shown at first, after the name and the model."""
    if stage == EVAL.name:
        scored = ("score.rewards", "eval.text_scores") if draft.value("score") else ()
        return {"Measured on": ("data", "score", *scored, "tasks")}
    if stage == EXPORT.name:
        private = ("export.private",) if draft.value("export.push") else ()
        return {"Export": ("export.to", "export.weights", "export.push", *private)}
    return {}


def askers_of(stage: str) -> dict[str, Ask]:
    """Return the flows of groups and keys that take more than one question."""
    if stage != EVAL.name:
        return {}
    rewards: Ask = partial(ask_rewards, path="score.rewards")
    return {group: partial(ask_measured, group=group) for group in MEASURED} | {"score.rewards": rewards}


def questions_of(stage: str) -> dict[str, Callable[[Draft], Question]]:
    """Return the questions that differ from those of their keys."""
    if stage == EVAL.name:
        return {"eval.text_scores": text_scores_question}
    if stage == EXPORT.name:
        return {"export.to": form_question, "export.weights": weights_question, "export.push": push_question}
    return {}


def ask_measured(draft: Draft, group: str) -> Flow[Draft]:
    """Ask what the model is measured on: texts, prompts or tasks. If none: the validation data of its run."""
    named = _named(draft, group)
    change = Choice("change", "Change it"), Choice("remove", "Remove it")
    draft = draft.with_notice("")
    if named and group != "tasks":
        question = draft.ask(f"measured.{group}", f"Change or remove {named}?", choices=change, why=DATA_WHY)
        if (yield question) == "remove":
            draft = draft.with_answer(group, None)
            return draft.with_answer("eval.text_scores", None) if group == "score" else draft
    return (yield from _ask_group(draft, group, fresh=not named))


def _ask_group(draft: Draft, group: str, *, fresh: bool) -> Flow[Draft]:
    if group == "tasks":
        return (yield from ask_tasks(draft))
    if group == "data":
        draft = draft.with_answer("data", [{"path": TEXTS}]) if fresh else draft
        return (yield from ask_data(draft, "text", mixed=False))
    draft = draft.with_answer("score", {"path": EXAMPLES}) if fresh else draft
    draft = yield from ask_score_path(draft)
    return (yield from ask_rewards(draft, "score.rewards"))


def _named(draft: Draft, group: str) -> str:
    """Return what a group of the draft names, in a few words; "" if it is left out."""
    now = draft.raw.get(group) or ()
    if group == "data":
        return ", ".join(source["path"] for source in now)
    return ", ".join(now["names"]) if group == "tasks" and now else now["path"] if now else ""


def text_scores_question(draft: Draft) -> Question:
    """Return the question of whether the outputs are compared with reference answers."""
    packages = {"bleu": "sacrebleu", "rouge": "rouge_score"}
    return draft.ask(
        "eval.text_scores",
        "Also compute BLEU or ROUGE?",
        kind="several",
        choices=tuple(
            Choice(name, f"{name}: {text}", _why_missing(packages.get(name))) for name, text in TEXT_SCORES.items()
        ),
        default=list(draft.value("eval.text_scores") or ()),
        help="eval.text_scores: similarity of the outputs to the reference answers",
        why=SCORES_WHY,
    )


def _why_missing(package: str | None) -> str | None:
    if package is None or find_spec(package):
        return None
    return "not installed: pip install 'llm-lab[eval]'"


def ask_tasks(draft: Draft) -> Flow[Draft]:
    """Ask for tasks of lm-evaluation-harness."""
    now = ", ".join((draft.raw.get("tasks") or {}).get("names") or ())
    text = yield draft.ask(
        "tasks.names",
        "Which tasks (empty: none)?",
        kind="text",
        default=now,
        help="tasks.names: tasks of lm-evaluation-harness",
        why=TASKS_WHY,
        allowed="Separated by commas: arc_easy, hellaswag.",
    )
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        return draft.with_answer("tasks", None) if now else draft.with_notice("")
    return draft.with_answer("tasks", {**(draft.raw.get("tasks") or {}), "names": names})


def form_question(draft: Draft) -> Question:
    """Return the question for the export format, with what each format can keep of the model."""
    key, checkpoint = draft.key("export.to"), draft.raw["model"]["checkpoint"]
    assert key is not None
    config = read_config_json(checkpoint)
    choices = [Choice(form, form) for form in key.choices or {}]
    if config is not None:
        loads = what_loads(config)
        adapter = "the adapter is merged first; " if read_adapter_json(checkpoint) else ""
        choices = [
            Choice("hf", "hf    a Hugging Face folder", effect=f"{adapter}{loads.native_reason}."),
            Choice("gguf", "gguf  one file", None if loads.gguf else loads.gguf_reason,
                   effect=f"{adapter}{loads.gguf_reason}."),
            Choice("space", "space a chat page for a Hugging Face Space",
                   effect=f"{adapter}{loads.native_reason}. Publish it with hf upload."),
        ]  # fmt: skip
    return draft.ask("export.to", "Which format?", choices=tuple(choices), default=draft.value("export.to"),
                     why=key.why or "", help="export.to: the format, and whether it supports this model")  # fmt: skip


def weights_question(draft: Draft) -> Question:
    """Return the question for the dtype of the weights, with the one used if none is chosen."""
    question = key_question(draft, "export.weights")
    if draft.value("export.weights") is not None:
        return question
    choices = (replace(choice, text=AS_TRAINED) if choice.value == UNSET else choice for choice in question.choices)
    return replace(question, choices=tuple(choices))


def push_question(draft: Draft) -> Question:
    """Return the question for the repository on the Hub, which may be left empty."""
    return replace(key_question(draft, "export.push"), why=PUSH_WHY)


def ask_card(draft: Draft, *keys: str) -> Flow[KeepCard]:
    """Ask what only a person knows about a model; returns the effect that stores it. Earlier answers are offered."""
    checkpoint = (draft.raw.get("model") or {}).get("checkpoint") or ""
    known = read_answers(run_of(checkpoint))
    found = {}
    for key in keys:
        about, text, why = CARD[key]
        choices = [Choice("", "leave it empty"), *(Choice(name, name) for name in USUAL_LICENSES)]
        found[key] = yield draft.ask(
            f"card.{key}",
            text,
            kind="text",
            choices=tuple(choices) if key == "license" else (),
            default=known.get(key, ""),
            help=f"model card: {about}",
            why=why,
            allowed="Empty: not stated on the card.",
            can_finish=False,
        )
    return KeepCard({key: text.strip() for key, text in found.items()}, checkpoint)


def is_card_open(draft: Draft) -> bool:
    """Whether the model card of an export has neither an author nor a license."""
    checkpoint = (draft.raw.get("model") or {}).get("checkpoint") or ""
    return draft.raw["stage"] == EXPORT.name and not {*OF_ALL_MODELS} & {*read_answers(run_of(checkpoint))}
