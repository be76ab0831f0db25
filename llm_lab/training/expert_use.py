"""How evenly the routers of a mixture of experts use its experts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

IDLE_SHARE = 0.1  # an idle expert gets less than this part of an equal share


@contextmanager
def counting_experts(model: Any) -> Iterator[list[torch.Tensor]]:
    """Count the tokens of each expert inside the context: one tensor (experts,) per layer; [] without experts."""
    counts: list[torch.Tensor] = []
    hooks: list[Any] = []

    def count(index: int) -> Any:
        def hook(router: Any, args: Any, output: Any) -> None:
            chosen = output[2].flatten()
            counts[index] += torch.bincount(chosen, minlength=router.num_experts).to(counts[index])

        return hook

    for module in model.modules():
        if type(module).__name__ in ("MixtralTopKRouter", "Qwen3MoeTopKRouter"):
            counts.append(torch.zeros(module.num_experts, dtype=torch.long, device=module.weight.device))
            hooks.append(module.register_forward_hook(count(len(hooks))))
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def expert_metrics(counts: list[torch.Tensor]) -> dict[str, float]:
    """Return the load of the busiest expert (1: an equal share) and the share of experts that are hardly used."""
    if not counts or not counts[0].sum():
        return {}
    loads = torch.stack([count / count.sum() * len(count) for count in counts])
    return {"busiest_expert": loads.max().item(), "idle_experts": (loads < IDLE_SHARE).float().mean().item()}
