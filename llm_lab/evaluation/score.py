"""Held-out prompts answered and scored: exact match, greedy and sampled, and the reward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from llm_lab.data.examples import Example, default_split, open_examples
from llm_lab.errors import Problem, UserError
from llm_lab.events import Listener, RunWarning, progress_of
from llm_lab.hf.conversations import encode_prompt
from llm_lab.recipe.scoring import Score
from llm_lab.rewards.build import build_rewards
from llm_lab.training.loop import find_local
from llm_lab.training.measure import autocast

EXACT = ("exact_number", "exact_match")  # rewards that tell right from wrong
ROWS = 64
SHOWN = 3


class Scorer:
    """Answers the same prompts at every evaluation and scores the answers; leaves the run's random state alone.

    held_out: the stage's own prompts, taken where the recipe names none. Prompts that leave no room for an answer
    are counted out.
    """

    def __init__(
        self,
        score: Score,
        held_out: Sequence[Example],
        tokenizer: Any,
        *,
        context: int | None,
        device: str,
        dtype: str,
        seed: int,
        listener: Listener,
    ):
        self.device, self.dtype, self.seed, self.listener = device, dtype, seed, listener
        self.tokenizer, self.new_tokens = tokenizer, score.max_completion_length
        self.fingerprint: str | None = None  # of the set that the recipe names
        if score.path is not None:
            columns = score.columns.model_dump(exclude_none=True) if score.columns else None
            where = {"key": "score", "subset": score.subset, "split": default_split(score.path, score.split)}
            source = open_examples(score.path, kind="prompt", columns=columns, **where)
            held_out, self.fingerprint = source.examples, source.fingerprint
        room = None if context is None else context - self.new_tokens
        wanted = [(example, prompt_ids(tokenizer, example)) for example in held_out[: score.prompts]]
        kept = [(example, ids) for example, ids in wanted if room is None or len(ids) <= room]
        if len(kept) < len(wanted):
            listener(
                RunWarning(f"score: {len(wanted) - len(kept):,} prompts leave no room for an answer, and are left out")
            )
        if not kept:
            why = "there is no prompt that could be scored" if not wanted else "no prompt leaves room for an answer"
            raise UserError(Problem("score", why, fix="Name others with score.path, or set score: null."))
        self.examples, self.ids = [example for example, _ in kept], [ids for _, ids in kept]
        terms = [term.model_dump() for term in score.rewards]
        self.rewards = build_rewards(terms, device=device, find_model=find_local, key="score.rewards")
        self.columns = columns_of(self.examples)
        self.rewards.check_columns(self.columns)
        self.exact = next((name for name in EXACT for term in terms if term["name"] == name), None)

    def measure(self, model: Any) -> tuple[dict[str, float], list[str]]:
        """Return the row for metrics.jsonl and the greedy answers."""
        greedy, lengths = self.answer(model, temperature=0.0)
        sampled, _ = self.answer(model, temperature=1.0)
        prompts = [list(example.prompt) for example in self.examples]
        row: dict[str, float] = {}
        for answers, suffix in ((greedy, ""), (sampled, "_sampled")):
            scores = self.rewards(prompts, answers, self.columns)
            means = scores.means()
            if self.exact:
                row[f"exact_match{suffix}"] = round(means[f"rewards/{self.exact}"], 6)
            if "reward" in means:
                row[f"eval_reward{suffix}"] = round(means["reward"], 6)
        row["eval_completion_length"] = round(sum(lengths) / len(lengths), 2)
        return row, greedy

    def answer(self, model: Any, *, temperature: float) -> tuple[list[str], list[int]]:
        """Return the answers and how many tokens each has."""
        texts, lengths = [""] * len(self.ids), [0] * len(self.ids)
        order = sorted(range(len(self.ids)), key=lambda i: len(self.ids[i]))
        tell = progress_of(self.listener, "scoring")
        with deterministic(self.device, self.seed), generating(model), autocast(self.device, self.dtype):
            for start in range(0, len(order), ROWS):
                batch = order[start : start + ROWS]
                found = generate(
                    model,
                    self.tokenizer,
                    [self.ids[i] for i in batch],
                    max_new_tokens=self.new_tokens,
                    temperature=temperature,
                )
                for i, ids in zip(batch, found, strict=True):
                    texts[i], lengths[i] = self.tokenizer.decode(ids, skip_special_tokens=True), len(ids)
                if len(order) > ROWS:
                    tell(min(start + ROWS, len(order)), len(order))
        return texts, lengths


def prompt_ids(tokenizer: Any, example: Example) -> list[int]:
    """Return a prompt's tokens; a base model without a chat template reads the plain text."""
    if getattr(tokenizer, "chat_template", None):
        return encode_prompt(tokenizer, example.prompt)
    text = "\n".join(message["content"] for message in example.prompt)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def columns_of(examples: Sequence[Example]) -> dict[str, list[Any]]:
    """Return what rewards may compare with: the answers, where there are any, and the data's other columns."""
    names = list(dict.fromkeys(name for example in examples for name in example.columns))
    columns = {name: [example.columns.get(name) for example in examples] for name in names}
    answers = [example.answer if example.answer is not None else example.completion for example in examples]
    return columns | ({"answer": answers} if any(answer is not None for answer in answers) else {})


@torch.no_grad()
def generate(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, temperature: float
) -> list[list[int]]:
    """Return the tokens of an answer to each prompt, up to and with the one that ends it."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=model.device)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        **(sampling or {"do_sample": False}),
    )
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends]) - {None}
    answers = []
    for row in output[:, width:].tolist():
        stop = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
        answers.append(row[: stop + 1])
    return answers


@contextmanager
def generating(model: Any) -> Iterator[None]:
    """Put a model into eval mode, and back into the mode it was in."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)


@contextmanager
def deterministic(device: str, seed: int) -> Iterator[None]:
    """Draw from a random state of its own."""
    devices = [torch.cuda.current_device()] if device == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
