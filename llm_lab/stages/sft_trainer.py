"""TRL's SFTTrainer as one of ours: batches with labels that are known, and the loss on held-out examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch.nn import functional as F
from trl import SFTConfig, SFTTrainer

from llm_lab.data.mixing import ExampleMix
from llm_lab.evaluation.score import generating
from llm_lab.hf.conversations import IGNORED, Encoded
from llm_lab.training.measure import autocast
from llm_lab.training.ordered_rows import dataset_in_order
from llm_lab.training.trainer import LabRun

Batch = dict[str, torch.Tensor]


class LabSFTTrainer(LabRun, SFTTrainer):
    """SFTTrainer for one run folder. The loss is the mean over the step's trained tokens, however they are batched."""

    tells: ClassVar[dict[str, str]] = {"entropy": "entropy", "mean_token_accuracy": "token_accuracy"}


def make_trainer(*, arguments: Callable[..., Any], order: ExampleMix, tokenizer: Any, **common: Any) -> LabSFTTrainer:
    """Return the trainer for rows (each one or more examples) in the order of a mix."""
    collate = partial(collate_examples, pad_token_id=tokenizer.pad_token_id)
    options = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    return LabSFTTrainer(
        args=arguments(kind=SFTConfig, **options),
        train_dataset=dataset_in_order(order, flatten),
        data_collator=lambda rows: collate([unflatten(row) for row in rows]),
        processing_class=tokenizer,
        **common,
    )


def flatten(row: Sequence[Encoded]) -> dict[str, list[int]]:
    """Return a row's examples end to end."""
    return {
        "input_ids": [token for example in row for token in example.input_ids],
        "labels": [label for example in row for label in first_unlearnt(example)],
        "seq_lengths": [len(example.input_ids) for example in row],
    }


def first_unlearnt(example: Encoded) -> list[int]:
    """Return an example's labels; the first token is never one: before it stands another example, or nothing."""
    return [IGNORED, *example.labels[1:]]


def unflatten(row: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Return a row's tensors, with positions that begin anew at each example."""
    positions = torch.cat([torch.arange(length) for length in row["seq_lengths"]])
    tensors = {key: torch.tensor(row[key]) for key in ("input_ids", "labels")}
    return tensors | {"position_ids": positions, "examples": torch.tensor(len(row["seq_lengths"]))}


def collate_examples(rows: Sequence[dict[str, torch.Tensor]], pad_token_id: int) -> Batch:
    """Return input_ids and labels (rows, longest), padded on the right, -100 where nothing is learnt.

    With one example a row: an attention_mask. With several: position_ids from which attention sees where examples
    begin, and no mask, which would hide that; what pads a row is an example of its own.
    """

    def padded(name: str, fill: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=fill)

    batch = {"input_ids": padded("input_ids", pad_token_id), "labels": padded("labels", IGNORED)}
    if all(int(row["examples"]) == 1 for row in rows):
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        batch["attention_mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        return batch
    width = batch["input_ids"].shape[1]
    positions = [torch.cat([row["position_ids"], torch.arange(width - len(row["position_ids"]))]) for row in rows]
    return batch | {"position_ids": torch.stack(positions)}


@torch.no_grad()
def measure_loss(
    model: Any,
    examples: Sequence[Encoded],
    collate: Callable[[Sequence[dict[str, torch.Tensor]]], Batch],
    *,
    rows: int,
    device: str,
    dtype: str,
) -> dict[str, float]:
    """Return eval_loss: nats for each token that would be trained on, over held-out examples."""
    nats = torch.zeros((), dtype=torch.float64)
    count = 0
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].input_ids))
    with generating(model):
        for start in range(0, len(order), rows):
            some = [unflatten(flatten([examples[i]])) for i in order[start : start + rows]]
            batch = {key: value.to(device) for key, value in collate(some).items()}
            labels = batch.pop("labels")[:, 1:]
            with autocast(device, dtype):
                logits = model(**batch, use_cache=False).logits[:, :-1]
            kept = labels != IGNORED
            nats += F.cross_entropy(logits[kept].float(), labels[kept], reduction="sum").double().cpu()
            count += int(kept.sum())
    return {"eval_loss": float(nats) / max(1, count)}
