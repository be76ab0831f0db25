"""What a run reports while it works: small dataclasses, passed to one listener.

A listener is any callable that takes an event. The terminal, plain lines, JSON lines and tests each have one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .safe_text import redact


@dataclass(frozen=True)
class Notice:
    """One line about what was found or decided."""

    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", redact(self.text))


@dataclass(frozen=True)
class RunWarning:
    """One line that also belongs in the report and in run.json."""

    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", redact(self.text))


@dataclass(frozen=True)
class Progress:
    """Progress of one part of the preparation. total: 0 if it is not known."""

    label: str
    done: int
    total: int


@dataclass(frozen=True)
class TrainingStarted:
    """Training starts, or resumes after `first_step` updates.

    earlier: the rows of metrics.jsonl from before. samples: (step, prompt, text) of the last evaluation from before.
    """

    max_steps: int
    first_step: int
    facts: Mapping[str, Any]
    earlier: Sequence[Mapping[str, Any]] = ()
    samples: Sequence[tuple[int, str, str]] = ()


@dataclass(frozen=True)
class MetricsLogged:
    """One line of metrics.jsonl: a log step or an evaluation."""

    row: Mapping[str, Any]


@dataclass(frozen=True)
class Evaluating:
    """An evaluation starts or ends. Its row and its samples are reported in between."""

    is_over: bool = False


@dataclass(frozen=True)
class SampleWritten:
    """A text that the model generated."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint is on disk."""

    step: int
    path: str


@dataclass(frozen=True)
class ScoresReported:
    """Scores of each stage of a pipeline on the same held-out prompts."""

    scores: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class TrainingEnded:
    """Training is over, or was stopped."""


Event = (
    Notice
    | RunWarning
    | Progress
    | TrainingStarted
    | MetricsLogged
    | Evaluating
    | SampleWritten
    | CheckpointSaved
    | ScoresReported
    | TrainingEnded
)
Listener = Callable[[Event], None]


def progress_of(listener: Listener, label: str) -> Callable[[int, int], None]:
    """Return a function that reports the progress of one part of the preparation. Call it with (done, total)."""
    return lambda done, total: listener(Progress(label, done, total))


def ignore(event: Event) -> None:
    """A listener that shows nothing."""
