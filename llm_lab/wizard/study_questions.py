"""Studies: choose one, change its options, start it. The questions are made from the options that its file declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_lab.errors import UserError
from llm_lab.recipe.fields import Key
from llm_lab.studies.experiment_files import (
    Experiment,
    allowed_words,
    check_values,
    list_experiments,
    read_value,
    shown_value,
    written,
)

from .home import STUDY
from .questions import BackTo, Choice, Flow, Line, Pause, Question, Screen, StartStudy

START, OPTIONS = "start", "options"
WHY = (
    "A study trains or measures small models, and writes a report that explains the results with pictures. Your own "
    "are Python files in ./experiments: see docs/studies.md of LLM Lab. Listing studies runs no code; starting a "
    "study does."
)
OPTIONS_WHY = (
    "The defaults take minutes on two cores. Enter edits a line. The study gets a folder in checkpoints/. Ctrl-C "
    "stops it; to resume, start it again with the same options."
)


def study() -> Flow[None]:
    """Choose a study, change its options, and start it."""
    found = {one.name: one for one in list_experiments()}
    width = max(map(len, found), default=0) + 2
    choices = [Choice(one.name, f"{one.name:<{width}}{one.title}", one.error, one.summary) for one in found.values()]
    name = yield Question("experiment", "Which study?", choices=tuple(choices), why=WHY, screen=Screen(STUDY))
    experiment = found[name]
    answers: dict[str, Any] = {}
    keys = {key.path: key for key in experiment.option_keys()}
    for key in keys.values():
        if key.required:
            answers[key.path] = yield from _ask_option(experiment, key, answers)
    at = START
    while (at := (yield _options_question(experiment, answers, at))) != START:
        answers[at] = yield from _ask_option(experiment, keys[at], answers)
    if not (yield StartStudy(name, answers)):
        yield BackTo(OPTIONS)
    yield Pause()


def _options_question(experiment: Experiment, answers: Mapping[str, Any], at: str) -> Question:
    values = check_values(experiment, answers)
    width = max(map(len, values), default=0) + 2
    choices = [
        Choice(
            key.path,
            f"{key.path:<{width}}{shown_value(values[key.path])}",
            effect=f"{key.help}. Allowed: {allowed_words(key)}.",
        )
        for key in experiment.option_keys()
    ]
    takes = f"It takes {experiment.takes}, with the default values." if experiment.takes else ""
    lines = (Line(experiment.summary), *([Line(takes, "dim")] if takes else []))
    return Question(
        OPTIONS,
        "Start, or change an option?",
        choices=(Choice(START, "Start the study"), *choices),
        default=at,
        why=OPTIONS_WHY,
        screen=Screen(STUDY, experiment.name, lines=lines),
    )


def _ask_option(experiment: Experiment, key: Key, answers: Mapping[str, Any]) -> Flow[Any]:
    now = answers.get(key.path, None if key.required else key.default)
    usual = "" if key.required else f" The default is {shown_value(key.default) or 'none'}."
    more: dict[str, Any] = {"help": f"{key.path}: {key.help}", "why": f"{experiment.summary}{usual}"}
    more["screen"] = Screen(STUDY, experiment.name)
    text = f"Value of {key.path}?"
    if key.kind in ("bool", "choice"):
        names = {True: "yes", False: "no"} if key.kind == "bool" else {one: str(one) for one in key.choices or {}}
        choices = tuple(Choice(value, name) for value, name in names.items())
        return (yield Question(f"option.{key.path}", text, choices=choices, default=now, **more))

    def check(typed: str) -> str | None:
        try:
            read(typed)
        except UserError as error:
            return str(error)
        return None

    def read(typed: str) -> Any:
        empty = not typed.strip() and not key.required
        return key.default if empty else read_value(experiment, key.path, typed)

    shown = "" if now is None else written(now)
    asked = Question(
        f"option.{key.path}",
        text,
        "text",
        default=shown,
        allowed=f"Allowed: {allowed_words(key)}.",
        check=check,
        **more,
    )
    return read((yield asked))
