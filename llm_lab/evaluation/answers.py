"""Answers to the same prompts, and how far models agree on them token by token."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llm_lab.chat.decoding import ChatSettings
from llm_lab.chat.session import ChatSession
from llm_lab.data.rows import Example
from llm_lab.errors import UserError
from llm_lab.runs.comparison import Answer


@dataclass(frozen=True)
class ReferenceAnswers:
    """What the first model saw and held for likeliest, token by token: the measure of agreement."""

    tokenizer: Any
    texts: list[tuple[list[int], int, list[int]]]  # (tokens, where the answer begins, likeliest tokens)


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


def agreement(model: Any, tokenizer: Any, seen: ReferenceAnswers, context: int | None) -> float | None:
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


def describe_drawing(settings: ChatSettings) -> str:
    """Return in words how answers are drawn."""
    most = f"at most {settings.max_new_tokens:,} tokens"
    if settings.temperature == 0:
        return f"the likeliest token each time (temperature 0), {most}"
    dice = "each by its own dice" if settings.seed is None else f"seed {settings.seed} for all"
    return f"drawn at temperature {settings.temperature:g}, {dice}, {most}"


def release() -> None:
    """Give back the memory of a model that nothing names any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
