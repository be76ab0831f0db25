"""Export: a checkpoint in a format that other programs load, verified by loading it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from llm_lab.errors import Problem, leave_out
from llm_lab.estimate.compatibility import what_loads
from llm_lab.estimate.machine import Machine
from llm_lab.estimate.parameters import ModelShape, read_config_json, shape_at

from .fields import REPOSITORY, Bool, Float, Group, OneOf, option
from .parts import ModelCheckpoint
from .stage import PartialRecipe, Stage, StageRecipe, Values

NAME = "export"
ABOUT = "convert a model to Hugging Face, GGUF or a Space, verified"
FORMS = {
    "hf": "a Hugging Face folder: native if the parts allow it, else with its own modeling code",
    "gguf": "one file for llama.cpp, Ollama and LM Studio, with tokenizer and chat template",
    "space": "a folder for a Hugging Face Space: the model and a Gradio app that chats with it",
}
WEIGHT_TYPES = {
    "f32": "4 bytes per weight: exact",
    "f16": "2 bytes per weight",
    "bf16": "2 bytes per weight, with the range of f32",
    "q8_0": "about 1 byte per weight, in blocks of 32; GGUF only",
}
SMALL_PARAMETERS = 50_000_000  # 200 MB in f32


class ExportOptions(Group):
    """The format, the type of the weights, and the repository to push to."""

    to: Annotated[str, OneOf(FORMS)] = option(
        "hf",
        help="the format",
        question="Which format?",
        choices=FORMS,
        why="hf is for Python and further training; gguf is for programs that run a model. The plan shows whether the "
        "format supports the model's parts. The result is loaded again and compared with the original. space is a chat "
        "page to publish, or to run with Gradio.",
    )
    weights: Annotated[str, OneOf(WEIGHT_TYPES)] | None = option(
        help="type of the stored weights",
        question="Which type of weights?",
        choices=WEIGHT_TYPES,
        derived="hf and space: as in config.json; gguf: f16, or f32 for a small model",
    )
    tolerance: Float | None = option(
        help="maximum logit difference, relative to the largest logit",
        derived="from the type of weights and the program that loads them",
        gt=0.0,
        advanced=True,
    )
    push: str | None = option(
        help="push to this Hub repository, as owner/name",
        question="Push to which Hub repository, as owner/name (empty: none)?",
        pattern=REPOSITORY,
    )
    private: Bool = option(True, help="create the repository as private", question="A private repository?")


class ExportRecipe(StageRecipe):
    """An export: a checkpoint in a format that other programs load, verified by loading it. Nothing is trained."""

    stage: Literal["export"] = option(NAME, help="the stage to run", choices={NAME: ABOUT})
    model: ModelCheckpoint = option(..., help="the model to export: {checkpoint: a run, folder, GGUF file or Hub name}")
    export: ExportOptions = option(ExportOptions(), help="export options")


def gguf_weights(shape: ModelShape | None) -> tuple[str, str]:
    """Return the default type of the weights of a GGUF file, and the reason."""
    if shape is not None and shape.parameters < SMALL_PARAMETERS:
        return "f32", "small enough to stay exact"
    return "f16", "half the size, nearly the same results"


def derive(stage: Stage, recipe: PartialRecipe, machine: Machine, known: ModelShape | None) -> ModelShape | None:
    """Fill in what an export leaves out."""
    shape = known or shape_at(recipe.get("model.checkpoint"))
    if recipe.get("export.to") == "gguf":
        recipe.fill("export.weights", *gguf_weights(shape))
    return shape


def _format_has_the_weights(values: Values) -> Iterator[Problem]:
    form = values.get(NAME) or {}
    if form.get("to") != "gguf" and form.get("weights") == "q8_0":
        why, allowed = "a Hugging Face folder can't store this type", "f32, f16, bf16; q8_0 with export.to=gguf"
        yield Problem("export.weights", why, value="q8_0", allowed=allowed)


def _only_a_push_is_private(values: Values) -> Iterator[Problem]:
    form = values.get(NAME) or {}
    if form.get("private") is False and not form.get("push"):
        key = "export.private"
        yield Problem(key, "has no effect without export.push", value=False, fix=leave_out(key))


def _a_space_is_uploaded_by_hand(values: Values) -> Iterator[Problem]:
    form = values.get(NAME) or {}
    if form.get("push") and form.get("to") == "space":
        fix = f"Leave it out; then: hf upload {form['push']} checkpoints/NAME/space --repo-type space"
        yield Problem("export.push", "pushing a Space is not supported", value=form["push"], fix=fix)


def unsupported_formats(stages: Sequence[Mapping[str, Any]], home: Path) -> Iterator[tuple[int, Problem]]:
    """Yield (index, problem) of exports to a format that does not support the model; unknown models are skipped.

    stages: the resolved values of a pipeline's stages, or of one. home: the folder of their run folders.
    """
    for index, values in enumerate(stages):
        if (values.get(NAME) or {}).get("to") != "gguf":
            continue
        parts = _parts_of(stages, index, home)
        loads = what_loads(parts) if parts else None
        if loads is not None and loads.gguf is None:
            fix = "Use hf, which supports every model."
            yield index, Problem("export.to", loads.gguf_reason, value="gguf", fix=fix)


def _parts_of(stages: Sequence[Mapping[str, Any]], index: int, home: Path) -> Mapping[str, Any] | None:
    """Return the parts or the config.json of a stage's model, from an earlier stage if that creates the model."""
    model = stages[index].get("model") or {}
    if "checkpoint" not in model:
        return read_config_json(model["config"]) if "config" in model else model
    checkpoint = Path(model["checkpoint"])
    earlier = [at for at in range(index) if home / stages[at]["name"] == checkpoint]
    return _parts_of(stages, earlier[-1], home) if earlier else read_config_json(checkpoint)


EXPORT = Stage(
    name=NAME,
    title="Export",
    label="Export",
    about=ABOUT,
    recipe=ExportRecipe,
    why=(
        "Writes the model for transformers, llama.cpp, Ollama or a Space on the Hub, then loads it again and "
        "compares its outputs with the original."
    ),
    rules=(_format_has_the_weights, _only_a_push_is_private, _a_space_is_uploaded_by_hand),
    derive=derive,
    continues=False,
    next_step="Export it to Hugging Face, GGUF or a Space",
)
