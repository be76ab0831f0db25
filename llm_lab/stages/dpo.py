"""Direct preference optimization: learn from preference pairs, without a reward model. setup -> build -> fit."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from llm_lab.data.examples import Example
from llm_lab.data.mixing import ExampleMix
from llm_lab.errors import Problem, UserError
from llm_lab.evaluation.run_measures import answer_measures
from llm_lab.evaluation.score import generating
from llm_lab.events import Listener
from llm_lab.hf.conversations import encode_answer
from llm_lab.hf.load import load_model, quiet_libraries
from llm_lab.recipe.dpo import DpoRecipe
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.processes import first_process_first
from llm_lab.training.loop import Result, find_local
from llm_lab.training.sharding import shard
from llm_lab.training.trainer import LabTrainerMixin
from llm_lab.training.tuned_run import (
    Evaluation,
    dataset_in_order,
    derive_max_steps,
    drop_right_padding,
    encode_each,
    encode_examples,
    fit,
    load_model_to_train,
    open_data,
    order_examples,
    record_parent,
)

Pair = dict[str, list[int]]  # prompt_ids, chosen_ids, rejected_ids


def run(recipe: DpoRecipe, folder: RunFolder, listener: Listener, *, resume: bool = False) -> Result:
    """Fine-tune a model on preference pairs into the run folder. recipe: resolved."""
    quiet_libraries()
    with first_process_first():
        examples = open_data(recipe, folder, listener)
        model, tokenizer = load_model_to_train(recipe, folder, listener)
        reference = load_reference(recipe, model, tokenizer)
    record_parent(recipe, folder, model)
    length = recipe.train.max_length
    encode_all = partial(encode, tokenizer=tokenizer, max_length=length)
    sets = encode_examples(examples, encode_all, listener, noun="preference", max_length=length)
    held_out = encode_all(examples.validation[: recipe.validation.max_examples])[0]
    recipe = derive_max_steps(recipe, sum(map(len, sets)), folder, listener)
    order = order_examples(recipe, examples, sets, listener)
    measures = answer_measures(recipe, folder, listener, model, tokenizer, examples.validation)
    trainers: list[LabDPOTrainer] = []
    if held_out:
        # Measuring needs the trainer, which holds the reference model and is built later, in fit().
        measures.insert(0, lambda step: measure_preferences(trainers[0], held_out))

    def make(**common: Any) -> LabDPOTrainer:
        trainers.append(make_trainer(recipe=recipe, order=order, tokenizer=tokenizer, reference=reference, **common))
        return trainers[0]

    evaluation = Evaluation(folder, measures)
    return fit(recipe, folder, listener, model, tokenizer, make_trainer=make, evaluation=evaluation, resume=resume)


def load_reference(recipe: DpoRecipe, model: Any, tokenizer: Any) -> Any | None:
    """Return the reference model, or None if it is the trained model without its adapter.

    The initial model is copied instead of loaded again, because its embeddings may have new rows.
    """
    if recipe.dpo.reference is not None:
        loaded = load_model(
            find_local(recipe.dpo.reference),
            device=recipe.device,
            attn_implementation=recipe.train.attn_implementation,
            merge=True,
            key="dpo.reference",
        )
        rows = loaded.get_input_embeddings().weight.shape[0]
        if rows < len(tokenizer):
            why = f"its vocabulary has {rows:,} entries, the model's tokenizer has {len(tokenizer):,}"
            fix = "Use a model with the same tokenizer."
            raise UserError(Problem("dpo.reference", why, value=recipe.dpo.reference, fix=fix))
        return loaded.requires_grad_(False)
    if recipe.lora is not None:
        return None
    return copy.deepcopy(model).eval().requires_grad_(False)


def encode(examples: Sequence[Example], *, tokenizer: Any, max_length: int) -> tuple[list[Pair], Counter[str]]:
    """Return preference pairs as the tokens that chat and SFT would use, and how many were cut or left out."""

    def encode_one(example: Example, counts: Counter[str]) -> Iterator[Pair]:
        assert example.chosen is not None  # a preference has both
        assert example.rejected is not None
        prompt, chosen = encode_answer(tokenizer, example.prompt, example.chosen)
        _, rejected = encode_answer(tokenizer, example.prompt, example.rejected)
        room = max_length - len(prompt)
        if room < 1:
            counts[f"the prompt alone is longer than {max_length:,} tokens: left out"] += 1
            return
        if chosen[:room] == rejected[:room]:
            counts["both answers become the same tokens: left out"] += 1
            return
        if len(chosen) > room or len(rejected) > room:
            counts[f"longer than {max_length:,} tokens: the end of an answer was cut off"] += 1
        yield {"prompt_ids": prompt, "chosen_ids": chosen[:room], "rejected_ids": rejected[:room]}

    return encode_each(examples, encode_one)


class LabDPOTrainer(LabTrainerMixin, DPOTrainer):
    """DPOTrainer for one run folder, on pairs that are already tokenized."""

    logged: ClassVar[dict[str, str]] = {
        "rewards/accuracies": "accuracy",
        "rewards/margins": "margin",
        "rewards/chosen": "reward_chosen",
        "rewards/rejected": "reward_rejected",
        "logps/chosen": "logps_chosen",
        "logps/rejected": "logps_rejected",
    }

    tokens_per_answer = 1.0  # average over the chosen answers of a step
    sft_weight = 0.0

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.sft_weight and batches:
            counts = torch.tensor([_chosen_tokens(batch) for batch in batches], dtype=torch.float32, device=device)
            tokens, pairs = self.accelerator.reduce(counts.sum(dim=0), reduction="sum").tolist()
            self.tokens_per_answer = tokens / pairs
        return batches, items

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if self.sft_weight:
            # TRL takes the mean over the tokens of each batch, so tokens in batches of short answers would count more.
            tokens, pairs = _chosen_tokens(inputs)
            self.loss_weights[-1] = self.sft_weight * tokens / pairs / self.tokens_per_answer
        return super().compute_loss(model, inputs, *args, **kwargs)


def make_trainer(
    *,
    recipe: DpoRecipe,
    arguments: Callable[..., Any],
    order: ExampleMix,
    tokenizer: Any,
    reference: Any | None,
    **common: Any,
) -> LabDPOTrainer:
    """Return the trainer for preference pairs in the order of a mix."""
    options, losses, weights = recipe.dpo, [recipe.dpo.loss_type], [1.0]
    if options.sft_weight:
        losses, weights = [*losses, "sft"], [*weights, options.sft_weight]
    args = arguments(
        kind=DPOConfig,
        beta=options.beta,
        loss_type=losses,
        loss_weights=weights,
        label_smoothing=options.label_smoothing,
        max_length=None,  # encode() has already truncated
        disable_dropout=True,
    )
    if reference is not None:
        shard(reference, reference, args)  # TRL would gather the whole model at once
    trainer = LabDPOTrainer(
        args=args,
        ref_model=reference,
        train_dataset=dataset_in_order(order),
        processing_class=tokenizer,
        **common,
    )
    trainer.sft_weight = options.sft_weight
    for model in (common["model"], reference):
        if model is not None:
            drop_right_padding(model)
    return trainer


def _chosen_tokens(batch: dict[str, torch.Tensor]) -> tuple[int, int]:
    """Return the number of tokens of the chosen answers of a batch, and the number of pairs."""
    pairs = len(batch["completion_mask"]) // 2
    return int(batch["completion_mask"][:pairs, 1:].sum()), pairs


@torch.no_grad()
def measure_preferences(trainer: LabDPOTrainer, pairs: Sequence[Pair]) -> dict[str, float]:
    """Return eval_loss, eval_accuracy (share of pairs in which the chosen answer gained more) and eval_margin."""
    totals = dict.fromkeys(("eval_loss", "eval_accuracy", "eval_margin"), 0.0)
    rows = trainer.args.per_device_train_batch_size
    metrics = trainer._metrics["eval"]
    trainer.tokens_per_answer = sum(len(pair["chosen_ids"]) for pair in pairs) / len(pairs)
    with generating(trainer.model):
        for start in range(0, len(pairs), rows):
            some = list(pairs[start : start + rows])
            metrics.clear()
            with trainer.accelerator.autocast():
                loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(trainer.data_collator(some)))
            totals["eval_loss"] += loss.item() * len(some)
            totals["eval_accuracy"] += metrics["rewards/accuracies"][-1] * len(some)
            totals["eval_margin"] += metrics["rewards/margins"][-1] * len(some)
    metrics.clear()
    return {name: value / len(pairs) for name, value in totals.items()}
