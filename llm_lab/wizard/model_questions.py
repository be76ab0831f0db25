"""Questions about models: a preset size, a design, a config, one of the user's runs, or a named checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from llm_lab.errors import similar_path
from llm_lab.estimate.adapter_base import read_adapter_json
from llm_lab.estimate.formatting import age, count
from llm_lab.estimate.machine import Machine
from llm_lab.estimate.model_library import MODELS as LIBRARY_MODELS
from llm_lab.estimate.model_library import find_in_library
from llm_lab.recipe.merge import MERGE
from llm_lab.recipe.registry import STAGES, stage_of
from llm_lab.recipe.resolve import LOCAL_PREFIXES
from llm_lab.recipe.what_fits import METHODS, LibraryEntry, library
from llm_lab.runs.entries import list_sweeps
from llm_lab.runs.folder import ROOT, RunFolder, last_active, list_runs
from llm_lab.runs.housekeeping import short_result

from .draft import Draft, first_name
from .home import MODELS, describe_run, parts_done, stage_or_kind
from .key_questions import ask_key
from .questions import Answer, Choice, Flow, Question, RunSummary
from .walk import remember

ANOTHER = "another"
LIBRARY = "library"
RUN_HEADS = ("run", "stage", "size", "age", "status", "result")
LIBRARY_CHOICE = Choice(LIBRARY, f"a model from the library ({len(LIBRARY_MODELS)}), downloaded from the Hub")
ANOTHER_CHOICE = Choice(ANOTHER, "another folder, a GGUF file, or a name on the Hub")
ANOTHER_ADAPTER = Choice(ANOTHER, "another folder with an adapter")
ANOTHER_REWARD_MODEL = Choice(ANOTHER, "another folder, or a name on the Hub")
NAMED = {  # how another model is asked for: the question, what may be typed, and the help
    ANOTHER_CHOICE: (
        "Folder or name?",
        "A folder, a GGUF file, or a Hub name: Qwen/Qwen3-0.6B.",
        "Choose a folder, or type a path, a GGUF file or a name on the Hub (owner/name).",
    ),
    ANOTHER_ADAPTER: (
        "Which folder?",
        "A folder with adapter_config.json.",
        "Choose a folder, or type its path.",
    ),
    ANOTHER_REWARD_MODEL: (
        "Folder or name?",
        "A folder, or a Hub name.",
        "Choose a folder, or type a path or a name on the Hub (owner/name).",
    ),
}
LIBRARY_WHY = (
    "What fits is estimated for SFT on this machine, with up to 1,024 tokens per sequence: all weights, else a LoRA "
    "adapter, else QLoRA (LoRA on a base in 4 bits). A base model continues text; a chat model already answers. For a "
    "gated model, accept its terms on its page on the Hub, then sign in: hf auth login."
)
PRETRAIN_WHY = (
    "A preset size sets the width and the depth; the parts are RoPE, RMSNorm, grouped-query attention and SwiGLU. "
    "A design is made with 'Design a model'. Continuing from a run or another model keeps its weights and tokenizer."
)
WHY = (
    "Runs are listed newest first, with their results on held-out data. Reward models aren't listed: they can't "
    "generate text. Any other causal language model works too: a Hugging Face folder, or a name on the Hub such as "
    "Qwen/Qwen3-0.6B-Base."
)
ADAPTER_WHY = "A LoRA run saves an adapter: small matrices added to a base model. Merging gives one plain model."
REWARD_WHY = "A reward model scores an output with a number. Train one with the menu entry Reward model."


def runs_with_a_model() -> list[RunFolder]:
    """Return the runs that have weights, newest first."""
    return [run for run in list_runs() if run.saved_models() or run.stages()]


@remember
def _stage_runs() -> list[tuple[RunFolder, bool, str]]:
    """Return (run, whether it trained a reward model, description) of each run with weights, newest first."""
    found = []
    for run in list_runs():
        parts = list(reversed(run.stages())) or [run]
        found += [part for part in parts if part.saved_models()]
    return [(run, trained_reward_model(run), describe_run(run)) for run in found]


def trained_reward_model(run: RunFolder) -> bool:
    """Whether a run trained a reward model, which can't generate text."""
    stage = stage_of(run.facts())
    return stage is not None and stage.makes == "reward model"


def generating_runs() -> list[RunFolder]:
    """Return the runs whose model generates text."""
    return [run for run, is_reward_model, _ in _stage_runs() if not is_reward_model]


def reward_models() -> list[RunFolder]:
    """Return the runs whose model is a reward model."""
    return [run for run, is_reward_model, _ in _stage_runs() if is_reward_model]


def is_adapter(path: str | Path) -> bool:
    """Whether a run or folder holds an adapter instead of a whole model."""
    return read_adapter_json(path) is not None


def run_choices(runs: Sequence[RunFolder]) -> list[Choice]:
    """Return a choice for each run, with the columns RUN_HEADS."""
    described = {run.path: text for run, _, text in _stage_runs()}
    return [
        Choice(str(run.path), described.get(run.path) or describe_run(run), cells=_cells_of(run),
               next_to=RunSummary(str(run.path)))
        for run in runs
    ]  # fmt: skip


def sweep_choices() -> list[tuple[float, Choice]]:
    """Return (when it was last active, a choice) for each sweep and duel, with the columns RUN_HEADS."""
    found = []
    for one in list_sweeps():
        done = parts_done(one)
        parameters = count(one["parameters"]) if one["parameters"] else ""
        cells = (one["name"], one["kind"], parameters, age(time.time() - one["active_at"]), one["status"], done)
        found.append((one["active_at"], Choice(one["path"], f"{one['path']}: {one['kind']}, {done}", cells=cells)))
    return found


def name_in_lists(run: RunFolder) -> str:
    """Return the path of a run, relative to checkpoints/ if it is inside."""
    return run.path.relative_to(ROOT).as_posix() if run.path.is_relative_to(ROOT) else str(run.path)


def _cells_of(run: RunFolder) -> tuple[str, ...]:
    facts = run.facts()
    then, parameters = facts.get("ended_at") or facts.get("created_at"), facts.get("parameters")
    return (
        name_in_lists(run),
        stage_or_kind(facts),
        count(parameters) if isinstance(parameters, int | float) else "",
        age(time.time() - then) if isinstance(then, int | float) else "",
        run.status(),
        short_result(facts.get("results") or {}),
    )


def why_no_model(text: str) -> str | None:
    """Return why a text does not name a model, or None. A name on the Hub can only be checked by downloading it."""
    text = text.strip()
    if not text:
        return "A path or a name is required."
    looks_local = text.startswith(LOCAL_PREFIXES) or text.count("/") > 1 or text.endswith(".json")
    if looks_local and not Path(text).expanduser().exists():
        return " ".join([f"{text} does not exist.", *filter(None, [similar_path(text)])])
    return None


def pick_run(
    question: Question,
    runs: Sequence[RunFolder],
    none: str,
    *,
    check: Callable[[str], str | None] = why_no_model,
    machine: Machine | None = None,
    more: Sequence[tuple[float, Choice]] = (),
    another: Choice = ANOTHER_CHOICE,
) -> Flow[str]:
    """Return the chosen run, or the folder or name that was typed.

    none: why there is no run to choose. check: checks what is typed. machine: also offer the models of the library,
    with what fits on this machine. more: (when it was last active, a choice), sorted among the runs. another: the line
    that leads to a model that is not listed.
    """
    made = [last_active(run.facts()) for run in runs] if more else [0.0] * len(runs)
    listed = sorted([*zip(made, run_choices(runs), strict=True), *more], key=lambda one: -one[0])
    choices = [*question.choices, *(choice for _, choice in listed)]
    if not choices:
        choices.append(Choice("", "one of my runs", none))
    choices += [*([LIBRARY_CHOICE] if machine else []), another]
    now, known = question.default, [choice.value for choice in choices]
    elsewhere = LIBRARY if machine and find_in_library(now or "") else ANOTHER
    picked = yield replace(
        question, choices=tuple(choices), heads=RUN_HEADS,
        default=now if now in known else elsewhere if now else None,
    )  # fmt: skip
    if picked == LIBRARY:
        assert machine is not None
        return (yield _library_question(question, machine))
    if picked != ANOTHER:
        return picked
    text, allowed, why = NAMED[another]
    return (
        yield replace(
            question,
            key=f"{question.key}.path",
            text=text,
            kind="path",
            choices=(),
            default="" if now in known else now or "",
            allowed=allowed,
            why=why,
            check=check,
            look_for="models",
        )
    ).strip()


def _library_question(question: Question, machine: Machine) -> Question:
    return replace(
        question,
        key=f"{question.key}.library",
        text="Which model?",
        choices=tuple(map(_library_choice, library(machine))),
        why=LIBRARY_WHY,
    )


def _library_choice(entry: LibraryEntry) -> Choice:
    """Return a model of the library on one line, with its properties and what it needs below the list."""
    model, best = entry.model, entry.best
    kind = "chat" if model.is_chat else "base"
    line = f"{model.name:<36}{count(model.parameters):>6}  {kind}  {METHODS[best.method] if best else ''}".rstrip()
    gated = {True: "gated", False: "not gated", None: "perhaps gated"}[model.gated]
    facts = f"License {model.license}, {gated}; context {model.context:,} tokens."
    facts += f" {entry.reason[0].upper()}{entry.reason[1:]}."
    return Choice(model.name, line, None if best else "does not fit", f"{facts} {model.note}".strip())


def model_answers(key: str, path: str) -> tuple[Answer, ...]:
    """Return the answers that pick_run would receive for a model that is already known."""
    if path in [str(run.path) for run in generating_runs()]:
        return (Answer(key, path),)
    return (Answer(key, ANOTHER), Answer(f"{key}.path", path))


def ask_model_to_pretrain(draft: Draft) -> Flow[Draft]:
    """Ask what to pretrain: a preset size, a design, a checkpoint, or a config."""
    designs = sorted(file.parent.name for file in MODELS.glob("*/config.json"))
    runs = [str(run.path) for run in runs_with_a_model()]
    source = _source_of(draft, runs)
    choices = (
        Choice("parts", "a preset size, trained from scratch"),
        Choice(
            "design",
            f"one of my designs ({len(designs)})",
            None if designs else "none yet; create one with Design a model",
        ),
        Choice("run", f"continue from one of my runs ({len(runs)})", None if runs else "none yet"),
        Choice("config", "another config.json, trained from scratch"),
        Choice("checkpoint", "continue from another model (a folder or the Hub)"),
    )
    picked = yield draft.ask(
        "model", "Which model?", choices=choices, default=source, help="model: what is trained", why=PRETRAIN_WHY
    )
    if picked == "parts":
        fresh = draft.with_notice("") if source == "parts" else draft.with_answer("model", {})
        sized = yield from ask_key(fresh, "model.size")
        return sized if sized.raw.get("model") else sized.with_answer("model.size", sized.value("model.size"))
    now = draft.raw.get("model") or {}
    key = "model.config" if picked in ("design", "config") else "model.checkpoint"
    if picked == "design":
        named = tuple(Choice(str(MODELS / name), name) for name in designs)
        path = yield draft.ask(key, "Which design?", choices=named, default=now.get("config"), why=PRETRAIN_WHY)
    elif picked == "run":
        named = tuple(run_choices(runs_with_a_model()))
        path = yield draft.ask(key, "Which run?", choices=named, heads=RUN_HEADS, default=now.get("checkpoint"),
                               why=PRETRAIN_WHY)  # fmt: skip
    else:
        path = yield draft.ask(
            key,
            "Folder or name?",
            kind="path",
            default=str(now.get(picked, "")),
            why=PRETRAIN_WHY,
            allowed="A folder, a file or a Hub name: Qwen/Qwen3-0.6B-Base.",
            check=why_no_model,
            look_for="configs" if picked == "config" else "models",
        )
    if key == "model.config":
        return draft.with_answer("model", {"config": path})
    draft = draft.with_answer("tokenizer", None).with_answer("model", {"checkpoint": path})
    return draft.with_notice("The tokenizer is the model's own.")


def _source_of(draft: Draft, runs: list[str]) -> str:
    now = draft.raw.get("model") or {}
    if "config" in now:
        return "design" if str(now["config"]).startswith(f"{MODELS}/") else "config"
    if "checkpoint" in now:
        return "run" if now["checkpoint"] in runs else "checkpoint"
    return "parts"


def ask_model(draft: Draft) -> Flow[Draft]:
    """Ask for the model that a stage after pretraining continues from; for a merge, ask for the adapter."""
    stage, key = draft.raw["stage"], "model.checkpoint"
    now = str((draft.raw.get("model") or {}).get("checkpoint") or "")
    about = STAGES[stage].recipe.model_fields["model"].description or ""
    help_line = f"{key}: {about.split(': {')[0]}"
    if stage == MERGE.name:
        question = draft.ask(key, "Which adapter?", default=now, help=help_line, why=ADAPTER_WHY)
        adapters = [run for run, _, _ in _stage_runs() if is_adapter(run.path)]
        none = "none yet; train one with LoRA"
        path = yield from pick_run(question, adapters, none, check=_why_no_adapter, another=ANOTHER_ADAPTER)
    else:
        question = draft.ask(key, "Which model?", default=now, help=help_line, why=WHY)
        machine = draft.machine if STAGES[stage].trains else None
        path = yield from pick_run(question, generating_runs(), "none yet; train one with Pretrain", machine=machine)
    return with_model(draft.with_notice(""), path)


def ask_other_model(draft: Draft, path: str) -> Flow[Draft]:
    """Ask for a second model: DPO's reference, PPO's critic; by default, it is the model itself."""
    key = draft.key(path)
    assert key is not None, path
    runs = generating_runs() if path == "dpo.reference" else [*reward_models(), *generating_runs()]
    question = draft.ask(
        path,
        (key.question or path).split(" (")[0].rstrip("?") + "?",
        choices=(Choice("", f"leave unset: {key.derived}"),),
        default=str(draft.value(path) or ""),
        help=draft.help(path),
        why=WHY,
    )
    picked = yield from pick_run(question, runs, "")
    return draft.with_answer(path, picked or None)


def _why_no_adapter(text: str) -> str | None:
    path = Path(text.strip()).expanduser()
    if not text.strip() or not path.exists():
        return why_no_model(text) or f"{text} does not exist."
    return None if is_adapter(path) else f"{text} has no adapter: adapter_config.json is missing."


def with_model(draft: Draft, path: str) -> Draft:
    """Return the draft with its model answered, and with the name that follows from it."""
    before = (draft.raw.get("model") or {}).get("checkpoint")
    is_automatic = draft.raw.get("name") in (first_name(draft.raw["stage"], before), None)
    answered, name = draft.with_answer("model", {"checkpoint": path}), first_name(draft.raw["stage"], path)
    return answered.with_answer("name", name) if is_automatic else answered
