"""Open and measure a run's own data again: its validation texts, its held-out prompts, its fingerprints."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llm_lab.data.examples import open_examples
from llm_lab.data.split import split_examples
from llm_lab.events import Listener, progress_of
from llm_lab.recipe.eval import EvalOptions
from llm_lab.recipe.post_training import TalkRecipe, TuneRecipe
from llm_lab.recipe.pretrain import PretrainRecipe
from llm_lab.recipe.registry import STAGES
from llm_lab.recipe.stage import StageRecipe
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.recipe_paths import has_validation
from llm_lab.training.loop import require_same_data
from llm_lab.training.loss import total_loss

from .perplexity import context_length, figures
from .score import Scorer


def measure_validation(
    run: RunFolder,
    recipe: StageRecipe,
    model: Any,
    tokenizer: Any,
    options: EvalOptions,
    *,
    device: str,
    dtype: str,
    listener: Listener,
) -> dict[str, Any] | None:
    """Return the loss on a pretraining run's validation data, as measure_text does; None if it has none.

    Measured as the run did, so that the loss equals its eval_loss. Raises UserError if the data has changed.
    """
    if not isinstance(recipe, PretrainRecipe) or not has_validation(recipe):
        return None
    from llm_lab.training.pretrain_data import open_sources, tokenize_sources, validation_tokens
    from llm_lab.training.pretrain_trainer import mask_documents

    sources = open_sources(recipe)
    require_same_data(sources, run)
    max_tokens = options.max_tokens or recipe.validation.max_tokens
    assert max_tokens is not None  # set by resolve
    held_out, size = validation_tokens(tokenize_sources(recipe, sources, tokenizer, listener), max_tokens)
    length = context_length(model, options.max_length or recipe.train.max_length)
    hook = mask_documents(model, tokenizer.eos_token_id) if recipe.train.document_mask else None
    try:
        total = total_loss(
            model,
            held_out,
            max_length=length,
            rows=options.per_device_eval_batch_size or recipe.train.per_device_train_batch_size,
            device=device,
            dtype=dtype,
            separator=tokenizer.eos_token_id,
            progress=progress_of(listener, "measuring the run's validation data"),
        )
    finally:
        if hook is not None:
            hook.remove()
    measured = {"tokens": total.tokens, "bytes": size, "whole": True, "max_length": length}
    named = {"path": f"validation of {run.path}", "fingerprint": joint_fingerprint(sources), "own": True}
    return named | figures(total.nats, total.tokens, size, total.text_nats) | measured


def run_scorer(
    recipe: StageRecipe, tokenizer: Any, model: Any, *, device: str, dtype: str, listener: Listener
) -> Scorer | None:
    """Return a scorer of a run's held-out prompts; None if it scores none.

    It uses the same prompts and seed, so that the result equals the run's exact_match.
    """
    score = getattr(recipe, "score", None)
    if score is None:
        return None
    held_out, sets = [], []
    if score.path is None and isinstance(recipe, TalkRecipe):
        from llm_lab.training.tuned_run import open_example_sets

        sets = open_example_sets(recipe)
        parts = split_examples(sets, fraction=recipe.validation.fraction, take=recipe.validation.from_)
        held_out = [example for part in parts for example in part.validation]
    scorer = Scorer.of(recipe, held_out, tokenizer, model, device=device, dtype=dtype, listener=listener)
    assert scorer is not None
    scorer.fingerprint = scorer.fingerprint or joint_fingerprint(sets)
    return scorer


def joint_fingerprint(sources: Sequence[Any]) -> str:
    """Return one fingerprint of several opened datasets."""
    return hashlib.sha256("\0".join(source.fingerprint for source in sources).encode()).hexdigest()


def changed_data(recipe: StageRecipe, facts: Mapping[str, Any]) -> Iterator[str]:
    """Describe each dataset of a recipe that has changed since the run with these facts read it.

    Raises UserError if a dataset can't be opened.
    """
    before = [source.get("fingerprint") for source in facts.get("data") or ()]
    for (path, now), then in zip(fingerprints(recipe), before, strict=False):
        if now != then:
            yield f"{path} has changed (fingerprint {str(then)[:12]}, now {now[:12]})"


def fingerprints(recipe: StageRecipe) -> list[tuple[str, str]]:
    """Return (path, fingerprint) of each dataset that a recipe trains on; [] if it does not train."""
    if isinstance(recipe, PretrainRecipe):
        from llm_lab.training.pretrain_data import open_sources

        return [(source.path, source.fingerprint) for source in open_sources(recipe)]
    found = []
    for index, given in enumerate(recipe.data if isinstance(recipe, TuneRecipe) else ()):
        columns = given.columns.model_dump(exclude_none=True) if given.columns else None
        source = open_examples(
            given.path,
            kind=STAGES[recipe.stage].examples or "",
            columns=columns,
            key=f"data.{index}",
            subset=given.subset,
            split=given.split,
        )
        found.append((given.path, source.fingerprint))
    return found
