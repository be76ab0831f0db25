"""Which stages there are, and pipelines of them."""

from __future__ import annotations

from typing import Any, Literal

from .evaluation import EvalRecipe
from .exporting import ExportRecipe
from .fields import Group, Int, option
from .post_training import DpoRecipe, GrpoRecipe, MergeRecipe, PpoRecipe, RewardRecipe, SftRecipe
from .schema import DEVICES, PretrainRecipe, StageRecipe
from .scoring import Score

STAGE_RECIPES: dict[str, type[StageRecipe]] = {
    "pretrain": PretrainRecipe,
    "sft": SftRecipe,
    "reward": RewardRecipe,
    "dpo": DpoRecipe,
    "grpo": GrpoRecipe,
    "ppo": PpoRecipe,
    "merge": MergeRecipe,
    "eval": EvalRecipe,
    "export": ExportRecipe,
}


class PipelineRecipe(Group):
    """Stages one after the other; a stage's model defaults to the result of the stage before it."""

    name: str | None = option(
        help="the pipeline's folder: checkpoints/<name>/",
        derived="the recipe file's name",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=100,
    )
    seed: Int = option(1337, help="handed to each stage that has none", ge=0, le=2**32 - 1)
    device: Literal[tuple(DEVICES)] = option("cuda", help="handed to each stage that has none", choices=DEVICES)
    score: Score | None = option(help="handed to each stage that has none: the same held-out prompts for all")
    stages: tuple[dict[str, Any], ...] = option(..., help="the stages, each a recipe of its own", min_length=1)
