"""Cautious weight decay, which skips weights that the update moves away from zero; decay that fades over the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

CAUTIOUS = "cautious_decay"  # key of a group: the decay that is applied after its step


def decay_cautiously(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer decay only the weights that its update moves toward zero, or leaves where they are.

    Cautious weight decay (Chen et al. 2025, arXiv:2510.12402), for any optimizer with decoupled decay. During a step it
    keeps a copy of the decayed weights.
    """
    for group in optimizer.param_groups:
        group[CAUTIOUS], group["weight_decay"] = group["weight_decay"], 0.0
    before: list[tuple[dict[str, Any], list[torch.Tensor], list[torch.Tensor]]] = []

    @torch.no_grad()
    def keep(*_: Any) -> None:
        before.clear()
        for group in optimizer.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group[CAUTIOUS] and moved:
                before.append((group, moved, [parameter.clone() for parameter in moved]))

    @torch.no_grad()
    def decay(*_: Any) -> None:
        for group, moved, old in before:
            for parameter, start in zip(moved, old, strict=True):
                toward_zero = (parameter - start) * start <= 0
                parameter.sub_(start * toward_zero, alpha=group["lr"] * group[CAUTIOUS])
        before.clear()

    optimizer.register_step_pre_hook(keep)
    optimizer.register_step_post_hook(decay)


def fade_decay(optimizer: torch.optim.Optimizer, factor: Callable[[], float]) -> None:
    """Multiply the weight decay of every group by factor() before each step.

    The full decay is the one that the optimizer was built with, also after a saved state was loaded into it.
    """
    full = [{key: group[key] for key in ("weight_decay", CAUTIOUS) if key in group} for group in optimizer.param_groups]

    def fade(*_: Any) -> None:
        share = factor()
        for group, decays in zip(optimizer.param_groups, full, strict=True):
            group.update({key: share * decay for key, decay in decays.items()})

    optimizer.register_step_pre_hook(fade)
