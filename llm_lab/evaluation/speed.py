"""Generation speed: time to the first token, and tokens per second after it."""

from __future__ import annotations

import statistics
import time
from typing import Any

from llm_lab.chat.decoding import ChatSettings, Predictor, make_sampler
from llm_lab.data.encoding import Encoder, start_token_id
from llm_lab.hf.load import context_of

ROUNDS = 5
PROMPT = "Once upon a time there was a small village by a river, and in it lived people who liked to read many stories."


def measure_speed(model: Any, tokenizer: Any, *, new_tokens: int) -> dict[str, float]:
    """Return seconds_to_first_token and tokens_per_second: medians of five rounds, after one warm-up round.

    Decoding works as in chat: batch size 1, with the KV cache, greedy.
    """
    (ids, _, _), *_ = Encoder(tokenizer)([(PROMPT, False)])
    context = context_of(model)
    room = new_tokens if context is None else min(new_tokens, context // 2)
    prompt = [start_token_id(tokenizer), *ids][: context - room if context else None]
    rounds = [_time_round(model, list(prompt), room) for _ in range(ROUNDS + 1)][1:]
    first = statistics.median(times[0] for times in rounds)
    speed = {"seconds_to_first_token": first, "prompt_tokens": len(prompt), "new_tokens": room}
    if room > 1:
        speed["tokens_per_second"] = statistics.median((room - 1) / (times[1] - times[0]) for times in rounds)
    return speed


def _time_round(model: Any, ids: list[int], count: int) -> tuple[float, float]:
    """Return the seconds to the first token and to the last token."""
    sample = make_sampler(ChatSettings(temperature=0.0, top_p=1.0, seed=0))
    predictor, started, first = Predictor(model), time.perf_counter(), 0.0
    for number in range(count):
        ids.append(sample(ids, predictor.logits(ids)))  # reading the token waits for the device
        if number == 0:
            first = time.perf_counter() - started
    return first, time.perf_counter() - started
