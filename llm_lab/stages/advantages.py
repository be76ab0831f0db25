"""PPO: from the rewards of completions to the advantages of their tokens.

Tensors are (rows, tokens) unless noted; `mask` is True for the tokens that the model generated. Values at other
positions are ignored, even NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Sum = Callable[[torch.Tensor], torch.Tensor]


def token_rewards(scores: torch.Tensor, penalties: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the reward of each token: minus its penalty, plus the score of the row at the last token.

    scores: (rows,). The score of a row without tokens is not used.
    """
    tokens_left = mask.long().flip(1).cumsum(1).flip(1)
    is_last = mask & (tokens_left == 1)
    rewards = torch.zeros_like(penalties) - penalties
    return torch.where(is_last, rewards + scores[:, None], rewards).masked_fill(~mask, 0.0)


def generalized_advantages(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, *, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return advantages and returns, 0 where masked (Schulman et al. 2016, arXiv 1506.02438, equation 16).

    values[i, t]: the critic's prediction before token t. After the last token of a row it counts as 0.
    """
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0]) if values.shape[1] else values
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        # Masked tokens are skipped.
        next_advantage = torch.where(mask[:, t], advantage, next_advantage)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        advantages[:, t] = advantage.masked_fill(~mask[:, t], 0.0)
    return advantages, (advantages + values).masked_fill(~mask, 0.0)


def masked_mean(x: torch.Tensor, mask: torch.Tensor, total: Sum = lambda x: x) -> torch.Tensor:
    """Return the mean over the mask, 0 if it is empty. total: sums a tensor over all processes."""
    sums = torch.stack([x.masked_fill(~mask, 0.0).sum(), mask.sum().to(x.dtype)])
    sums = total(sums)
    return sums[0] / sums[1].clamp(min=1.0)


def whiten(x: torch.Tensor, mask: torch.Tensor, total: Sum = lambda x: x) -> torch.Tensor:
    """Return x with mean 0 and variance 1 over the mask, and 0 elsewhere; a single value becomes 0."""
    centered = x - masked_mean(x, mask, total)
    variance = masked_mean(centered.square(), mask, total)
    return (centered * torch.rsqrt(variance + 1e-8)).masked_fill(~mask, 0.0)


def explained_variance(
    values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, total: Sum = lambda x: x
) -> float | None:
    """Return the share of the variance of the returns that the values predict; None without variance."""

    def variance(x: torch.Tensor) -> torch.Tensor:
        centered = x - masked_mean(x, mask, total)
        return masked_mean(centered.square(), mask, total)

    found, missed = variance(returns.double()), variance((returns - values).double())
    return float(1 - missed / found) if found > 0 else None
