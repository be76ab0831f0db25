"""Several models asked the same, and measured on the same texts, one after another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from statistics import median
from typing import Any

import torch

from llm_lab.chat.decoding import ChatSettings
from llm_lab.chat.session import ChatSession
from llm_lab.errors import Problem, UserError
from llm_lab.events import Listener, Notice, Progress, ignore
from llm_lab.hf.adapter import weights_digest
from llm_lab.hf.load import context_of, quiet_libraries, switch_adapter_off
from llm_lab.runs.comparison import Compared, Comparison
from llm_lab.runs.evaluations import data_of, flat_results, numbers_of
from llm_lab.runs.folder import now
from llm_lab.runs.report import keep_evaluation

from .answers import ReferenceAnswers, agreement, answer_example, describe_drawing, likeliest, release
from .candidates import Candidate, find_candidates, find_steps, require_loadable
from .compare_task import Task, prepare
from .perplexity import measure_text, total_of
from .score import Scorer

Load = Callable[[str], tuple[Any, Any]]  # a folder or a Hub name -> (model, tokenizer)
SETTINGS = ChatSettings(temperature=0.0, top_p=1.0, max_new_tokens=128, seed=1337)
MOST_TOKENS = {"cpu": 131_072, "cuda": 1_048_576}
ROWS = 8
WARM_UP_TOKENS = 8
ADAPTERS = ("lora_", "trainable_tokens_", "modules_to_save")  # in the names of their weights


def compare(
    names: Sequence[str],
    *,
    load: Load,
    prompts: Sequence[str] = (),
    prompt_set: str | None = None,
    data: Sequence[str] = (),
    steps: bool = False,
    adapter_off: bool = False,
    settings: ChatSettings = SETTINGS,
    trust_remote_code: bool = False,
    listener: Listener = ignore,
) -> Comparison:
    """Ask several models the same and measure them on the same texts; they are loaded one at a time.

    names: checkpoints, or with `steps` one run, all of whose checkpoints are asked. prompts: what is asked, else the
    first of prompt_set, else what their own runs ask. prompt_set: prompts that are answered and scored. data: texts
    whose loss is measured. adapter_off: after each adapter, its base without it. UserError, before any model is
    loaded, with what is wrong with all of them.
    """
    listener = listener
    quiet_libraries()
    remarks: list[str] = []
    if steps:
        if len(names) != 1 or adapter_off:
            raise UserError(Problem("--steps", "it takes one run, and shows all its checkpoints"))
        candidates, remarks = find_steps(names[0])
    else:
        candidates = find_candidates(names, adapter_off=adapter_off)
    require_loadable(candidates, trust_remote_code=trust_remote_code)
    task, more = prepare(candidates, prompts, prompt_set, data, settings, trust_remote_code, steps)
    remarks += more
    compared: list[Compared] = []
    measured: list[dict[str, Any]] = []
    seen: ReferenceAnswers | None = None
    for folder in dict.fromkeys(candidate.folder for candidate in candidates):
        group = [candidate for candidate in candidates if candidate.folder == folder]
        label, place = f"{group[0].name} ({len(compared) + 1} of {len(candidates)})", (len(compared), len(candidates))
        listener(Progress(label, *place))
        found, rows, seen = _ask_group(group, load, task, seen, listener)
        release()
        compared += found
        measured += rows
    listener(Progress("compared", len(candidates), len(candidates)))
    same_tokens, more = _look_at(measured)
    remarks += more
    return Comparison(
        prompts=tuple(example.prompt[-1]["content"] for example in task.questions),
        models=tuple(compared),
        drawn=describe_drawing(settings),
        same_tokens=same_tokens,
        over_time=steps,
        remarks=tuple(remarks),
    )


def _look_at(measured: Sequence[dict[str, Any]]) -> tuple[bool, list[str]]:
    """Return whether all models read the texts as the same tokens, and what is to be said of the texts."""
    remarks, same = [], True
    for path in dict.fromkeys(row["path"] for row in measured):
        rows = [row for row in measured if row["path"] == path]
        extents = {(row["tokens"], row["bytes"]) for row in rows}
        same &= len(extents) == 1
        if not all(row["whole"] for row in rows):
            most = max(row["tokens"] for row in rows)
            remarks.append(f"Of {path} the first {most:,} tokens{' of each model' if len(extents) > 1 else ''}.")
    for length in sorted({row["max_length"] for row in measured}):
        remarks.append(f"Texts are shown to all {length:,} tokens at once; with more or fewer, losses are others.")
    if not same:
        remarks.append("Their tokens differ: compare them by bits per byte; a loss in nats a token says nothing here.")
    return same, remarks


def _ask_group(
    group: Sequence[Candidate], load: Load, task: Task, seen: ReferenceAnswers | None, listener: Listener
) -> tuple[list[Compared], list[dict[str, Any]], ReferenceAnswers]:
    """Ask those that share their files: the model is read once, and let go of with this function's end."""
    model, tokenizer = load(group[0].folder)
    found, measured = [], []
    for candidate in group:
        off = candidate.without_adapter
        with switch_adapter_off(model, candidate.folder) if off else nullcontext(tokenizer) as its_tokenizer:
            compared, mine, rows = _ask(candidate, model, its_tokenizer, task, seen, listener)
        seen = seen or mine
        found.append(compared)
        measured += rows
    return found, measured, seen


def _ask(
    candidate: Candidate, model: Any, tokenizer: Any, task: Task, seen: ReferenceAnswers | None, listener: Listener
) -> tuple[Compared, ReferenceAnswers, list[dict[str, Any]]]:
    """Return what one model made of the task, what it held for likeliest, and what was measured of each text."""
    session = ChatSession(model, tokenizer, name=candidate.name, settings=task.settings)
    numbers = {"parameters": float(sum(weight.numel() for weight in _weights(model, candidate)))} | candidate.numbers
    answers, texts, speeds = [], [], []
    for example in task.questions[:1]:  # a model's first tokens take longer than those after them
        few = dataclasses.replace(task.settings, max_new_tokens=WARM_UP_TOKENS)
        answer_example(ChatSession(model, tokenizer, name=candidate.name, settings=few), example)
    for example in task.questions:
        answer = answer_example(session, example)
        answers.append(answer)
        stats = session.last_stats
        if answer.problem is None and stats is not None:
            texts.append((session.last_ids, stats.prompt_tokens))
            speeds += [stats.tokens_per_second] if stats.tokens_per_second else []
    if speeds:
        numbers["tokens_per_second"] = median(speeds)
    mine = ReferenceAnswers(
        tokenizer, [] if seen else [(ids, start, likeliest(model, ids, start)) for ids, start in texts]
    )
    if seen and (share := agreement(model, tokenizer, seen, session.context_length)) is not None:
        numbers["agreement"] = share
    measured: dict[str, Any] = {}
    try:
        if task.sources:
            measured["texts"] = _measure_texts(model, tokenizer, task, listener)
        if task.score is not None:
            measured["scores"] = _score_answers(model, tokenizer, task, listener)
    except UserError as error:  # one model's trouble must not cost the others' minutes
        listener(Notice(f"{candidate.name}: {error}"))
    rows = measured.get("texts", [])
    numbers |= {f"{key}:{row['path']}": row[key] for row in rows for key in ("loss", "bits_per_byte")}
    numbers |= dict(numbers_of(measured.get("scores", {})))
    if measured and not candidate.without_adapter:
        _keep(candidate, measured, listener)
    return Compared(candidate.name, candidate.folder, session.mode, tuple(answers), numbers), mine, rows


def _weights(model: Any, candidate: Candidate) -> Iterator[Any]:
    """Yield a model's weights, without those of an adapter that is switched off."""
    for name, weight in model.named_parameters():
        if not (candidate.without_adapter and any(part in name for part in ADAPTERS)):
            yield weight


def _measure_texts(model: Any, tokenizer: Any, task: Task, listener: Listener) -> list[dict[str, Any]]:
    """Return a row for each text, as evaluation/perplexity.py has it."""
    device, dtype = _device_of(model)
    extent = {"max_tokens": MOST_TOKENS[device], "max_length": task.max_length, "rows": ROWS}
    options = {**extent, "device": device, "dtype": dtype, "listener": listener}
    return [measure_text(model, tokenizer, source, **options) for source in task.sources]


def _score_answers(model: Any, tokenizer: Any, task: Task, listener: Listener) -> dict[str, Any]:
    """Return the scores of a model's answers, and what they are scores of."""
    device, dtype = _device_of(model)
    options = {"context": context_of(model), "device": device, "dtype": dtype, "listener": listener}
    scorer = Scorer(task.score, (), tokenizer, seed=task.settings.seed or 0, **options)
    scored = {"path": task.score.path, "fingerprint": scorer.fingerprint, "prompts": len(scorer.examples)}
    return scored | {"max_completion_length": scorer.new_tokens} | scorer.measure(model)[0]


def _device_of(model: Any) -> tuple[str, str]:
    return model.device.type, "bfloat16" if model.dtype == torch.bfloat16 else "float32"


def _keep(candidate: Candidate, measured: dict[str, Any], listener: Listener) -> None:
    """Keep what was measured with the checkpoint, as an evaluation does."""
    texts = measured.get("texts", [])
    measured = measured | ({"total": total_of(texts)} if len(texts) > 1 else {})
    digest = weights_digest(candidate.folder)
    line = {"time": now(), "by": "compare", "digest": digest, "data": data_of(measured)}
    try:
        keep_evaluation(candidate.folder, line | {"results": dict(flat_results(measured)), "measured": measured})
    except OSError as error:
        listener(Notice(f"{candidate.name}: its evaluation can't be kept: {error.strerror or error}"))
