"""What a run measured itself on, measured again: the validation part of its texts, its held-out prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from llm_lab.events import Listener, progress_of
from llm_lab.hf.load import context_of
from llm_lab.recipe.evaluation import EvalOptions
from llm_lab.recipe.schema import StageRecipe
from llm_lab.runs.folder import RunFolder
from llm_lab.training.loop import require_same_data
from llm_lab.training.measure import total_loss

from .own_run import has_validation
from .perplexity import figures, length_within
from .score import Scorer
from .xray import KINDS


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
    """Return a row as measure_text does, of what a pretraining run kept for validation; None where it kept nothing.

    Measured as the run did, so that the loss is the run's eval_loss. UserError where the data has changed.
    """
    if not has_validation(recipe):
        return None
    from llm_lab.stages.pretrain import held_out_of, open_sources, tokenise
    from llm_lab.training.document_mask import mask_documents

    sources = open_sources(recipe)
    require_same_data(sources, run)
    held_out, size = held_out_of(
        tokenise(recipe, sources, tokenizer, listener), options.max_tokens or recipe.validation.max_tokens
    )
    length = length_within(model, options.max_length or recipe.train.max_length)
    hook = mask_documents(model, tokenizer.eos_token_id) if recipe.train.document_mask else None
    try:
        nats, tokens = total_loss(
            model,
            held_out,
            max_length=length,
            rows=options.per_device_eval_batch_size or recipe.train.per_device_train_batch_size,
            device=device,
            dtype=dtype,
            progress=progress_of(listener, "measuring the run's validation part"),
        )
    finally:
        if hook is not None:
            hook.remove()
    measured = {"tokens": tokens, "bytes": round(size), "whole": True, "max_length": length}
    named = {"path": f"validation of {run.path}", "fingerprint": _together(sources), "own": True}
    return named | figures(nats, tokens, size) | measured


def _together(sources: Sequence[Any]) -> str:
    """Return one fingerprint of several sets."""
    return hashlib.sha256("\0".join(source.fingerprint for source in sources).encode()).hexdigest()


def own_scorer(
    recipe: StageRecipe, tokenizer: Any, model: Any, *, device: str, dtype: str, listener: Listener
) -> Scorer | None:
    """Return what scores the answers to the held-out prompts of a run; None where it scores none.

    The same prompts, drawn by the same seed, so that what comes out is the run's exact_match.
    """
    score = getattr(recipe, "score", None)
    if score is None:
        return None
    held_out, sets = [], []
    if score.path is None:
        from llm_lab.data.split import split_examples
        from llm_lab.training.finetune import read_sets

        sets = read_sets(recipe, KINDS[recipe.stage])
        parts = split_examples(sets, fraction=recipe.validation.fraction, take=recipe.validation.from_)
        held_out = [example for part in parts for example in part.validation]
    options = {"context": context_of(model), "device": device, "dtype": dtype, "seed": recipe.seed}
    scorer = Scorer(score, held_out, tokenizer, listener=listener, **options)
    scorer.fingerprint = scorer.fingerprint or _together(sets)
    return scorer
