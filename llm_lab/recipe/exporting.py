"""The recipe of an export: the form that others load, and where it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from llm_lab.errors import Problem

from .fields import Bool, Float, Group, option
from .parts import ModelCheckpoint
from .schema import STAGES, StageRecipe

FORMS = {
    "hf": "a Hugging Face folder: native where the parts allow, with its own code otherwise",
    "gguf": "one file for llama.cpp, Ollama and LM Studio, with tokenizer and chat template",
}
WEIGHT_TYPES = {
    "f32": "4 bytes a weight: exact",
    "f16": "2 bytes a weight",
    "bf16": "2 bytes a weight, with the range of f32",
    "q8_0": "about 1 byte a weight, in blocks of 32; GGUF only",
}


class ExportOptions(Group):
    """The form, the weights, and where it goes."""

    to: Literal[tuple(FORMS)] = option(
        "hf",
        help="the form",
        question="Which form?",
        choices=FORMS,
        why="hf is for Python and for training on; gguf is for programs that only talk. What each form can hold of "
        "the model's parts is said before; what was written is loaded again and compared.",
    )
    weights: Literal[tuple(WEIGHT_TYPES)] | None = option(
        help="how the weights are kept",
        question="How are the weights kept?",
        choices=WEIGHT_TYPES,
        derived="hf: what config.json says; gguf: f16, or f32 of a small model",
    )
    tolerance: Float | None = option(
        help="largest difference of logits that is accepted, relative to their size",
        derived="by the weights and the program that loads them",
        gt=0.0,
        advanced=True,
    )
    push: str | None = option(
        help="a repository on the Hub that it is sent to, as owner/name",
        question="Send it to the Hub, as owner/name (empty: no)?",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$",
    )
    private: Bool = option(True, help="a repository that is made is private", question="A private repository?")


class ExportRecipe(StageRecipe):
    """An export: a checkpoint in a form for others to load, proven by loading it. Nothing is trained."""

    stage: Literal["export"] = option("export", help="what is done", choices={"export": STAGES["export"]})
    model: ModelCheckpoint = option(..., help="what is exported: {checkpoint: a run, a folder or a Hub name}")
    export: ExportOptions = option(ExportOptions(), help="the form, and where it goes")


Values = Mapping[str, Any]


def _weights_fit_the_form(values: Values) -> Iterator[Problem]:
    form = values.get("export") or {}
    if form.get("to") == "hf" and form.get("weights") == "q8_0":
        why, allowed = "a Hugging Face folder has no such weights", "f32, f16, bf16; q8_0 with export.to=gguf"
        yield Problem("export.weights", why, value="q8_0", allowed=allowed)


def _only_what_is_sent_is_private(values: Values) -> Iterator[Problem]:
    form = values.get("export") or {}
    if form.get("private") is False and not form.get("push"):
        yield Problem("export.private", "does nothing without export.push", value=False, fix="Leave it out.")


EXPORT_RULES: tuple[Callable[[Values], Iterator[Problem]], ...] = (
    _weights_fit_the_form,
    _only_what_is_sent_is_private,
)
