"""PPO: reinforcement learning with a value model (critic)."""

from __future__ import annotations

from typing import Annotated, Literal

from llm_lab.estimate.machine import Machine
from llm_lab.estimate.parameters import ModelShape

from .fields import Derived, Float, Group, Int, OneOf, option
from .post_training import (
    ON_COLLAPSE,
    POST_TRAINING_RULES,
    RolloutRecipe,
    answers_fit_the_context,
    derive_post_training,
    estimate,
    max_completion_length,
    no_adapter_dropout,
    on_collapse,
    rounded,
    sampling_temperature,
)
from .scoring import prompts_are_held_out
from .stage import PartialRecipe, Stage

NAME = "ppo"
ABOUT = "RL with a value model (critic)"
CRITIC_SCALE = 5  # times the model's learning rate


class PpoOptions(Group):
    """PPO (Schulman et al. 2017), as in RLHF: a reward at the end, a KL penalty at every token, a critic."""

    max_completion_length: Int | None = max_completion_length()
    temperature: Float = sampling_temperature()
    kl_coef: Float = option(
        0.05,
        help="per-token KL penalty to the reference model (the model it starts from)",
        question="KL coefficient?",
        ge=0.0,
        why="Proximal Policy Optimization subtracts it, times the distance to the reference model, from the "
        "reward of every token. Too small, and the model exploits the reward; too large, and it learns "
        "nothing. 0.01 to 0.2 is usual.",
    )
    gamma: Float = option(
        1.0,
        help="discount factor for future rewards",
        question="Discount factor (gamma)?",
        ge=0.0,
        le=1.0,
        advanced=True,
    )
    lam: Float = option(
        0.95,
        help="lambda of generalized advantage estimation (GAE): 1 relies on rewards, 0 on the critic",
        question="Lambda of GAE?",
        ge=0.0,
        le=1.0,
        advanced=True,
        why="Values near 1 are noisy and unbiased; smaller ones trust the critic, which has to learn first.",
    )
    cliprange: Float = option(
        0.2,
        help="clip ratios at 1 ± cliprange",
        question="Clip range?",
        gt=0.0,
        lt=1.0,
        advanced=True,
        why="It limits how far the updates on one batch of outputs may change the probability of a token.",
    )
    cliprange_value: Float = option(
        0.2,
        help="maximum change of the critic's estimates on a batch of outputs",
        question="Clip range of the critic?",
        gt=0.0,
        advanced=True,
    )
    num_ppo_epochs: Int = option(
        2,
        help="epochs over each batch of sampled outputs (a rollout)",
        question="Epochs over each batch of outputs?",
        ge=1,
        why="Sampling is the slow part; more epochs use the outputs more often. With too many, the model "
        "moves so far that clipping stops the updates.",
    )
    num_mini_batches: Int = option(1, help="updates per epoch", question="Updates per epoch?", ge=1, advanced=True)
    critic: str | None = option(
        help="what the critic starts from: a language model or a reward model (a run, a folder, or a name on the Hub)",
        question="Which model does the critic start from (empty: a copy of the model)?",
        derived="a copy of the model, with a new head",
        min_length=1,
        advanced=True,
        names="model",
        why="The critic estimates the reward that is still to come. A reward model is a good start: it has "
        "learned to score outputs.",
    )
    critic_learning_rate: Derived[Float] = option(
        help="learning rate of the critic",
        question="Learning rate of the critic?",
        derived="5 times the model's",
        gt=0.0,
        advanced=True,
    )
    missing_eos_penalty: Float = option(
        0.0,
        help="subtracted from the reward of a truncated output",
        question="Penalty for a truncated output?",
        ge=0.0,
        advanced=True,
    )
    on_collapse: Annotated[str, OneOf(ON_COLLAPSE)] = on_collapse(
        "the entropy collapses, the KL explodes (measured only with kl_coef above 0), or most outputs are truncated"
    )


class PpoRecipe(RolloutRecipe):
    """PPO: generate answers, score them, and reinforce those that beat the critic's prediction."""

    stage: Literal["ppo"] = option(NAME, help="the stage to run", choices={NAME: ABOUT})
    ppo: PpoOptions = option(PpoOptions(), help="options of PPO")


def derive(stage: Stage, recipe: PartialRecipe, machine: Machine, known: ModelShape | None) -> ModelShape | None:
    """Fill in what a PPO recipe leaves out."""
    shape = derive_post_training(stage, recipe, machine, known)
    rate = rounded(CRITIC_SCALE * recipe.get("optimizer.learning_rate"))
    recipe.fill("ppo.critic_learning_rate", rate, f"{CRITIC_SCALE} times the model's")
    return shape


PPO = Stage(
    name=NAME,
    title="PPO",
    label="PPO",
    about=ABOUT,
    recipe=PpoRecipe,
    why=(
        "PPO (proximal policy optimization): reinforcement learning with a second model, the critic, which "
        "predicts the reward; answers that do better than predicted become more probable. Needs about twice the "
        "memory of GRPO."
    ),
    rules=(
        *POST_TRAINING_RULES,
        answers_fit_the_context(NAME),
        no_adapter_dropout(NAME),
        prompts_are_held_out,
    ),
    derive=derive,
    estimate=estimate,
    trains=True,
    examples="prompt",
    made="trained by reinforcement learning (PPO)",
    learning_rate_scale=0.001,
    compares_probabilities=True,
    estimates_reference=lambda values: True,
    has_critic=True,
    next_step="PPO: RL with a value model (critic)",
    next=("dpo", "grpo", "eval", "export"),
)
