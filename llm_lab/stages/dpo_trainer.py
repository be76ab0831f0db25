"""TRL's DPOTrainer as one of ours, and its loss on held-out preferences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from llm_lab.data.mixing import ExampleMix
from llm_lab.evaluation.score import generating
from llm_lab.recipe.dpo import DpoRecipe
from llm_lab.training.ordered_rows import dataset_in_order
from llm_lab.training.trainer import LabRun

TOLD = {
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "logps/chosen": "logps_chosen",
    "logps/rejected": "logps_rejected",
}


class LabDPOTrainer(LabRun, DPOTrainer):
    """DPOTrainer for one run folder, on preferences that are tokens already."""

    tells: ClassVar[dict[str, str]] = TOLD

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset


def make_trainer(
    *,
    recipe: DpoRecipe,
    arguments: Callable[..., Any],
    order: ExampleMix,
    tokenizer: Any,
    reference: Any | None,
    **common: Any,
) -> LabDPOTrainer:
    """Return the trainer for preferences in the order of a mix."""
    options, losses, weights = recipe.dpo, [recipe.dpo.loss_type], [1.0]
    if options.sft_weight:
        losses, weights = [*losses, "sft"], [*weights, options.sft_weight]
    return LabDPOTrainer(
        args=arguments(
            kind=DPOConfig,
            beta=options.beta,
            loss_type=losses,
            loss_weights=weights,
            label_smoothing=options.label_smoothing,
            max_length=None,  # cut before, and counted
            disable_dropout=True,
        ),
        ref_model=reference,
        train_dataset=dataset_in_order(order),
        processing_class=tokenizer,
        **common,
    )


@torch.no_grad()
def measure_preferences(trainer: LabDPOTrainer, pairs: Sequence[dict[str, list[int]]]) -> dict[str, float]:
    """Return eval_loss, eval_accuracy (share of pairs whose chosen answer gained more) and eval_margin."""
    totals = dict.fromkeys(("eval_loss", "eval_accuracy", "eval_margin"), 0.0)
    rows = trainer.args.per_device_train_batch_size
    kept = trainer._metrics["eval"]
    with generating(trainer.model):
        for start in range(0, len(pairs), rows):
            some = list(pairs[start : start + rows])
            kept.clear()
            with trainer.accelerator.autocast():
                loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(trainer.data_collator(some)))
            totals["eval_loss"] += loss.item() * len(some)
            totals["eval_accuracy"] += kept["rewards/accuracies"][-1] * len(some)
            totals["eval_margin"] += kept["rewards/margins"][-1] * len(some)
    kept.clear()
    return {name: value / len(pairs) for name, value in totals.items()}
