"""What several models are asked and measured on: opened and looked at before any of them is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm_lab.data.examples import Example, default_split, open_examples
from llm_lab.data.sources import TextSource
from llm_lab.hf.adapter import is_adapter, read_adapter
from llm_lab.hf.load import read_config
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.recipe.errors import UserError
from llm_lab.recipe.evaluation import EvalText
from llm_lab.recipe.scoring import RewardTerm, Score
from llm_lab.rewards.build import build_rewards

from .chat_settings import ChatSettings
from .contenders import Contender, prompts_of_runs, rewards_of_runs, run_and_recipe
from .score import EXACT, SHOWN, columns_of
from .text_loss import LONGEST, open_texts

QUESTIONS = ("Who are you?", "Tell me a short story about a bird.", "What is 2 + 3?")
BEGINNINGS = ("Once upon a time", "The", "It is")


@dataclass(frozen=True)
class Task:
    """What all are asked and measured on, opened and looked at."""

    questions: tuple[Example, ...]
    score: Score | None
    sources: tuple[TextSource, ...]
    max_length: int
    settings: ChatSettings


def prepare(
    contenders: Sequence[Contender],
    prompts: Sequence[str],
    prompt_set: str | None,
    data: Sequence[str],
    settings: ChatSettings,
    trust_remote_code: bool,
    over_time: bool,
) -> tuple[Task, list[str]]:
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
        options = {"trust_remote_code": trust_remote_code, "key": "checkpoint"}
        chats = any(load_tokenizer(contender.folder, **options).chat_template for contender in contenders)
        texts, where = prompts_of_runs(contenders, empty=not chats)
        if not texts:
            texts, where = (QUESTIONS if chats else BEGINNINGS), "a few of LLM Lab's own, as none was named"
        texts = texts[:1] if over_time else texts  # the time machine: one prompt, every checkpoint
        questions = [Example(prompt=({"role": "user", "content": text},)) for text in texts]
        remarks.append(f"Prompts: {where}.")
    return Task(tuple(questions), score, tuple(sources), _length(contenders, context), settings), remarks


def _smallest_context(contenders: Sequence[Contender], trust_remote_code: bool) -> int | None:
    """Return how many tokens the model with the smallest context sees: none is measured with more than another."""
    found = []
    for contender in contenders:
        folder = contender.folder
        while is_adapter(folder):
            folder = read_adapter(folder).base
        config = read_config(folder, trust_remote_code=trust_remote_code).get_text_config()
        found.append(getattr(config, "max_position_embeddings", None))
    return min((length for length in found if length), default=None)


def _length(contenders: Sequence[Contender], context: int | None) -> int:
    """Return how many tokens all are shown at once while measured: none more than it was trained with."""
    found = [context or LONGEST, LONGEST]
    for contender in contenders:
        run = run_and_recipe(contender)
        train = getattr(run[1], "train", None) if run else None
        found += [train.max_length] if train else []
    return min(found)


def _score(
    contenders: Sequence[Contender],
    path: str,
    examples: Sequence[Example],
    context: int | None,
    settings: ChatSettings,
) -> tuple[Score | None, str | None]:
    """Return how the prompts are scored: by the rewards of a contender's own run, else by their known answers."""
    terms, run = rewards_of_runs(contenders)
    terms, columns = terms or [{"name": "exact_match"}], columns_of(examples)
    if "answer" not in columns:
        terms = [term for term in terms if term.get("name") not in EXACT]
    if not terms:
        return None, f"{path} has no answers to compare with: its prompts are answered, and not scored."
    functions = [term for term in terms if not term.get("model")]  # a model reads no columns, and takes time to load
    build_rewards(functions, key="--prompts").check_columns(columns)
    longest = min(settings.max_new_tokens, context // 2) if context else settings.max_new_tokens
    score = Score(path=path, max_completion_length=longest, rewards=tuple(RewardTerm(**term) for term in terms))
    names = ", ".join(term.get("name") or term["model"] for term in terms)
    told = f"Scored on {min(score.prompts, len(examples)):,} prompts of {path} by {names}"
    return score, told + (f", as in {run}." if run else ".")
