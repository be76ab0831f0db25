"""What a recipe leaves out of how held-out prompts are scored."""

from __future__ import annotations

from llm_lab.estimate.parameters import ModelShape

from .filling import Draft

ANSWER_LENGTH = 256
SUMS = "builtin:sums"  # its answers are numbers, at the end of a working


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
        rewards, exact = draft.get("rewards"), "exact_match"
        if (draft.get("score.path") or _own_data(draft)) == SUMS:
            exact = "exact_number"
        draft.set(
            "score.rewards",
            rewards or ({"name": exact, "weight": 1.0},),
            "the stage's own" if rewards else "the answers that are known",
        )


def _own_data(draft: Draft) -> str | None:
    """Return what the held-out prompts are taken from, where it is one set."""
    data = draft.get("data") or ()
    return data[0]["path"] if len(data) == 1 else None
