"""Supervised fine-tuning (SFT): learn to answer, from conversations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from llm_lab.errors import Problem

from .fields import Bool, Group, option
from .post_training import POST_TRAINING_RULES, ExampleValidation, TalkRecipe, derive_post_training, estimate
from .scoring import prompts_are_held_out
from .stage import Stage, Values

NAME = "sft"
ABOUT = "supervised fine-tuning on conversations"


class SftOptions(Group):
    """What SFT learns from an example."""

    assistant_only_loss: Bool = option(
        True,
        help="compute the loss on the assistant's tokens only",
        question="Train on the assistant's tokens only?",
        why="The other tokens are context: a model that also learns to write the questions spends capacity on it.",
    )
    packing: Bool = option(
        False,
        help="pack several examples into one sequence, separated by the attention mask",
        question="Pack several examples into one sequence?",
        why="Less padding for short examples. Attention never crosses from one example into another.",
        advanced=True,
    )


class SftRecipe(TalkRecipe):
    """SFT: learn to answer, from conversations."""

    stage: Literal["sft"] = option(NAME, help="the stage to run", choices={NAME: ABOUT})
    validation: ExampleValidation = option(ExampleValidation(), help="the validation examples")
    sft: SftOptions = option(SftOptions(), help="options of SFT")


def _kernel_keeps_packed_examples_apart(values: Values) -> Iterator[Problem]:
    kernel = (values.get("train") or {}).get("attn_implementation")
    if (values.get(NAME) or {}).get("packing") and kernel == "flash_attention_2":
        yield Problem(
            "sft.packing",
            "FlashAttention does not keep the examples of a sequence apart in batches of several sequences, so each "
            "would see those before it",
            value=True,
            fix="Leave out train.attn_implementation: sdpa, flex_attention and eager keep them apart.",
        )


SFT = Stage(
    name=NAME,
    title="Fine-tune (SFT)",
    label="SFT",
    about=ABOUT,
    recipe=SftRecipe,
    why=(
        "SFT (supervised fine-tuning): the model learns to answer, from conversations that show it. Only the "
        "assistant's tokens are trained. All weights, or a LoRA adapter (low-rank adaptation: small matrices "
        "added to the frozen weights)."
    ),
    rules=(*POST_TRAINING_RULES, prompts_are_held_out, _kernel_keeps_packed_examples_apart),
    derive=derive_post_training,
    estimate=estimate,
    trains=True,
    examples="conversation",
    made="fine-tuned on conversations (SFT)",
    loss_unit="nats per token",
    learning_rate_scale=0.02,
    epochs=3.0,
    next_step="Fine-tune it to answer (SFT)",
    next=("dpo", "grpo", "ppo", "reward", "eval", "export"),
)
