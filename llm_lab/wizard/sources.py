"""Where a run's model and texts come from: the questions, and what is found there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llm_lab.errors import LabError
from llm_lab.runs.folder import RunFolder, list_runs
from llm_lab.terminal.prompts import Back, Option, choose, confirm, type_in

from .asking import Show, Step, ask_key, begin_question, run_steps
from .design import MODELS
from .draft import Draft

BUILTIN = "builtin:stories"
MODEL_WHY = (
    "The dial gives RoPE, RMSNorm, grouped-query attention and SwiGLU at a fitting shape. A design is what "
    "'Design a model' wrote. Going on from a run or checkpoint keeps its weights and its tokenizer."
)
DATA_WHY = (
    "A .txt or .md file is one document; in .jsonl, .csv and .parquet a row is one. Tab completes paths. "
    "A Hub name is owner/name; its subset and text column are asked next."
)
STREAM_WHY = (
    "Downloaded, a set is shuffled, and kept whole on the disk as text and as tokens. Streamed, it is read while the "
    "model trains, in its own order, and nothing is kept: for sets that do not fit the disk."
)
Describe = Callable[[Mapping[str, Any]], str]
AskSet = Callable[[Draft, Mapping[str, Any], int], tuple[dict[str, Any], str]]
SCREEN_LINES = 12  # above a question that follows what was found


def runs_with_a_model() -> list[RunFolder]:
    """Return the runs that have weights, newest first."""
    return [run for run in list_runs() if run.model_path.is_dir() or run.checkpoints() or run.stages()]


def ask_model(draft: Draft, *, show: Show) -> Draft:
    """Ask where the model comes from: parts, a design, a checkpoint, or someone's config. Raises Back."""
    designs = sorted(file.parent.name for file in MODELS.glob("*/config.json"))
    runs = [str(run.path) for run in runs_with_a_model()]
    kind = _kind_of_model(draft, runs)
    options = [
        Option("parts", "a size from the dial, today's usual parts"),
        Option(
            "design", f"a design of mine ({len(designs)})", None if designs else "none yet: Design a model writes one"
        ),
        Option("run", f"go on from a run of mine ({len(runs)})", None if runs else "none yet"),
        Option("config", "someone's config.json, trained from scratch"),
        Option("checkpoint", "go on from someone's checkpoint (a folder or the Hub)"),
    ]
    while True:
        begin_question(draft, "model: what is trained", show=show)
        picked = choose("Which model?", options, default=kind, why=MODEL_WHY)
        with contextlib.suppress(Back):
            if picked == "parts":
                fresh = draft if kind == "parts" else draft.with_answer("model", {})
                return ask_key(fresh, "model.size", show=show)
            return _named_model(draft, picked, designs, runs)


def _kind_of_model(draft: Draft, runs: list[str]) -> str:
    now = draft.raw.get("model") or {}
    if "config" in now:
        return "design" if str(now["config"]).startswith(f"{MODELS}/") else "config"
    if "checkpoint" in now:
        return "run" if now["checkpoint"] in runs else "checkpoint"
    return "parts"


def _named_model(draft: Draft, kind: str, designs: list[str], runs: list[str]) -> Draft:
    now = draft.raw.get("model") or {}
    if kind == "design":
        at = Path(now.get("config", "")).name
        name = choose("Which design?", [Option(name, name) for name in designs], default=at, why=MODEL_WHY)
        return draft.with_answer("model", {"config": str(MODELS / name)})
    if kind == "run":
        path = choose("Which run?", [Option(run, run) for run in runs], default=now.get("checkpoint"), why=MODEL_WHY)
    else:
        path = type_in(
            "Where is it?",
            default=str(now.get(kind, "")),
            why=MODEL_WHY,
            about="A folder, a file or a Hub name: checkpoints/demo, path/to/config.json, Qwen/Qwen3-0.6B-Base.",
            validate=why_no_model,
            paths=True,
        )
    if kind == "config":
        return draft.with_answer("model", {"config": path})
    brought = draft.with_answer("tokenizer", None).with_answer("model", {"checkpoint": path})
    return brought.with_notice("The tokenizer is the checkpoint's own.")


def why_no_model(text: str) -> str | None:
    """Return why a text names no model, or None; a name on the Hub can only be checked when it is fetched."""
    text = text.strip()
    if not text:
        return "A path or a name is needed."
    looks_local = text.startswith((".", "/", "~")) or text.count("/") > 1 or text.endswith(".json")
    if looks_local and not Path(text).expanduser().exists():
        return f"There is no {text}."
    return None


def ask_data(draft: Draft, describe: Describe, *, show: Show, measured: bool = False) -> Draft:
    """Ask for the texts, one source after the other; each is looked at, and what was found is said. Raises Back.

    measured: each set is for itself, not for a mix that is trained on.
    """

    def ask(draft: Draft, default: Mapping[str, Any], number: int) -> tuple[dict[str, Any], str]:
        return _ask_source(draft, default, describe, number=number, show=show, measured=measured)

    return ask_sets(draft, ask, first={"path": BUILTIN}, what="texts", show=show, mixed=not measured)


def ask_sets(
    draft: Draft, ask: AskSet, *, first: Mapping[str, Any], what: str, show: Show, mixed: bool = True
) -> Draft:
    """Ask for one set after the other until there are no more, and then, of a mix, for their weights. Raises Back.

    ask: asks for one, and returns it with what was found in it. first: what is offered where there is none yet.
    """
    sets: list[dict[str, Any]] = []
    earlier = list(draft.raw.get("data") or [])
    while True:
        fresh = {"path": ""} if first in sets else first
        default = earlier[len(sets)] if len(sets) < len(earlier) else fresh
        try:
            source, found = ask(draft, default, len(sets))
            problems = draft.with_answer("data", [*sets, source]).look()[1]
            trouble = [problem for problem in problems if problem.key.startswith(f"data.{len(sets)}.")]
            if trouble:
                draft = draft.with_notice(str(trouble[0]))
                continue
            draft = draft.with_notice("")
            sets.append(source)
            more = len(sets) < len(earlier)
            begin_question(draft.with_answer("data", sets), f"{source['path']}: {found}", show=show)
            above = SCREEN_LINES + found.count("\n")
            why = MIX_WHY.format(what) if mixed else SETS_WHY
            question = f"Another set of {what}{' to mix in' if mixed else ''}?"
            if confirm(question, default=more, yes="yes", no="no, that is all", why=why, above=above):
                continue
            weigh = [_weigher(number, show) for number in range(len(sets))] if mixed and len(sets) > 1 else []
            return run_steps(weigh, draft.with_answer("data", sets))
        except Back:
            if not sets:
                raise
            sets.pop()


MIX_WHY = "Several sets of {} are read in shares that you set next. Every set has its own part kept for validation."


SETS_WHY = "Each set is measured for itself."


def _weigher(number: int, show: Show) -> Step:
    def ask(draft: Draft) -> Draft:
        source = draft.raw["data"][number]
        begin_question(draft, f"data.{number}.weight: share of the mix, relative to the others", show=show)
        text = type_in(
            f"Weight of {source['path']}?",
            default=str(source.get("weight", 1.0)),
            why="Relative: 2.0 and 1.0 make two thirds and one third of what is read.",
            about="Allowed: a number above 0.",
            validate=lambda text: None if _is_positive(text) else f"{text!r} is no number above 0.",
        )
        return draft.with_answer(f"data.{number}.weight", float(text))

    return ask


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False


def _ask_source(
    draft: Draft, default: Mapping[str, Any], describe: Describe, *, number: int, show: Show, measured: bool
) -> tuple[dict[str, Any], str]:
    """Ask for one source until it can be read; returns it and what was found."""
    trouble, path = "", str(default["path"])
    key = draft.key("data.0.path")
    while True:
        begin_question(draft.with_notice(trouble or draft.notice), f"data.{number}.path: {key.help}", show=show)
        path = type_in(
            "Which text?",
            default=path,
            why=DATA_WHY,
            about="Tab completes paths.",
            validate=lambda text: None if text.strip() else "A path or a name is needed.",
            paths=True,
        )
        source = {key: value for key, value in default.items() if path == default["path"]} | {"path": path}
        try:
            return _look_at(source | (_ask_hub_keys(source, measured=measured) if is_hub_name(path) else {}), describe)
        except LabError as error:
            trouble = str(error)
        except Back:
            trouble = ""


def _look_at(source: dict[str, Any], describe: Describe) -> tuple[dict[str, Any], str]:
    """Return the source and what is found in it; where the column is not clear, ask for it."""
    try:
        return source, describe(source)
    except LabError as error:
        if "text_column" not in str(error) or source.get("text_column"):
            raise
        column = type_in("Which column holds the text?", why=str(error), about=str(error))
        source = {**source, "text_column": column}
        return source, describe(source)


def is_hub_name(path: str) -> bool:
    """Tell whether a path names a dataset on the Hub."""
    return not path.startswith(("builtin:", ".", "/", "~")) and path.count("/") == 1 and not Path(path).exists()


def _ask_hub_keys(source: Mapping[str, Any], *, measured: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    questions = {"subset": "Its subset (empty: none)?", "text_column": "Its text column (empty: find it)?"}
    for key, question in questions.items():
        text = type_in(question, default=str(source.get(key) or ""), why=DATA_WHY)
        if text:
            found[key] = text
    if measured:
        return found | {"split": type_in("Its split?", default=str(source.get("split") or "train"), why=DATA_WHY)}
    before = bool(source.get("streaming"))
    stream = confirm("Stream it?", default=before, yes="yes", no="no, download it", why=STREAM_WHY)
    if stream or before:
        found["streaming"] = stream
    return found
