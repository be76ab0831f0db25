"""Which model a stage after pretraining goes on from: the runs that there are, or one that is named."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from llm_lab.estimate.parameters import read_adapter_json
from llm_lab.recipe.merge import MERGE
from llm_lab.recipe.pretrain import PRETRAIN
from llm_lab.recipe.registry import STAGES, stage_of
from llm_lab.runs.folder import RunFolder, list_runs
from llm_lab.terminal.console import one_line
from llm_lab.terminal.prompts import Back, Option, choose, type_in

from .asking import Show, begin_question
from .draft import Draft
from .sources import why_no_model

ANOTHER = "another"
WHY = (
    "Runs stand newest first. A reward model is none of them: it judges, and does not write. Any other causal language "
    "model will do: a Hugging Face folder, or a name on the Hub such as Qwen/Qwen3-0.6B-Base."
)
ADAPTER_WHY = "A run with LoRA leaves an adapter: small matrices beside a base. Merged, they are one plain model."
REWARD_WHY = "A reward model gives an answer a number. The entry Reward model trains one from preferences."
LONGEST_NAME = 80


def describe_run(run: RunFolder) -> str:
    """Return a run in a line: where, what was done, how it ended, what it reached."""
    facts = run.facts()
    results, stage = facts.get("results", {}), facts.get("stage")
    words = [f"{run.path}:", f"{stage}," if stage and stage != PRETRAIN.name else "", run.status()]
    text = " ".join(word for word in words if word)
    for key, write in (("exact_match", "exact match {:.1%}"), ("eval_loss", "validation loss {:.3f}")):
        if isinstance(results.get(key), int | float):
            return f"{text}, {write.format(results[key])}"
    return text


def stage_runs() -> list[RunFolder]:
    """Return the runs that have weights, newest first; of a pipeline its stages, the last one first."""
    found = []
    for run in list_runs():
        parts = list(reversed(run.stages())) or [run]
        found += [part for part in parts if part.model_path.is_dir() or part.checkpoints()]
    return found


def policies() -> list[RunFolder]:
    """Return the runs whose model writes."""
    return [run for run in stage_runs() if not is_reward_run(run)]


def reward_models() -> list[RunFolder]:
    """Return the runs whose model judges."""
    return [run for run in stage_runs() if is_reward_run(run)]


def is_reward_run(run: RunFolder) -> bool:
    """Return whether a run trained a reward model."""
    stage = stage_of(run.facts())
    return stage is not None and stage.makes == "reward model"


def adapters() -> list[RunFolder]:
    """Return the runs that left a LoRA adapter."""
    return [run for run in stage_runs() if is_adapter(run.path)]


def is_adapter(path: str | Path) -> bool:
    """Tell whether a run or folder holds an adapter instead of a whole model."""
    return read_adapter_json(path) is not None


def ask_policy(draft: Draft, *, show: Show) -> Draft:
    """Ask for the model to go on from (of a merge: the adapter). Raises Back."""
    stage = draft.raw["stage"]
    about = STAGES[stage].recipe.model_fields["model"].description or ""
    now = str((draft.raw.get("model") or {}).get("checkpoint") or "")
    begin_question(draft, f"model.checkpoint: {about.split(': {')[0]}", show=show)
    if stage == MERGE.name:
        path = pick_run("Which adapter?", adapters(), "no run has trained one yet", now, ADAPTER_WHY, _why_no_adapter)
    else:
        path = pick_run("Which model?", policies(), "none yet: Pretrain makes one", now, WHY, why_no_model)
    return with_model(draft.with_notice(""), path)


def pick_run(
    question: str,
    runs: Sequence[RunFolder],
    none: str,
    now: str,
    why: str,
    validate: Callable[[str], str | None],
) -> str:
    """Return the run that was picked, or the folder or name that was typed. Raises Back."""
    names = [str(run.path) for run in runs]
    options = [Option(name, one_line(describe_run(run))) for name, run in zip(names, runs, strict=True)]
    if not options:
        options.append(Option("", "a run of mine", none))
    options.append(Option(ANOTHER, "another folder, or a name on the Hub"))
    default = now if now in names else ANOTHER if now else None
    while True:
        picked = choose(question, options, default=default, why=why)
        if picked != ANOTHER:
            return picked
        with contextlib.suppress(Back):
            return type_in(
                "Where is it?",
                default="" if now in names else now,
                why=why,
                about="A folder or a Hub name: checkpoints/demo, Qwen/Qwen3-0.6B. Tab completes paths.",
                validate=validate,
                paths=True,
            )
        default = ANOTHER


def ask_other_model(draft: Draft, path: str, *, show: Show) -> Draft:
    """Ask for a second model: DPO's reference, PPO's critic; left open, it is the model itself. Raises Back."""
    key, now = draft.key(path), str(draft.value(path) or "")
    found = policies() if path == "dpo.reference" else [*reward_models(), *policies()]
    names = [str(run.path) for run in found]
    begin_question(draft, f"{path}: {key.help}", show=show)
    options = [Option("", f"leave it open: {key.derived}")]
    options += [Option(name, one_line(describe_run(run))) for name, run in zip(names, found, strict=True)]
    options.append(Option(ANOTHER, "another folder, or a name on the Hub"))
    while True:
        default = now if now in ("", *names) else ANOTHER
        picked = choose(key.question.split(" (")[0].rstrip("?") + "?", options, default=default, why=WHY)
        with contextlib.suppress(Back):
            if picked == ANOTHER:
                picked = type_in("Where is it?", default=now, why=WHY, validate=why_no_model, paths=True)
            return draft.with_answer(path, picked or None)


def _why_no_adapter(text: str) -> str | None:
    path = Path(text.strip()).expanduser()
    if not text.strip() or not path.exists():
        return why_no_model(text) or f"There is no {text}."
    return None if is_adapter(path) else f"{text} holds no adapter: there is no adapter_config.json."


def with_model(draft: Draft, path: str) -> Draft:
    """Return the draft with its model answered, and what follows from it: a name, and answers that fit its context."""
    before = (draft.raw.get("model") or {}).get("checkpoint")
    automatic = draft.raw.get("name") in (first_name(draft.raw["stage"], before), None)
    answered = draft.with_answer("model", {"checkpoint": path})
    if automatic:
        answered = answered.with_answer("name", first_name(draft.raw["stage"], path))
    return _fit_answers(answered)


def first_name(stage: str, checkpoint: str | None) -> str:
    """Return the name that a run gets before the user gives one: what it came from, and what is done."""
    ending = "merged" if stage == MERGE.name else stage
    if not checkpoint:
        return f"my-{ending}"
    words = "".join(c if c.isalnum() or c in "._-" else "-" for c in Path(checkpoint).name).strip("-._") or "my"
    return f"{words[:LONGEST_NAME]}-{ending}"


def _fit_answers(draft: Draft) -> Draft:
    """Shorten answers that would leave no room for a prompt: the schema's length is for larger models."""
    resolved, problems = draft.look()
    for stage in STAGES:
        key = f"{stage}.max_completion_length"
        if any(problem.key == key for problem in problems) and not draft.is_answered(key):
            longest = resolved.values["train"]["max_length"] if resolved else 2
            shorter = draft.with_answer(key, max(1, longest // 2))
            return shorter.with_notice(f"Answers of at most {longest // 2} tokens: half of the model's context.")
    return draft
