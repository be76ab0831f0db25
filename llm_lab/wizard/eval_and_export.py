"""Questions of the stages that train nothing: Merge LoRA, Evaluate, Export."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

from llm_lab.estimate.adapter_base import read_adapter_json
from llm_lab.estimate.compatibility import what_loads
from llm_lab.estimate.parameters import read_config_json
from llm_lab.recipe.eval import EVAL, TEXT_SCORES
from llm_lab.recipe.export import EXPORT
from llm_lab.recipe.merge import MERGE

from .data_questions import EXAMPLES, TEXTS, ask_data, ask_score_path
from .draft import Ask, Draft
from .key_questions import ask_key
from .questions import Choice, Flow, Question, yes_no
from .reward_questions import ask_rewards

PATHS = {
    MERGE.name: ["model", "name"],
    EVAL.name: ["model", "data", "advanced", "name"],
    EXPORT.name: ["model", "export.to", "export.weights", "export.push", "export.private", "advanced", "name"],
}
ASKED = ("export.to", "export.weights", "export.push", "export.private", "eval.text_scores", "tasks.names", "name")
DONE = "done"
DATA_WHY = (
    "A run holds out texts or prompts from its training data; measuring on those repeats the run's own evaluation. The "
    "loss on a text shows how well the model predicts it; bits per byte compare models with different tokenizers, the "
    "loss per token does not. Each prompt gets two outputs, a greedy and a sampled one, and both are scored."
)
MEASURED = {
    "data": "the loss on texts",
    "score": "outputs for prompts, scored",
    "tasks": "tasks of lm-evaluation-harness",
}
SCORES_WHY = "They compare the greedy outputs with the reference answers, word by word; exact match is stricter."
TASKS_WHY = (
    "Tasks of lm-evaluation-harness, for example arc_easy, hellaswag: the benchmarks of model cards. They are "
    "downloaded from the Hub and can take hours on a CPU; tasks.limit takes a part of each."
)
PUSH_WHY = (
    "The token is read from the environment (HF_TOKEN) or the login (hf auth login), and never written anywhere. "
    "Only the exported folder is uploaded."
)


def askers_of(stage: str) -> dict[str, Ask]:
    """Return the questions that are more than one key, by the group or key they are about."""
    if stage == EVAL.name:
        rewards: Ask = partial(ask_rewards, path="score.rewards")
        askers: dict[str, Ask] = dict.fromkeys(("data", "score", "tasks"), ask_measured)
        return askers | {"score.rewards": rewards, "eval.text_scores": ask_text_scores, "tasks.names": ask_tasks}
    if stage == EXPORT.name:
        return {"export.to": ask_form, "export.push": ask_push, "export.private": _ask_private}
    return {}


def ask_measured(draft: Draft) -> Flow[Draft]:
    """Ask what the model is measured on: the validation data of its own run, or texts, prompts and tasks."""
    while (group := (yield _measured_question(draft))) != DONE:
        named = _named(draft, group)
        change = Choice("change", "change it"), Choice("remove", "remove it")
        draft = draft.with_notice("")
        if (
            named
            and (yield draft.ask(f"measured.{group}", f"Change or remove {named}?", choices=change, why=DATA_WHY))
            == "remove"
        ):
            draft = draft.with_answer(group, None)
            draft = draft.with_answer("eval.text_scores", None) if group == "score" else draft
        else:
            draft = yield from _ask_group(draft, group, fresh=not named)
    return draft.with_notice("")


def _measured_question(draft: Draft) -> Question:
    named = {group: _named(draft, group) for group in MEASURED}
    choices = [
        Choice(DONE, "Done, use these" if any(named.values()) else "the validation data of the run that trained it")
    ]
    for group, about in MEASURED.items():
        why_not = _why_missing("lm_eval") if group == "tasks" else None
        choices.append(Choice(group, f"{about}{': ' + named[group] if named[group] else ''}", why_not))
    return draft.ask("measured", "What should it be measured on?", choices=tuple(choices), default=DONE,
                     help="data, score, tasks: what the model is measured on", why=DATA_WHY)  # fmt: skip


def _ask_group(draft: Draft, group: str, *, fresh: bool) -> Flow[Draft]:
    if group == "tasks":
        return (yield from ask_tasks(draft))
    if group == "data":
        draft = draft.with_answer("data", [{"path": TEXTS}]) if fresh else draft
        return (yield from ask_data(draft, "text", mixed=False))
    draft = draft.with_answer("score", {"path": EXAMPLES}) if fresh else draft
    draft = yield from ask_score_path(draft)
    draft = yield from ask_rewards(draft, "score.rewards")
    return (yield from ask_text_scores(draft))


def _named(draft: Draft, group: str) -> str:
    """Return what a group of the draft names, in a few words; "" where it is left out."""
    now = draft.raw.get(group) or ()
    if group == "data":
        return ", ".join(source["path"] for source in now)
    return ", ".join(now["names"]) if group == "tasks" and now else now["path"] if now else ""


def ask_text_scores(draft: Draft) -> Flow[Draft]:
    """Ask whether the answers are compared with reference answers, where prompts are answered."""
    packages = {"bleu": "sacrebleu", "rouge": "rouge_score"}
    choices = tuple(
        Choice(name, f"{name}: {text}", _why_missing(packages.get(name))) for name, text in TEXT_SCORES.items()
    )
    if all(choice.why_not for choice in choices):
        return draft.with_notice(f"BLEU and ROUGE are not available: {choices[0].why_not}.")
    picked = yield draft.ask(
        "eval.text_scores",
        "Also compute BLEU or ROUGE?",
        kind="several",
        choices=choices,
        default=list(draft.value("eval.text_scores") or ()),
        help="eval.text_scores: similarity of the outputs to the reference answers",
        why=SCORES_WHY,
    )
    same = picked == list(draft.value("eval.text_scores") or ())
    return draft.with_notice("") if same else draft.with_answer("eval.text_scores", picked or None)


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


def ask_form(draft: Draft) -> Flow[Draft]:
    """Ask for the export format, with what each can hold of the model."""
    now, key, checkpoint = draft.value("export.to"), draft.key("export.to"), draft.raw["model"]["checkpoint"]
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
    picked = yield draft.ask("export.to", "Which format?", choices=tuple(choices), default=now, why=key.why or "",
                             help="export.to: the format, and whether it supports this model")  # fmt: skip
    draft = draft.with_notice("")
    return draft if picked == now and not draft.is_answered("export.to") else draft.with_answer("export.to", picked)


def _ask_private(draft: Draft) -> Flow[Draft]:
    return (yield from ask_key(draft, "export.private")) if draft.value("export.push") else draft


def ask_push(draft: Draft) -> Flow[Draft]:
    """Ask whether the result is pushed to the Hub, and where."""
    now = draft.value("export.push")
    push = yield yes_no(
        "push",
        "Push it to the Hub?",
        default=now is not None,
        yes="yes, to my repository",
        no="no, only on this machine",
        help="export.push: a repository on the Hub that it is pushed to",
        why=PUSH_WHY,
        screen=draft.screen,
        notice=draft.notice,
    )
    draft = draft.with_notice("")
    if push:
        return (yield from ask_key(draft, "export.push"))
    return draft if now is None else draft.with_answer("export.push", None).with_answer("export.private", None)
