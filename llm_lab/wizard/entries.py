"""What stands behind the entries of the menu."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_lab.errors import LabError
from llm_lab.estimate.machine import find_machine
from llm_lab.recipe.eval import EVAL
from llm_lab.recipe.export import EXPORT
from llm_lab.recipe.pretrain import PRETRAIN
from llm_lab.runs.folder import RunFolder, list_runs
from llm_lab.terminal.console import make_console, one_line, print_error, say_wait
from llm_lab.terminal.prompts import Back, Option, choose, type_in, wait_for_enter
from llm_lab.terminal.screens import begin_screen

from . import design, pretraining, tuning
from .actions import Actions
from .comparing import Comparison, ask_comparison, ask_time_machine
from .draft import Draft
from .next_steps import ask_next, finished_run, start_of, ways_on
from .saving import save_recipe
from .sources import runs_with_a_model
from .start_model import describe_run, is_reward_run

ANOTHER = "another"


@dataclass
class Wizard:
    """The drafts that stay while the user walks through the menu."""

    actions: Actions
    drafts: dict[str, Draft] = field(default_factory=dict)


def do_design(wizard: Wizard) -> None:
    """Design a model, and go on to pretrain it."""
    draft = _resume_draft(wizard, "design", design.new_draft)
    folder, draft = design.design(draft, write=wizard.actions.write_config, keep=_keeper(wizard, "design"))
    if folder is None:
        return
    wizard.drafts.pop("design", None)
    begin_screen("Design a model", folder.name)
    make_console().print(f"Written: {folder}/config.json\n", style="good")
    options = [Option(PRETRAIN.name, "Pretrain it"), Option("menu", "Back to the menu")]
    if choose("What next?", options, why="A design has no weights yet: pretraining gives it some.") == PRETRAIN.name:
        fresh = pretraining.new_draft(find_machine())
        fresh = fresh.with_answer("name", folder.name).with_answer("model", {"config": str(folder)})
        # A config does not name its tokenizer, and the design was made for this one.
        fresh = fresh.with_answer("tokenizer", draft.value("tokenizer"))
        wizard.drafts[PRETRAIN.name] = fresh.at_step(1)
        do_pretrain(wizard, ask=False)


def do_pretrain(wizard: Wizard, *, ask: bool = True) -> None:
    """Ask for a pretraining run and start it."""
    draft = _resume_draft(wizard, PRETRAIN.name, pretraining.new_draft) if ask else wizard.drafts[PRETRAIN.name]
    started = pretraining.pretrain(draft, wizard.actions, save=save_recipe, keep=_keeper(wizard, PRETRAIN.name))
    if started is not None:
        _start_draft(wizard, started)


def do_tune(wizard: Wizard, stage: str, fresh: Draft | None = None) -> None:
    """Ask for a run of a stage after pretraining and start it. fresh: the draft to begin with, from another run."""
    draft = fresh or _resume_draft(wizard, stage, lambda machine: tuning.new_draft(machine, stage))
    started = tuning.tune(draft, wizard.actions, save=save_recipe, keep=_keeper(wizard, stage))
    if started is not None:
        _start_draft(wizard, started)


def _start_draft(wizard: Wizard, draft: Draft) -> None:
    """Run a draft, and ask what to do with what came of it."""
    if _start(wizard, draft.raw, wait=False, show_plan=False):
        wizard.drafts.pop(draft.raw["stage"], None)
        run = finished_run(draft.raw["name"])
        if run is None or not ways_on(run):
            wait_for_enter()
        else:
            _go_on_with(wizard, run)


def _go_on_with(wizard: Wizard, run: RunFolder) -> None:
    way = ask_next(run)
    if way == "chat":
        _talk(wizard, str(run.path))
    elif way != "menu":
        model, reward = start_of(run)
        fresh = tuning.new_draft(find_machine(), way, model=model, reward=reward)
        # The model is known; Escape leads to its question.
        do_tune(wizard, way, fresh.at_step(0 if model is None else 1))


def _keeper(wizard: Wizard, name: str) -> Callable[[Draft], None]:
    return lambda draft: wizard.drafts.update({name: draft})


def _resume_draft(wizard: Wizard, name: str, fresh: Callable[[Any], Draft]) -> Draft:
    new, kept = fresh(find_machine()), wizard.drafts.get(name)
    if kept is None or kept.raw == new.raw:
        return new
    begin_screen("a draft was kept")
    options = [Option(True, "go on with it, where I was"), Option(False, "start anew")]
    return kept if choose("Go on?", options, why="Your answers so far were kept; Escape leads to them.") else new


def _start(wizard: Wizard, recipe: Any, *words: Any, wait: bool = True, **options: Any) -> bool:
    """Run a recipe; False where it could not be started. Raises Back where the user takes the start back.

    wait: until the user has read what was said; of an error in any case.
    """
    if options.get("ask"):
        make_console().clear()
    started = True
    try:
        wizard.actions.start(recipe, *words, **options)
    except LabError as error:
        print_error(error)
        started = False
    except KeyboardInterrupt:
        make_console().print("\nStopped.", style="warn")
    if wait or not started:
        wait_for_enter()
    return started


def do_chat(wizard: Wizard) -> None:
    """Pick a model and talk to it."""
    _talk(wizard, _pick_checkpoint("Chat", "Talk to which model?", runs_with_a_model()))


def _talk(wizard: Wizard, path: str) -> None:
    begin_screen("Chat", path)
    wizard.actions.chat(path)


def _pick_checkpoint(title: str, question: str, runs: Sequence[RunFolder]) -> str:
    options = [Option(str(run.path), one_line(describe_run(run))) for run in runs]
    options.append(Option(ANOTHER, "another folder, or a name on the Hub"))
    while True:
        begin_screen(title)
        picked = choose(question, options, why=CHECKPOINT_WHY, above=2)
        if picked != ANOTHER:
            return picked
        with contextlib.suppress(Back):
            return type_in(
                "Which one?",
                why=CHECKPOINT_WHY,
                about="A folder, or a name on the Hub such as Qwen/Qwen3-0.6B. Tab completes paths.",
                validate=lambda text: None if text.strip() else "A path or a name is needed.",
                paths=True,
            )


CHECKPOINT_WHY = "Any run of yours, any Hugging Face folder with a causal language model, or a name on the Hub."


def do_evaluate(wizard: Wizard) -> None:
    """Measure a model, or set several side by side."""
    way = None
    while True:
        begin_screen("Evaluate")
        options = [
            Option(EVAL.name, "Measure a model: loss, answers, speed, tasks"),
            Option("compare", "Compare models: the same prompts, side by side"),
            Option("time", "Time machine: one prompt, every checkpoint of a run"),
        ]
        way = choose("What would you like to know?", options, default=way, why=EVALUATE_WHY, above=2)
        with contextlib.suppress(Back):
            if way == EVAL.name:
                return do_tune(wizard, EVAL.name)
            _compare(wizard, ask_comparison() if way == "compare" else ask_time_machine())
            return None


def _compare(wizard: Wizard, wanted: Comparison) -> None:
    begin_screen("Evaluate", "side by side")
    try:
        wizard.actions.compare(wanted)
    except LabError as error:
        print_error(error)
    except KeyboardInterrupt:
        make_console().print("\nStopped.", style="warn")
    wait_for_enter()


EVALUATE_WHY = (
    "Measuring gives figures that are kept with the checkpoint. Side by side shows what they mean: the same prompts, "
    "answered by each, with the differences marked."
)


def do_checkpoints(wizard: Wizard) -> None:
    """Look at runs and models: talk, resume, replay."""
    while True:
        path = _pick_checkpoint("Checkpoints", "Look at which one?", list_runs())
        begin_screen("Checkpoints", path)
        try:
            wizard.actions.show(path)
        except LabError as error:
            print_error(error)
        run = next((run for run in list_runs() if str(run.path) == path), None)
        options = [Option("list", "Back to the list")]
        writes = run is None or (not is_reward_run(run) and run in runs_with_a_model())
        if writes:
            options.append(Option("chat", "Talk to it"))
        if run is not None and ways_on(run) and run.status() == "done":
            options.append(Option("next", "Train its model further, or merge it"))
        if writes:
            options += [Option(EVAL.name, "Measure it"), Option(EXPORT.name, "Export it")]
            options += (
                [Option("time", "Time machine: a prompt for each checkpoint")] if run and run.checkpoints() else []
            )
        if run is not None and run.recipe_path.exists():
            if run.status() in ("stopped", "interrupted", "failed"):
                options.append(Option("resume", "Go on with this run"))
            options.append(Option("replay", "Replay its recipe as a new run"))
            options.append(Option("line", "Make it again from the very beginning, with all before it"))
        with contextlib.suppress(Back):
            picked = choose("What with it?", options, why="Replaying makes a new run with the same numbers.", above=12)
            if picked == "chat":
                _talk(wizard, path)
            elif picked == "next":
                begin_screen("Checkpoints", path)
                _go_on_with(wizard, run)
            elif picked in (EVAL.name, EXPORT.name):
                do_tune(wizard, picked, tuning.new_draft(find_machine(), picked, model=path).at_step(1))
            elif picked == "time":
                _compare(wizard, Comparison((path,), steps=True))
            elif picked == "line":
                wizard.actions.replay(path)
                wait_for_enter()
            elif picked in ("resume", "replay"):
                _start(wizard, str(run.recipe_path), resume=picked == "resume", ask=True)


def do_replay(wizard: Wizard) -> None:
    """Run a recipe file, changed or not."""
    files: Sequence[Path] = wizard.actions.recipes()
    options = [Option(str(file), f"{file.stem:<14} {wizard.actions.summary(file)}") for file in files]
    options.append(Option(ANOTHER, "another file"))
    picked = ""
    while True:
        begin_screen("Replay a recipe")
        picked = choose("Which recipe?", options, why=REPLAY_WHY, above=2, default=picked)
        with contextlib.suppress(Back):
            path = picked if picked != ANOTHER else _type_recipe()
            begin_screen("Replay a recipe", path)
            _start(wizard, path, _ask_overrides(wizard, path), ask=True)
            return


def _type_recipe() -> str:
    about = "A recipe file, or the folder of a run. Tab completes paths."
    return type_in("Which file?", why=REPLAY_WHY, about=about, validate=_why_no_recipe, paths=True)


def _why_no_recipe(text: str) -> str | None:
    return None if Path(text.strip()).expanduser().exists() else f"There is no {text.strip() or 'empty name'}."


def _ask_overrides(wizard: Wizard, path: str) -> list[str]:
    """Ask what to change until the recipe is right."""

    def validate(text: str) -> str | None:
        try:
            problems = wizard.actions.problems(path, shlex.split(text))
        except (LabError, ValueError) as error:
            return str(error)
        return "\n".join(problems) or None

    text = type_in(
        "Anything to change?",
        why="For example train.max_steps=200 data.0.path=my-text.txt name=again, as on the command line.",
        about="key=value, several with spaces between; empty: nothing.",
        validate=validate,
    )
    return shlex.split(text)


REPLAY_WHY = (
    "A recipe is all there is to a run. Those of your runs are in their folders: checkpoints/<name>/recipe.yaml."
)


def do_doctor(wizard: Wizard) -> None:
    """Show what this machine can do."""
    begin_screen("Doctor")
    say_wait("Looking ...")
    wizard.actions.doctor()
    wait_for_enter()
