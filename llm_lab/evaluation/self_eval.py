"""A run's own data, opened and measured again: its validation texts, its held-out prompts, its fingerprints."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_lab.data.examples import open_examples
from llm_lab.data.split import split_examples
from llm_lab.errors import Problem, UserError
from llm_lab.events import Listener, progress_of
from llm_lab.recipe.eval import EvalOptions
from llm_lab.recipe.post_training import TalkRecipe, TuneRecipe
from llm_lab.recipe.pretrain import PretrainRecipe
from llm_lab.recipe.registry import STAGES, stage_of
from llm_lab.recipe.stage import StageRecipe
from llm_lab.recipe.validate import validate
from llm_lab.runs.folder import RunFolder, run_of
from llm_lab.runs.recipe_paths import read_run_recipe
from llm_lab.training.loop import require_same_data
from llm_lab.training.loss import total_loss

from .perplexity import context_length, figures
from .score import Scorer

NAME_DATA = "Name data to measure on: `--data FILE` for the loss on a text, `--prompts FILE` for scored outputs."


def read_run(folder: str | Path) -> tuple[RunFolder, StageRecipe] | None:
    """Return the run that trained a model, and its recipe; merges and exports are followed back to training."""
    run = run_of(folder) if Path(folder).is_dir() else None
    while run is not None and (stage := stage_of(run.facts())) and stage.makes and not stage.trains:
        parent = (run.facts().get("parent") or {}).get("path")
        run = run_of(parent) if parent and Path(parent).is_dir() else None
    if run is None or not run.recipe_path.is_file():
        return None
    raw = read_run_recipe(run)
    recipe, problems, _ = validate(raw) if "stage" in raw else (None, [], set())
    return None if recipe is None or problems else (run, recipe)


def require_own_data(folder: str, key: str = "data") -> tuple[RunFolder, StageRecipe]:
    """Return a model's run and recipe. Raises UserError if it has no run, or the run measured nothing."""
    found = read_run(folder)
    if found is None:
        why = f"{folder} does not belong to a run of LLM Lab, so there is no data to repeat its evaluation on"
        raise UserError(Problem(key, why, fix=NAME_DATA))
    run, recipe = found
    if not has_validation(recipe) and getattr(recipe, "score", None) is None:
        why = f"{run.path} has no validation data and scored no prompts"
        raise UserError(Problem(key, why, fix=NAME_DATA))
    return found


def has_validation(recipe: StageRecipe) -> bool:
    """Return whether a run held out texts from pretraining."""
    return isinstance(recipe, PretrainRecipe) and recipe.validation.fraction > 0


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
    named = {"path": f"validation of {run.path}", "fingerprint": _joint_fingerprint(sources), "own": True}
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
    scorer.fingerprint = scorer.fingerprint or _joint_fingerprint(sets)
    return scorer


def _joint_fingerprint(sources: Sequence[Any]) -> str:
    return hashlib.sha256("\0".join(source.fingerprint for source in sources).encode()).hexdigest()


def changed_data(recipe: StageRecipe, facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield in words which data sets of a recipe differ from what the run with these facts read.

    Raises UserError if a set can't be opened.
    """
    before = [source.get("fingerprint") for source in facts.get("data") or ()]
    for (path, now), then in zip(fingerprints(recipe), before, strict=False):
        if now != then:
            yield f"{path} has changed (fingerprint {str(then)[:12]}, now {now[:12]})"


def fingerprints(recipe: StageRecipe) -> list[tuple[str, str]]:
    """Return (path, fingerprint) of each data set that a recipe trains on; [] if it does not train."""
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
