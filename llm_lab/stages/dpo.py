"""Direct preference optimisation: prefer the better answer, straight from preferences. setup -> build -> fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from llm_lab.data.examples import Example
from llm_lab.errors import Problem, UserError
from llm_lab.events import Listener
from llm_lab.hf.conversations import encode_answer
from llm_lab.hf.load import load_model, quiet_libraries
from llm_lab.recipe.dpo import DpoRecipe
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
from llm_lab.training.loop import Result, find_local

Pair = dict[str, list[int]]  # prompt_ids, chosen_ids, rejected_ids


def run(recipe: DpoRecipe, folder: RunFolder, listener: Listener, *, resume: bool = False) -> Result:
    """Tune a model on preferences as the resolved recipe says, into the run folder."""
    from llm_lab.evaluation.score import answer_measures

    from .dpo_trainer import make_trainer, measure_preferences

    quiet_libraries()
    with first_process_first():
        examples = open_sets(recipe, "preference", folder, listener)
        model, tokenizer = load_policy(recipe, listener)
        reference = load_reference(recipe, model, tokenizer)
    record_parent(recipe, folder, model)
    length = recipe.train.max_length
    into_pairs = partial(encode, tokenizer=tokenizer, max_length=length)
    sets = encode_sets(examples, into_pairs, listener, noun="preference", max_length=length)
    held_out = into_pairs(examples.validation[: recipe.validation.max_examples])[0]
    recipe = settle_recipe(recipe, sum(map(len, sets)), folder, listener)
    order = order_examples(recipe, examples, sets, listener)
    measures = answer_measures(recipe, folder, listener, model, tokenizer, examples.validation)
    trainers: list[Any] = []
    if held_out:
        # The reference is the trainer's: it exists once the trainer does.
        measures.insert(0, lambda step: measure_preferences(trainers[0], held_out))

    def make(**common: Any) -> Any:
        trainers.append(make_trainer(recipe=recipe, order=order, tokenizer=tokenizer, reference=reference, **common))
        return trainers[0]

    evaluation = Evaluation(folder, measures)
    return fit(recipe, folder, listener, model, tokenizer, make_trainer=make, evaluation=evaluation, resume=resume)


def load_reference(recipe: DpoRecipe, model: Any, tokenizer: Any) -> Any | None:
    """Return the model that DPO stays near to, or None where it is the start beside an adapter.

    The start is copied, not loaded again: its embeddings may have new rows.
    """
    import copy

    if recipe.dpo.reference is not None:
        name = find_local(recipe.dpo.reference)
        loaded = load_model(
            name,
            device=recipe.device,
            attn_implementation=recipe.train.attn_implementation,
            merge=True,
            key="dpo.reference",
        )
        rows = loaded.get_input_embeddings().weight.shape[0]
        if rows < len(tokenizer):
            why = f"its vocabulary has {rows:,} entries, the model's tokenizer {len(tokenizer):,}"
            raise UserError(Problem("dpo.reference", why, value=recipe.dpo.reference, fix="Name a kindred model."))
        return loaded.requires_grad_(False)
    if recipe.lora is not None:
        return None
    return copy.deepcopy(model).eval().requires_grad_(False)


def encode(examples: Sequence[Example], *, tokenizer: Any, max_length: int) -> tuple[list[Pair], Counter[str]]:
    """Return preferences as tokens, those that chat and SFT would use, and what was cut or left out."""
    pairs, counts = [], Counter()
    for example in examples:
        prompt, chosen = encode_answer(tokenizer, example.prompt, example.chosen)
        _, rejected = encode_answer(tokenizer, example.prompt, example.rejected)
        room = max_length - len(prompt)
        if room < 1:
            counts[f"the prompt alone is longer than {max_length:,} tokens"] += 1
            continue
        if chosen[:room] == rejected[:room]:
            counts["both answers are the same as tokens"] += 1
            continue
        if len(chosen) > room or len(rejected) > room:
            counts[f"longer than {max_length:,} tokens: the end of an answer was cut off"] += 1
        pairs.append({"prompt_ids": prompt, "chosen_ids": chosen[:room], "rejected_ids": rejected[:room]})
    return pairs, counts
