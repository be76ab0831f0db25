"""The home screen: the most common tasks, the rest in groups, and the runs. It is shown first, so it imports little."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from llm_lab.estimate.formatting import age, count, size
from llm_lab.estimate.machine import find_machine
from llm_lab.runs.disk import bytes_under
from llm_lab.runs.entries import describe_count, kind_of_run, list_sweeps
from llm_lab.runs.folder import ROOT, RunFolder, is_reward_model, last_active, list_runs
from llm_lab.studies import DUEL_ABOUT, STUDY_ABOUT, SWEEP_ABOUT

from .questions import Choice, Line, Next, Question, Screen

MODELS = Path("configs/models")
LEAVE, DRAFT = "Quit", "draft"
QUICK, EVALUATE, LOOK, STUDY = "Train on my text", "Evaluate", "Look inside", "Study"
RUNS, REPLAY = "Runs", "Run a recipe"
OFFERED = 2  # runs to resume, and models to chat with
RECENT_RUNS, RUNNING_SHOWN = 12, 2
LONGEST_NAME, SIDE_NAME = 24, 13
UNFINISHED = ("stopped", "interrupted", "failed", "broken")
NO_TEXT = ("reward", "eval", "export")  # stages that do not leave a model of their own that generates text
MENU_WHY = (
    "The usual order is: pretrain a model on text, fine-tune it on conversations (SFT), improve its replies (DPO, "
    "GRPO, PPO), chat with it, evaluate it, export it. Every run has a recipe file, which also runs without this "
    "wizard: llm-lab run RECIPE. Ctrl-C returns to this menu; what you set up for a run, a design, a sweep or a duel "
    "is kept as a draft."
)
RESUME_WHY = (
    "The run continues from its last checkpoint, with the same recipe and data: the result is the same as without "
    "the interruption. To change a setting, start a new run from its recipe: Experiments, Run a recipe."
)
START_OVER_WHY = (
    "It ended before its first checkpoint, so it starts from its first step, with the same recipe and data."
)
AFTER = "after a run"  # the flow that offers what to do next
DRAFT_WHY = "Your answers and settings were kept when you left. You can go back through the answers."
RESUME_SWEEP_WHY = (
    "Runs that are done are not repeated. Stopped runs continue from their last checkpoint, failed runs start over, "
    "and the table is made again at the end."
)
CHAT_WHY = (
    "This menu offers the newest runs. Chat, under Use a model, lists every run whose model generates text, and takes "
    "any other model."
)


class Entry(NamedTuple):
    """A line of the home screen or of a group. flow: its name in FLOWS; why: an explanation of a few sentences."""

    flow: str
    title: str
    about: str
    why: str = ""


class Group(NamedTuple):
    """A line of the home screen that leads to a list of flows: menu.entries_of(name)."""

    name: str
    title: str
    about: str
    why: str


QUICK_START = Entry(
    "quick",
    QUICK,
    "your own model, in minutes",
    "Choose text files and a size; everything else has sensible values. The new model writes in the style of the "
    "text. It learns to continue text, not to answer questions: for that, fine-tune it afterwards (SFT).",
)
GROUPS = (
    Group(
        "train",
        "Design and train",
        "pretrain, SFT, DPO, GRPO, PPO",
        "Every setting of every training stage: pretraining on text, supervised fine-tuning (SFT), reward models, "
        "preferences (DPO), reinforcement learning (GRPO, PPO), merging LoRA adapters; and models from parts (Design a "
        "model).",
    ),
    Group(
        "use",
        "Use a model",
        "chat, evaluate, look, export",
        "Any run, a Hugging Face folder, a GGUF file, or a name on the Hub: talk to it, compare it, look at "
        "its attention, convert it for other tools.",
    ),
    Group(
        "try",
        "Experiments",
        "sweep, duel, study, recipe",
        f"Sweep: {SWEEP_ABOUT}. Duel: {DUEL_ABOUT}. Study: {STUDY_ABOUT}. Recipe: run a recipe file.",
    ),
)
ALONE = (
    Entry(
        "checkpoints",
        RUNS,
        "results, lineage, resume",
        "Every run is a folder in checkpoints/. Choose one to see its results and where it came from, to resume it, or "
        "to continue with its model.",
    ),
    Entry(
        "doctor",
        "Doctor",
        "what this machine can do",
        "Device, memory, compiler, attention kernels, disk, Hub, versions; each with a fix where something is wrong.",
    ),
)


def menu_question(last: Any = None, drafts: Mapping[str, str] | None = None) -> Question:
    """Return the home screen. last: the previous answer. drafts: {flow: its title} of those left, the latest last.

    One draft is offered here; every draft is also offered when its flow begins.
    """
    runs, sweeps = list_runs(), list_sweeps()
    offered = list(_offered(runs, sweeps))
    kept = [([DRAFT, flow], "Continue your draft", title) for flow, title in [*(drafts or {}).items()][-1:]]
    width = max(len(line[1]) for line in (*GROUPS, *ALONE, QUICK_START, *offered, *kept)) + 2
    choices = [line_of(value, title, about, width, DRAFT_WHY) for value, title, about in kept]
    choices += [line_of(QUICK_START.flow, QUICK_START.title, QUICK_START.about, width, QUICK_START.why)]
    choices += [line_of(value, title, about, width, why) for value, title, about, why in offered]
    choices += [line_of(["group", name], title, about, width, why) for name, title, about, why in GROUPS]
    choices += [line_of(entry.flow, entry.title, entry.about, width, entry.why) for entry in ALONE]
    return Question(
        "menu",
        "What would you like to do?",
        choices=(*choices, Choice(LEAVE, LEAVE)),
        default=last,
        why=MENU_WHY,
        screen=Screen(
            "build and train language models", lines=tuple(_status(runs, sweeps)), side=tuple(_recent(runs, sweeps))
        ),
    )


def line_of(value: Any, title: str, about: str, width: int, why: str) -> Choice:
    """Return a choice with its description in a second column."""
    return Choice(value, f"{title:<{width}}{about}", why=why)


def _offered(
    runs: Sequence[RunFolder], sweeps: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[list[str], str, str, str]]:
    """Yield ([flow, path], title, about, why) of what can be resumed and of models to chat with, newest first."""
    for run in islice(filter(_can_continue, runs), OFFERED):
        share = progress_of(run)
        about = " · ".join(
            [*([] if share is None else [f"{100 * share:.0f} %"]), f"{run.status()} {when_last_active(run)}"]
        )
        name = short_name(run.path.name)
        title, why = (f"Start {name} again", START_OVER_WHY) if run.starts_over() else (f"Resume {name}", RESUME_WHY)
        yield ["resume", str(run.path)], title, about, why
    for one in islice((one for one in sweeps if can_resume_sweep(one)), OFFERED):
        about = f"{one['kind']}, {parts_done(one)}"
        yield ["resume sweep", one["path"]], f"Resume {short_name(one['name'])}", about, RESUME_SWEEP_WHY
    for run in islice((run for run in runs if run.status() == "done" and _writes_text(run)), OFFERED):
        yield (
            ["talk", str(run.path)],
            f"Chat with {short_name(run.path.name)}",
            f"{stage_or_kind(run.facts())}, {when_last_active(run)}",
            CHAT_WHY,
        )


def _can_continue(run: RunFolder) -> bool:
    return can_resume(run) and run.status() != "broken" and run.has_progress()


def can_resume_sweep(sweep: Mapping[str, Any]) -> bool:
    """Whether a sweep or a duel has runs left and no command is working on them. sweep: as list_sweeps describes it."""
    return sweep["status"] not in ("done", "running")


def parts_done(sweep: Mapping[str, Any]) -> str:
    """Return how many runs of a sweep or a duel are done."""
    return f"{sweep['parts_done']} of {sweep['parts_planned']} runs done"


def can_resume(run: RunFolder) -> bool:
    """Whether a run ended before its last step, and its recipe is still there to resume it."""
    return run.recipe_path.exists() and not run.facts().get("study") and run.status() in UNFINISHED


def progress_of(run: RunFolder) -> float | None:
    """Return how far a run got, from 0 to 1; None if unknown."""
    facts = run.facts()
    steps = facts.get("max_steps")  # the steps derived from the data; otherwise the recipe has them
    if not steps and run.recipe_path.exists():
        found = re.search(r"(?m)^  max_steps: (\d+)", run.recipe_path.read_text(encoding="utf-8", errors="replace"))
        steps = int(found[1]) if found else None
    step = (facts.get("results") or {}).get("step")
    return min(1.0, step / steps) if isinstance(steps, int) and steps and isinstance(step, int) else None


def stage_or_kind(facts: Mapping[str, Any]) -> str:
    """Return what a run is, in one word: its stage, or what kind of folder it is."""
    return str(facts.get("stage") or kind_of_run(facts))


def _writes_text(run: RunFolder) -> bool:
    """Whether the model that a run trained can chat."""
    facts = run.facts()
    if facts.get("study") or facts.get("stage") in NO_TEXT or is_reward_model(run.model_path):
        return False
    return bool(run.saved_models() or run.stages())


def short_name(name: str, longest: int = LONGEST_NAME) -> str:
    """Return the name of a run; of a long one, its beginning and its end, in which similar names differ."""
    end = longest // 3
    return name if len(name) <= longest else f"{name[: longest - 1 - end]}…{name[-end:]}"


def when_last_active(run: RunFolder) -> str:
    """Return how long ago a run ended, or was created: 3 h ago."""
    facts = run.facts()
    then = facts.get("ended_at") or facts.get("created_at")
    return f"{age(time.time() - then)} ago" if isinstance(then, int | float) else ""


def _status(runs: Sequence[RunFolder], sweeps: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
    """Yield what is known about the machine and the runs."""
    machine = find_machine()
    mode = "; CPU mode: for tiny models" if machine.cuda_problem else ""
    yield Line(f"{machine.describe()}{mode}", "dim")
    used = f"{describe_count()}, {size(bytes_under(ROOT))}" if runs or sweeps else "no runs yet"
    yield Line(f"{ROOT}/: {used}", "dim")
    working = [run.path.name for run in runs if run.status() == "running"]
    working += [one["name"] for one in sweeps if one["status"] == "running"]
    if working:
        yield Line(f"running now: {', '.join(working[:RUNNING_SHOWN])}", "good")


def _recent(runs: Sequence[RunFolder], sweeps: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
    """Yield a line for each of the newest runs: name, stage, size, loss or status, age."""
    if not runs and not sweeps:
        return
    yield Line(f"{'Recent runs':<{SIDE_NAME}} {'stage':<9}{'size':>6}{'loss':>12}{'age':>9}", "title")
    cells = [(last_active(run.facts()), _cells_of(run)) for run in runs[:RECENT_RUNS]]
    for one in sweeps:
        done = f"{one['parts_done']} of {one['parts_planned']}" if one["status"] == "done" else one["status"]
        when = age(time.time() - one["active_at"])
        cells.append((one["active_at"], (one["name"], one["kind"], one["parameters"], done, when, one["status"])))
    for _, (name, kind, parameters, shown, when, status) in sorted(cells, key=lambda cell: -cell[0])[:RECENT_RUNS]:
        big = count(parameters) if isinstance(parameters, int | float) else ""
        yield Line(
            f"{short_name(name, SIDE_NAME):<{SIDE_NAME}} {kind:<9}{big:>6}{shown:>12}{when:>9}",
            "" if status == "done" else "good" if status == "running" else "warn",
        )


def _cells_of(run: RunFolder) -> tuple[str, str, Any, str, str, str]:
    """Return name, stage, parameters, loss or status, age, status."""
    facts, status = run.facts(), run.status()
    loss = (facts.get("results") or {}).get("eval_loss")
    shown = status if status != "done" else f"{loss:.2f}" if isinstance(loss, int | float) else ""
    when = when_last_active(run).removesuffix(" ago")
    return run.path.name, stage_or_kind(facts), facts.get("parameters"), shown, when, status


def next_of(answer: Any) -> Next:
    """Return the flow that an answer on the home screen leads to."""
    if isinstance(answer, str):
        return Next(answer)
    flow, what = answer
    return Next(flow, {"name" if flow == "group" else "path": what})


def draft_question() -> Question:
    """Return the question of whether to continue a draft."""
    return Question(
        "draft",
        "Continue your draft?",
        choices=(Choice(True, "Continue where I stopped"), Choice(False, "Start over")),
        why="Your answers so far were kept; you can go back through them.",
        screen=Screen("a saved draft"),
    )


def describe_run(run: RunFolder) -> str:
    """Return a run on one line: path, stage, status, main result."""
    from llm_lab.runs.housekeeping import short_result

    facts = run.facts()
    stage = facts.get("stage")
    words = [f"{run.path}:", f"{stage}," if stage and stage != "pretrain" else "", run.status()]
    text = " ".join(word for word in words if word)
    return ", ".join(filter(None, (text, short_result(facts.get("results") or {}))))
