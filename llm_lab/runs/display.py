"""What a stage tells while it works. The silent one stands here; ui/ has those that print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Display:
    """Takes what a stage has to say. This one keeps quiet; subclasses show it."""

    def notice(self, text: str) -> None:
        """Say one line: what was found, what was decided, what to mind."""

    def warn(self, text: str) -> None:
        """Say one line that the reader of the results should know too: it is kept for the report."""
        self.notice(text)

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


class Keeping(Display):
    """Passes everything on to another display, and keeps what it is warned of."""

    def __init__(self, shown: Display):
        self.shown = shown
        self.warnings: list[str] = []

    def notice(self, text: str) -> None:
        self.shown.notice(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.shown.warn(text)

    def progress(self, label: str, done: int, total: int) -> None:
        self.shown.progress(label, done, total)

    def begin(self, *, max_steps: int, first_step: int, facts: Mapping[str, Any]) -> None:
        self.shown.begin(max_steps=max_steps, first_step=first_step, facts=facts)

    def log(self, row: Mapping[str, Any]) -> None:
        self.shown.log(row)

    def sample(self, step: int, prompt: str, text: str) -> None:
        self.shown.sample(step, prompt, text)

    def saved(self, step: int, path: str) -> None:
        self.shown.saved(step, path)

    def scores(self, scores: Mapping[str, Mapping[str, float]]) -> None:
        self.shown.scores(scores)

    def end(self) -> None:
        self.shown.end()
