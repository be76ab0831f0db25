"""The merge of a LoRA adapter into its base."""

from __future__ import annotations

from typing import Literal

from llm_lab.estimate.adapter_base import MERGE_TOLERANCES
from llm_lab.estimate.machine import Machine
from llm_lab.estimate.parameters import ModelShape, read_config_json, shape_at

from .fields import Float, Group, option
from .parts import ModelCheckpoint
from .stage import PartialRecipe, Stage, StageRecipe

NAME = "merge"
ABOUT = "merge a LoRA adapter into its base"


class MergeOptions(Group):
    """Merge options."""

    tolerance: Float | None = option(
        help="maximum logit difference between before and after, relative to the largest logit",
        question="Maximum relative logit difference?",
        derived="1e-4; 3e-3 for a base in float16, 2e-2 in bfloat16",
        gt=0.0,
        advanced=True,
    )


class MergeRecipe(StageRecipe):
    """The merge of a LoRA adapter into its base."""

    stage: Literal["merge"] = option(NAME, help="the stage to run", choices={NAME: ABOUT})
    model: ModelCheckpoint = option(..., help="the adapter: {checkpoint: a run or a folder}")
    merge: MergeOptions = option(MergeOptions(), help="merge options")


def derive(stage: Stage, recipe: PartialRecipe, machine: Machine, known: ModelShape | None) -> ModelShape | None:
    """Fill in the tolerance, which depends on the dtype of the base."""
    config = read_config_json(recipe.get("model.checkpoint"))
    if config:
        dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
        tolerance = MERGE_TOLERANCES.get(dtype, MERGE_TOLERANCES["float32"])
        recipe.fill("merge.tolerance", tolerance, f"the base is in {dtype}")
    return known or shape_at(recipe.get("model.checkpoint"))


MERGE = Stage(
    name=NAME,
    title="Merge LoRA",
    label="Merge",
    about=ABOUT,
    recipe=MergeRecipe,
    why=(
        "A LoRA run saves only an adapter. Merging adds it to the weights of its base: one plain model, which "
        "every tool loads."
    ),
    derive=derive,
    accepts_reward_model=True,
    takes_adapter=True,
    made="an adapter merged into its base",
    next_step="Merge the adapter into its base",
    next=("sft", "dpo", "grpo", "ppo", "eval", "export"),
)
