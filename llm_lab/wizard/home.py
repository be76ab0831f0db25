"""The home screen: the machine, the runs, and what one can do. It is on the screen first, so it imports little."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from llm_lab.estimate.machine import find_machine
from llm_lab.runs.folder import RunFolder, list_runs

from .questions import Choice, Line, Question, Screen

MODELS = Path("configs/models")
LEAVE = "Quit"
RUNS_SHOWN = 2
EVALUATE, LOOK, EXPERIMENTS, RUNS, REPLAY = "Evaluate", "Look inside", "Experiments", "Runs", "Run a recipe"
MENU_WHY = (
    "The usual order is from top to bottom: design a model's parts, pretrain it on text, fine-tune it on conversations "
    "(SFT), improve its replies (DPO, GRPO, PPO), chat with it, evaluate it, export it. Every run has a "
    "recipe file, which also runs without this wizard: llm-lab run RECIPE. Esc goes back; Ctrl-C returns to this menu "
    "and keeps the answers."
)


class Entry(NamedTuple):
    """One line of the menu. flow: its name in FLOWS."""

    flow: str
    title: str
    about: str


def menu_entries() -> tuple[Entry, ...]:
    """Return the lines of the menu; stages of other packages come after the built-in ones that train."""
    registry = sys.modules.get("llm_lab.recipe.registry")  # imported by who registers a stage
    own = [stage for stage in registry.STAGES.values() if stage not in registry.BUILT_IN] if registry else []
    return (*MENU[:8], *(Entry(stage.name, stage.title, stage.about) for stage in own), *MENU[8:])


MENU = (
    Entry("design", "Design a model", "choose its parts and see what they cost"),
    # A stage has its title in its record, which takes too long to import here; a test compares them.
    Entry("pretrain", "Pretrain", "train on raw text, from scratch or from a checkpoint"),
    Entry("sft", "Fine-tune (SFT)", "supervised fine-tuning on conversations"),
    Entry("reward", "Reward model", "train a reward model on preference pairs"),
    Entry("dpo", "DPO", "optimize for preferred answers, from preference pairs"),
    Entry("grpo", "GRPO", "RL: reinforce outputs that beat their prompt's average"),
    Entry("ppo", "PPO", "RL with a value model (critic)"),
    Entry("merge", "Merge LoRA", "merge a LoRA adapter into its base"),
    Entry("chat", "Chat", "talk to a model"),
    Entry("evaluate", EVALUATE, "measure a model, or compare several"),
    Entry("look", LOOK, "attention, heads, what each layer predicts"),
    Entry("export", "Export", "convert a model to Hugging Face, GGUF or a Space and verify it"),
    Entry("experiments", EXPERIMENTS, "studies that train small models and show what happens"),
    Entry("sweep", "Sweep", "compare values of a key, with several seeds"),
    Entry("checkpoints", RUNS, "status, results, lineage, resume"),
    Entry("replay", REPLAY, "run a recipe file, with or without changes"),
    Entry("doctor", "Doctor", "what this machine can do"),
)


def menu_question(last: str | None = None) -> Question:
    """Return the menu. last: the entry that was used before."""
    machine = find_machine()
    designs = sorted(path.parent.name for path in MODELS.glob("*/config.json"))
    runs = list_runs()
    texts = [("machine", machine.describe()), ("designs", ", ".join(designs) or "none yet")]
    texts += [("" if number else "runs", describe_run(run)) for number, run in enumerate(runs[:RUNS_SHOWN])]
    if not runs:
        texts.append(("runs", "none yet"))
    elif len(runs) > RUNS_SHOWN:
        texts.append(("", f"and {len(runs) - RUNS_SHOWN} more"))
    lines = [Line(f"{name:<8} {text}", "dim") for name, text in texts]
    if machine.cuda_problem:
        lines.append(Line("CPU mode: everything works, for tiny models.", "warn"))
    choices = [Choice(entry.flow, f"{entry.title:<18} {entry.about}") for entry in menu_entries()]
    return Question(
        "menu",
        "What would you like to do?",
        choices=(*choices, Choice(LEAVE, LEAVE)),
        default=last,
        why=MENU_WHY,
        screen=Screen("build and train language models", lines=(*lines, Line(""))),
    )


def draft_question() -> Question:
    """Return the question whether to continue a kept draft."""
    return Question(
        "draft",
        "Continue your draft?",
        choices=(Choice(True, "continue where I stopped"), Choice(False, "start over")),
        why="Your answers so far were kept; Esc goes back through them.",
        screen=Screen("a saved draft"),
    )


def describe_run(run: RunFolder) -> str:
    """Return a run on one line: path, stage, status, main result."""
    facts = run.facts()
    results, stage = facts.get("results", {}), facts.get("stage")
    words = [f"{run.path}:", f"{stage}," if stage and stage != "pretrain" else "", run.status()]
    text = " ".join(word for word in words if word)
    for key, write in (("exact_match", "exact match {:.1%}"), ("eval_loss", "validation loss {:.3f}")):
        if isinstance(results.get(key), int | float):
            return f"{text}, {write.format(results[key])}"
    return text
