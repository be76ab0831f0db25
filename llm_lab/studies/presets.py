"""Grids that are derived from a recipe, for common comparisons."""

from __future__ import annotations

from llm_lab.errors import Problem, UserError, did_you_mean, one_of
from llm_lab.recipe.fields import groups_of, value_at
from llm_lab.recipe.optimizers import OPTIMIZERS
from llm_lab.recipe.parts import POSITIONS
from llm_lab.recipe.resolve import Resolved
from llm_lab.recipe.validate import find_key

LORA_RANKS = (4, 8, 16, 32, 64)
RATE_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
PRESETS = {
    "learning-rate": "from a quarter to four times the recipe's rate, five values",
    "lora-rank": "LoRA adapters of rank 4 to 64",
    "optimizer": "every optimizer of the stage, each with its default rate",
    "position-embedding": "every position embedding, for a new model",
    "seeds": "the recipe as it is: how much results vary by seed",
}


def require_preset(name: str) -> None:
    """Raise UserError if there is no preset with this name."""
    if name not in PRESETS:
        fix = did_you_mean(name, PRESETS)
        raise UserError(Problem("--preset", "there is no such preset", name, one_of(list(PRESETS)), fix))


def preset_grid(name: str, resolved: Resolved) -> dict[str, tuple[str, ...]]:
    """Return the grid of a preset, derived from the resolved recipe. UserError if the stage does not have its key."""
    stage, values = resolved.stage, resolved.values
    if name == "seeds":
        return {}
    if name == "learning-rate" and (rate := value_at(values, "optimizer.learning_rate")):
        return {"optimizer.learning_rate": tuple(f"{factor * rate:.3g}" for factor in RATE_FACTORS)}
    if name == "lora-rank" and "lora" in type(resolved.recipe).model_fields:
        return {"lora.r": tuple(map(str, LORA_RANKS))}
    if name == "optimizer" and (key := find_key(stage.recipe, "optimizer")):
        known = [group.model_fields["name"].default for group in groups_of(key.info)]
        usable = [one for one in OPTIMIZERS if one in known and not (one == "adamw_8bit" and values["device"] == "cpu")]
        return {"optimizer.name": tuple(usable)}
    if name == "position-embedding" and "position_embedding" in (values.get("model") or {}):
        return {"model.position_embedding": tuple(POSITIONS)}
    raise UserError(
        Problem("preset", _why_not(name, stage.name), value=name, fix="Write the keys and values: key=v1,v2.")
    )


def _why_not(name: str, stage: str) -> str:
    """Return why a preset does not apply to a stage."""
    lacks = {"lora-rank": "LoRA", "position-embedding": "new model", "optimizer": "choice of an optimizer"}
    return f"a recipe of the stage {stage} has no {lacks.get(name, 'learning rate')}"
