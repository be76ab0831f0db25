"""What a fine-tuned model is measured on at every evaluation, in addition to its loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm_lab.data.examples import Example
from llm_lab.events import Listener
from llm_lab.recipe.post_training import TalkRecipe
from llm_lab.runs.folder import RunFolder
from llm_lab.training.loop import write_samples
from llm_lab.training.loss import autocast

from .forgetting_meter import forgetting_measure
from .score import SHOWN, Measure, Scorer, deterministic, encode_prompts, generate, generating


def answer_measures(
    recipe: TalkRecipe,
    folder: RunFolder,
    listener: Listener,
    model: Any,
    tokenizer: Any,
    held_out: Sequence[Example],
) -> list[Measure]:
    """Return what an evaluation measures in addition to the loss: general text, held-out prompts, sample answers."""
    device, dtype = recipe.device, recipe.train.dtype
    assert dtype is not None  # set by resolve
    measures: list[Measure] = []
    if recipe.forgetting is not None:
        measures.append(forgetting_measure(recipe, recipe.forgetting, folder, listener, model, tokenizer))
    scorer = Scorer.of(recipe, held_out, tokenizer, model, device=device, dtype=dtype, listener=listener)
    if scorer is not None:
        measures.append(lambda step: scorer.measure(model)[0])
    samples = recipe.samples
    if samples.prompts is not None:
        examples = [Example(prompt=({"role": "user", "content": text},)) for text in samples.prompts]
    else:
        examples = [example for example in held_out if example.prompt][:SHOWN]
    accepted = encode_prompts(tokenizer, examples, "samples", listener)
    examples, ids = [example for example, _ in accepted], [ids for _, ids in accepted]

    def write(step: int) -> None:
        limit, temperature = samples.max_new_tokens, samples.temperature
        with generating(model), deterministic(device, recipe.seed), autocast(device, dtype):
            answers = generate(model, tokenizer, ids, max_new_tokens=limit, temperature=temperature)
        texts = [tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
        prompts = [example.prompt[-1]["content"] for example in examples]
        write_samples(folder, listener, step, dict(zip(prompts, texts, strict=True)))

    if examples:
        measures.append(write)
    return measures
