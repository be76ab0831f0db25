"""Direct preference optimization (DPO): prefer the better answer, without a reward model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from llm_lab.errors import Problem

from .fields import Float, Group, OneOf, option
from .post_training import (
    POST_TRAINING_RULES,
    ExampleValidation,
    TalkRecipe,
    derive_post_training,
    estimate,
    no_adapter_dropout,
)
from .scoring import prompts_must_be_named
from .stage import Stage, Values

NAME = "dpo"
ABOUT = "optimize for preferred answers, from preference pairs"
DPO_LOSSES = {
    "sigmoid": "logistic loss on the margin, as in the paper",
    "ipo": "a squared loss with a fixed target margin; overfits less",
    "hinge": "no loss beyond a margin of 1",
    "robust": "corrects for wrong preferences; their share is label_smoothing",
}


class DpoOptions(Group):
    """DPO (Rafailov et al. 2023)."""

    beta: Float = option(
        0.1,
        help="how strongly the model is kept close to the reference model",
        question="Beta?",
        gt=0.0,
        why="Small values let the model move far from the reference, large ones keep it close. 0.1 is usual; "
        "0.01 to 0.5 is the range worth trying. If outputs get long or odd, raise it.",
    )
    loss_type: Annotated[str, OneOf(DPO_LOSSES)] = option(
        "sigmoid",
        help="the loss",
        question="Which loss?",
        choices=DPO_LOSSES,
        why="All of them raise the probability of the chosen answer over that of the rejected one. sigmoid is"
        " the usual one; ipo where the pairs are few and repeated; robust where some preferences are "
        "wrong.",
    )
    label_smoothing: Float = option(
        0.0,
        help="share of the preferences that may be wrong",
        question="Share of the preferences that may be wrong?",
        ge=0.0,
        lt=0.5,
        when={"dpo.loss_type": ("robust",)},  # TRL ignores it for the other losses
        advanced=True,
    )
    sft_weight: Float = option(
        0.0,
        help="weight of an added SFT loss on the chosen answers, which keeps their probability up",
        question="Weight of an added SFT loss?",
        why="DPO alone can lower the probability of both answers. 0.1 to 1 keeps the chosen one up (Pang et al. 2024).",
        ge=0.0,
    )
    reference: str | None = option(
        help="the reference model, which the trained model is kept close to",
        question="Which reference model (empty: the model it starts from)?",
        derived="the model it starts from",
        min_length=1,
        advanced=True,
        names="model",
    )


class DpoRecipe(TalkRecipe):
    """DPO: prefer the better answer, directly from preferences."""

    stage: Literal["dpo"] = option(NAME, help="the stage to run", choices={NAME: ABOUT})
    validation: ExampleValidation = option(ExampleValidation(), help="the validation examples")
    dpo: DpoOptions = option(DpoOptions(), help="options of DPO")


def _robust_loss_has_a_share(values: Values) -> Iterator[Problem]:
    dpo = values.get(NAME) or {}
    if dpo.get("loss_type") == "robust" and not dpo.get("label_smoothing"):
        why = "the robust loss requires a share of wrong preferences above 0"
        yield Problem("dpo.label_smoothing", why, value=0.0, allowed="above 0, below 0.5", fix="Try 0.1.")


DPO = Stage(
    name=NAME,
    title="DPO",
    label="DPO",
    about=ABOUT,
    recipe=DpoRecipe,
    why=(
        "DPO (direct preference optimization): learns from pairs of a better and a worse answer without a reward "
        "model: the better one becomes more probable, compared with a frozen copy of the model."
    ),
    rules=(*POST_TRAINING_RULES, no_adapter_dropout(NAME), prompts_must_be_named(NAME), _robust_loss_has_a_share),
    derive=derive_post_training,
    estimate=estimate,
    trains=True,
    examples="preference",
    made="tuned to preferences (DPO)",
    learning_rate_scale=0.001,
    epochs=1.0,
    compares_probabilities=True,
    estimates_reference=lambda values: True,
    next_step="DPO: optimize for preferred answers",
    next=("grpo", "ppo", "eval", "export"),
)
