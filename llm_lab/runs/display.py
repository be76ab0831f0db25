"""What a stage tells while it works. The silent one stands here; ui/ has those that print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Display:
    """Takes what a stage has to say. This one keeps quiet; subclasses show it."""

    def notice(self, text: str) -> None:
        """Say one line: what was found, what was decided, what to mind."""

    def progress(self, label: str, done: int, total: int) -> None:
        """Show how far a piece of preparation is."""

    def begin(self, *, max_steps: int, first_step: int, facts: Mapping[str, Any]) -> None:
        """Training starts (or goes on) after `first_step` updates."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Show one line of metrics.jsonl: a log step or an evaluation."""

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Show a text the model wrote."""

    def saved(self, step: int, path: str) -> None:
        """A checkpoint is on disk."""

    def scores(self, scores: Mapping[str, Mapping[str, float]]) -> None:
        """Show what the stages of a pipeline scored on the same held-out prompts."""

    def end(self) -> None:
        """Training is over, or was stopped."""
