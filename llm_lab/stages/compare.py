"""Several models asked the same, and measured on the same texts, one after another."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from llm_lab.data.examples import Example, default_split, open_examples
from llm_lab.data.sources import TextSource
from llm_lab.hf.adapter_off import switch_adapter_off
from llm_lab.hf.load import quiet_libraries, read_config
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.recipe.errors import Problem, UserError
from llm_lab.recipe.evaluation import EvalText
from llm_lab.recipe.scoring import RewardTerm, Score
from llm_lab.runs.comparison import Answer, Compared, Comparison
from llm_lab.runs.display import Display

from .chat import ChatSession
from .chat_settings import ChatSettings
from .contenders import Contender, demand_loadable, find_contenders, find_steps, prompts_of_runs, rewards_of_runs
from .score import SHOWN, Scorer, columns_of
from .text_loss import LONGEST, context_of, measure_texts, open_texts

Load = Callable[[str], tuple[Any, Any]]  # a folder or a Hub name -> (model, tokenizer)
SETTINGS = ChatSettings(temperature=0.0, top_p=1.0, max_new_tokens=128, seed=1337)
QUESTIONS = ("Who are you?", "Tell me a short story about a bird.", "What is 2 + 3?")
BEGINNINGS = ("Once upon a time", "The", "It is")
MOST_TOKENS = {"cpu": 131_072, "cuda": 1_048_576}
ROWS = 8
ADAPTERS = ("lora_", "trainable_tokens_", "modules_to_save")  # in the names of their weights


@dataclass(frozen=True)
class _Task:
    """What all are asked and measured on, opened and looked at."""

    questions: tuple[Example, ...]
    score: Score | None
    sources: tuple[TextSource, ...]
    max_length: int
    settings: ChatSettings


@dataclass(frozen=True)
class _Seen:
    """What the first model saw and held for likeliest, token by token: the measure of agreement."""

    tokenizer: Any
    texts: list[tuple[list[int], int, list[int]]]  # (tokens, where the answer begins, likeliest tokens)


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
    display: Display | None = None,
) -> Comparison:
    """Ask several models the same and measure them on the same texts; they are loaded one at a time.

    names: checkpoints, or with `steps` one run, all of whose checkpoints are asked. prompts: what is asked, else the
    first of prompt_set, else what their own runs ask. prompt_set: prompts that are answered and scored. data: texts
    whose loss is measured. adapter_off: after each adapter, its base without it. UserError, before any model is
    loaded, with what is wrong with all of them.
    """
    display = display or Display()
    quiet_libraries()
    remarks: list[str] = []
    if steps:
        if len(names) != 1 or adapter_off:
            raise UserError(Problem("--steps", "it takes one run, and shows all its checkpoints"))
        contenders, remarks = find_steps(names[0])
    else:
        contenders = find_contenders(names, adapter_off=adapter_off)
    demand_loadable(contenders, trust_remote_code=trust_remote_code)
    task, more = _prepare(contenders, prompts, prompt_set, data, settings, trust_remote_code)
    remarks += more
    compared: list[Compared] = []
    measured: list[dict[str, Any]] = []
    seen: _Seen | None = None
    for folder in dict.fromkeys(contender.folder for contender in contenders):
        group = [contender for contender in contenders if contender.folder == folder]
        label, place = f"{group[0].name} ({len(compared) + 1} of {len(contenders)})", (len(compared), len(contenders))
        display.progress(label, *place)
        found, rows, seen = _ask_group(group, load, task, seen, display)
        release()
        compared += found
        measured += rows
    display.progress("compared", len(contenders), len(contenders))
    same_tokens, more = _look_at(measured)
    remarks += more
    return Comparison(
        prompts=tuple(example.prompt[-1]["content"] for example in task.questions),
        models=tuple(compared),
        drawn=_drawn(settings),
        same_tokens=same_tokens,
        over_time=steps,
        remarks=tuple(remarks),
    )


def _prepare(
    contenders: Sequence[Contender],
    prompts: Sequence[str],
    prompt_set: str | None,
    data: Sequence[str],
    settings: ChatSettings,
    trust_remote_code: bool,
) -> tuple[_Task, list[str]]:
    """Open all that is asked and measured. UserError with the problems of all of it; returns remarks too."""
    remarks, problems, examples, sources = [], [], [], []
    try:
        sources = open_texts([EvalText(path=path) for path in data])
    except UserError as error:
        problems += error.problems
    if prompt_set is not None:
        try:
            split = default_split(prompt_set, None)
            examples = list(open_examples(prompt_set, kind="prompt", key="prompts", split=split).examples)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
    context = _smallest_context(contenders, trust_remote_code)
    score = None
    if prompt_set is not None:
        score, remark = _score(contenders, prompt_set, examples, context, settings)
        remarks += [remark] if remark else []
    if prompts:
        questions = [Example(prompt=({"role": "user", "content": text},)) for text in prompts]
    elif examples:
        questions = examples[:SHOWN]
    else:
        chats = any(load_tokenizer(contender.folder).chat_template for contender in contenders)
        texts, where = prompts_of_runs(contenders, empty=not chats)
        if not texts:
            texts, where = (QUESTIONS if chats else BEGINNINGS), "a few of LLM Lab's own, as none was named"
        questions = [Example(prompt=({"role": "user", "content": text},)) for text in texts]
        remarks.append(f"Prompts: {where}.")
    return _Task(tuple(questions), score, tuple(sources), min(context or LONGEST, LONGEST), settings), remarks


def _smallest_context(contenders: Sequence[Contender], trust_remote_code: bool) -> int | None:
    """Return how many tokens the model with the smallest context sees: none is measured with more than another."""
    from llm_lab.hf.adapter import is_adapter, read_adapter

    found = []
    for contender in contenders:
        folder = contender.folder
        while is_adapter(folder):
            folder = read_adapter(folder).base
        config = read_config(folder, trust_remote_code=trust_remote_code).get_text_config()
        found.append(getattr(config, "max_position_embeddings", None))
    return min((length for length in found if length), default=None)


def _score(
    contenders: Sequence[Contender],
    path: str,
    examples: Sequence[Example],
    context: int | None,
    settings: ChatSettings,
) -> tuple[Score | None, str | None]:
    """Return how the prompts are scored: by the rewards of a contender's own run, else by their known answers."""
    terms, run = rewards_of_runs(contenders)
    if not terms:
        if "answer" not in columns_of(examples):
            return None, f"{path} has no answers to compare with: its prompts are answered, and not scored."
        terms = [{"name": "exact_match"}]
    longest = min(settings.max_new_tokens, context // 2) if context else settings.max_new_tokens
    score = Score(path=path, max_completion_length=longest, rewards=tuple(RewardTerm(**term) for term in terms))
    names = ", ".join(term.get("name") or term.get("model") or "?" for term in terms)
    told = f"Scored on {min(score.prompts, len(examples)):,} prompts of {path} by {names}"
    return score, told + (f", as in {run}." if run else ".")


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
    if not same:
        remarks.append("Their tokens differ: compare them by bits per byte; a loss in nats a token says nothing here.")
    return same, remarks


def _ask_group(
    group: Sequence[Contender], load: Load, task: _Task, seen: _Seen | None, display: Display
) -> tuple[list[Compared], list[dict[str, Any]], _Seen]:
    """Ask those that share their files: the model is read once, and let go of with this function's end."""
    model, tokenizer = load(group[0].folder)
    found, measured = [], []
    for contender in group:
        off = contender.without_adapter
        with switch_adapter_off(model, contender.folder) if off else nullcontext(tokenizer) as its_tokenizer:
            compared, mine, rows = _ask(contender, model, its_tokenizer, task, seen, display)
        seen = seen or mine
        found.append(compared)
        measured += rows
    return found, measured, seen


def release() -> None:
    """Give back the memory of a model that nothing names any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _ask(
    contender: Contender, model: Any, tokenizer: Any, task: _Task, seen: _Seen | None, display: Display
) -> tuple[Compared, _Seen, list[dict[str, Any]]]:
    """Return what one model made of the task, what it held for likeliest, and what was measured of each text."""
    session = ChatSession(model, tokenizer, name=contender.name, settings=task.settings)
    numbers = {"parameters": float(sum(weight.numel() for weight in _weights(model, contender)))} | contender.numbers
    answers, texts, tokens, seconds = [], [], 0, 0.0
    for example in task.questions:
        answer = answer_example(session, example)
        answers.append(answer)
        stats = session.last_stats
        if answer.problem is None and stats is not None:
            texts.append((session.last_ids, stats.prompt_tokens))
            if stats.tokens_per_second:
                tokens, seconds = tokens + stats.tokens - 1, seconds + (stats.tokens - 1) / stats.tokens_per_second
    if seconds:
        numbers["tokens_per_second"] = tokens / seconds
    mine = _Seen(tokenizer, [] if seen else [(ids, start, likeliest(model, ids, start)) for ids, start in texts])
    if seen and (share := _agreement(model, tokenizer, seen, session.context_length)) is not None:
        numbers["agreement"] = share
    rows: list[dict[str, Any]] = []
    try:
        rows = _measure_texts(model, tokenizer, task, display)
        numbers |= {f"{key}:{row['path']}": row[key] for row in rows for key in ("loss", "bits_per_byte")}
        numbers |= _score_answers(model, tokenizer, task, display)
    except UserError as error:  # one model's trouble must not cost the others' minutes
        display.notice(f"{contender.name}: {error}")
    _keep(contender, numbers, rows, task)
    return Compared(contender.name, contender.folder, session.mode, tuple(answers), numbers), mine, rows


def _weights(model: Any, contender: Contender) -> Iterator[Any]:
    """Yield a model's weights, without those of an adapter that is switched off."""
    for name, weight in model.named_parameters():
        if not (
            contender.without_adapter
            and any(part in name for part in ("lora_", "trainable_tokens_", "modules_to_save"))
        ):
            yield weight


def answer_example(session: ChatSession, example: Example) -> Answer:
    """Return a session's answer to a prompt, told as a problem where it has none; a base model continues its text."""
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
        return take_answer(session, text)
    except UserError as error:
        return Answer("", problem=str(error))


def take_answer(session: ChatSession, text: str) -> Answer:
    """Return a session's whole reply. UserError as from `reply`."""
    said = "".join(session.reply(text))
    stats = session.last_stats
    return Answer(said, stats.tokens, stats.stop)


@torch.no_grad()
def likeliest(model: Any, ids: Sequence[int], start: int) -> list[int]:
    """Return the likeliest token at each place from `start` on, and after the last: what greedy answers take."""
    if not ids or start < 1:
        return []
    logits = model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False).logits
    return logits[0, start - 1 :].argmax(-1).tolist()


def _agreement(model: Any, tokenizer: Any, seen: _Seen, context: int | None) -> float | None:
    """Return the share of places at which a model holds the same token for likeliest as the first, on its answers.

    None where they do not read the answers as the same tokens.
    """
    same = total = 0
    for ids, start, expected in seen.texts:
        known = sorted({*ids, *expected})
        if tokenizer.convert_ids_to_tokens(known) != seen.tokenizer.convert_ids_to_tokens(known):
            return None
        if max(known) >= model.get_input_embeddings().weight.shape[0] or (context and len(ids) > context):
            return None
        found = likeliest(model, ids, start)
        same += sum(a == b for a, b in zip(found, expected, strict=True))
        total += len(expected)
    return same / total if total else None


def _measure_texts(model: Any, tokenizer: Any, task: _Task, display: Display) -> list[dict[str, Any]]:
    if not task.sources:
        return []
    device, dtype = _device_of(model)
    return measure_texts(
        model,
        tokenizer,
        task.sources,
        max_tokens=MOST_TOKENS[device],
        max_length=task.max_length,
        rows=ROWS,
        device=device,
        dtype=dtype,
        display=display,
    )


def _score_answers(model: Any, tokenizer: Any, task: _Task, display: Display) -> dict[str, float]:
    if task.score is None:
        return {}
    device, dtype = _device_of(model)
    options = {"context": context_of(model), "device": device, "dtype": dtype, "display": display}
    return Scorer(task.score, (), tokenizer, seed=task.settings.seed or 0, **options).measure(model)[0]


def _device_of(model: Any) -> tuple[str, str]:
    return model.device.type, "bfloat16" if model.dtype == torch.bfloat16 else "float32"


def _drawn(settings: ChatSettings) -> str:
    most = f"at most {settings.max_new_tokens:,} tokens"
    if settings.temperature == 0:
        return f"the likeliest token each time (temperature 0), {most}"
    return f"drawn at temperature {settings.temperature:g}, seed {settings.seed} for all, {most}"


def _keep(contender: Contender, numbers: dict[str, float], rows: list[dict[str, Any]], task: _Task) -> None:
    """Keep what was measured on texts and prompts with the checkpoint."""
