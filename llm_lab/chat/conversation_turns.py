"""The turns of a conversation with one model, or two side by side: each prompt, and all answers to it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from .search_results import are_sources


class Numbers(BaseModel):
    """Length and speed of an answer, and why it stopped."""

    tokens: int
    prompt_tokens: int = 0
    seconds_to_first_token: float | None = None
    tokens_per_second: float | None = None
    stop: str = ""


class Answer(BaseModel):
    """What one model wrote. mode: None for a model that could not be loaded."""

    model: str
    label: str
    mode: Literal["chat", "completion"] | None = None
    text: str
    state: Literal["done", "stopped", "failed"] = "done"
    ended: bool = False
    sources: list[dict[str, Any]] = []
    notice: str | None = None
    error: str | None = None
    stats: Numbers | None = None


class Answers(BaseModel):
    """The answers of one model to a prompt. at: the index of the one that counts."""

    variants: Annotated[list[Answer], Field(min_length=1)]
    at: Annotated[int, Field(ge=0)] = 0


class Turn(BaseModel):
    """A prompt, and the answers of the models a and b. A model that joined later has none for the first prompts."""

    text: str
    seed: Annotated[int, Field(ge=0)] = 0
    answers: dict[Literal["a", "b"], Answers] = {}


_TURNS = TypeAdapter(list[Turn])


def turns_from(value: Any) -> list[Turn] | None:
    """Return the turns in an unchecked value, or None if it does not contain turns."""
    try:
        turns = _TURNS.validate_python(value, strict=True)
    except ValidationError:
        return None
    answers = [answers for turn in turns for answers in turn.answers.values()]
    valid = all(one.at < len(one.variants) and all(are_sources(v.sources) for v in one.variants) for one in answers)
    return turns if valid else None
