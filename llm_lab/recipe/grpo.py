"""GRPO: reinforcement learning that compares the answers to one prompt with each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from llm_lab.errors import Problem

from .fields import Bool, Float, Group, Int, OneOf, option
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
    sampling_temperature,
)
from .scoring import prompts_are_held_out
from .stage import Stage, Values

NAME = "grpo"
ABOUT = "reinforce outputs that beat their prompt's average (RL)"
GRPO_LOSSES = {
    "dapo": "mean over all tokens of the step; longer outputs weigh more",
    "grpo": "mean over each output, then over outputs; favors short correct outputs",
    "dr_grpo": "sum over tokens, divided by the maximum length: no length bias",
    "bnpo": "mean over the tokens of the batch",
}
REWARD_SCALES = {
    "group": "by the standard deviation over the outputs for the prompt, as in the paper",
    "batch": "by the standard deviation over the batch; more stable",
    "none": "not scaled: no bias toward easy or hard prompts",
}


class GrpoOptions(Group):
    """GRPO (Shao et al. 2024): the answers to one prompt are compared with each other."""

    num_generations: Int = option(
        4,
        help="outputs per prompt; together they are a group, within which rewards are compared",
        question="Outputs per prompt (the group)?",
        ge=2,
        why="Group Relative Policy Optimization learns from differences within a group: a group whose outputs"
        " all get the same reward teaches nothing. More outputs give more of these differences, and take "
        "proportionally more time. 4 to 16 is usual.",
    )
    max_completion_length: Int | None = max_completion_length()
    temperature: Float = sampling_temperature()
    beta: Float = option(
        0.0,
        help="weight of the KL penalty to the reference model (the model it starts from); 0: no penalty, and no second "
        "model in memory",
        question="Weight of the KL penalty?",
        ge=0.0,
        why="0 is usual where a rule checks the outputs. With a reward model, 0.01 to 0.1 keeps the model "
        "from exploiting it, at the cost of a second model in memory.",
    )
    epsilon: Float = option(
        0.2,
        help="clip ratios at 1 ± epsilon",
        question="Clip range (epsilon)?",
        gt=0.0,
        lt=1.0,
        advanced=True,
        why="It limits how far one update may change the probability of a token. With one update on each batch of "
        "outputs it has almost no effect.",
    )
    num_iterations: Int = option(
        1,
        help="updates on each batch of outputs",
        question="Updates on each batch of outputs?",
        ge=1,
        advanced=True,
        why="Sampling is the slow part; several updates on the same outputs use them more often, but the "
        "outputs no longer come from the model that learns from them.",
    )
    loss_type: Annotated[str, OneOf(GRPO_LOSSES)] = option(
        "dapo",
        help="how tokens are averaged",
        question="How are tokens averaged?",
        choices=GRPO_LOSSES,
        advanced=True,
        why="It decides how much long and short outputs count. dapo is a good default; grpo is the loss of the paper.",
    )
    scale_rewards: Annotated[str, OneOf(REWARD_SCALES)] = option(
        "group",
        help="how rewards are scaled, after subtracting the mean of their group",
        question="How are rewards scaled?",
        choices=REWARD_SCALES,
        advanced=True,
        why="Scaled by group, prompts on which almost all outputs agree count as much as others. Without "
        "scaling, they count less.",
    )
    mask_truncated_completions: Bool = option(
        False,
        help="exclude truncated outputs from the loss",
        question="Exclude truncated outputs from the loss?",
        advanced=True,
    )
    on_collapse: Annotated[str, OneOf(ON_COLLAPSE)] = on_collapse(
        "the entropy collapses, the KL explodes (measured only with beta above 0), most outputs are truncated, or all "
        "outputs for each prompt get the same reward"
    )


class GrpoRecipe(RolloutRecipe):
    """GRPO: generate answers, score them, and reinforce those that beat the others of their group."""

    stage: Literal["grpo"] = option(NAME, help="the stage to run", choices={NAME: ABOUT})
    grpo: GrpoOptions = option(GrpoOptions(), help="options of GRPO")


def _groups_fill_a_step(values: Values) -> Iterator[Problem]:
    group, train = (values.get(NAME) or {}).get("num_generations"), values.get("train") or {}
    rows, batches = train.get("per_device_train_batch_size"), train.get("gradient_accumulation_steps")
    if group and rows and batches and (rows * batches) % group:
        allowed = [n for n in range(1, 65) if (n * batches) % group == 0][:6]
        yield Problem(
            "train.per_device_train_batch_size",
            f"the {rows * batches} outputs of a step are not a multiple of grpo.num_generations = {group}",
            value=rows,
            allowed=", ".join(map(str, allowed)) + ", ...",
            fix=f"Try {min(allowed, key=lambda n: abs(n - rows))}.",
        )


GRPO = Stage(
    name=NAME,
    title="GRPO",
    label="GRPO",
    about=ABOUT,
    recipe=GrpoRecipe,
    why=(
        "GRPO (group relative policy optimization): reinforcement learning. Several answers to each prompt are "
        "sampled and scored; those that score above the average of their group become more probable."
    ),
    rules=(
        *POST_TRAINING_RULES,
        _groups_fill_a_step,
        answers_fit_the_context(NAME),
        no_adapter_dropout(NAME),
        prompts_are_held_out,
    ),
    derive=derive_post_training,
    estimate=estimate,
    trains=True,
    examples="prompt",
    made="trained by reinforcement learning (GRPO)",
    learning_rate_scale=0.001,
    rows_per_example="grpo.num_generations",
    compares_probabilities=True,
    estimates_reference=lambda values: values[NAME]["beta"] > 0,
    next_step="GRPO: reinforce outputs that beat their prompt's average",
    next=("dpo", "ppo", "eval", "export"),
)
