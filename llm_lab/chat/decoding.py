"""Decoding one token at a time: the sampling settings, the next token, and text from tokens."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_lab.errors import MachineError, Problem, UserError, did_you_mean, one_of

if TYPE_CHECKING:
    from torch import Tensor

# Below this, dividing by the temperature could overflow, and the top token already has all of the probability.
GREEDY_BELOW = 1e-4
# An incomplete UTF-8 character has at most three bytes, which decode to at most three of these characters.
REPLACEMENT = "\ufffd"
MAX_INCOMPLETE = 3


@dataclass(frozen=True)
class Setting:
    """The type of a sampling setting, its limits, a description of the allowed values, and its effect."""

    kind: type
    minimum: float
    maximum: float
    allowed: str
    help: str


SETTINGS: dict[str, Setting] = {
    "temperature": Setting(
        float, 0.0, 10.0, "0 (greedy) to 10", "temperature: 0 is greedy, 1 the model's probabilities"
    ),
    "top_p": Setting(
        float, 1e-6, 1.0, "above 0, at most 1 (off)", "nucleus sampling: top tokens up to this probability"
    ),
    "top_k": Setting(int, 0, 1_000_000, "0 (off) to 1,000,000", "sample from the N most likely tokens; 0: off"),
    "max_new_tokens": Setting(int, 1, 1_000_000, "1 to 1,000,000", "maximum length of a reply, in tokens"),
    "repetition_penalty": Setting(
        float, 0.1, 10.0, "0.1 to 10; 1 is off", "above 1: repeated tokens are less likely; 1: off"
    ),
    "seed": Setting(int, 0, 2**32 - 1, "0 to 4,294,967,295, or none", "random seed, for repeatable replies; none: off"),
}


@dataclass(frozen=True)
class ChatSettings:
    """How a reply is sampled. With a seed, the same conversation gets the same reply."""

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 0
    max_new_tokens: int = 256
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        problems = []
        for name, setting in SETTINGS.items():
            value, is_float = getattr(self, name), setting.kind is float
            if name == "seed" and value is None:
                continue
            right_kind = isinstance(value, (int, float) if is_float else int) and not isinstance(value, bool)
            if not right_kind or not setting.minimum <= value <= setting.maximum:
                problems.append(Problem(name, "invalid value", value=value, allowed=setting.allowed))
            elif is_float:
                object.__setattr__(self, name, float(value))  # transformers refuses the integer 1 as temperature
        if problems:
            raise UserError(*problems)

    def changed(self, name: str, text: str) -> ChatSettings:
        """Return the settings with one value parsed from text.

        Raises UserError if the setting is unknown or the value is not allowed.
        """
        if name not in SETTINGS:
            raise UserError(
                Problem(name, "unknown setting", allowed=one_of(list(SETTINGS)), fix=did_you_mean(name, SETTINGS))
            )
        kind, allowed = SETTINGS[name].kind, SETTINGS[name].allowed
        text = text.strip().replace("_", "")
        if name == "seed" and text.lower() in ("none", "null", "off"):
            return dataclasses.replace(self, seed=None)
        try:
            value = kind(text)
        except ValueError:
            what = "not a whole number" if kind is int else "not a number"
            raise UserError(Problem(name, what, value=text, allowed=allowed)) from None
        return dataclasses.replace(self, **{name: value})


class Predictor:
    """Computes next-token logits with a KV cache that is reused between calls and cut to the shared prefix."""

    def __init__(self, model: Any):
        self._model = model.eval()
        self._cache: Any = None
        self._cached: list[int] = []
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._keeps_last = "logits_to_keep" in inspect.signature(base.forward).parameters

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Return the next-token logits: float32, shape (1, vocabulary).

        Raises MachineError if the device is out of memory, UserError if the logits contain NaN.
        """
        import torch

        known = self._shared_with(list(ids))
        cache = self._cache if known else None
        self._cache, self._cached = None, []  # an interrupted forward pass leaves the cache half filled
        options = {"logits_to_keep": 1} if self._keeps_last else {}
        try:
            with torch.inference_mode():
                rest = torch.tensor([list(ids[known:])], device=self._model.device)
                output = self._model(input_ids=rest, past_key_values=cache, use_cache=True, **options)
                logits = output.logits[:, -1].float()
        except torch.OutOfMemoryError:
            why = f"out of memory on {self._model.device} with a context of {len(ids):,} tokens"
            raise MachineError(Problem("memory", why, fix="Use /reset to start with an empty context.")) from None
        if logits.isnan().any():
            raise UserError(
                Problem("model", "its logits are NaN", fix="Use an earlier checkpoint, from before training diverged.")
            )
        self._cache = getattr(output, "past_key_values", None)
        self._cached = list(ids) if self._cache is not None else []
        return logits

    def _shared_with(self, ids: list[int]) -> int:
        """Cut the cache to the prefix it shares with `ids`; return the length of that prefix."""
        cached = self._cached
        length = len(cached)
        if length < len(ids) and ids[:length] == cached:
            return length
        shared = 0
        for old, new in zip(cached, ids[:-1], strict=False):  # the last one is always fed, for its logits
            if old != new:
                break
            shared += 1
        if shared and not _can_crop(self._cache):
            return 0
        if shared:
            self._cache.crop(shared - length)
        return shared


def _can_crop(cache: Any) -> bool:
    """Return whether a cache can be shortened. Sliding-window and recurrent layers no longer have the old state."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    return type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Return the ids of all end tokens that the generation config, the config and the tokenizer define."""
    found: set[int] = set()
    for holder in (getattr(model, "generation_config", None), model.config, tokenizer):
        token = getattr(holder, "eos_token_id", None)
        found.update(token if isinstance(token, list | tuple) else [] if token is None else [token])
    return found


def make_sampler(settings: ChatSettings, *, turn: int = 0) -> Callable[[Sequence[int], Tensor], int]:
    """Return a function from (ids so far, logits) to the next token.

    The logits processors run in the order of transformers' `generate`. turn: added to the seed, so that two replies
    of a conversation are sampled differently.
    """
    import torch
    from transformers import (
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    greedy = settings.temperature < GREEDY_BELOW
    steps = LogitsProcessorList()
    if settings.repetition_penalty != 1.0:
        steps.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if not greedy:
        steps.append(TemperatureLogitsWarper(settings.temperature))
        if settings.top_k:
            steps.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1.0:
            steps.append(TopPLogitsWarper(settings.top_p))
    generator = torch.Generator()  # on the CPU, so that a seed gives the same numbers on every device
    generator.seed() if settings.seed is None else generator.manual_seed(settings.seed + turn)

    def sample(ids: Sequence[int], logits: Tensor) -> int:
        with torch.inference_mode():
            so_far = torch.tensor([list(ids)], device=logits.device)
            scores = steps(so_far, logits)
            if greedy:
                return int(scores.argmax())
            return int(torch.multinomial(scores.softmax(-1).cpu(), 1, generator=generator))

    return sample


class TextStream:
    """Decodes tokens to text as they arrive; a character is held back until all of its bytes have arrived."""

    def __init__(self, tokenizer: Any, before: Sequence[int] = ()):
        """before: tokens in front of the text, as some tokenizers drop a space at the start of a text."""
        self._tokenizer = tokenizer
        self._ids = list(before)
        while self._ids and self._decode(self._ids).startswith(REPLACEMENT):
            del self._ids[0]
        self._context = len(self._ids)  # tokens that are only decoded as context
        self._shown = 0  # characters of the remaining text that were already returned

    def push(self, token: int) -> str:
        """Add a token; return the text that is now complete."""
        self._ids.append(token)
        new = self._new_text()
        held = min(len(new) - len(new.rstrip(REPLACEMENT)), MAX_INCOMPLETE)
        sure = new[: len(new) - held]
        piece, self._shown = sure[self._shown :], max(self._shown, len(sure))
        if new and not held:
            self._ids, self._shown = self._ids[self._context :], 0
            self._context = len(self._ids)
        return piece

    def rest(self) -> str:
        """Return the text still held back: bytes that never became a character."""
        piece = self._new_text()[self._shown :]
        self._shown += len(piece)
        return piece

    def _new_text(self) -> str:
        return self._decode(self._ids)[len(self._decode(self._ids[: self._context])) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
