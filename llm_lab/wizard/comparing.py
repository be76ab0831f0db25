"""Compare and the time machine: which models, asked what."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llm_lab.runs.folder import RunFolder
from llm_lab.terminal.prompts import Back, Option, choose, type_in
from llm_lab.terminal.screens import begin_screen

from .sources import why_no_model
from .start_model import WHY, is_adapter, pick_run, policies

TITLE = "Evaluate"
MOST = 6
PROMPT_WHY = (
    "All models get the same words, in their own chat template where they have one, and answer with the likeliest "
    "tokens. Left empty, they are asked what the first one's own run asks at its evaluations."
)
STEPS_WHY = (
    "A run keeps its last checkpoints, train.save_total_limit of them. The time machine has each of them answer the "
    "same prompt, from the first to the last: what was learnt when."
)


@dataclass(frozen=True)
class Comparison:
    """What is to be compared: models, or all checkpoints of one run (steps), each asked the prompts."""

    checkpoints: tuple[str, ...]
    prompts: tuple[str, ...] = ()
    steps: bool = False
    adapter_off: bool = False


def ask_comparison() -> Comparison:
    """Ask for two or more models and what they are asked. Raises Back."""
    names: list[str] = []
    while True:
        try:
            more = _ask_model(names)
            if more is not None:
                names.append(more)
                continue
            wanted = Comparison(tuple(names), adapter_off=len(names) == 1)
            return replace(wanted, prompts=_ask_prompts())
        except Back:
            if not names:
                raise
            names.pop()


def _ask_model(names: list[str]) -> str | None:
    """Return one more model, or None where it is enough."""
    enough = len(names) > 1 or (len(names) == 1 and is_adapter(names[0]))
    question = f"Compare {names[0]} with what?" if names else "Which model first?"
    left = [run for run in policies() if str(run.path) not in names]
    while True:
        begin_screen(TITLE, "compare: " + (", ".join(names) or "which models?"))
        if enough:
            alone = "with its base, without the adapter" if len(names) == 1 else "that is all: compare these"
            options = [Option(False, alone), Option(True, "another model", None if len(names) < MOST else "enough")]
            if not choose("Which models?", options, why=WHY, above=2):
                return None
        try:
            return pick_run(question, left, "no other yet: Pretrain makes one", "", WHY, why_no_model)
        except Back:
            if not enough:
                raise


def ask_time_machine() -> Comparison:
    """Ask for a run and a prompt for each of its checkpoints. Raises Back."""
    kept = [run for run in policies() if run.checkpoints()]
    name = ""
    while True:
        begin_screen(TITLE, "the time machine")
        options = [Option(str(run.path), f"{run.path}: {_steps(run)}") for run in kept]
        options = options or [Option("", "a run of mine", "none has kept checkpoints")]
        name = choose("Which run?", options, default=name, why=STEPS_WHY, above=2)
        try:
            begin_screen(TITLE, f"the time machine: {name}")
            return Comparison((name,), _ask_prompts(), steps=True)
        except Back:
            continue


def _steps(run: RunFolder) -> str:
    steps = [f"{step:,}" for step, _ in run.checkpoints()]
    return f"step{'' if len(steps) == 1 else 's'} {', '.join(steps)} and the end"


def _ask_prompts() -> tuple[str, ...]:
    text = type_in("Asked what (empty: its run's own prompts)?", why=PROMPT_WHY)
    return (text,) if text else ()
