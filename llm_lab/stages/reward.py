"""Reward models: learn from preference pairs to score the better answer higher. setup -> build -> fit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.nn import functional as F
from trl import RewardConfig, RewardTrainer
from trl.trainer.utils import disable_dropout_in_model

from llm_lab.data.examples import Example
from llm_lab.data.mixing import ExampleMix
from llm_lab.errors import Problem, UserError
from llm_lab.events import Listener, Notice
from llm_lab.hf.adapter import save_adapter
from llm_lab.hf.chat_templates import ChosenTemplate
from llm_lab.hf.load import quiet_libraries
from llm_lab.hf.lora_layers import describe_trainable
from llm_lab.hf.save import older_config
from llm_lab.hf.tokenizers import load_tokenizer, save_tokenizer, write_older_names
from llm_lab.recipe.reward import RewardRecipe
from llm_lab.rewards.classifier import is_encoder, load_classifier
from llm_lab.rewards.models import RewardModel
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.processes import first_process_first, shares, sum_over_processes
from llm_lab.training.loop import Result, find_local, set_seed_and_precision
from llm_lab.training.loss import autocast
from llm_lab.training.trainer import LabTrainerMixin
from llm_lab.training.tuned_run import (
    KEY,
    Evaluation,
    choose_template,
    dataset_in_order,
    derive_max_steps,
    encode_each,
    encode_examples,
    fit,
    fit_vocabulary,
    frozen_dtype,
    open_data,
    order_examples,
    prepare_training,
    record_parent,
)

# A preference in TRL's format: chosen_ids and rejected_ids. For encoders, also the segments of both.
Pair = dict[str, list[int]]
SEGMENTS = "token_type_ids"


def run(recipe: RewardRecipe, folder: RunFolder, listener: Listener, *, resume: bool = False) -> Result:
    """Train a reward model into the run folder. recipe: resolved."""
    quiet_libraries()
    with first_process_first():
        examples = open_data(recipe, folder, listener)
        model, tokenizer = build(recipe, folder, listener)
    record_parent(recipe, folder, model)
    encode_all = partial(encode, recipe, model=model, tokenizer=tokenizer)
    sets = encode_examples(examples, encode_all, listener, noun="preference", max_length=recipe.train.max_length)
    held_out = encode_all(examples.validation[: recipe.validation.max_examples])[0]
    recipe = derive_max_steps(recipe, sum(map(len, sets)), folder, listener)
    order = order_examples(recipe, examples, sets, listener)
    pad = model.config.get_text_config().pad_token_id
    pad = tokenizer.pad_token_id if pad is None else pad
    measures: list[Callable[[int], dict[str, float] | None]] = []
    if held_out:
        train = recipe.train
        shape = {"pad_token_id": pad, "rows": train.per_device_train_batch_size}
        measures.append(
            lambda step: measure_pairs(model, held_out, device=recipe.device, dtype=train.dtype, **shape),
        )
    return fit(
        recipe,
        folder,
        listener,
        model,
        tokenizer,
        make_trainer=partial(make_trainer, recipe=recipe, order=order, tokenizer=tokenizer, pad_token_id=pad),
        evaluation=Evaluation(folder, measures),
        resume=resume,
        save=save_reward_model,
    )


def build(recipe: RewardRecipe, folder: RunFolder, listener: Listener) -> tuple[Any, Any]:
    """Load the model with a score head on the recipe's device, and its tokenizer with a chat template.

    The head is the checkpoint's own if it has one. An encoder reads pairs of texts and gets no chat template.
    Trained weights are float32. With an adapter on CUDA, the frozen weights have the precision of the run.
    """
    set_seed_and_precision(recipe)
    checkpoint, lora, train = find_local(recipe.model.checkpoint), recipe.lora, recipe.train
    in_4bit = lora is not None and lora.load_in_4bit
    model = load_classifier(
        checkpoint,
        new_head=True,
        device=recipe.device,
        dtype=frozen_dtype(recipe),
        attn_implementation=train.attn_implementation,
        load_in_4bit=in_4bit,
        key=KEY,
    )
    tokenizer = load_tokenizer(checkpoint, key=KEY)
    chosen: ChosenTemplate | None = None
    if not is_encoder(model.config):
        chosen = choose_template(recipe, tokenizer, folder, listener)
        fit_vocabulary(model, tokenizer, chosen, listener, seed=recipe.seed)
    elif recipe.chat_template is not None:
        why = f"a {model.config.model_type} model reads pairs of prompt and answer and uses no chat template"
        raise UserError(Problem("chat_template", why, value=recipe.chat_template, fix="Leave the key out."))
    # As in TRL, but before the adapter is attached: the recipe sets the adapter's dropout.
    disable_dropout_in_model(model)
    model = prepare_training(model, recipe, chosen)
    if lora is not None:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # small updates would be lost in bf16
    listener(Notice(f"model: {type(model).__name__}; {describe_trainable(model).describe()}"))
    return model, tokenizer


def encode(
    recipe: RewardRecipe, examples: Sequence[Example], model: Any, tokenizer: Any
) -> tuple[list[Pair], Counter[str]]:
    """Return preferences as token ids, as the trained model will read them, and how many were cut or left out.

    Conversations longer than max_length lose their beginning. Pairs whose two sides are equal after that are left out.
    """
    reader = RewardModel(model, tokenizer, key=KEY, max_length=recipe.train.max_length)

    def encode_one(example: Example, counts: Counter[str]) -> Iterator[Pair]:
        before = reader.truncated
        assert example.chosen is not None  # a preference has both
        assert example.rejected is not None
        chosen, rejected = (reader.encode(example.prompt, text) for text in (example.chosen, example.rejected))
        if chosen == rejected:
            counts["both answers become the same tokens: left out"] += 1
            return
        counts[f"longer than {reader.max_length:,} tokens: the beginning was cut off"] += reader.truncated > before
        sides = {"chosen": chosen, "rejected": rejected}
        pair = {f"{side}_{key}": ids for side, row in sides.items() for key, ids in row.items()}
        pair |= {f"{side}_ids": pair.pop(f"{side}_input_ids") for side in sides}
        yield pair

    pairs, counts = encode_each(examples, encode_one)
    return pairs, +counts


def save_reward_model(model: Any, folder: Path, tokenizer: Any) -> None:
    """Write a reward model, or its adapter, as a plain Hugging Face folder."""
    if hasattr(model, "peft_config"):
        return save_adapter(model, Path(folder), tokenizer)
    model.save_pretrained(folder)
    write_older_names(folder / "config.json", older_config)
    save_tokenizer(tokenizer, folder)


def collate_pairs(pairs: Sequence[Pair], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Return a batch (2 x pairs, length), padded on the right: first all chosen, then all rejected, as TRL expects."""
    rows = [
        {key: pair[f"{side}_{name}"] for key, name in _COLUMNS.items() if f"{side}_{name}" in pair}
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
    if SEGMENTS in rows[0]:
        batch[SEGMENTS] = padded(SEGMENTS, 0)
    return batch


_COLUMNS = {"input_ids": "ids", SEGMENTS: SEGMENTS}  # {name in a batch: name in a pair, after "chosen_" or "rejected_"}


def score_batch(model: Any, batch: Mapping[str, Any], config: Any, device: str, dtype: str) -> Any:
    """Return the model's output with its scores in float32; autocast inside."""
    known = {key: value for key, value in batch.items() if key != "use_cache" or not is_encoder(config)}
    with autocast(device, dtype):
        output = model(**known)
    output.logits = output.logits.float()
    return output


class LabRewardTrainer(LabTrainerMixin, RewardTrainer):
    """RewardTrainer for one run folder. Loss: -log sigmoid(score of chosen - score of rejected).

    TRL's own autocast is off; `autocast` leaves the loss in float32, where small margins count.
    """

    logged: ClassVar[dict[str, str]] = {"accuracy": "accuracy", "margin": "margin", "mean_reward": "mean_reward"}

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
    order: ExampleMix,
    tokenizer: Any,
    pad_token_id: int,
    **common: Any,
) -> LabRewardTrainer:
    """Return the trainer for preference pairs in the order of a mix."""
    return LabRewardTrainer(
        dtype=recipe.train.dtype,
        args=arguments(
            kind=RewardConfig,
            bf16=False,  # see score_batch()
            max_length=None,  # encode() has already truncated
            disable_dropout=False,  # already off, except in the adapter
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
    """Return eval_loss, eval_accuracy (share of pairs in which the chosen answer scores higher) and eval_margin.

    With several processes, each computes its share of the batches.
    """
    totals = torch.zeros(4, dtype=torch.float64)
    for number, counts in shares(math.ceil(len(pairs) / rows)):
        start = number * rows
        batch = collate_pairs(pairs[start : start + rows], pad_token_id)
        moved = {key: value.to(device) for key, value in batch.items()}
        output = score_batch(model, {**moved, "use_cache": False}, model.config, device, dtype)
        chosen, rejected = output.logits.squeeze(-1).cpu().double().chunk(2)
        margins = chosen - rejected
        totals += counts * torch.stack(
            [
                -F.logsigmoid(margins).sum(),
                (margins > 0).double().sum(),
                margins.sum(),
                torch.tensor(len(margins), dtype=torch.float64),
            ]
        )
    loss, right, margin, count = sum_over_processes(totals, device).tolist()
    return {"eval_loss": loss / count, "eval_accuracy": right / count, "eval_margin": margin / count}
