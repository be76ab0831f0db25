"""From the rewards of completions to the advantages of their tokens: what PPO learns from.

All tensors are (rows, tokens) unless said; `mask` is True for the tokens that the policy chose. What stands at
other places never matters, not even if it is NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Sum = Callable[[torch.Tensor], torch.Tensor]


def token_rewards(scores: torch.Tensor, penalties: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return each token's reward: minus its penalty, and at a row's last token also the row's score.

    scores: (rows,). A row without a token gets its score nowhere.
    """
    tokens_left = mask.long().flip(1).cumsum(1).flip(1)
    is_last = mask & (tokens_left == 1)
    rewards = torch.zeros_like(penalties) - penalties
    return torch.where(is_last, rewards + scores[:, None], rewards).masked_fill(~mask, 0.0)


def generalized_advantages(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, *, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return advantages and returns, 0 where masked (Schulman et al. 2016, arXiv 1506.02438, equation 16).

    values[i, t]: what the critic expects before token t is chosen. After a row's last token nothing is expected.
    """
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0]) if values.shape[1] else values
    for t in reversed(range(values.shape[1])):
        surprise = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = surprise + gamma * lam * next_advantage
        # Tokens that are not the policy's are stepped over.
        next_advantage = torch.where(mask[:, t], advantage, next_advantage)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        advantages[:, t] = advantage.masked_fill(~mask[:, t], 0.0)
    return advantages, (advantages + values).masked_fill(~mask, 0.0)


def masked_mean(x: torch.Tensor, mask: torch.Tensor, total: Sum = lambda x: x) -> torch.Tensor:
    """Return the mean over the mask, 0 where it is empty. total: sums a tensor over all processes."""
    sums = torch.stack([x.masked_fill(~mask, 0.0).sum(), mask.sum().to(x.dtype)])
    sums = total(sums)
    return sums[0] / sums[1].clamp(min=1.0)


def whiten(x: torch.Tensor, mask: torch.Tensor, total: Sum = lambda x: x) -> torch.Tensor:
    """Return x with mean 0 and variance 1 over the mask, and 0 elsewhere; a single value becomes 0."""
    centred = x - masked_mean(x, mask, total)
    variance = masked_mean(centred.square(), mask, total)
    return (centred * torch.rsqrt(variance + 1e-8)).masked_fill(~mask, 0.0)


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> float | None:
    """Return the share of the returns' variance that the values foretell: 1 is all, None where there is none."""
    found, foretold = returns[mask].double(), values[mask].double()
    variance = found.var(correction=0) if len(found) > 1 else 0.0
    return float(1 - (found - foretold).var(correction=0) / variance) if variance > 0 else None
