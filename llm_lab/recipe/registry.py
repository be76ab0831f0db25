"""All stages, pipelines of stages, and the JSON Schema of both."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from llm_lab.errors import first_line

from .dpo import DPO
from .eval import EVAL
from .export import EXPORT
from .fields import NAME, Group, Int, OneOf, flatten, groups_of, option
from .grpo import GRPO
from .merge import MERGE
from .parts import SIZES
from .ppo import PPO
from .pretrain import PRETRAIN
from .reward import REWARD
from .scoring import Score
from .sft import SFT
from .stage import DEVICES, Stage, Values

BUILT_IN = (PRETRAIN, SFT, REWARD, DPO, GRPO, PPO, MERGE, EVAL, EXPORT)
STAGES: dict[str, Stage] = {stage.name: stage for stage in BUILT_IN}
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")


def register(stage: Stage) -> None:
    """Add a stage of your own; recipes can then name it. Raises ValueError if the name is taken."""
    if STAGES.get(stage.name, stage) != stage:
        raise ValueError(f"there is already a stage named {stage.name}")
    STAGES[stage.name] = stage


@functools.cache
def load_installed_stages() -> tuple[str, ...]:
    """Import the packages that add stages: those with an entry point in the group "llm_lab.stages".

    Returns an error message for each that can't be imported. This takes about 30 ms, so it is called only if a stage is
    not known, or if all stages are listed.
    """
    from importlib.metadata import entry_points

    problems = []
    for entry in entry_points(group="llm_lab.stages"):
        try:
            entry.load()
        except Exception as error:  # code of another package may raise anything
            problems.append(f"{entry.value}: {type(error).__name__}: {first_line(error)}")
    return tuple(problems)


def stage_of(values: Values) -> Stage | None:
    """Return the stage that a recipe or a run.json names; None if there is no such stage."""
    name = values.get("stage")
    if isinstance(name, str) and name not in STAGES:
        load_installed_stages()
    return STAGES.get(str(name))


class PipelineRecipe(Group):
    """Stages in order. A stage's model defaults to the result of the stage before it."""

    name: str | None = option(
        help="name of the pipeline; its folder is checkpoints/<name>/",
        derived="the recipe file's name",
        pattern=NAME,
        max_length=100,
    )
    seed: Int = option(1337, help="`seed` for all stages that do not set their own", ge=0, le=2**32 - 1)
    device: Annotated[str, OneOf(DEVICES)] = option(
        "cuda", help="`device` for all stages that do not set their own", choices=DEVICES
    )
    score: Score | None = option(
        help="`score` for all stages that do not set their own: the same held-out prompts for all"
    )
    stages: tuple[dict[str, Any], ...] = option(..., help="the stages; each is a recipe", min_length=1)


def expand_model(raw: Values) -> dict[str, Any]:
    """Expand `model: NAME` to a checkpoint; in pretraining, also to a preset size, or a config without weights."""
    result = dict(raw)
    model, stage = result.get("model"), stage_of(raw)
    if isinstance(model, str) and stage and not stage.from_scratch:
        result["model"] = {"checkpoint": model}
    elif isinstance(model, str) and model in SIZES and not Path(model).exists():
        result["model"] = {"size": model}
    elif isinstance(model, str):
        folder = Path(model).expanduser()
        has_weights = any((folder / sub / file).exists() for sub in ("", "model") for file in WEIGHT_FILES)
        result["model"] = {"config" if folder.exists() and not has_weights else "checkpoint": model}
    return result


def named_in(values: Values, *kinds: str) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, value) of keys that name a model, a config, a tokenizer or a function.

    kinds: as in `option(names=...)`; default: all kinds. Outer keys come before inner ones.
    """
    stage = stage_of(values)
    if stage is None:
        return
    for path, value in sorted(flatten(values), key=lambda item: item[0].count(".")):
        kind = _names(stage.recipe, path.split(".")) if isinstance(value, str) else None
        if kind and (not kinds or kind in kinds):
            yield path, value


def _names(group: type[Group], steps: list[str]) -> str | None:
    """Return what a key refers to. Members of a union that share a key agree on it."""
    groups: list[type[Group]] = [group]
    kind = None
    for step in (step for step in steps if not step.isdigit()):
        info = next(
            (info for one in groups for name, info in one.model_fields.items() if step == (info.alias or name)), None
        )
        if info is None:
            return None
        extra = info.json_schema_extra
        kind, groups = extra.get("names") if isinstance(extra, dict) else None, groups_of(info)
    return kind if isinstance(kind, str) else None


SHORTHANDS = {"model", "forgetting"}  # groups that a recipe may also write as text: see expand_model


def _or_text(schema: Values) -> dict[str, Any]:
    """Return the schema of a key that may also be text."""
    notes = {key: value for key, value in schema.items() if key in ("description", "default", "title")}
    rest = {key: value for key, value in schema.items() if key not in notes}
    return {"anyOf": [*(rest["anyOf"] if [*rest] == ["anyOf"] else [rest]), {"type": "string"}], **notes}


def json_schema() -> dict[str, Any]:
    """Return a JSON Schema of recipes: one stage, or a pipeline of stages."""
    load_installed_stages()
    members = [stage.recipe.model_json_schema(by_alias=True) for stage in STAGES.values()]
    definitions: dict[str, Any] = {}
    for schema in members:
        definitions |= schema.pop("$defs", {})
        schema["required"] = ["stage", *schema.get("required", ())]
        for key in SHORTHANDS & schema["properties"].keys():
            schema["properties"][key] = _or_text(schema["properties"][key])
    pipeline = PipelineRecipe.model_json_schema(by_alias=True)
    definitions |= pipeline.pop("$defs", {})
    # In a pipeline, a stage without a model starts from an earlier one.
    inner = [schema | {"required": [key for key in schema["required"] if key != "model"]} for schema in members]
    pipeline["properties"]["stages"] |= {"minItems": 1, "items": {"anyOf": inner}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "LLM Lab recipe",
        "anyOf": [*members, pipeline],
        "$defs": definitions,
    }
