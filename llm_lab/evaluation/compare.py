"""Compare models: each answers the same prompts and is measured on the same texts, one after another."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from llm_lab.chat.decoding import ChatSettings
from llm_lab.chat.session import ChatSession
from llm_lab.chat.web_search import Hit
from llm_lab.data.rows import Example
from llm_lab.errors import Problem, UserError
from llm_lab.events import Listener, Notice, Progress, ignore
from llm_lab.hf.adapter import weights_digest
from llm_lab.hf.load import context_of, quiet_libraries, without_adapter
from llm_lab.recipe.scoring import Score
from llm_lab.runs.comparison import Answer, Compared, Comparison
from llm_lab.runs.evaluations import data_of, flat_results, numbers_of
from llm_lab.runs.folder import now
from llm_lab.runs.report import keep_evaluation

from .candidates import Candidate, find_candidates, find_steps, find_trusted, require_loadable
from .compare_task import Task, prepare_task
from .perplexity import measure_text, total_of
from .score import Scorer

Load = Callable[..., tuple[Any, Any]]  # (folder or Hub name, trust_remote_code=False) -> (model, tokenizer)
SETTINGS = ChatSettings(temperature=0.0, top_p=1.0, max_new_tokens=128, seed=1337)
MAX_TOKENS = {"cpu": 131_072, "cuda": 1_048_576}
ROWS = 8
WARM_UP_TOKENS = 8
ADAPTER_WEIGHTS = ("lora_", "trainable_tokens_", "modules_to_save")  # parts of the names of an adapter's parameters


@dataclass(frozen=True)
class ReferenceAnswers:
    """The first model's answers and its top token at each position, which other models are compared with."""

    tokenizer: Any
    texts: list[tuple[list[int], int, list[int]]]  # (token ids, start of the answer, top tokens)


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
    trust_code_of: Sequence[str] = (),
    listener: Listener = ignore,
) -> Comparison:
    """Ask several models the same prompts and measure them on the same texts, loading one at a time.

    names: checkpoints; with `steps`, one run, all of whose checkpoints are compared. prompts: by default, the first
    ones of prompt_set, or else the sample prompts of the models' runs. prompt_set: prompts that are also scored. data:
    texts whose loss is measured. adapter_off: after each adapter, add its base model without it. trust_remote_code: run
    the code that comes with a model, if only one has any; trust_code_of: names of the models whose code runs. Raises
    UserError with all problems before any model is loaded.
    """
    quiet_libraries()
    remarks: list[str] = []
    if steps:
        if len(names) != 1 or adapter_off:
            raise UserError(Problem("--steps", "it requires exactly one run, without --adapter-off"))
        candidates, remarks = find_steps(names[0])
    else:
        candidates = find_candidates(names, adapter_off=adapter_off)
    trusted = find_trusted(candidates, trust_remote_code=trust_remote_code, names=trust_code_of)
    require_loadable(candidates, trusted)
    task, more = prepare_task(candidates, prompts, prompt_set, data, settings, trusted=trusted, over_time=steps)
    remarks += more
    compared: list[Compared] = []
    measured: list[dict[str, Any]] = []
    reference: ReferenceAnswers | None = None
    for folder in dict.fromkeys(candidate.folder for candidate in candidates):
        group = [candidate for candidate in candidates if candidate.folder == folder]
        opener = partial(load, trust_remote_code=True) if folder in trusted else load
        label = f"{group[0].name} ({len(compared) + 1} of {len(candidates)})"
        listener(Progress(label, len(compared), len(candidates)))
        found, rows, reference = _compare_group(group, opener, task, reference, listener)
        release_memory()
        compared += found
        measured += rows
    listener(Progress("compared", len(candidates), len(candidates)))
    same_tokens, more = _check_texts(measured)
    remarks += more
    return Comparison(
        prompts=tuple(example.prompt[-1]["content"] for example in task.prompts),
        models=tuple(compared),
        drawn=describe_sampling(settings),
        same_tokens=same_tokens,
        over_time=steps,
        remarks=tuple(remarks),
    )


def describe_sampling(settings: ChatSettings) -> str:
    """Return in words how answers are sampled."""
    limit = f"at most {settings.max_new_tokens:,} tokens"
    if settings.temperature == 0:
        return f"greedy (temperature 0), {limit}"
    seed = "no seed" if settings.seed is None else f"seed {settings.seed} for all"
    return f"sampled at temperature {settings.temperature:g}, {seed}, {limit}"


def collect_answer(session: ChatSession, text: str, hits: Sequence[Hit] = ()) -> Answer:
    """Return a session's whole reply. Raises UserError like `ChatSession.reply`."""
    reply = "".join(session.reply(text, hits))
    stats = session.last_stats
    assert stats is not None  # set by every reply
    return Answer(reply, stats.tokens, stats.stop)


def release_memory() -> None:
    """Free the memory of models that are no longer referenced."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _check_texts(measured: Sequence[dict[str, Any]]) -> tuple[bool, list[str]]:
    """Return whether all models split the texts into the same tokens, and remarks on the texts."""
    remarks, same = [], True
    for path in dict.fromkeys(row["path"] for row in measured):
        rows = [row for row in measured if row["path"] == path]
        extents = {(row["tokens"], row["bytes"]) for row in rows}
        same &= len(extents) == 1
        if not all(row["whole"] for row in rows):
            most = max(row["tokens"] for row in rows)
            each = " of each model" if len(extents) > 1 else ""
            remarks.append(f"{path}: measured on the first {most:,} tokens{each}.")
    for length in sorted({row["max_length"] for row in measured}):
        remarks.append(f"Context length for the loss on text: {length:,} tokens; losses depend on it.")
    if not same:
        remarks.append("The tokenizers differ: compare bits per byte, not the loss per token.")
    return same, remarks


def _compare_group(
    group: Sequence[Candidate], load: Load, task: Task, reference: ReferenceAnswers | None, listener: Listener
) -> tuple[list[Compared], list[dict[str, Any]], ReferenceAnswers]:
    """Measure the candidates that share a folder. The model is loaded once and freed when this function returns."""
    model, tokenizer = load(group[0].folder)
    found, measured = [], []
    for candidate in group:
        off = candidate.without_adapter
        with without_adapter(model, candidate.folder) if off else nullcontext(tokenizer) as its_tokenizer:
            compared, answers, rows = _compare_one(candidate, model, its_tokenizer, task, reference, listener)
        reference = reference or answers
        found.append(compared)
        measured += rows
    assert reference is not None  # a group is never empty
    return found, measured, reference


def _compare_one(
    candidate: Candidate,
    model: Any,
    tokenizer: Any,
    task: Task,
    reference: ReferenceAnswers | None,
    listener: Listener,
) -> tuple[Compared, ReferenceAnswers, list[dict[str, Any]]]:
    """Return one model's results, its answers as a reference for others, and what was measured per text."""
    session = ChatSession(model, tokenizer, name=candidate.name, settings=task.settings)
    numbers = {"parameters": float(sum(weight.numel() for weight in _weights(model, candidate)))} | candidate.numbers
    answers, texts, speeds = [], [], []
    for example in task.prompts[:1]:  # warm-up: a model's first tokens are slower
        few = dataclasses.replace(task.settings, max_new_tokens=WARM_UP_TOKENS)
        _answer_prompt(ChatSession(model, tokenizer, name=candidate.name, settings=few), example)
    for example in task.prompts:
        answer = _answer_prompt(session, example)
        answers.append(answer)
        stats = session.last_stats
        if answer.problem is None and stats is not None:
            texts.append((session.last_ids, stats.prompt_tokens))
            speeds += [stats.tokens_per_second] if stats.tokens_per_second else []
    if speeds:
        numbers["tokens_per_second"] = median(speeds)
    if reference is None:
        own = ReferenceAnswers(tokenizer, [(ids, start, _top_tokens(model, ids, start)) for ids, start in texts])
    else:
        own = ReferenceAnswers(tokenizer, [])
        share = _agreement(model, tokenizer, reference, session.context_length)
        numbers |= {} if share is None else {"agreement": share}
    measured: dict[str, Any] = {}
    try:
        if task.sources:
            measured["texts"] = _measure_texts(model, tokenizer, task, listener)
        if task.score is not None:
            measured["scores"] = _score_answers(model, tokenizer, task, task.score, listener)
    except UserError as error:  # a problem with one model must not discard the results of the others
        listener(Notice(f"{candidate.name}: {error}"))
    rows = measured.get("texts", [])
    numbers |= {f"{key}:{row['path']}": row[key] for row in rows for key in ("loss", "bits_per_byte")}
    numbers |= dict(numbers_of(measured.get("scores", {})))
    if measured and not candidate.without_adapter:
        _keep(candidate, measured, listener)
    return Compared(candidate.name, candidate.folder, session.mode, tuple(answers), numbers), own, rows


def _answer_prompt(session: ChatSession, example: Example) -> Answer:
    """Return a session's answer to a prompt, or the reason why there is none. A base model continues the text."""
    session.reset()
    session.system = None
    *before, last = example.prompt
    text = last["content"]
    try:
        if session.mode == "completion":
            text = "\n".join(message["content"] for message in example.prompt)
        else:
            if before and before[0]["role"] == "system":
                session.set_system(before.pop(0)["content"])
            session.messages = [dict(message) for message in before]
        return collect_answer(session, text)
    except UserError as error:
        return Answer("", problem=str(error))


@torch.no_grad()
def _top_tokens(model: Any, ids: Sequence[int], start: int) -> list[int]:
    """Return the top token at each position from `start` on, and after the last: what greedy decoding selects."""
    if not ids or start < 1:
        return []
    logits = model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False).logits
    return logits[0, start - 1 :].argmax(-1).tolist()


def _agreement(model: Any, tokenizer: Any, reference: ReferenceAnswers, context: int | None) -> float | None:
    """Return the share of positions of the reference answers where a model has the reference's top token.

    None if the model's tokenizer differs on these tokens, or an answer exceeds its context.
    """
    same = total = 0
    for ids, start, expected in reference.texts:
        known = sorted({*ids, *expected})
        if tokenizer.convert_ids_to_tokens(known) != reference.tokenizer.convert_ids_to_tokens(known):
            return None
        if max(known) >= model.get_input_embeddings().weight.shape[0] or (context and len(ids) > context):
            return None
        found = _top_tokens(model, ids, start)
        same += sum(a == b for a, b in zip(found, expected, strict=True))
        total += len(expected)
    return same / total if total else None


def _weights(model: Any, candidate: Candidate) -> Iterator[Any]:
    """Yield a model's weights, without those of an adapter that is switched off."""
    for name, weight in model.named_parameters():
        if not (candidate.without_adapter and any(part in name for part in ADAPTER_WEIGHTS)):
            yield weight


def _measure_texts(model: Any, tokenizer: Any, task: Task, listener: Listener) -> list[dict[str, Any]]:
    device, dtype = _device_of(model)
    return [
        measure_text(
            model,
            tokenizer,
            source,
            max_tokens=MAX_TOKENS[device],
            max_length=task.max_length,
            rows=ROWS,
            device=device,
            dtype=dtype,
            listener=listener,
        )
        for source in task.sources
    ]


def _score_answers(model: Any, tokenizer: Any, task: Task, score: Score, listener: Listener) -> dict[str, Any]:
    """Return the scores of a model's answers, and the prompts and settings they belong to."""
    device, dtype = _device_of(model)
    scorer = Scorer(
        score,
        (),
        tokenizer,
        context=context_of(model),
        device=device,
        dtype=dtype,
        seed=task.settings.seed or 0,
        listener=listener,
    )
    scored = {"path": score.path, "fingerprint": scorer.fingerprint, "prompts": len(scorer.examples)}
    return scored | {"max_completion_length": scorer.new_tokens} | scorer.measure(model)[0]


def _device_of(model: Any) -> tuple[str, str]:
    return model.device.type, "bfloat16" if model.dtype == torch.bfloat16 else "float32"


def _keep(candidate: Candidate, measured: dict[str, Any], listener: Listener) -> None:
    """Save the measurement with the checkpoint, as an evaluation does."""
    texts = measured.get("texts", [])
    measured = measured | ({"total": total_of(texts)} if len(texts) > 1 else {})
    digest = weights_digest(candidate.folder)
    line = {"time": now(), "by": "compare", "digest": digest, "data": data_of(measured)}
    try:
        keep_evaluation(candidate.folder, line | {"results": dict(flat_results(measured)), "measured": measured})
    except OSError as error:
        listener(Notice(f"{candidate.name}: the evaluation can't be saved: {error.strerror or error}"))
