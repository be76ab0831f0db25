"""A reward model: learn from preferences to score answers."""

from __future__ import annotations

from typing import Literal

from .fields import Float, Group, option
from .post_training import POST_TRAINING_RULES, ExampleValidation, TuneRecipe, derive_post_training, estimate
from .stage import Stage

NAME = "reward"
ABOUT = "train a reward model on preference pairs"


class RewardOptions(Group):
    """Options of reward models, which learn to give the better answer the higher score (Bradley & Terry)."""

    center_rewards_coefficient: Float = option(
        0.01,
        help="weight of a penalty that keeps the mean score near 0 (Eisenstein et al. 2023)",
        question="Weight of the penalty that keeps the mean score near 0?",
        ge=0.0,
        advanced=True,
    )


class RewardRecipe(TuneRecipe):
    """A reward model: learn from preferences to score answers."""

    stage: Literal["reward"] = option(NAME, help="the stage to run", choices={NAME: ABOUT})
    validation: ExampleValidation = option(ExampleValidation(), help="the validation examples")
    reward: RewardOptions = option(RewardOptions(), help="options of the reward model")


REWARD = Stage(
    name=NAME,
    title="Reward model",
    label="Reward model",
    about=ABOUT,
    recipe=RewardRecipe,
    why=(
        "A reward model reads a prompt and an answer and returns a number. It learns from pairs of a better and a "
        "worse answer (the Bradley-Terry loss). GRPO and PPO can train against it where no rule can check "
        "answers."
    ),
    rules=POST_TRAINING_RULES,
    derive=derive_post_training,
    estimate=estimate,
    trains=True,
    examples="preference",
    makes="reward model",
    accepts_reward_model=True,
    made="trained on preference pairs, to score outputs",
    learning_rate_scale=0.01,
    epochs=1.0,
    next_step="Train a reward model from it",
    next=("grpo", "ppo"),
)
