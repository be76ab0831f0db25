"""Supervised fine-tuning on conversations or texts: setup -> build -> fit."""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch.nn import functional as F
from trl import SFTConfig, SFTTrainer

from llm_lab.data.examples import Example
from llm_lab.data.mixing import ExampleMix
from llm_lab.data.split import split_examples
from llm_lab.errors import Problem, UserError
from llm_lab.evaluation.perplexity import context_length, loss_figures
from llm_lab.evaluation.run_measures import answer_measures
from llm_lab.evaluation.score import generating
from llm_lab.evaluation.self_eval import joint_fingerprint
from llm_lab.events import Listener, Notice
from llm_lab.hf.conversations import IGNORED, TEMPLATED, Encoded, encode_sequences, encode_text, is_templated
from llm_lab.hf.load import quiet_libraries
from llm_lab.recipe.eval import EvalOptions
from llm_lab.recipe.sft import SftRecipe
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.processes import first_process_first, shares, sum_over_processes
from llm_lab.runs.recipe_paths import NAME_DATA
from llm_lab.training.loop import Result, require_same_data
from llm_lab.training.loss import autocast, detach_large_head, summed_cross_entropy
from llm_lab.training.pretrain_trainer import keeps_documents_apart
from llm_lab.training.trainer import LabTrainerMixin
from llm_lab.training.tuned_run import (
    Evaluation,
    base_of,
    dataset_in_order,
    derive_max_steps,
    drop_right_padding,
    encode_each,
    encode_examples,
    fit,
    load_model_to_train,
    open_data,
    open_example_sets,
    order_examples,
    record_parent,
)

Row = list[Encoded]  # the examples of one row of a batch: one, or several if packed
Batch = dict[str, torch.Tensor]


def run(recipe: SftRecipe, folder: RunFolder, listener: Listener, *, resume: bool = False) -> Result:
    """Fine-tune a model on conversations into the run folder. recipe: resolved."""
    quiet_libraries()
    with first_process_first():
        examples = open_data(recipe, folder, listener)
        model, tokenizer = load_model_to_train(recipe, folder, listener)
    if recipe.sft.packing:
        require_separate_examples(model)
    record_parent(recipe, folder, model)
    encode_all = partial(encode, recipe, tokenizer=tokenizer)
    encoded = encode_examples(examples, encode_all, listener, noun="example", max_length=recipe.train.max_length)
    held_out = encode_all(examples.validation[: recipe.validation.max_examples])[0]
    if recipe.sft.packing:
        sets = [pack(rows, recipe.train.max_length) for rows in encoded]
        count = sum(map(len, sets))
        listener(Notice(f"packed into {count:,} sequences of at most {recipe.train.max_length:,} tokens"))
    else:
        sets = [[[row] for row in rows] for rows in encoded]
    recipe = derive_max_steps(recipe, sum(map(len, sets)), folder, listener)
    order = order_examples(recipe, examples, sets, listener)
    measures = answer_measures(recipe, folder, listener, model, tokenizer, examples.validation)
    if held_out:
        collate = partial(collate_rows, pad_token_id=tokenizer.pad_token_id)
        train = recipe.train
        rows = train.per_device_train_batch_size
        validate = partial(sum_nats, model, held_out, collate, rows=rows, device=recipe.device, dtype=train.dtype)

        def measure_loss(step: int) -> dict[str, float]:
            nats, tokens = validate()
            return {"eval_loss": nats / tokens}

        measures.insert(0, measure_loss)
    return fit(
        recipe,
        folder,
        listener,
        model,
        tokenizer,
        make_trainer=partial(make_trainer, order=order, tokenizer=tokenizer),
        evaluation=Evaluation(folder, measures),
        resume=resume,
    )


def encode(
    recipe: SftRecipe, examples: Sequence[Example], tokenizer: Any, max_length: int | None = None
) -> tuple[list[Encoded], Counter[str]]:
    """Return the examples as sequences of tokens, and how many were cut, changed or left out, by reason.

    max_length: in tokens; default: the recipe's.
    """
    length = max_length or recipe.train.max_length

    def encode_one(example: Example, counts: Counter[str]) -> Iterator[Encoded]:
        if example.text is not None:
            counts[TEMPLATED] += is_templated(tokenizer, example.text)
            sequences = [encode_text(tokenizer, example.text, max_length=length)]
        else:
            only = recipe.sft.assistant_only_loss
            found = encode_sequences(tokenizer, example.messages, assistant_only=only, max_length=length)
            counts.update(found.remarks)
            sequences = found.sequences
        for sequence in sequences:
            # The first token has no context to predict it from.
            if not any(sequence.labels_mask[1:]):
                counts["no tokens in the loss within train.max_length: left out"] += 1
                continue
            counts[f"longer than {length:,} tokens: the end was cut off"] += sequence.truncated
            yield sequence

    found, counts = encode_each(examples, encode_one)
    return found, +counts


def require_separate_examples(model: Any) -> None:
    """Raise UserError if packed examples would influence each other in this model."""
    if not keeps_documents_apart(model):
        why = (
            f"{type(base_of(model)).__name__} can't keep packed examples apart: it ignores positions that restart, so "
            "each example would see those before it in its sequence"
        )
        fix = "Leave the key out, or use another model or another train.attn_implementation."
        raise UserError(Problem("sft.packing", why, value=True, fix=fix))


def pack(rows: Sequence[Encoded], max_length: int) -> list[Row]:
    """Return rows of examples that fit into max_length tokens together; every example is in exactly one row.

    Best-fit decreasing (Ding et al. 2024, arXiv 2404.10830): no example is cut.
    """
    groups: list[Row] = []
    room: list[tuple[int, int]] = []  # (tokens left, index of the group), sorted
    for index in sorted(range(len(rows)), key=lambda i: (-len(rows[i].input_ids), i)):
        size = len(rows[index].input_ids)
        at = bisect.bisect_left(room, (size, -1))
        if at < len(room):
            left, group = room.pop(at)
        else:
            left, group = max_length, len(groups)
            groups.append([])
        groups[group].append(rows[index])
        bisect.insort(room, (left - size, group))
    return groups


class LabSFTTrainer(LabTrainerMixin, SFTTrainer):
    """SFTTrainer for one run folder. The loss is the mean over a step's trained tokens, for any batches."""

    loss_is_cross_entropy = True

    logged: ClassVar[dict[str, str]] = {"entropy": "entropy", "mean_token_accuracy": "token_accuracy"}


def make_trainer(*, arguments: Callable[..., Any], order: ExampleMix, tokenizer: Any, **common: Any) -> LabSFTTrainer:
    """Return the trainer for rows of one or more examples, in the order of a mix."""
    collate = partial(collate_rows, pad_token_id=tokenizer.pad_token_id)
    drop_right_padding(common["model"])
    options = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    return LabSFTTrainer(
        args=arguments(kind=SFTConfig, **options),
        train_dataset=dataset_in_order(order, flatten),
        data_collator=lambda rows: collate([unflatten(row) for row in rows]),
        processing_class=tokenizer,
        **common,
    )


def flatten(row: Sequence[Encoded]) -> dict[str, list[int]]:
    """Return the examples of a row concatenated."""
    return {
        "input_ids": [token for example in row for token in example.input_ids],
        # The first token of an example is never a label: another example, or nothing, is before it.
        "labels": [label for example in row for label in (IGNORED, *example.labels[1:])],
        "seq_lengths": [len(example.input_ids) for example in row],
    }


def unflatten(row: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Return the tensors of a row, with positions that restart at each example."""
    positions = torch.cat([torch.arange(length) for length in row["seq_lengths"]])
    tensors = {key: torch.tensor(row[key]) for key in ("input_ids", "labels")}
    return tensors | {"position_ids": positions, "examples": torch.tensor(len(row["seq_lengths"]))}


def collate_rows(rows: Sequence[dict[str, torch.Tensor]], pad_token_id: int) -> Batch:
    """Return input_ids and labels (rows, longest), padded on the right; labels are -100 for masked tokens.

    Rows of one example each get an attention_mask. Packed rows get position_ids, which separate the examples in
    attention, and no mask, because transformers ignores such positions if there is a mask; the padding of a row counts
    as a separate example.
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
def sum_nats(
    model: Any,
    examples: Sequence[Encoded],
    collate: Callable[[Sequence[dict[str, torch.Tensor]]], Batch],
    *,
    rows: int,
    device: str,
    dtype: str,
) -> tuple[float, int]:
    """Return the sum of nats over the trained tokens of examples, and the number of these tokens.

    With several processes, each computes its share of the batches.
    """
    totals = torch.zeros(2, dtype=torch.float64)
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].input_ids))
    with generating(model):
        for number, counts in shares(math.ceil(len(order) / rows)):
            start = number * rows
            some = [unflatten(flatten([examples[i]])) for i in order[start : start + rows]]
            batch = {key: value.to(device) for key, value in collate(some).items()}
            labels = batch.pop("labels")[:, 1:]
            kept = labels != IGNORED
            with detach_large_head(model, batch["input_ids"].numel()) as head, autocast(device, dtype):
                logits = model(**batch, use_cache=False).logits[:, :-1]
                some_nats = None if head is None else summed_cross_entropy(logits[kept], head, labels[kept])
            if some_nats is None:
                some_nats = F.cross_entropy(logits[kept].float(), labels[kept], reduction="sum")
            totals += counts * torch.tensor([some_nats.item(), kept.sum().item()], dtype=torch.float64)
    nats, count = sum_over_processes(totals, device).tolist()
    return nats, int(count)


def measure_held_out(
    run: RunFolder,
    recipe: SftRecipe,
    model: Any,
    tokenizer: Any,
    options: EvalOptions,
    *,
    device: str,
    dtype: str,
) -> dict[str, Any] | None:
    """Return the loss on the examples that a run held out, as a row of an evaluation, without bits per byte.

    Measured as the run did, so that the loss equals its eval_loss. None if no held-out example is left and the run
    scored prompts. Raises UserError if it scored none, if the data has changed, or if eval.max_tokens is set, which has
    no effect on conversations.
    """
    if options.max_tokens is not None:
        why = "it applies to plain text only; the conversations that a run held out are all measured"
        raise UserError(Problem("eval.max_tokens", why, value=options.max_tokens, fix="Leave it out."))
    sources = open_example_sets(recipe)
    require_same_data(sources, run)
    splits = split_examples(sources, fraction=recipe.validation.fraction, take=recipe.validation.from_)
    examples = [example for split in splits for example in split.validation][: recipe.validation.max_examples]
    length = context_length(model, options.max_length or recipe.train.max_length)
    encoded = encode(recipe, examples, tokenizer, length)[0]
    if not encoded and recipe.score is not None:
        return None
    if not encoded:
        why = f"{run.path} had too few examples to hold any out"
        raise UserError(Problem("data", why, fix=NAME_DATA))
    rows = options.per_device_eval_batch_size or recipe.train.per_device_train_batch_size
    collate = partial(collate_rows, pad_token_id=tokenizer.pad_token_id)
    nats, tokens = sum_nats(model, encoded, collate, rows=rows, device=device, dtype=dtype)
    figures = loss_figures(nats, tokens)
    measured = {"documents": len(encoded), "tokens": tokens, "whole": True, "max_length": length}
    named = {"path": f"validation of {run.path}", "fingerprint": joint_fingerprint(sources), "own": True}
    return named | figures | measured
