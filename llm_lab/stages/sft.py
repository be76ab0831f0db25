"""Supervised fine-tuning: learn to answer, from conversations. setup -> build -> fit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from llm_lab.data.examples import Example
from llm_lab.events import Listener, Notice
from llm_lab.hf.conversations import Encoded, encode_conversation, encode_text
from llm_lab.hf.load import quiet_libraries
from llm_lab.recipe.sft import SftRecipe
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.processes import first_process_first
from llm_lab.training.finetune import (
    Evaluation,
    encode_sets,
    fit,
    load_policy,
    open_sets,
    order_examples,
    record_parent,
    settle_recipe,
)
from llm_lab.training.loop import Result


def run(recipe: SftRecipe, folder: RunFolder, listener: Listener, *, resume: bool = False) -> Result:
    """Tune a model on conversations as the resolved recipe says, into the run folder."""
    from llm_lab.evaluation.score import answer_measures

    from .packing import pack
    from .sft_trainer import collate_examples, make_trainer, measure_loss

    quiet_libraries()
    with first_process_first():
        examples = open_sets(recipe, "conversation", folder, listener)
        model, tokenizer = load_policy(recipe, listener)
    record_parent(recipe, folder, model)
    into_tokens = partial(encode, recipe, tokenizer=tokenizer)
    sets = encode_sets(examples, into_tokens, listener, noun="example", max_length=recipe.train.max_length)
    held_out = into_tokens(examples.validation[: recipe.validation.max_examples])[0]
    if recipe.sft.packing:
        sets = [pack(rows, recipe.train.max_length) for rows in sets]
        count = sum(map(len, sets))
        listener(Notice(f"packed into {count:,} rows of at most {recipe.train.max_length:,} tokens, kept apart"))
    else:
        sets = [[[row] for row in rows] for rows in sets]
    recipe = settle_recipe(recipe, sum(map(len, sets)), folder, listener)
    order = order_examples(recipe, examples, sets, listener)
    pad = tokenizer.pad_token_id
    measures = answer_measures(recipe, folder, listener, model, tokenizer, examples.validation)
    if held_out:
        collate = partial(collate_examples, pad_token_id=pad)
        train = recipe.train
        rows = train.per_device_train_batch_size
        into_loss = partial(measure_loss, model, held_out, collate, rows=rows, device=recipe.device, dtype=train.dtype)
        measures.insert(0, lambda step: into_loss())
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


def encode(recipe: SftRecipe, examples: Sequence[Example], tokenizer: Any) -> tuple[list[Encoded], dict[str, int]]:
    """Return the examples as tokens, and how many were cut or dropped, by reason."""
    length, found = recipe.train.max_length, []
    counts = {f"longer than {length:,} tokens: the end was cut off": 0, "nothing to learn within max_length": 0}
    cut, empty = counts
    for example in examples:
        if example.text is not None:
            row = encode_text(tokenizer, example.text, max_length=length)
        else:
            row = encode_conversation(
                tokenizer, example.messages, assistant_only=recipe.sft.assistant_only_loss, max_length=length
            )
        # The first token has nothing before it that could foretell it.
        if not any(row.labels_mask[1:]):
            counts[empty] += 1
            continue
        counts[cut] += row.truncated
        found.append(row)
    return found, {reason: count for reason, count in counts.items() if count}
