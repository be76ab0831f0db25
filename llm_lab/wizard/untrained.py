"""The stages that train nothing: Merge LoRA, Evaluate, Export. Their questions, in order."""

from __future__ import annotations

import contextlib
from functools import partial
from importlib.util import find_spec
from typing import Any

from llm_lab.estimate.compatibility import what_loads
from llm_lab.estimate.parameters import read_adapter_json, read_config_json
from llm_lab.recipe.eval import EVAL, TEXT_SCORES
from llm_lab.recipe.export import EXPORT
from llm_lab.recipe.merge import MERGE
from llm_lab.terminal.prompts import Back, Option, choose, type_in

from .actions import Actions
from .asking import Show, Step, ask_key, begin_question, run_steps, skip
from .draft import Draft
from .examples import BUILTIN as PROMPTS
from .examples import ask_score_path
from .reward_terms import ask_rewards
from .sources import BUILTIN, ask_data
from .start_model import ask_policy

ASKED = ("export.to", "export.weights", "export.push", "export.private", "eval.text_scores", "tasks.names", "name")
MEASURED_WHY = (
    "A run of yours kept texts or prompts from training: on those the figures are the run's own. The loss on a text "
    "says how well a model foretells it; bits a byte compare models whose tokenizers differ, nats a token do not. "
    "Prompts are answered twice, greedily and sampled, and scored."
)
MEASURED = {
    "data": "texts, for its loss",
    "score": "prompts, for its answers",
    "tasks": "tasks of lm-evaluation-harness",
}
TAKE_OUT = (Option("change", "change it"), Option("out", "take it out"))
SCORES_WHY = "They compare the greedy answers with the prompts' references, word by word; exact match is stricter."
TASKS_WHY = (
    "Tasks of lm-evaluation-harness, as in arc_easy,hellaswag: the figures that model cards give. They are fetched "
    "from the Hub and can take hours on a CPU; tasks.limit takes a part of each."
)
PUSH_WHY = (
    "The token is taken from the environment (HF_TOKEN) or the login (hf auth login), and never written anywhere. "
    "Nothing but the exported folder is sent."
)


def askers_of(stage: str, actions: Actions, *, show: Show) -> dict[str, Step]:
    """Return the questions that are more than one key, by the group or key they are about."""
    askers: dict[str, Step] = {"model": partial(ask_policy, show=show)}
    if stage == EVAL.name:
        askers["data"] = askers["score"] = askers["tasks"] = partial(ask_measured, actions=actions, show=show)
        askers["score.rewards"] = partial(ask_rewards, actions=actions, show=show, path="score.rewards")
        askers["eval.text_scores"] = partial(ask_text_scores, show=show)
        askers["tasks.names"] = partial(ask_tasks, show=show)
    elif stage == EXPORT.name:
        askers["export.to"] = partial(ask_form, show=show)
        askers["export.push"] = partial(ask_push, show=show)
        askers["export.private"] = partial(_ask_private, show=show)
    return askers


def steps_of(stage: str, askers: dict[str, Step], *, finer: Step, show: Show) -> list[Step]:
    """Return the questions of a stage, in order. finer: asks for what is left."""
    paths = {
        MERGE.name: ("name",),
        EVAL.name: ("data", "name"),
        EXPORT.name: ("export.to", "export.weights", "export.push", "export.private", "name"),
    }[stage]
    steps = [askers["model"], *(askers.get(path) or _asker(path, show) for path in paths)]
    return steps if stage == MERGE.name else [*steps[:-1], finer, steps[-1]]


def _asker(path: str, show: Show) -> Step:
    def ask(draft: Draft) -> Draft:
        return ask_key(draft, path, show=show) if draft.applies(path) else skip(draft)

    return ask


def ask_measured(draft: Draft, actions: Actions, *, show: Show) -> Draft:
    """Ask what it is measured on: what its own run took, or texts, prompts and tasks of the user's. Raises Back."""
    askers: dict[str, Step] = {
        "data": lambda draft: ask_data(draft, actions.describe_data, show=show, measured=True),
        "score": partial(_ask_prompts, actions=actions, show=show),
        "tasks": partial(ask_tasks, show=show),
    }
    at: Any = None
    while True:
        begin_question(draft, "data, score, tasks: what it is measured on", show=show)
        named = {group: _named(draft, group) for group in askers}
        end = "that is all" if any(named.values()) else "what its own run measured itself on"
        options = [Option(None, end)]
        for group, about in MEASURED.items():
            why_not = _why_missing("lm_eval") if group == "tasks" else None
            options.append(Option(group, f"{about}{': ' + named[group] if named[group] else ''}", why_not))
        picked = choose("What is it measured on?", options, default=at, why=MEASURED_WHY)
        if picked is None:
            return draft.with_notice("")
        at = picked
        with contextlib.suppress(Back):
            if named[picked] and choose(f"{named[picked]}?", TAKE_OUT, why=MEASURED_WHY) == "out":
                draft = draft.with_answer(picked, None)
                if picked == "score":
                    draft = draft.with_answer("eval.text_scores", None)
            else:
                fresh = {"data": [{"path": BUILTIN}], "score": {"path": PROMPTS}}
                new = draft if named[picked] or picked == "tasks" else draft.with_answer(picked, fresh[picked])
                draft = askers[picked](new)


def _named(draft: Draft, group: str) -> str:
    """Return what a group of the draft names, in a few words; "" where it is left out."""
    now = draft.raw.get(group) or ()
    if group == "data":
        return ", ".join(source["path"] for source in now)
    return ", ".join(now["names"]) if group == "tasks" and now else now["path"] if now else ""


def _ask_prompts(draft: Draft, actions: Actions, *, show: Show) -> Draft:
    """Ask which prompts it answers, and what the answers are scored by. Raises Back."""
    steps = [partial(ask_score_path, actions=actions, show=show), partial(ask_text_scores, show=show)]
    steps.insert(1, partial(ask_rewards, actions=actions, show=show, path="score.rewards"))
    return run_steps(steps, draft)


def ask_text_scores(draft: Draft, *, show: Show) -> Draft:
    """Ask whether the answers are compared with references, where prompts are answered. Raises Back."""
    begin_question(draft, "eval.text_scores: how near the answers are to the references", show=show)
    ways: dict[tuple[str, ...], str] = {(): "no", **{(name,): f"{name}: {TEXT_SCORES[name]}" for name in TEXT_SCORES}}
    ways[tuple(TEXT_SCORES)] = "both"
    missing = {("bleu",): "sacrebleu", ("rouge",): "rouge_score", tuple(TEXT_SCORES): "sacrebleu"}
    options = [Option(way, text, _why_missing(missing.get(way))) for way, text in ways.items()]
    now = tuple(draft.value("eval.text_scores") or ())
    picked = choose("BLEU or ROUGE of the answers?", options, default=now, why=SCORES_WHY)
    return draft if picked == now else draft.with_answer("eval.text_scores", list(picked) or None)


def _why_missing(package: str | None) -> str | None:
    if package is None or find_spec(package):
        return None
    return "an extra: pip install 'llm-lab[eval]'"


def ask_tasks(draft: Draft, *, show: Show) -> Draft:
    """Ask for tasks of lm-evaluation-harness. Raises Back."""
    begin_question(draft, "tasks: of lm-evaluation-harness", show=show)
    now = ", ".join((draft.raw.get("tasks") or {}).get("names") or ())
    text = type_in("Which tasks (empty: none)?", default=now, why=TASKS_WHY, about="As in arc_easy, hellaswag.")
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        return draft.with_answer("tasks", None) if now else draft.with_notice("")
    return draft.with_answer("tasks", {**(draft.raw.get("tasks") or {}), "names": names})


def ask_form(draft: Draft, *, show: Show) -> Draft:
    """Ask for the form, with what each can hold of the model. Raises Back."""
    begin_question(draft, "export.to: the form, and what it can hold of this model", show=show)
    config = read_config_json(draft.raw["model"]["checkpoint"])
    now = draft.value("export.to")
    if config is None:
        options = [Option(form, form) for form in draft.key("export.to").choices]
    else:
        loads = what_loads(config)
        adapter = "the adapter is merged first; " if read_adapter_json(draft.raw["model"]["checkpoint"]) else ""
        refused = None if loads.gguf else loads.gguf_reason
        options = [
            Option("hf", "hf    a Hugging Face folder", about=f"{adapter}{loads.native_reason}."),
            Option("gguf", "gguf  one file", refused, about=f"{adapter}{loads.gguf_reason}."),
        ]
    why = draft.key("export.to").why or ""
    picked = choose("Which form?", options, default=now, why=why)
    return draft if picked == now and not draft.is_answered("export.to") else draft.with_answer("export.to", picked)


def _ask_private(draft: Draft, *, show: Show) -> Draft:
    return ask_key(draft, "export.private", show=show) if draft.value("export.push") else skip(draft)


def ask_push(draft: Draft, *, show: Show) -> Draft:
    """Ask whether the result is sent to the Hub, and where to. Raises Back."""
    now: Any = draft.value("export.push")
    while True:
        begin_question(draft, "export.push: a repository on the Hub that it is sent to", show=show)
        options = [Option(False, "no, it stays here"), Option(True, "yes, to a repository of mine")]
        if not choose("Send it to the Hub?", options, default=now is not None, why=PUSH_WHY):
            return draft if now is None else draft.with_answer("export.push", None).with_answer("export.private", None)
        with contextlib.suppress(Back):
            return ask_key(draft, "export.push", show=show)
