"""What a recipe leaves out of how held-out prompts are scored."""

from __future__ import annotations

from .draft import Draft
from .parameters import ModelShape

ANSWER_LENGTH = 256


def derive_score(draft: Draft, stage: str, shape: ModelShape | None) -> None:
    """Fill in how held-out prompts are scored, where the recipe has them scored."""
    if draft.get("score") is None:
        return
    length = draft.get("grpo.max_completion_length") or draft.get("ppo.max_completion_length")
    if length:
        draft.fill("score.max_completion_length", length, f"{stage}.max_completion_length")
    longest = (shape and shape.max_position_embeddings) or ANSWER_LENGTH * 2
    draft.fill("score.max_completion_length", min(ANSWER_LENGTH, longest // 2), "at most half the context")
    if draft.get("score.rewards") is None:
        rewards = draft.get("rewards")
        draft.set(
            "score.rewards",
            rewards or ({"name": "exact_match", "weight": 1.0},),
            "the stage's own" if rewards else "the answers that are known",
        )
