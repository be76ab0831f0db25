"""The wizard: a menu, and behind each entry the questions that end in a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_lab.plan.hardware import find_machine
from llm_lab.recipe.errors import LabError
from llm_lab.recipe.files import to_yaml
from llm_lab.runs.folder import list_runs, write_atomically

from . import design, pretraining
from .asking import Draft
from .console import is_terminal, make_console, print_error
from .prompts import Back, Option, choose, type_in, wait_for_enter
from .screens import begin_screen

RUNS_SHOWN = 4


@dataclass(frozen=True)
class Actions:
    """What the wizard has done for it by other layers; it never does the work itself."""

    start: Callable[..., int]  # (recipe, resume=...) runs it
    chat: Callable[[str], int]  # talks to a checkpoint
    doctor: Callable[[], int]
    show: Callable[[str], int]  # prints what a checkpoint is
    describe_data: Callable[[Mapping[str, Any]], str]  # looks at a data source
    write_config: Callable[[str, Mapping[str, Any]], Path]  # a design as config.json
    recipes: Callable[[], list[Path]]
    summary: Callable[[Path], str]


@dataclass
class Wizard:
    """The drafts that stay while the user walks through the menu."""

    actions: Actions
    drafts: dict[str, Draft] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One line of the menu. run: None while it does not work yet, and then it is not shown."""

    name: str
    about: str
    run: Callable[[Wizard], None] | None = None


def run_wizard(actions: Actions) -> int:
    """Show the menu until the user leaves; returns the exit code."""
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
        except Back:
            continue
        except (KeyboardInterrupt, EOFError):
            make_console().print("\nBack to the menu; the draft is kept.", style="dim")
        except LabError as error:
            print_error(error)
            wait_for_enter()


def _menu(last: Any) -> Any:
    machine = find_machine()
    console = begin_screen("a language model of your own")
    console.print(f"machine  {machine.describe()}", style="dim")
    designs = sorted(path.parent.name for path in design.MODELS.glob("*/config.json"))
    console.print(f"designs  {', '.join(designs) or 'none yet'}", style="dim", overflow="ellipsis", no_wrap=True)
    runs = list_runs()
    for number, run in enumerate(runs[:RUNS_SHOWN]):
        loss = run.facts().get("results", {}).get("eval_loss")
        reached = f", validation loss {loss:.3f}" if loss is not None else ""
        label = "runs     " if number == 0 else "         "
        console.print(f"{label}{run.path}: {run.status()}{reached}", style="dim", overflow="ellipsis", no_wrap=True)
    if not runs:
        console.print("runs     none yet", style="dim")
    elif len(runs) > RUNS_SHOWN:
        console.print(f"         and {len(runs) - RUNS_SHOWN} more", style="dim")
    if machine.cuda_problem:
        console.print("A CPU rehearsal: everything works, at toy size.", style="warn")
    console.print()
    options = [Option(entry.name, f"{entry.name:<18} {entry.about}") for entry in MENU if entry.run]
    return choose("What would you like to do?", [*options, Option(LEAVE, LEAVE)], default=last, why=MENU_WHY)


LEAVE = "Leave"
MENU_WHY = (
    "A model's life, from top to bottom: design its parts, pretrain it on text, talk to it. Every run is a recipe "
    "file that replays without this wizard: llm-lab run RECIPE. Escape goes back, Ctrl-C returns here and keeps "
    "the answers."
)


def _design(wizard: Wizard) -> None:
    draft = _resume_draft(wizard, "design", design.new_draft)
    folder, draft = design.design(
        draft, write=wizard.actions.write_config, keep=lambda kept: wizard.drafts.update(design=kept)
    )
    if folder is None:
        return
    console = make_console()
    console.print(f"\nWritten: {folder}/config.json", style="good")
    next_step = choose(
        "What next?",
        [Option("pretrain", "Pretrain it"), Option("menu", "Back to the menu")],
        why="A design has no weights yet.",
    )
    wizard.drafts.pop("design", None)
    if next_step == "pretrain":
        fresh = pretraining.new_draft(find_machine())
        fresh = fresh.with_answer("name", folder.name).with_answer("model", {"config": str(folder)})
        if draft.raw.get("tokenizer"):
            fresh = fresh.with_answer("tokenizer", draft.raw["tokenizer"])
        wizard.drafts["pretrain"] = fresh
        _pretrain(wizard, ask=False)


def _pretrain(wizard: Wizard, *, ask: bool = True) -> None:
    draft = _resume_draft(wizard, "pretrain", pretraining.new_draft) if ask else wizard.drafts["pretrain"]
    started = pretraining.pretrain(
        draft,
        describe_data=wizard.actions.describe_data,
        save=save_recipe,
        keep=lambda kept: wizard.drafts.update(pretrain=kept),
    )
    if started is not None:
        _start(wizard, started.raw)
        wizard.drafts.pop("pretrain", None)


def _resume_draft(wizard: Wizard, name: str, fresh: Callable[[Any], Draft]) -> Draft:
    if name in wizard.drafts:
        options = [Option(True, "go on with my draft"), Option(False, "start anew")]
        if choose("There is a draft.", options, why="Your answers so far were kept."):
            return wizard.drafts[name]
    return fresh(find_machine())


def _start(wizard: Wizard, recipe: Any, **options: Any) -> None:
    try:
        wizard.actions.start(recipe, **options)
    except LabError as error:
        print_error(error)
    except KeyboardInterrupt:
        make_console().print("\nStopped.", style="warn")
    wait_for_enter()


def save_recipe(draft: Draft) -> None:
    """Ask for a file and write the draft as a commented recipe: what was answered; what is derived, as remarks."""
    resolved, _ = draft.look()
    path = Path(
        type_in(
            "Save the recipe where?",
            default=f"configs/{draft.raw.get('name') or 'my-run'}.yaml",
            why="A file in configs/ is listed by `llm-lab list recipes` and by Replay a recipe.",
            validate=_why_no_file,
            paths=True,
        )
    ).expanduser()
    path = path if path.suffix in (".yaml", ".yml") else path.with_name(path.name + ".yaml")
    answers = {key: value for key, value in draft.raw.items() if value not in ({}, None)}
    header = (
        f"{draft.raw['stage']}: {draft.raw.get('name')}",
        "",
        f"llm-lab run {path}",
        "",
        "Derived for now:",
    )
    derived = tuple(f"  {key}: {origin.reason}" for key, origin in resolved.origins.items() if origin.kind == "derived")
    write_atomically(path, to_yaml(answers, type(resolved.recipe), lambda _, help_text: help_text, header + derived))
    make_console().print(f"Written: {path}    replay it with: llm-lab run {path}", style="good")
    wait_for_enter("Enter goes back to the review")


def _why_no_file(text: str) -> str | None:
    path = Path(text.strip()).expanduser()
    if not text.strip():
        return "A file name is needed."
    if path.exists() or path.with_name(path.name + ".yaml").exists():
        return f"{path} exists, and is not overwritten."
    return None if path.parent.is_dir() else f"There is no folder {path.parent}."


def _chat(wizard: Wizard) -> None:
    begin_screen("Chat")
    path = _pick_checkpoint("Talk to which model?")
    wizard.actions.chat(path)


def _pick_checkpoint(question: str) -> str:
    runs = [run for run in list_runs() if run.model_path.is_dir() or run.checkpoints() or run.stages()]
    options = [Option(str(run.path), f"{run.path}  ({run.status()})") for run in runs]
    picked = choose(question, [*options, Option(None, "another folder, or a name on the Hub")], why=CHECKPOINT_WHY)
    if picked is not None:
        return picked
    return type_in(
        "Which one (a folder, or a name on the Hub)?",
        validate=lambda text: None if text.strip() else "A path or a name is needed.",
        paths=True,
    )


CHECKPOINT_WHY = "Any run of yours, any Hugging Face folder with a causal language model, or a name on the Hub."


def _checkpoints(wizard: Wizard) -> None:
    while True:
        begin_screen("Checkpoints")
        path = _pick_checkpoint("Look at which one?")
        begin_screen("Checkpoints", path)
        try:
            wizard.actions.show(path)
        except LabError as error:
            print_error(error)
        run = next((run for run in list_runs() if str(run.path) == path), None)
        options = [Option("list", "Back to the list"), Option("chat", "Talk to it")]
        if run is not None and run.status() in ("stopped", "interrupted", "failed"):
            options.append(Option("resume", "Go on with this run"))
        if run is not None and run.recipe_path.exists():
            options.append(Option("replay", "Replay its recipe as a new run"))
        try:
            picked = choose("What with it?", options, why="Replaying makes a new run with the same numbers.")
        except Back:
            continue
        if picked == "chat":
            wizard.actions.chat(path)
        elif picked in ("resume", "replay"):
            _start(wizard, str(run.recipe_path), resume=picked == "resume")


def _replay(wizard: Wizard) -> None:
    begin_screen("Replay a recipe")
    files: Sequence[Path] = wizard.actions.recipes()
    options = [Option(str(file), f"{file.stem:<14} {wizard.actions.summary(file)}") for file in files]
    picked = choose("Which recipe?", [*options, Option(None, "another file")], why=REPLAY_WHY)
    if picked is None:
        picked = type_in(
            "Which file?",
            validate=lambda text: None if Path(text.strip()).expanduser().is_file() else "There is no such file.",
            paths=True,
        )
    overrides = type_in(
        "Anything to change (key=value ...; empty: nothing)?",
        why="For example train.max_steps=200 data.0.path=my-text.txt, as on the command line.",
    )
    _start(wizard, picked, overrides=overrides.split(), ask=True)


REPLAY_WHY = (
    "A recipe is all there is to a run. Those of your runs are in their folders: checkpoints/<name>/recipe.yaml."
)


def _doctor(wizard: Wizard) -> None:
    begin_screen("Doctor")
    wizard.actions.doctor()
    if is_terminal():
        wait_for_enter()


MENU: tuple[Entry, ...] = (
    Entry("Design a model", "choose its parts and see what they cost", _design),
    Entry("Pretrain", "learn from raw text, from scratch or on from a checkpoint", _pretrain),
    Entry("Fine-tune (SFT)", "teach it to answer, fully or with LoRA"),
    Entry("Preferences", "DPO, GRPO or PPO"),
    Entry("Merge LoRA", "an adapter into its base"),
    Entry("Chat", "talk to a model", _chat),
    Entry("Evaluate", "loss, bits per byte, tasks; side by side"),
    Entry("Export", "a form for others to load"),
    Entry("Checkpoints", "what there is, and how far it came", _checkpoints),
    Entry("Replay a recipe", "run a recipe file, changed or not", _replay),
    Entry("Doctor", "what this machine can do", _doctor),
)
