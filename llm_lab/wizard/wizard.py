"""The wizard: a menu, and behind each entry the questions that end in a recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from llm_lab.errors import LabError
from llm_lab.estimate.machine import find_machine
from llm_lab.recipe.dpo import DPO
from llm_lab.recipe.export import EXPORT
from llm_lab.recipe.grpo import GRPO
from llm_lab.recipe.merge import MERGE
from llm_lab.recipe.ppo import PPO
from llm_lab.recipe.pretrain import PRETRAIN
from llm_lab.recipe.reward import REWARD
from llm_lab.recipe.sft import SFT
from llm_lab.recipe.stage import Stage
from llm_lab.runs.folder import list_runs
from llm_lab.terminal.console import make_console, one_line, print_error
from llm_lab.terminal.prompts import Back, Option, choose, wait_for_enter
from llm_lab.terminal.screens import begin_screen

from .actions import Actions
from .design import MODELS
from .entries import (
    Wizard,
    do_chat,
    do_checkpoints,
    do_design,
    do_doctor,
    do_evaluate,
    do_pretrain,
    do_replay,
    do_tune,
)
from .start_model import describe_run

RUNS_SHOWN = 2


@dataclass(frozen=True)
class Entry:
    """One line of the menu."""

    name: str
    about: str
    run: Callable[[Wizard], None]


def run_wizard(actions: Actions, *, debug: bool = False) -> int:
    """Show the menu until the user leaves; returns the exit code. debug: let faults through, with their traceback."""
    wizard = Wizard(actions)
    last: Any = None
    while True:
        try:
            picked = _menu(last)
        except (Back, KeyboardInterrupt, EOFError):
            picked = LEAVE
        if picked == LEAVE:
            return 0
        last = picked
        entry = next(entry for entry in MENU if entry.name == picked)
        try:
            entry.run(wizard)
        except (Back, KeyboardInterrupt, EOFError):
            continue
        except LabError as error:
            print_error(error)
            wait_for_enter()
        except Exception as error:
            if debug:
                raise
            text = f"A fault of LLM Lab's: {type(error).__name__}: {error}\nllm-lab --debug shows the traceback."
            make_console(stderr=True).print(text, style="bad", markup=False)
            wait_for_enter("The draft is kept; Enter goes back to the menu")


def _menu(last: Any) -> Any:
    machine = find_machine()
    console = begin_screen("a language model of your own")
    designs = sorted(path.parent.name for path in MODELS.glob("*/config.json"))
    lines = [("machine", machine.describe()), ("designs", ", ".join(designs) or "none yet")]
    runs = list_runs()
    for number, run in enumerate(runs[:RUNS_SHOWN]):
        lines.append(("" if number else "runs", describe_run(run)))
    if not runs:
        lines.append(("runs", "none yet"))
    elif len(runs) > RUNS_SHOWN:
        lines.append(("", f"and {len(runs) - RUNS_SHOWN} more"))
    for name, text in lines:
        console.print(f"{name:<8} {one_line(text)}", style="dim", overflow="ellipsis", no_wrap=True, markup=False)
    if machine.cuda_problem:
        console.print("A CPU rehearsal: everything works, at toy size.", style="warn")
    console.print()
    options = [Option(entry.name, f"{entry.name:<18} {entry.about}") for entry in MENU]
    options.append(Option(LEAVE, LEAVE))
    return choose("What would you like to do?", options, default=last, why=MENU_WHY, above=len(lines) + 3)


LEAVE = "Leave"
MENU_WHY = (
    "A model's life, from top to bottom: design its parts, pretrain it on text, teach it to "
    "answer (SFT) and to answer better (DPO, GRPO, PPO), talk to it, measure it, take it away. Every run is a recipe "
    "file that replays without this wizard: llm-lab run RECIPE. Escape goes back, Ctrl-C returns here and keeps "
    "the answers."
)


def _entry(stage: Stage) -> Entry:
    return Entry(stage.title, stage.about, partial(do_tune, stage=stage.name))


MENU: tuple[Entry, ...] = (
    Entry("Design a model", "choose its parts and see what they cost", do_design),
    Entry(PRETRAIN.title, PRETRAIN.about, do_pretrain),
    _entry(SFT),
    _entry(REWARD),
    _entry(DPO),
    _entry(GRPO),
    _entry(PPO),
    _entry(MERGE),
    Entry("Chat", "talk to a model", do_chat),
    Entry("Evaluate", "measure it, or set models side by side", do_evaluate),
    _entry(EXPORT),
    Entry("Checkpoints", "what there is, and how far it came", do_checkpoints),
    Entry("Replay a recipe", "run a recipe file, changed or not", do_replay),
    Entry("Doctor", "what this machine can do", do_doctor),
)
