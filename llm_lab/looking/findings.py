"""The findings of a look: one model, its differences from another, and its checkpoints over training."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .inside import Inside


@dataclass(frozen=True)
class Difference:
    """Another model on the same tokens. induction, previous: (layers, heads), the other's minus the first's.

    attention: mean absolute difference of the weights per head, (layers, heads). norms: (layers + 1,), relative change.
    cka: (layers of the first, layers of the other), or None. divergence: (length,) KL(first || other) of the
    predictions, in bits.
    """

    other: Inside
    induction: torch.Tensor | None
    previous: torch.Tensor | None
    attention: torch.Tensor | None
    norms: torch.Tensor
    cka: torch.Tensor | None
    divergence: torch.Tensor


@dataclass(frozen=True)
class Moment:
    """One checkpoint of a run. induction, previous: (layers, heads), or None without attention weights.

    step: None if the checkpoints are from several stages.
    """

    name: str
    step: int | None
    induction: torch.Tensor | None
    previous: torch.Tensor | None
    first_loss: float
    second_loss: float
    text_loss: float


@dataclass
class Findings:
    """The findings of a look. remarks: what the user should know, such as that the text was cut."""

    inside: Inside
    text: str
    remarks: list[str]
    difference: Difference | None = None
    moments: tuple[Moment, ...] = ()
