"""Evaluation: what a checkpoint is worth, in loss, answers, tasks and speed. Nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError
from llm_lab.evaluation.own_run import read_run, require_own
from llm_lab.evaluation.perplexity import length_within, measure_text, open_texts, total_of
from llm_lab.evaluation.score import SHOWN, Scorer
from llm_lab.evaluation.self_eval import measure_validation, own_scorer
from llm_lab.evaluation.speed import measure_speed
from llm_lab.evaluation.text_scores import score_texts
from llm_lab.events import Listener, Notice
from llm_lab.hf.adapter import is_adapter, read_adapter
from llm_lab.hf.load import context_of, load_model, quiet_libraries, read_config
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.recipe.evaluation import EvalRecipe, measures_itself
from llm_lab.recipe.schema import StageRecipe
from llm_lab.runs.describe import installed
from llm_lab.runs.evaluations import data_of, evaluations_of, flat_results, with_before
from llm_lab.runs.folder import RunFolder, is_judge, now
from llm_lab.runs.processes import is_first_process
from llm_lab.runs.report import keep_evaluation
from llm_lab.training.loop import Result, begin_computing, describe_parent, find_local

KEY = "model.checkpoint"
PACKAGES = ("llm-lab", "torch", "transformers", "tokenizers", "lm_eval", "sacrebleu", "rouge-score")


@dataclass(frozen=True)
class _Subject:
    """The model that is measured, how it computes, and the run it belongs to, with that run's recipe."""

    folder: str
    model: Any
    tokenizer: Any
    device: str
    dtype: str
    own: tuple[RunFolder, StageRecipe] | None


def run(recipe: EvalRecipe, folder: RunFolder, listener: Listener, *, resume: bool = False) -> Result:
    """Measure as the resolved recipe says; the numbers stand in the run folder, and with the checkpoint."""
    measured = evaluate(recipe, listener)
    if is_first_process():
        parent = {"path": measured["checkpoint"], "digest": measured["digest"]}
        folder.update(parent=parent, data=data_of(measured), measured=measured)
    return Result("done", dict(flat_results(measured)))


def evaluate(recipe: EvalRecipe, listener: Listener, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Measure a checkpoint as a resolved recipe says, and keep what came out with it.

    Returns checkpoint, digest, device, dtype and what was measured: texts (a row each), total (of several), scores,
    tasks, speed; each row with what came out the last time on the same (`before`), where there was one. UserError
    where there is nothing to measure it on.
    """
    quiet_libraries()
    folder = find_local(recipe.model.checkpoint)
    if is_judge(Path(folder)):
        why = "this is a reward model: it judges answers, and writes none"
        raise UserError(Problem(KEY, why, value=recipe.model.checkpoint, fix="Name a model that writes."))
    itself = measures_itself(recipe.model_dump())
    own = require_own(folder) if itself else read_run(folder)
    if itself and recipe.eval.text_scores and getattr(own[1], "score", None) is None:
        why = f"{own[0].path} scored no prompts, so there are no answers to compare with references"
        raise UserError(Problem("eval.text_scores", why, fix="Name prompts in score.path, or `--prompts FILE`."))
    sources = open_texts(recipe.data or ())
    tasks = None
    if recipe.tasks is not None:
        from llm_lab.evaluation.harness import load_tasks

        listener(Notice("tasks: looking them up, and fetching their data"))
        tasks = load_tasks(recipe.tasks)
    begin_computing(recipe)
    subject = _load(recipe, folder, own, itself, trust_remote_code)
    rows, scorer = _measure_texts(recipe, subject, sources, itself, listener)
    found: dict[str, Any] = {"texts": rows} if rows else {}
    if len(rows) > 1:
        found["total"] = total_of(rows)
    if scorer is not None:
        found["scores"] = _measure_answers(recipe, subject, scorer)
    if tasks is not None:
        from llm_lab.evaluation.harness import measure_tasks

        wanted = recipe.eval.max_length
        found["tasks"] = measure_tasks(
            tasks,
            recipe.tasks,
            subject.model,
            subject.tokenizer,
            max_length=length_within(subject.model, wanted) if wanted else None,
            rows=recipe.eval.per_device_eval_batch_size,
            dtype=subject.dtype,
            seed=recipe.seed,
            listener=listener,
        )
    if recipe.eval.speed_tokens:
        import torch

        # As chat has it: weights in the precision that is computed with.
        model = subject.model.to(getattr(torch, subject.dtype))
        found["speed"] = measure_speed(model, subject.tokenizer, new_tokens=recipe.eval.speed_tokens)
    parent = describe_parent(folder)
    measured = {"checkpoint": folder, "digest": parent["digest"], "device": subject.device, "dtype": subject.dtype}
    return _keep(recipe, measured | found, listener)


def _load(
    recipe: EvalRecipe, folder: str, own: tuple[RunFolder, StageRecipe] | None, itself: bool, trust_remote_code: bool
) -> _Subject:
    device = recipe.device
    dtype = recipe.eval.dtype or ("bfloat16" if device == "cuda" else "float32")
    if itself and recipe.eval.dtype is None and own[1].device == device:
        dtype = own[1].train.dtype
    kept = "float32" if dtype == "float32" else _kept_in(folder, trust_remote_code)
    options = {"device": device, "trust_remote_code": trust_remote_code, "key": KEY}
    model, tokenizer = (
        load_model(folder, dtype=kept, **options),
        load_tokenizer(folder, trust_remote_code=trust_remote_code, key=KEY),
    )
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        why = f"it has {len(tokenizer):,} tokens and the model knows {rows:,}: it is another model's"
        raise UserError(Problem("tokenizer", why))
    return _Subject(folder, model, tokenizer, device, dtype, own)


def _kept_in(folder: str, trust_remote_code: bool) -> str:
    """Return the precision that weights are loaded in to compute in bfloat16: what is kept in float32 stays so, and is
    rounded where it is used, as in training."""
    base = read_adapter(folder).base if is_adapter(folder) else folder
    config = read_config(base, key=KEY, trust_remote_code=trust_remote_code)
    return "bfloat16" if "16" in str(config.dtype) else "float32"


def _measure_texts(
    recipe: EvalRecipe, subject: _Subject, sources: Sequence[Any], itself: bool, listener: Listener
) -> tuple[list[dict[str, Any]], Scorer | None]:
    """Return a row for each text, and what scores the answers, the run's own where the recipe names nothing."""
    options, computing = recipe.eval, {"device": subject.device, "dtype": subject.dtype, "listener": listener}
    if itself:
        run, trained = subject.own
        listener(Notice(f"measured as {run.path} measured itself"))
        row = measure_validation(run, trained, subject.model, subject.tokenizer, options, **computing)
        return [row] if row else [], own_scorer(trained, subject.tokenizer, subject.model, **computing)
    trained_length = subject.own and getattr(subject.own[1], "train", None) and subject.own[1].train.max_length
    rows = [
        measure_text(
            subject.model,
            subject.tokenizer,
            source,
            max_tokens=options.max_tokens,
            max_length=length_within(subject.model, options.max_length, trained_length),
            rows=options.per_device_eval_batch_size,
            **computing,
        )
        for source in sources
    ]
    if recipe.score is None:
        return rows, None
    context = context_of(subject.model)
    return rows, Scorer(recipe.score, (), subject.tokenizer, context=context, seed=recipe.seed, **computing)


def _measure_answers(recipe: EvalRecipe, subject: _Subject, scorer: Scorer) -> dict[str, Any]:
    """Return the scores of the answers: exact match and reward, greedy and sampled; BLEU and ROUGE of greedy ones."""
    references = scorer.columns.get("answer") or [None] * len(scorer.examples)
    known = [i for i, reference in enumerate(references) if reference is not None]
    if recipe.eval.text_scores and not known:
        why = "none of the prompts has a reference to compare an answer with"
        raise UserError(Problem("eval.text_scores", why, fix="Name its column in score.columns.answer."))
    row, answers = scorer.measure(subject.model)
    if recipe.score is not None:
        path = recipe.score.path
    else:
        run, trained = subject.own
        path = trained.score.path or f"the held-out part of {run.path}"
    where = {"path": path, "fingerprint": scorer.fingerprint}
    settings = {"prompts": len(scorer.examples), "max_completion_length": scorer.new_tokens}
    texts = ([answers[i] for i in known], [str(references[i]) for i in known])
    found = score_texts(recipe.eval.text_scores, *texts) if recipe.eval.text_scores else {}
    shown = [
        {"prompt": example.prompt[-1]["content"], "answer": answer, "reference": reference}
        for example, answer, reference in zip(scorer.examples, answers, references, strict=True)
    ]
    return where | settings | row | found | {"examples": shown[:SHOWN]}


def _keep(recipe: EvalRecipe, measured: dict[str, Any], listener: Listener) -> dict[str, Any]:
    """Add the measurement to the checkpoint's own file; returns it with what came out the last time."""
    folder = measured["checkpoint"]
    before = [row for row in evaluations_of(folder) if _same(row.get("checkpoint"), folder)]
    line = {
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
            listener(Notice(f"kept in {path}"))
        except OSError as error:
            listener(Notice(f"could not be kept with the checkpoint: {error.strerror or error}"))
    return with_before(measured, before)


def _same(one: Any, other: str) -> bool:
    return str(one) == other or Path(str(one)).resolve() == Path(other).resolve()
