"""What is measured of a model that answers: scores on held-out prompts, and samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llm_lab.data.examples import Example
from llm_lab.events import Listener
from llm_lab.hf.load import context_of
from llm_lab.recipe.post_training import TalkRecipe
from llm_lab.runs.folder import RunFolder
from llm_lab.training.loop import write_samples
from llm_lab.training.measure import autocast

from .score import SHOWN, Scorer, deterministic, generate, generating, prompt_ids

Measure = Callable[[int], dict[str, float] | None]


def talk_measures(
    recipe: TalkRecipe,
    folder: RunFolder,
    listener: Listener,
    model: Any,
    tokenizer: Any,
    held_out: Sequence[Example],
) -> list[Measure]:
    """Return what an evaluation does beside measuring a loss: score held-out prompts, write samples."""
    context = context_of(model)
    measures: list[Measure] = []
    if recipe.score is not None:
        scorer = Scorer(
            recipe.score,
            held_out,
            tokenizer,
            context=context,
            device=recipe.device,
            dtype=recipe.train.dtype,
            seed=recipe.seed,
            listener=listener,
        )
        measures.append(lambda step: scorer.measure(model)[0])
    wanted = recipe.samples
    if wanted.prompts is not None:
        asked = [Example(prompt=({"role": "user", "content": text},)) for text in wanted.prompts]
    else:
        asked = [example for example in held_out if example.prompt][:SHOWN]
    ids = [prompt_ids(tokenizer, example) for example in asked]

    def write(step: int) -> None:
        with generating(model), deterministic(recipe.device, recipe.seed), autocast(recipe.device, recipe.train.dtype):
            found = generate(
                model, tokenizer, ids, max_new_tokens=wanted.max_new_tokens, temperature=wanted.temperature
            )
        texts = [tokenizer.decode(answer, skip_special_tokens=True) for answer in found]
        questions = [example.prompt[-1]["content"] for example in asked]
        write_samples(folder, listener, step, dict(zip(questions, texts, strict=True)))

    if asked:
        measures.append(write)
    return measures
