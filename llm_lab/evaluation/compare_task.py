"""The prompts and texts of a comparison, opened and checked before any model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llm_lab.chat.decoding import ChatSettings
from llm_lab.data.examples import Example, open_examples
from llm_lab.data.paths import default_split
from llm_lab.data.sources import TextSource
from llm_lab.errors import Problem, UserError
from llm_lab.estimate.parameters import context_in
from llm_lab.hf.adapter import is_adapter, read_adapter
from llm_lab.hf.configs import read_config
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.recipe.eval import EvalText
from llm_lab.recipe.scoring import RewardTerm, Score
from llm_lab.rewards.build import build_rewards

from .candidates import Candidate, prompts_of_runs, rewards_of_runs, run_and_recipe
from .perplexity import DEFAULT_LENGTH, open_texts
from .score import EXACT, SHOWN, columns_of

CHAT_PROMPTS = ("Who are you?", "Write a short story about a bird.", "What is 2 + 3?")
COMPLETION_PROMPTS = ("Once upon a time", "The", "It is")


@dataclass(frozen=True)
class Task:
    """The prompts and texts that all models get. max_length: the context length for texts, in tokens."""

    prompts: tuple[Example, ...]
    score: Score | None
    sources: tuple[TextSource, ...]
    max_length: int
    settings: ChatSettings


def prepare_task(
    candidates: Sequence[Candidate],
    prompts: Sequence[str],
    prompt_set: str | None,
    data: Sequence[str],
    settings: ChatSettings,
    *,
    trusted: frozenset[str],
    over_time: bool,
) -> tuple[Task, list[str]]:
    """Return the task and remarks on it. Raises UserError with all problems of the texts and the prompt set.

    over_time: the candidates are the checkpoints of one run; without given prompts, they answer only one.
    """
    remarks: list[str] = []
    problems: list[Problem | str] = []
    examples: list[Example] = []
    sources: list[TextSource] = []
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
    context = _smallest_context(candidates, trusted)
    score = None
    if prompt_set is not None:
        score, remark = _plan_score(candidates, prompt_set, examples, context, settings)
        remarks.append(remark)
    if prompts:
        asked = [_prompt(text) for text in prompts]
    elif examples:
        asked = examples[:SHOWN]
    else:
        tokenizers = [
            load_tokenizer(candidate.folder, trust_remote_code=candidate.folder in trusted, key="checkpoint")
            for candidate in candidates
        ]
        chats = any(tokenizer.chat_template for tokenizer in tokenizers)
        texts, source = prompts_of_runs(candidates, empty=not chats)
        if not texts:
            texts, source = (CHAT_PROMPTS if chats else COMPLETION_PROMPTS), "LLM Lab's defaults, since none were given"
        asked = [_prompt(text) for text in (texts[:1] if over_time else texts)]
        remarks.append(f"Prompts: {source}.")
    return Task(tuple(asked), score, tuple(sources), _context_length(candidates, context), settings), remarks


def _prompt(text: str) -> Example:
    return Example(prompt=({"role": "user", "content": text},))


def _smallest_context(candidates: Sequence[Candidate], trusted: frozenset[str]) -> int | None:
    """Return the smallest context of all models, in tokens: all are measured with the same context."""
    lengths = []
    for candidate in candidates:
        folder = candidate.folder
        while is_adapter(folder):
            folder = read_adapter(folder).base
        config = read_config(folder, trust_remote_code=candidate.folder in trusted).get_text_config()
        lengths.append(context_in(config.to_dict()))
    return min((length for length in lengths if length), default=None)


def _context_length(candidates: Sequence[Candidate], context: int | None) -> int:
    """Return the context length for texts: no model gets more tokens than it was trained with."""
    lengths = [context or DEFAULT_LENGTH, DEFAULT_LENGTH]
    for candidate in candidates:
        found = run_and_recipe(candidate)
        train: Any = getattr(found[1], "train", None) if found else None
        lengths += [train.max_length] if train else []
    return min(lengths)


def _plan_score(
    candidates: Sequence[Candidate],
    path: str,
    examples: Sequence[Example],
    context: int | None,
    settings: ChatSettings,
) -> tuple[Score | None, str]:
    """Return how answers are scored, and a remark: by the rewards of a model's own run, else by exact match."""
    run_terms, run = rewards_of_runs(candidates)
    terms, columns = run_terms or [{"name": "exact_match"}], columns_of(examples)
    if "answer" not in columns:
        terms = [term for term in terms if term.get("name") not in EXACT]
    if not terms:
        return None, f"{path} has no reference answers, so the outputs are shown but not scored."
    functions = [term for term in terms if not term.get("model")]  # reward models don't use columns and load slowly
    build_rewards(functions, key="--prompts").check_columns(columns)
    longest = min(settings.max_new_tokens, context // 2) if context else settings.max_new_tokens
    score = Score(path=path, max_completion_length=longest, rewards=tuple(RewardTerm(**term) for term in terms))
    names = ", ".join(term.get("name") or term["model"] for term in terms)
    text = f"Scored on {min(score.prompts, len(examples)):,} prompts of {path} by {names}"
    return score, text + (f", as in {run}." if run else ".")
