"""Evaluation of a checkpoint: loss on text, scored answers, tasks and speed. Nothing is trained."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_lab.data.sources import TextSource
from llm_lab.errors import Problem, UserError
from llm_lab.evaluation.perplexity import context_length, measure_text, open_texts, total_of
from llm_lab.evaluation.score import SHOWN, Scorer, text_scores
from llm_lab.evaluation.self_eval import measure_validation, run_scorer
from llm_lab.evaluation.speed import measure_speed
from llm_lab.events import Listener, Notice
from llm_lab.hf.adapter import is_adapter, read_adapter
from llm_lab.hf.configs import read_config
from llm_lab.hf.load import load_model, quiet_libraries
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.recipe.eval import EvalRecipe, EvalTasks, measures_itself
from llm_lab.recipe.sft import SftRecipe
from llm_lab.recipe.stage import StageRecipe
from llm_lab.recipe.trust import code_in, require_allowed
from llm_lab.runs.describe import installed
from llm_lab.runs.evaluations import data_of, evaluations_of, flat_results, with_before
from llm_lab.runs.folder import RunFolder, is_reward_model, now
from llm_lab.runs.processes import from_first_process, is_first_process
from llm_lab.runs.recipe_paths import has_validation, read_run, require_own_data
from llm_lab.runs.report import keep_evaluation
from llm_lab.training.loop import Result, describe_parent, find_local, set_seed_and_precision

KEY = "model.checkpoint"
EVALUATION = "evaluation"  # in run.json and evaluations.jsonl: identifies what a run measures
PACKAGES = ("llm-lab", "torch", "transformers", "tokenizers", "lm_eval", "sacrebleu", "rouge-score")
Own = tuple[RunFolder, StageRecipe]


@dataclass(frozen=True)
class _Subject:
    """The measured model, its device and dtype, and the run that trained it with that run's recipe.

    own_data: whether it is measured on its own run's data; `run` is then set.
    """

    folder: str
    model: Any
    tokenizer: Any
    device: str
    dtype: str
    run: Own | None
    own_data: bool


def run(recipe: EvalRecipe, folder: RunFolder, listener: Listener, *, resume: bool = False) -> Result:
    """Evaluate as the resolved recipe says; the results go into the run folder and are saved with the checkpoint."""
    if is_first_process() and EVALUATION not in folder.facts():
        folder.update(**{EVALUATION: uuid.uuid4().hex})
    measured = evaluate(recipe, listener, evaluation=from_first_process(folder.facts().get(EVALUATION)))
    if is_first_process():
        parent = {"path": measured["checkpoint"], "digest": measured["digest"]}
        folder.update(parent=parent, data=data_of(measured), measured=measured)
    return Result("done", dict(flat_results(measured)))


def evaluate(
    recipe: EvalRecipe, listener: Listener, *, trust_remote_code: bool = False, evaluation: str | None = None
) -> dict[str, Any]:
    """Measure a checkpoint according to a resolved recipe, and save the results with it.

    evaluation: an id. If results with this id are already saved, by a run that was killed afterwards, they are
    returned. Returns checkpoint, digest, device, dtype and the results: texts (a row each), total (of several texts),
    scores, tasks, speed; each row with the previous results on the same data (`before`), if there are any. Raises
    UserError if there is nothing to measure on, and UntrustedCode if the model's own run scores with code that the user
    has not allowed.
    """
    quiet_libraries()
    folder = find_local(recipe.model.checkpoint)
    if is_reward_model(Path(folder)):
        why = "this is a reward model, which can't generate text"
        raise UserError(Problem(KEY, why, value=recipe.model.checkpoint, fix="Use a model that generates text."))
    if kept := from_first_process(_find_kept(folder, evaluation)):
        listener(Notice("the results were saved before the run was resumed"))
        return kept
    own: Own | None
    if own_data := measures_itself(recipe.model_dump()):
        own = require_own_data(folder)
        if recipe.eval.text_scores and getattr(own[1], "score", None) is None:
            why = f"{own[0].path} scored no prompts, so there are no outputs to compare with reference answers"
            raise UserError(Problem("eval.text_scores", why, fix="Set score.path, or use `--prompts FILE`."))
        found_in_run = code_in(own[1].model_dump(by_alias=True))
        require_allowed(code for code in found_in_run if code.key.startswith("score."))
    else:
        own = read_run(folder)
    sources = open_texts(recipe.data or ())
    tasks = None
    if recipe.tasks is not None:
        from llm_lab.evaluation.harness import load_tasks

        listener(Notice("loading the tasks and their data"))
        tasks = load_tasks(recipe.tasks)
    set_seed_and_precision(recipe)
    subject = _load(recipe, folder, own, own_data, trust_remote_code)
    rows, scorer = _measure_texts(recipe, subject, sources, listener)
    found: dict[str, Any] = {"texts": rows} if rows else {}
    if len(rows) > 1:
        found["total"] = total_of(rows)
    if scorer is not None:
        found["scores"] = _measure_answers(recipe, subject, scorer)
    if recipe.tasks is not None:
        found["tasks"] = _measure_tasks(recipe, recipe.tasks, tasks, subject, listener)
    if recipe.eval.speed_tokens:
        import torch

        # As in chat, weights have the dtype of the computation.
        model = subject.model.to(getattr(torch, subject.dtype))
        found["speed"] = measure_speed(model, subject.tokenizer, new_tokens=recipe.eval.speed_tokens)
    parent = describe_parent(folder)
    measured = {"checkpoint": folder, "digest": parent["digest"], "device": subject.device, "dtype": subject.dtype}
    return _save_with_checkpoint(recipe, measured | found, listener, evaluation)


def _load(recipe: EvalRecipe, folder: str, own: Own | None, own_data: bool, trust_remote_code: bool) -> _Subject:
    device = recipe.device
    dtype = recipe.eval.dtype or ("bfloat16" if device == "cuda" else "float32")
    if own_data and own is not None and recipe.eval.dtype is None and own[1].device == device:
        dtype = getattr(own[1], "train").dtype  # noqa: B009 - only stages that train have data of their own
    kept = "float32" if dtype == "float32" else _weights_dtype(folder, trust_remote_code)
    model = load_model(folder, dtype=kept, device=device, trust_remote_code=trust_remote_code, key=KEY)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code, key=KEY)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        why = f"it has {len(tokenizer):,} tokens, but the model has {rows:,}: it belongs to another model"
        raise UserError(Problem("tokenizer", why))
    return _Subject(folder, model, tokenizer, device, dtype, own, own_data)


def _weights_dtype(folder: str, trust_remote_code: bool) -> str:
    """Return the dtype to load weights in for bfloat16: float32 weights stay float32 under autocast, as in training."""
    base = read_adapter(folder).base if is_adapter(folder) else folder
    config = read_config(base, key=KEY, trust_remote_code=trust_remote_code)
    return "bfloat16" if "16" in str(config.dtype) else "float32"


def _measure_texts(
    recipe: EvalRecipe, subject: _Subject, sources: Sequence[TextSource], listener: Listener
) -> tuple[list[dict[str, Any]], Scorer | None]:
    """Return a row per text, and the scorer of answers; both from the model's own run if the recipe names no data."""
    options, model, tokenizer = recipe.eval, subject.model, subject.tokenizer
    device, dtype = subject.device, subject.dtype
    if subject.own_data and subject.run is not None:
        run, trained = subject.run
        listener(Notice(f"measuring on the data of {run.path}, as the run did"))
        if isinstance(trained, SftRecipe) and has_validation(trained):
            from .sft import measure_held_out

            row = measure_held_out(run, trained, model, tokenizer, options, device=device, dtype=dtype)
        else:
            row = measure_validation(
                run, trained, model, tokenizer, options, device=device, dtype=dtype, listener=listener
            )
        scorer = run_scorer(trained, tokenizer, model, device=device, dtype=dtype, listener=listener)
        return [row] if row else [], scorer
    train = getattr(subject.run[1], "train", None) if subject.run else None
    rows = []
    for source in sources:
        assert options.max_tokens is not None  # set by resolve
        assert options.per_device_eval_batch_size is not None  # set by resolve
        row = measure_text(
            model,
            tokenizer,
            source,
            max_tokens=options.max_tokens,
            max_length=context_length(model, options.max_length, train and train.max_length),
            rows=options.per_device_eval_batch_size,
            device=device,
            dtype=dtype,
            listener=listener,
            stride=options.stride,
        )
        rows.append(row)
    return rows, Scorer.of(recipe, (), tokenizer, model, device=device, dtype=dtype, listener=listener)


def _measure_answers(recipe: EvalRecipe, subject: _Subject, scorer: Scorer) -> dict[str, Any]:
    """Return the scores of the answers: exact match and reward, greedy and sampled; BLEU and ROUGE of greedy ones."""
    references = scorer.columns.get("answer") or [None] * len(scorer.examples)
    known = [i for i, reference in enumerate(references) if reference is not None]
    if recipe.eval.text_scores and not known:
        why = "none of the prompts has a reference answer to compare with"
        raise UserError(Problem("eval.text_scores", why, fix="Set score.columns.answer to the references' column."))
    row, answers = scorer.measure(subject.model)
    path = recipe.score.path if recipe.score else None
    if recipe.score is None and subject.run is not None:
        run, trained = subject.run
        score = getattr(trained, "score", None)
        path = (score and score.path) or f"the held-out part of {run.path}"
    where = {"path": path, "fingerprint": scorer.fingerprint}
    settings = {"prompts": len(scorer.examples), "max_completion_length": scorer.new_tokens}
    texts = ([answers[i] for i in known], [str(references[i]) for i in known])
    found = text_scores(recipe.eval.text_scores, *texts) if recipe.eval.text_scores else {}
    shown = [
        {"prompt": example.prompt[-1]["content"], "answer": answer, "reference": reference}
        for example, answer, reference in zip(scorer.examples, answers, references, strict=True)
    ]
    return where | settings | row | found | {"examples": shown[:SHOWN]}


def _measure_tasks(
    recipe: EvalRecipe, wanted: EvalTasks, tasks: Any, subject: _Subject, listener: Listener
) -> dict[str, dict[str, Any]]:
    from llm_lab.evaluation.harness import measure_tasks

    requested = recipe.eval.max_length
    assert recipe.eval.per_device_eval_batch_size is not None  # set by resolve
    return measure_tasks(
        tasks,
        wanted,
        subject.model,
        subject.tokenizer,
        max_length=context_length(subject.model, requested) if requested else None,
        rows=recipe.eval.per_device_eval_batch_size,
        dtype=subject.dtype,
        listener=listener,
    )


def _find_kept(folder: str, evaluation: str | None) -> dict[str, Any] | None:
    """Return an evaluation's saved results, with the previous ones; None without any, or if the model has changed."""
    rows = _evaluations_of_model(folder)
    at = next((i for i, row in enumerate(rows) if evaluation is not None and row.get(EVALUATION) == evaluation), None)
    if at is None or rows[at]["digest"] != describe_parent(folder)["digest"]:
        return None
    return with_before(rows[at]["measured"], rows[:at])


def _evaluations_of_model(folder: str) -> list[dict[str, Any]]:
    return [row for row in evaluations_of(folder) if _is_same_folder(row.get("checkpoint"), folder)]


def _save_with_checkpoint(
    recipe: EvalRecipe, measured: dict[str, Any], listener: Listener, evaluation: str | None
) -> dict[str, Any]:
    """Add the results to the checkpoint's evaluations.jsonl; return them with the previous ones."""
    folder = measured["checkpoint"]
    before = _evaluations_of_model(folder)
    line = {
        **({EVALUATION: evaluation} if evaluation else {}),
        "time": now(),
        "by": "eval",
        "digest": measured["digest"],
        "data": data_of(measured),
        "results": dict(flat_results(measured)),
        "measured": measured,
        "recipe": recipe.model_dump(by_alias=True, exclude_none=True, mode="json"),
        "versions": installed(PACKAGES),
    }
    if is_first_process():
        try:
            path = keep_evaluation(folder, line)
            listener(Notice(f"saved in {path}"))
        except OSError as error:
            listener(Notice(f"could not be saved with the checkpoint: {error.strerror or error}"))
    return with_before(measured, before)


def _is_same_folder(one: Any, other: str) -> bool:
    return str(one) == other or Path(str(one)).resolve() == Path(other).resolve()
