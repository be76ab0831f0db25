"""The quick start: text files and a size, then the plan and the training; everything else follows from the text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from math import inf, log2
from pathlib import Path
from typing import Any

from llm_lab.errors import LabError, Problem
from llm_lab.estimate.cost import Estimate
from llm_lab.estimate.formatting import about, count, plural, size
from llm_lab.estimate.machine import Machine, find_machine
from llm_lab.recipe.fields import flatten
from llm_lab.recipe.files import PLAIN_TEXT
from llm_lab.recipe.parts import SIZES
from llm_lab.recipe.pretrain import PRETRAIN, TOKENS_PER_PARAMETER
from llm_lab.recipe.resolve import Resolved, diagnose
from llm_lab.runs.folder import slug

from .data_questions import READING, TEXTS, can_ask_columns, look_at_texts, recognize
from .draft import Draft
from .home import AFTER, QUICK
from .places import HEAD_BYTES, best_text, places_in, recent_data
from .questions import BackTo, Choice, Flow, Line, Next, Plan, Question, Screen, StartRun, Wait
from .review import START, YES, settings_and_start
from .training_runs import run_page

CPU_SECONDS = 150  # to train the smallest size on a CPU; larger ones take as many steps, and longer
CPU_ROWS, CPU_EVAL_TOKENS = 8, 16_384
FEWEST_STEPS, USEFUL_STEPS, MOST_CPU_STEPS = 150, 1_000, 3_000
MOST_EPOCHS = 10  # for a small text: with more, the validation loss rises
BPE_FROM_BYTES = 100_000  # a vocabulary of whole words needs that much text
NANO_BPE = 1024  # in the same time, this gives better text than bytes
BYTES_PER_ENTRY = 200  # bytes of text per vocabulary entry
SMALL_TEXT_BYTES = 50_000
LEAST_BYTES, LEAST_BYTES_IN_A_MIX = 1_500, 4_000  # a tenth of it must fill a sequence of tokens
STREAMED_FROM_BYTES = 2**30
LONGEST_DAYS = 2
FEWEST_PER_PARAMETER = 0.05  # tokens per parameter; with fewer, a smaller size writes better text
BUILT_IN_BYTES = 3_838_707  # size of builtin:stories
LONGER = 2
MOST_WORDS, LONGEST_PROMPT = 4, 40
TEXT_WHY = (
    "The list has the text files (.txt, .md) and the tables with a text column (.jsonl, .csv, .parquet) of this "
    "folder and two levels below. Enter takes the current line. To take several, select each with Space, then press "
    "Enter (with --plain: type their numbers). Type to filter the list, or type a path or a name on the Hub "
    "(owner/name). One MiB is a good start; with less than 100 KiB, the model mostly repeats the text."
)
SIZE_WHY = (
    "A larger model writes better text, needs more text and time, and more memory. A size is a width and a depth; "
    "its parameters also depend on the vocabulary, which here follows from the text. The number of steps follows "
    "from the size, the text and this machine. A time with 'about' is based on a measurement on this machine, a time "
    "with 'roughly' on typical speeds; a few steps are measured when the training starts."
)
PLAN_WHY = (
    "Ctrl-C stops the training at any time and saves it; the home screen then offers to resume it. Change settings "
    "opens all settings of this run, with explanations. The line 'model' names the model's parts: how it encodes "
    "positions, normalizes, attends and transforms; Design a model, under Design and train, explains each of them."
)


def quick_start() -> Flow[Next | None]:
    """Ask for texts and a size, show the plan, and train."""
    paths = yield text_question()
    draft = Draft({"stage": PRETRAIN.name, "name": name_of(paths)}, find_machine(), QUICK)
    sources = []
    for path in paths:
        yield Wait(READING)
        source, _ = yield from recognize(draft, {"path": path}, "text")
        sources.append(source)
    found = _with_sizes(sources)
    picked = yield size_question(found, draft.machine)
    times = 1
    while True:
        raw = recipe_of(picked, found, draft.machine, times=times)
        draft = Draft(raw, draft.machine, QUICK, automatic=_automatic(raw, times))
        resolved, _ = draft.look()
        assert resolved is not None
        wanted = yield plan_question(resolved, picked, times)
        if wanted != "longer":
            break
        times *= LONGER
    if wanted == "settings":
        return (yield from settings_and_start(draft, run_page(PRETRAIN.name)))
    if wanted == "back":
        yield BackTo("quick.size")
    if not (yield StartRun(raw)):
        yield BackTo("quick.text" if _why_not_texts(paths) else "quick.size")
    return Next(AFTER, {"name": raw["name"]})


def _automatic(raw: dict[str, Any], times: int) -> dict[str, tuple[Any, str]]:
    """Return the part of a recipe that the user did not answer."""
    reason = "for this text, size and machine"
    chosen = ("stage", "model.size", *([] if times == 1 else ["train.max_steps"]))
    paths = {path: (value, reason) for path, value in flatten(raw) if path not in chosen}
    return {path: found for path, found in paths.items() if not path.startswith("data.") or path.endswith(".weight")}


def text_question() -> Question:
    """Return the question for the texts: the files of the folder, the built-in stories, or a typed path."""
    best, lines = best_text(places_in("", "texts")), []
    if best is None:
        lines.append(Line(f"No text file in {os.getcwd()} yet.", "warn"))
        lines.append(Line("Copy one here, type its path, or try the built-in stories first.", "dim"))
    return Question(
        "quick.text",
        "Which text?",
        "paths",
        choices=(*recent_data("text"), Choice(TEXTS, "7,000 short stories, 3.7 MiB, built in")),
        default=[best or TEXTS],
        why=TEXT_WHY,
        check=_why_not_texts,
        wait=READING,
        screen=Screen(QUICK, lines=tuple(lines)),
        look_for="texts",
    )


def _why_not_texts(paths: Sequence[str]) -> str | None:
    """Return why texts can't be read, or None. Unrecognized columns are not a reason: they are asked for next."""
    for path in paths:
        if not path.strip():
            return "A path is required."
        try:
            look_at_texts({"path": path})
        except LabError as error:
            if not can_ask_columns({"path": path}, "text", error):
                return _without_key(error, path)
        number, least = _bytes_of(path), LEAST_BYTES if len(paths) == 1 else LEAST_BYTES_IN_A_MIX
        if number is not None and number < least:
            return f"{path} has {number:,} bytes of text; at least {least:,} are needed to train and to validate."
    return None


def _without_key(error: LabError, path: str) -> str:
    """Return the problem of a path without naming recipe keys, because this page shows none."""
    problems = [
        replace(problem, key=path, value=Problem.value)
        if isinstance(problem, Problem) and problem.has_value and str(problem.value) == path
        else problem
        for problem in error.problems
    ]
    return "\n".join(map(str, problems))


def name_of(paths: Sequence[str]) -> str:
    """Return the name of a run on these texts: that of the first one, without its extensions."""
    first = paths[0].removeprefix("builtin:").rstrip("/")
    return slug(Path(first).name.split(".")[0] or Path(first).resolve().name, "my-text")


def _with_sizes(sources: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], int | None]]:
    """Return each source with its bytes; None if unknown."""
    return [(source, _bytes_of(source["path"])) for source in sources]


def _bytes_of(path: str) -> int | None:
    if path == TEXTS:
        return BUILT_IN_BYTES
    local = Path(path).expanduser()
    if local.is_file():
        return local.stat().st_size
    found = [place.bytes for place in places_in(path, "texts") if place.bytes] if local.is_dir() else []
    return sum(found) or None


def recipe_of(
    name: str, texts: Sequence[tuple[dict[str, Any], int | None]], machine: Machine, *, times: int = 1
) -> dict[str, Any]:
    """Return the recipe of a size for these texts. times: how much longer than usual it trains."""
    known = [number for _, number in texts if number]
    whole = sum(known) if len(known) == len(texts) else None
    data = [dict(source) for source, _ in texts]
    for (_, number), source in zip(texts, data, strict=True):
        if len(data) > 1 and whole and number:
            source["weight"] = round(number / min(known), 2)  # so that each is read equally often
        if number and number > STREAMED_FROM_BYTES:
            source["streaming"] = True
    device = machine.best_device
    raw: dict[str, Any] = {
        "stage": PRETRAIN.name,
        "name": name_of([source["path"] for source in data]),
        "device": device,
        "model": {"size": name, "qk_norm": True},  # docs/duels.md, "Defaults"
        "tokenizer": _tokenizer(name, whole),
        "data": data,
        "scheduler": {"name": "linear", "min_ratio": 0.0},
    }
    if words := first_words(data[0]["path"]):  # without it, a text of one document never shows how a text begins
        raw["samples"] = {"prompts": [words]}
    if device == "cpu":
        raw["model"]["rope_theta"] = 1000.0  # for short rows: docs/duels.md, "Defaults"
        raw["validation"] = {"max_tokens": CPU_EVAL_TOKENS}
    train = _batch(raw, whole, machine)
    return {**raw, "train": {**train, "max_steps": times * _steps({**raw, "train": train}, whole, machine)}}


def first_words(path: str) -> str:
    """Return the first words of a plain text file, from which samples continue; "" if there are none."""
    local = Path(path).expanduser()
    if not path.endswith(PLAIN_TEXT) or not local.is_file():
        return ""
    with local.open("rb") as file:
        head = file.read(HEAD_BYTES).decode("utf-8", errors="ignore")
    line = next((line for line in head.splitlines() if any(map(str.isalnum, line))), "")
    return " ".join(line.split()[:MOST_WORDS])[:LONGEST_PROMPT].strip()


def _tokenizer(name: str, whole: int | None) -> Any:
    """Return the tokenizer for this much text: a BPE with a vocabulary that it can fill, else bytes."""
    entries = SIZES[name].tokenizer
    entries = NANO_BPE if isinstance(entries, str) else entries
    if whole is None:
        return {"bpe": entries}
    if whole < BPE_FROM_BYTES:
        return "bytes"
    fitting = max(512, whole // BYTES_PER_ENTRY // 256 * 256)
    return {"bpe": min(entries, fitting)}


def _batch(raw: dict[str, Any], whole: int | None, machine: Machine) -> dict[str, int]:
    """Return the batch: small on a CPU, and on a GPU if a large one would read a small text in too few steps."""
    if raw["device"] == "cpu":
        return {"per_device_train_batch_size": CPU_ROWS}
    resolved = _resolved(raw, machine)
    most = MOST_EPOCHS * tokens_in(raw["tokenizer"], whole) / USEFUL_STEPS if whole else inf
    if resolved.estimate.tokens_per_step <= most:
        return {}
    rows = max(CPU_ROWS, int(most / resolved.values["train"]["max_length"]))
    rows = min(rows, resolved.values["train"]["per_device_train_batch_size"])
    return {"per_device_train_batch_size": rows, "gradient_accumulation_steps": 1}


def _steps(raw: dict[str, Any], whole: int | None, machine: Machine) -> int:
    """Return how many steps train a model well in minutes on a CPU, without harmful numbers of epochs."""
    cost = _resolved(raw, machine).estimate
    most: float = TOKENS_PER_PARAMETER * (cost.parameters or 0) // cost.tokens_per_step
    if raw["device"] == "cpu":
        first = next(iter(SIZES))
        smallest = {**raw, "model": {**raw["model"], "size": first}, "tokenizer": _tokenizer(first, whole)}
        seconds = _resolved(smallest, machine).estimate.seconds_by_part["training"] / FEWEST_STEPS
        most = min(most, MOST_CPU_STEPS, round(CPU_SECONDS / seconds, -2) or 100)
    if whole is not None:
        most = min(most, round(MOST_EPOCHS * tokens_in(raw["tokenizer"], whole) / cost.tokens_per_step))
    return int(max(FEWEST_STEPS, most))


def _resolved(raw: dict[str, Any], machine: Machine) -> Resolved:
    steps = {"max_steps": FEWEST_STEPS, **raw.get("train", {})}
    resolved, problems = diagnose({**raw, "train": steps}, machine=machine)
    assert resolved is not None, problems
    return resolved


def tokens_in(tokenizer: Any, whole: int) -> float:
    """Return roughly how many tokens of a text are trained on; the rest is held out."""
    return 0.9 * whole / bytes_per_token(tokenizer)


def bytes_per_token(tokenizer: Any) -> float:
    """Return roughly how many bytes a token has, measured on English text with vocabularies of 512 to 4,096 entries."""
    return 1.0 if tokenizer == "bytes" else 0.43 * log2(tokenizer["bpe"]) - 1.9


def size_question(texts: Sequence[tuple[dict[str, Any], int | None]], machine: Machine) -> Question:
    """Return the question for the size of the model, with what each size needs on this machine."""
    whole = sum(number or 0 for _, number in texts)
    paths = ", ".join(source["path"] for source, _ in texts)
    lines = [Line(f"{paths}: {size(whole)} of text" if whole else paths, "dim")]
    if 0 < whole < SMALL_TEXT_BYTES:
        lines.append(Line("That is little text: the model will mostly repeat it. 100 KiB or more is better.", "warn"))
    plans = {name: _resolved(recipe_of(name, texts, machine), machine) for name in SIZES}
    measured = max((plan.estimate for plan in plans.values()), key=lambda cost: abs(cost.unpredicted_bytes))
    rows = [_size_choice(name, plan, whole, measured) for name, plan in plans.items()]
    return Question(
        "quick.size",
        "How large should the model be?",
        choices=tuple(rows),
        why=SIZE_WHY,
        screen=Screen(QUICK, paths, lines=tuple(lines)),
    )


def _size_choice(name: str, resolved: Resolved, whole: int, measured: Estimate) -> Choice:
    cost = resolved.estimate
    seconds = cost.wall_seconds or 0.0
    text = f"{name:<8}{count(cost.parameters or 0):>6} parameters  {size(cost.comparable_memory_bytes(measured)):>8}"
    text = f"{text}  {_time(resolved, seconds)}"
    why_not = None
    if not cost.fits:
        why_not = "not enough memory"
    elif seconds > LONGEST_DAYS * 86_400:
        why_not = "too slow here"
    effect = f"{describe_training(resolved, whole)} Time {_basis(resolved)}."
    if cost.tokens < FEWEST_PER_PARAMETER * (cost.parameters or 0):
        effect += " Few tokens for this many parameters: a smaller size writes better text."
    return Choice(name, text, why_not, effect)


def describe_training(resolved: Resolved, whole: int) -> str:
    """Return a sentence with the steps of a recipe, and how often they read the text."""
    cost, steps = resolved.estimate, resolved.values["train"]["max_steps"]
    text = f"{steps:,} steps of {cost.tokens_per_step:,} tokens"
    if not whole:
        return f"{text}."
    epochs = cost.tokens / tokens_in(resolved.values["tokenizer"], whole)
    if epochs < 0.95:
        return f"{text}: they read {100 * epochs:.0f} % of the text once."
    return f"{text}: about {plural(round(epochs) if epochs >= 2 else round(epochs, 1), 'epoch')} of the text."


def _time(resolved: Resolved, seconds: float) -> str:
    """Return an estimated time: about 3 min, or roughly 3 min if the speed was not measured on this machine."""
    return about(seconds) if resolved.estimate.measurement else about(seconds).replace("about", "roughly", 1)


def _basis(resolved: Resolved) -> str:
    return "measured on this machine" if resolved.estimate.measurement else "roughly estimated from typical speeds"


def plan_question(resolved: Resolved, name: str, times: int) -> Question:
    """Return the plan of a size with the question of whether to start; the first line leads to another size."""
    seconds, steps = resolved.estimate.wall_seconds or 0.0, resolved.values["train"]["max_steps"]
    return Question(
        f"quick.start.{name}",
        START,
        choices=(
            Choice("start", f"{YES}: {_time(resolved, seconds)}"),
            Choice("longer", f"Train longer: {LONGER * steps:,} steps, {_time(resolved, LONGER * seconds)}"),
            Choice("settings", "Change settings first"),
            Choice("back", "No, back to the sizes"),
        ),
        why=PLAN_WHY,
        screen=Screen(panel=Plan(resolved)),
    )
