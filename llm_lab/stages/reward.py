"""Reward models: learn from preferences to give the better answer the higher score. setup -> build -> fit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from llm_lab.data.examples import Example
from llm_lab.errors import Problem, UserError
from llm_lab.events import Listener, Notice
from llm_lab.hf.adapter import save_adapter
from llm_lab.hf.chat_templates import ChosenTemplate, apply_chat_template_choice, resize_for
from llm_lab.hf.load import quiet_libraries
from llm_lab.hf.lora_layers import describe_trainable
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.recipe.reward import RewardRecipe
from llm_lab.rewards.classifier import is_encoder, load_classifier
from llm_lab.rewards.models import RewardModel
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.processes import first_process_first
from llm_lab.training.finetune import (
    KEY,
    Evaluation,
    encode_sets,
    fit,
    open_sets,
    order_examples,
    prepare_training,
    record_parent,
    settle_recipe,
)
from llm_lab.training.loop import Result, begin_computing, find_local

Pair = dict[str, list[int]]


def run(recipe: RewardRecipe, folder: RunFolder, listener: Listener, *, resume: bool = False) -> Result:
    """Train a reward model as the resolved recipe says, into the run folder."""
    from .reward_trainer import make_trainer, measure_pairs

    quiet_libraries()
    with first_process_first():
        examples = open_sets(recipe, "preference", folder, listener)
        model, tokenizer = build(recipe, listener)
    record_parent(recipe, folder, model)
    into_pairs = partial(encode, recipe, model=model, tokenizer=tokenizer)
    sets = encode_sets(examples, into_pairs, listener, noun="preference", max_length=recipe.train.max_length)
    held_out = into_pairs(examples.validation[: recipe.validation.max_examples])[0]
    recipe = settle_recipe(recipe, sum(map(len, sets)), folder, listener)
    order = order_examples(recipe, examples, sets, listener)
    pad = model.config.get_text_config().pad_token_id
    pad = tokenizer.pad_token_id if pad is None else pad
    measures = []
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
        save=save_judge,
    )


def build(recipe: RewardRecipe, listener: Listener) -> tuple[Any, Any]:
    """Load the model with a score head on the recipe's device, and its tokenizer with a chat template.

    The head is the checkpoint's own where it has one. An encoder reads pairs of texts and gets no chat template.
    Trained weights are float32; beside an adapter the frozen ones have the run's own precision.
    """
    from trl.trainer.utils import disable_dropout_in_model

    begin_computing(recipe)
    checkpoint, lora, train = find_local(recipe.model.checkpoint), recipe.lora, recipe.train
    in_4bit = lora is not None and lora.load_in_4bit
    model = load_classifier(
        checkpoint,
        new_head=True,
        device=recipe.device,
        dtype=train.dtype if lora is not None and recipe.device == "cuda" else "float32",
        attn_implementation=train.attn_implementation,
        load_in_4bit=in_4bit,
        key=KEY,
    )
    tokenizer = load_tokenizer(checkpoint, key=KEY)
    chosen: ChosenTemplate | None = None
    if not is_encoder(model.config):
        chosen = apply_chat_template_choice(tokenizer, recipe.chat_template)
        listener(Notice(chosen.notice))
        resize_for(model, tokenizer, chosen, seed=recipe.seed)
    elif recipe.chat_template is not None:
        why = f"a {model.config.model_type} reads pairs of prompt and answer, and no chat template"
        raise UserError(Problem("chat_template", why, value=recipe.chat_template, fix="Leave the key out."))
    # As TRL does, but before the adapter comes: its own dropout is the recipe's.
    disable_dropout_in_model(model)
    model = prepare_training(model, recipe, chosen.new_ids if chosen else ())
    if lora is not None:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # small updates would be lost in bf16
    listener(Notice(f"model: {type(model).__name__}; {describe_trainable(model).describe()}"))
    return model, tokenizer


def encode(
    recipe: RewardRecipe, examples: Sequence[Example], model: Any, tokenizer: Any
) -> tuple[list[Pair], dict[str, int]]:
    """Return preferences as token ids, just as the trained model will read them, and what was cut or left out.

    Conversations longer than max_length lose their beginning; a pair of which the same is left teaches nothing.
    """
    reader = RewardModel(model, tokenizer, key=KEY, max_length=recipe.train.max_length)
    length = recipe.train.max_length
    counts = {f"longer than {length:,} tokens: the beginning was cut off": 0, "both answers are the same as tokens": 0}
    cut, same = counts
    pairs: list[Pair] = []
    for example in examples:
        before = reader.truncated
        chosen, rejected = (reader.encode(example.prompt, text) for text in (example.chosen, example.rejected))
        if chosen == rejected:
            counts[same] += 1
            continue
        counts[cut] += reader.truncated > before
        sides = {"chosen": chosen, "rejected": rejected}
        pair = {f"{side}_{key}": ids for side, row in sides.items() for key, ids in row.items()}
        pair |= {f"{side}_ids": pair.pop(f"{side}_input_ids") for side in sides}
        pairs.append(pair)
    return pairs, {reason: count for reason, count in counts.items() if count}


def save_judge(model: Any, folder: Path, tokenizer: Any) -> None:
    """Write a reward model, or its adapter, as a plain Hugging Face folder."""
    if hasattr(model, "peft_config"):
        return save_adapter(model, Path(folder), tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
