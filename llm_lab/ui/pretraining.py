"""Pretrain: which model, which texts, how long; then the review, the plan, and the start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llm_lab.plan.hardware import Machine
from llm_lab.recipe.errors import LabError
from llm_lab.runs.folder import list_runs

from .asking import Draft, ask_key, ask_keys
from .console import make_console
from .design import MODELS, ask_tokenizer, run_steps
from .plan_panel import plan_panel
from .prompts import Back, Option, choose, confirm, type_in
from .review import review
from .screens import begin_screen, print_run_numbers

TITLE = "Pretrain"
BUILTIN = "builtin:stories"
KEYS = (
    "optimizer.name",
    "optimizer.learning_rate",
    "scheduler.name",
    "train.max_length",
    "train.per_device_train_batch_size",
    "train.max_steps",
    "name",
)


def new_draft(machine: Machine) -> Draft:
    """Return the draft a pretraining begins with; the device is what this machine has."""
    return Draft(
        {"stage": "pretrain", "name": "my-run", "device": machine.best_device, "data": [{"path": BUILTIN}]},
        machine,
    )


def show_run(draft: Draft) -> None:
    """Draw the screen above a question."""
    console = begin_screen(TITLE, draft.raw.get("name", ""))
    print_run_numbers(console, draft.look()[0])
    console.print()


def pretrain(
    draft: Draft,
    *,
    describe_data: Callable[[Mapping[str, Any]], str],
    save: Callable[[Draft], None],
    keep: Callable[[Draft], None],
) -> Draft | None:
    """Ask for a pretraining run. Returns the draft to start, or None for the menu.

    describe_data: looks at a data source and says what was found. save: writes the recipe to a file.
    keep: takes the draft as it is, so that a Ctrl-C loses no answer. Raises Back at the first question.
    """

    def kept(step: Callable[[Draft], Draft]) -> Callable[[Draft], Draft]:
        def run(draft: Draft) -> Draft:
            draft = step(draft)
            keep(draft)
            return draft

        return run

    def data(draft: Draft) -> Draft:
        return ask_data(draft, describe_data)

    steps = [kept(ask_model), kept(data), kept(_ask_tokenizer), *(kept(_asker(path)) for path in KEYS)]
    draft = run_steps(steps, draft)
    actions = [
        ("start", "Start: see the plan first"),
        ("save", "Save the recipe to a file"),
        ("data", "Change the texts"),
        ("model", "Change the model"),
        ("menu", "Back to the menu, keeping the draft"),
    ]
    while True:
        try:
            action, draft = review(
                draft, title=TITLE, actions=actions, show=show_run, askers={"tokenizer": _ask_tokenizer}
            )
            keep(draft)
            if action == "menu":
                return None
            if action == "save":
                save(draft)
            elif action in ("data", "model"):
                draft = data(draft) if action == "data" else _ask_tokenizer(ask_model(draft))
                keep(draft)
            elif _confirm_plan(draft):
                return draft
        except Back:
            if _leave():
                return None


def _leave() -> bool:
    """Escape in the review asks before it leaves."""
    try:
        return confirm("Back to the menu? The draft is kept.", default=True)
    except Back:
        return False


def _confirm_plan(draft: Draft) -> bool:
    console = begin_screen(TITLE, "the plan")
    resolved, _ = draft.look()
    console.print(plan_panel(resolved))
    return confirm("Start now?", yes="Yes, start", no="No, back to the review")


def _asker(path: str) -> Callable[[Draft], Draft]:
    def ask(draft: Draft) -> Draft:
        return ask_key(draft, path, show=show_run) if draft.applies(path) else draft

    def ask_optimizer(draft: Draft) -> Draft:
        before = draft.value("optimizer.name")
        answered = ask_key(draft, path, show=show_run)
        name = answered.value("optimizer.name")
        # Another optimizer has other keys, and its own scale of learning rates.
        return draft.with_answer("optimizer", {"name": name}) if name != before else answered

    return ask_optimizer if path == "optimizer.name" else ask


def ask_model(draft: Draft) -> Draft:
    """Ask where the model comes from: parts, a design, a checkpoint, or someone's config."""
    show_run(draft)
    designs = sorted(folder.name for folder in MODELS.glob("*") if (folder / "config.json").is_file())
    runs = [run for run in list_runs() if run.model_path.is_dir() or run.checkpoints() or run.stages()]
    now = draft.raw.get("model") or {}
    kind = next((key for key in ("config", "checkpoint") if key in now), "parts")
    kind = "design" if str(now.get("config", "")).startswith(f"{MODELS}/") else kind
    kind = "run" if str(now.get("checkpoint", "")) in [str(run.path) for run in runs] else kind
    options = [
        Option("parts", "a size from the dial, today's usual parts"),
        Option(
            "design",
            f"a design of mine ({len(designs)})",
            None if designs else "none yet: Design a model writes one",
        ),
        Option("run", f"go on from a run of mine ({len(runs)})", None if runs else "none yet"),
        Option("config", "someone's config.json, trained from scratch"),
        Option("checkpoint", "go on from someone's checkpoint (a folder or the Hub)"),
    ]
    picked = choose("Which model?", options, default=kind, why=MODEL_WHY)
    if picked == "parts":
        draft = draft if kind == "parts" else draft.with_answer("model", {})
        draft = draft if draft.raw.get("model") else draft.with_answer("model", {})
        return ask_keys(draft, ["model.size"], show=show_run)
    if picked == "design":
        name = choose(
            "Which design?", [Option(name, name) for name in designs], default=Path(now.get("config", "")).name
        )
        return draft.with_answer("model", {"config": str(MODELS / name)})
    if picked == "run":
        path = choose("Which run?", [Option(str(run.path), str(run.path)) for run in runs])
        return draft.with_answer("tokenizer", None).with_answer("model", {"checkpoint": path})
    path = type_in(
        "Where is it (a folder, a file, or a name on the Hub)?",
        default=str(now.get(picked, "")),
        why="For example checkpoints/demo, path/to/config.json, or Qwen/Qwen3-0.6B-Base.",
        validate=lambda text: _why_no_model(text.strip()),
        paths=True,
    )
    draft = draft.with_answer("tokenizer", None) if picked == "checkpoint" else draft
    return draft.with_answer("model", {picked: path})


MODEL_WHY = (
    "The dial gives RoPE, RMSNorm, grouped-query attention and SwiGLU at a fitting shape. A design is what "
    "'Design a model' wrote. Going on from a run or checkpoint keeps its weights and its tokenizer."
)


def _why_no_model(text: str) -> str | None:
    if not text:
        return "A path or a name is needed."
    looks_local = text.startswith((".", "/", "~")) or text.count("/") > 1 or text.endswith(".json")
    if looks_local and not Path(text).expanduser().exists():
        return f"There is no {text}."
    return None


def ask_data(draft: Draft, describe_data: Callable[[Mapping[str, Any]], str]) -> Draft:
    """Ask for the texts, one source after the other; each is looked at, and what was found is said."""
    sources: list[dict[str, Any]] = []
    earlier = list(draft.raw.get("data", []))
    while True:
        default = earlier[len(sources)] if len(sources) < len(earlier) else {"path": BUILTIN}
        try:
            sources.append(_ask_source(draft, default, describe_data, number=len(sources)))
            again = len(sources) < len(earlier)
            if not confirm("Another set of texts to mix in?", default=again, yes="yes", no="no, that is all"):
                break
        except Back:
            if not sources:
                raise
            sources.pop()
    if len(sources) > 1:
        for number, source in enumerate(sources):
            text = type_in(
                f"Weight of {source['path']}?",
                default=str(source.get("weight", 1.0)),
                why="Relative: 2.0 and 1.0 make two thirds and one third of what is read.",
                validate=lambda text: None if _positive(text) else "A number above 0.",
            )
            sources[number] = {**source, "weight": float(text)}
    return draft.with_answer("data", sources)


def _positive(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False


def _ask_source(
    draft: Draft,
    default: Mapping[str, Any],
    describe_data: Callable[[Mapping[str, Any]], str],
    *,
    number: int,
) -> dict[str, Any]:
    trouble = ""
    path = str(default["path"])
    while True:
        show_run(draft)
        console = make_console()
        if trouble:
            console.print(trouble, style="bad")
        console.print(f"data.{number}.path: {_path_help(draft)}", style="help")
        path = type_in(
            "Which text?",
            default=path,
            why="A .txt or .md file is one document; in .jsonl, .csv and .parquet a row is one. Tab completes paths. "
            "A Hub name is owner/name; its subset and text column are asked next.",
            validate=lambda text: None if text.strip() else "A path or a name is needed.",
            paths=True,
        )
        source = {key: value for key, value in default.items() if path == default["path"]} | {"path": path}
        try:
            if _is_hub_name(path):
                source |= _ask_hub_keys(source)
            console.print(describe_data(source), style="good")
            return source
        except LabError as error:
            trouble = str(error)
            if "text_column" in trouble and "text_column" not in source:
                column = type_in("Which column holds the text?", why=trouble)
                try:
                    console.print(describe_data({**source, "text_column": column}), style="good")
                    return {**source, "text_column": column}
                except LabError as second:
                    trouble = str(second)


def _path_help(draft: Draft) -> str:
    key = draft.key("data.0.path")
    return key.help if key else ""


def _is_hub_name(path: str) -> bool:
    return not path.startswith(("builtin:", ".", "/", "~")) and path.count("/") == 1 and not Path(path).exists()


def _ask_hub_keys(source: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for key, question in (
        ("subset", "Its subset (empty: none)?"),
        ("text_column", "Its text column (empty: find it)?"),
    ):
        text = type_in(question, default=str(source.get(key) or ""))
        if text:
            found[key] = text
    return found


def _ask_tokenizer(draft: Draft) -> Draft:
    if "checkpoint" in (draft.raw.get("model") or {}):
        return draft  # it brings its own
    show_run(draft)
    return ask_tokenizer(draft)
