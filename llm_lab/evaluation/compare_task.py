"""What several models are asked and measured on: opened and looked at before any of them is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm_lab.chat.decoding import ChatSettings
from llm_lab.data.examples import Example, default_split, open_examples
from llm_lab.data.sources import TextSource
from llm_lab.errors import UserError
from llm_lab.hf.adapter import is_adapter, read_adapter
from llm_lab.hf.load import read_config
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.recipe.evaluation import EvalText
from llm_lab.recipe.scoring import RewardTerm, Score
from llm_lab.rewards.build import build_rewards

from .candidates import Candidate, prompts_of_runs, rewards_of_runs, run_and_recipe
from .perplexity import LONGEST, open_texts
from .score import EXACT, SHOWN, columns_of

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
    candidates: Sequence[Candidate],
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
    context = _smallest_context(candidates, trust_remote_code)
    score = None
    if prompt_set is not None:
        score, remark = _score(candidates, prompt_set, examples, context, settings)
        remarks += [remark] if remark else []
    if prompts:
        questions = [Example(prompt=({"role": "user", "content": text},)) for text in prompts]
    elif examples:
        questions = examples[:SHOWN]
    else:
        options = {"trust_remote_code": trust_remote_code, "key": "checkpoint"}
        chats = any(load_tokenizer(candidate.folder, **options).chat_template for candidate in candidates)
        texts, where = prompts_of_runs(candidates, empty=not chats)
        if not texts:
            texts, where = (QUESTIONS if chats else BEGINNINGS), "a few of LLM Lab's own, as none was named"
        texts = texts[:1] if over_time else texts  # the time machine: one prompt, every checkpoint
        questions = [Example(prompt=({"role": "user", "content": text},)) for text in texts]
        remarks.append(f"Prompts: {where}.")
    return Task(tuple(questions), score, tuple(sources), _length(candidates, context), settings), remarks


def _smallest_context(candidates: Sequence[Candidate], trust_remote_code: bool) -> int | None:
    """Return how many tokens the model with the smallest context sees: none is measured with more than another."""
    found = []
    for candidate in candidates:
        folder = candidate.folder
        while is_adapter(folder):
            folder = read_adapter(folder).base
        config = read_config(folder, trust_remote_code=trust_remote_code).get_text_config()
        found.append(getattr(config, "max_position_embeddings", None))
    return min((length for length in found if length), default=None)


def _length(candidates: Sequence[Candidate], context: int | None) -> int:
    """Return how many tokens all are shown at once while measured: none more than it was trained with."""
    found = [context or LONGEST, LONGEST]
    for candidate in candidates:
        run = run_and_recipe(candidate)
        train = getattr(run[1], "train", None) if run else None
        found += [train.max_length] if train else []
    return min(found)


def _score(
    candidates: Sequence[Candidate],
    path: str,
    examples: Sequence[Example],
    context: int | None,
    settings: ChatSettings,
) -> tuple[Score | None, str | None]:
    """Return how the prompts are scored: by the rewards of a candidate's own run, else by their known answers."""
    terms, run = rewards_of_runs(candidates)
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
