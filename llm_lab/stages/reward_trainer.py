"""TRL's RewardTrainer as one of ours, its batches, and how right a judge is on held-out preferences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch.nn import functional as F
from trl import RewardConfig, RewardTrainer

from llm_lab.recipe.reward import RewardRecipe
from llm_lab.rewards.classifier import is_encoder
from llm_lab.training.measure import autocast
from llm_lab.training.ordered_rows import dataset_in_order
from llm_lab.training.trainer import LabRun

# A preference as TRL knows it: chosen_ids and rejected_ids. Encoders' pairs bring their segments too.
Pair = Mapping[str, Sequence[int]]
SEGMENTS = "token_type_ids"


def collate_pairs(pairs: Sequence[Pair], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Return a batch (2 x pairs, length), padded on the right: first all chosen, then all rejected, as TRL wants."""
    rows = [
        {"input_ids": pair[f"{side}_ids"], SEGMENTS: pair.get(f"{side}_{SEGMENTS}")}
        for side in ("chosen", "rejected")
        for pair in pairs
    ]
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, fill: int) -> torch.Tensor:
        return torch.tensor([[*row[name], *[fill] * (longest - len(row[name]))] for row in rows])

    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    batch = {
        "input_ids": padded("input_ids", pad_token_id),
        "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
    }
    if rows[0][SEGMENTS] is not None:
        batch[SEGMENTS] = padded(SEGMENTS, 0)
    return batch


def score_batch(model: Any, batch: Mapping[str, Any], config: Any, device: str, dtype: str) -> Any:
    """Return the model's output with its scores in float32; autocast inside."""
    known = {key: value for key, value in batch.items() if key != "use_cache" or not is_encoder(config)}
    with autocast(device, dtype):
        output = model(**known)
    output.logits = output.logits.float()
    return output


class LabRewardTrainer(LabRun, RewardTrainer):
    """RewardTrainer for one run folder. Loss: -log sigmoid(score of chosen - score of rejected).

    TRL's own autocast is off: ours leaves the loss in float32, where small margins count.
    """

    tells: ClassVar[dict[str, str]] = {"accuracy": "accuracy", "margin": "margin", "mean_reward": "mean_reward"}

    def __init__(self, *, dtype: str, **kwargs: Any):
        super().__init__(**kwargs)
        self._dtype = dtype

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        def scored(**batch: Any) -> Any:
            return score_batch(model, batch, self.model.config, self.args.device.type, self._dtype)

        return super().compute_loss(scored, inputs, return_outputs, num_items_in_batch)


def make_trainer(
    *,
    recipe: RewardRecipe,
    arguments: Callable[..., Any],
    order: Any,
    tokenizer: Any,
    pad_token_id: int,
    **common: Any,
) -> LabRewardTrainer:
    """Return the trainer for pairs in the order of a mix."""
    return LabRewardTrainer(
        dtype=recipe.train.dtype,
        args=arguments(
            kind=RewardConfig,
            bf16=False,  # autocast is ours
            max_length=None,  # what is too long was cut, and counted
            disable_dropout=False,  # it is off, but for the adapter's
            center_rewards_coefficient=recipe.reward.center_rewards_coefficient or None,
        ),
        data_collator=partial(collate_pairs, pad_token_id=pad_token_id),
        train_dataset=dataset_in_order(order),
        processing_class=tokenizer,
        **common,
    )


@torch.no_grad()
def measure_pairs(
    model: Any, pairs: Sequence[Pair], *, pad_token_id: int, rows: int, device: str, dtype: str
) -> dict[str, float]:
    """Return eval_loss, eval_accuracy (share of pairs whose chosen answer scores higher) and eval_margin.

    With several processes each takes its share of the batches.
    """
    rank, world = 0, 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    totals = torch.zeros(4, dtype=torch.float64)
    for number, start in enumerate(range(0, len(pairs), rows)):
        if number % world != rank:
            continue
        batch = collate_pairs(pairs[start : start + rows], pad_token_id)
        moved = {key: value.to(device) for key, value in batch.items()}
        output = score_batch(model, {**moved, "use_cache": False}, model.config, device, dtype)
        chosen, rejected = output.logits.squeeze(-1).cpu().double().chunk(2)
        margins = chosen - rejected
        totals += torch.stack(
            [
                -F.logsigmoid(margins).sum(),
                (margins > 0).double().sum(),
                margins.sum(),
                torch.tensor(len(margins), dtype=torch.float64),
            ]
        )
    if world > 1:
        totals = totals.to(device)
        torch.distributed.all_reduce(totals)
    loss, right, margin, count = totals.tolist()
    return {"eval_loss": loss / count, "eval_accuracy": right / count, "eval_margin": margin / count}
