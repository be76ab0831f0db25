"""How a reply is drawn, and what each of these numbers may be."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from llm_lab.errors import Problem, UserError, did_you_mean, one_of

# Name: type, least, greatest, what is allowed in words.
_RANGES: dict[str, tuple[type, float, float, str]] = {
    "temperature": (float, 0.0, 10.0, "0 (always the likeliest token) to 10"),
    "top_p": (float, 1e-6, 1.0, "above 0, at most 1 (off)"),
    "top_k": (int, 0, 1_000_000, "0 (off) to 1,000,000"),
    "max_new_tokens": (int, 1, 1_000_000, "1 to 1,000,000"),
    "repetition_penalty": (float, 0.1, 10.0, "0.1 to 10; 1 is off"),
    "seed": (int, 0, 2**32 - 1, "0 to 4,294,967,295, or none"),
}


@dataclass(frozen=True)
class ChatSettings:
    """How a reply is drawn. With a seed, the same conversation gets the same reply."""

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 0
    max_new_tokens: int = 256
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        problems = []
        for name, (kind, least, greatest, allowed) in _RANGES.items():
            value = getattr(self, name)
            if name == "seed" and value is None:
                continue
            right_kind = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
            if not right_kind or not least <= value <= greatest:
                problems.append(Problem(name, "not a value this can have", value=value, allowed=allowed))
        if problems:
            raise UserError(*problems)

    def changed(self, name: str, text: str) -> ChatSettings:
        """Return the settings with one of them read from text. UserError where it can't be."""
        if name not in _RANGES:
            raise UserError(
                Problem(name, "no such setting", allowed=one_of(list(_RANGES)), fix=did_you_mean(name, _RANGES))
            )
        kind, _, _, allowed = _RANGES[name]
        text = text.strip().replace("_", "")
        if name == "seed" and text.lower() in ("none", "null", "off"):
            return dataclasses.replace(self, seed=None)
        try:
            value = kind(text)
        except ValueError:
            what = "not a whole number" if kind is int else "not a number"
            raise UserError(Problem(name, what, value=text, allowed=allowed)) from None
        return dataclasses.replace(self, **{name: value})
