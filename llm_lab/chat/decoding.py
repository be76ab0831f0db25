"""From token ids to the next token, and from tokens to text, one token at a time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from llm_lab.errors import MachineError, Problem, UserError

if TYPE_CHECKING:
    from torch import Tensor

# Below this, dividing by the temperature could overflow; the likeliest token has all the weight long before.
GREEDY_BELOW = 1e-4
# An unfinished UTF-8 character is at most three bytes, which decode to at most three of these.
REPLACEMENT = "\ufffd"
MOST_UNFINISHED = 3


class Predictor:
    """Predicts the token after a sequence; the part it shares with the last one is not computed again."""

    def __init__(self, model: Any):
        self._model = model.eval()
        self._cache: Any = None
        self._cached: list[int] = []
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._keeps_last = "logits_to_keep" in inspect.signature(base.forward).parameters

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Return the float32 logits, (1, vocabulary), of the token that follows."""
        import torch

        known = self._shared_with(list(ids))
        cache, self._cache, self._cached = (
            self._cache,
            None,
            [],
        )  # an interrupted forward leaves it half filled
        if not known:
            cache = None
        options = {"logits_to_keep": 1} if self._keeps_last else {}
        try:
            with torch.inference_mode():
                rest = torch.tensor([list(ids[known:])], device=self._model.device)
                output = self._model(input_ids=rest, past_key_values=cache, use_cache=True, **options)
                logits = output.logits[:, -1].float()
        except torch.OutOfMemoryError:
            raise MachineError(
                Problem(
                    "memory",
                    f"the device's memory does not hold a context of {len(ids):,} tokens",
                    fix="/reset begins anew with an empty context.",
                )
            ) from None
        if logits.isnan().any():
            raise UserError(
                Problem(
                    "model",
                    "its outputs are not numbers (NaN)",
                    fix="Take a checkpoint from before it diverged.",
                )
            )
        self._cache = getattr(output, "past_key_values", None)
        self._cached = list(ids) if self._cache is not None else []
        return logits

    def _shared_with(self, ids: list[int]) -> int:
        """Return how many tokens of the cache serve `ids`, having cut the cache down to them."""
        cached = self._cached
        length = len(cached)
        if length < len(ids) and ids[:length] == cached:
            return length
        shared = 0
        for old, new in zip(cached, ids[:-1], strict=False):  # the last token is fed always: its logits are wanted
            if old != new:
                break
            shared += 1
        if shared and not _can_be_cut(self._cache):
            return 0
        if shared:
            self._cache.crop(shared - length)
        return shared


def _can_be_cut(cache: Any) -> bool:
    """Sliding-window and recurrent layers have let go of what a shorter sequence would need."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    return type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Gather the tokens that end a text, from every place that may name them."""
    found: set[int] = set()
    for holder in (getattr(model, "generation_config", None), model.config, tokenizer):
        token = getattr(holder, "eos_token_id", None)
        found.update(token if isinstance(token, list | tuple) else [] if token is None else [token])
    return found


def make_picker(
    *, temperature: float, top_k: int, top_p: float, repetition_penalty: float, seed: int | None
) -> Callable[[Sequence[int], Any], int]:
    """Return a function from (ids so far, logits) to the next token.

    temperature 0: the likeliest. The order of the steps is that of transformers' `generate`.
    """
    import torch
    from transformers import (
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    greedy = temperature < GREEDY_BELOW
    steps = LogitsProcessorList()
    if repetition_penalty != 1.0:
        steps.append(RepetitionPenaltyLogitsProcessor(repetition_penalty))
    if not greedy:
        steps.append(TemperatureLogitsWarper(temperature))
        if top_k:
            steps.append(TopKLogitsWarper(top_k))
        if top_p < 1.0:
            steps.append(TopPLogitsWarper(top_p))
    generator = torch.Generator()  # on the CPU, so that a seed means the same on every device
    generator.seed() if seed is None else generator.manual_seed(seed)

    def pick(ids: Sequence[int], logits: Tensor) -> int:
        with torch.inference_mode():
            so_far = torch.tensor([list(ids)], device=logits.device)
            scores = steps(so_far, logits)
            if greedy:
                return int(scores.argmax())
            return int(torch.multinomial(scores.softmax(-1).cpu(), 1, generator=generator))

    return pick


class TextOfTokens:
    """Turns tokens into text as they come, holding back a character until all its bytes are there."""

    def __init__(self, tokenizer: Any, before: Sequence[int] = ()):
        """before: tokens that the text follows on; some tokenizers drop a space at the start of a text."""
        self._tokenizer = tokenizer
        self._ids = list(before)
        while self._ids and self._decode(self._ids).startswith(REPLACEMENT):
            del self._ids[0]
        self._context = len(self._ids)  # tokens that are decoded along for the sake of those after them
        self._shown = 0  # characters of the rest that were given out already

    def push(self, token: int) -> str:
        """Take a token; return the text that is certain by now."""
        self._ids.append(token)
        new = self._new_text()
        held = min(len(new) - len(new.rstrip(REPLACEMENT)), MOST_UNFINISHED)
        sure = new[: len(new) - held]
        piece, self._shown = sure[self._shown :], max(self._shown, len(sure))
        if new and not held:
            self._ids, self._shown = self._ids[self._context :], 0
            self._context = len(self._ids)
        return piece

    def rest(self) -> str:
        """Return what is still held back: bytes that never became a character."""
        piece = self._new_text()[self._shown :]
        self._shown += len(piece)
        return piece

    def _new_text(self) -> str:
        return self._decode(self._ids)[len(self._decode(self._ids[: self._context])) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
