"""How similar hidden states are: between token positions, between layers, and between two models."""

from __future__ import annotations

import torch

FEWEST_TOKENS = 4  # the estimate divides by n - 3


def position_similarity(residual: torch.Tensor) -> torch.Tensor:
    """Return the cosine similarity of all pairs of positions by layer, (layers + 1, length, length).

    residual: (layers + 1, length, hidden_size).
    """
    unit = residual / residual.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return (unit @ unit.transpose(-1, -2)).clamp(-1, 1)


def mean_similarity(similarity: torch.Tensor) -> torch.Tensor:
    """Return the mean cosine of different positions by layer, without the first position, (layers + 1,).

    The first token's state often differs from all others in size and direction.
    """
    rest = similarity[:, 1:, 1:]
    count = rest.shape[-1]
    if count < 2:
        return torch.full((len(similarity),), float("nan"))
    return (rest.sum(dim=(-1, -2)) - rest.diagonal(dim1=-2, dim2=-1).sum(-1)) / (count * (count - 1))


def cka(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the linear CKA of all pairs of layers, (layers of first, layers of second).

    first, second: (layers, length, hidden_size), of the same tokens; the hidden sizes may differ. This is the unbiased
    estimate for few tokens (Nguyen et al., arXiv:2010.15327; HSIC of Song et al., 2012): plain CKA (Kornblith et al.,
    arXiv:1905.00414) is close to 1 for any two layers if there are fewer tokens than dimensions. Raises ValueError for
    fewer than FEWEST_TOKENS tokens.
    """
    if first.shape[1] < FEWEST_TOKENS or first.shape[1] != second.shape[1]:
        raise ValueError(f"CKA requires the same tokens, at least {FEWEST_TOKENS}")
    one, other = (_grams(states) for states in (first, second))
    cross = torch.stack([torch.stack([_hsic(a, b) for b in other]) for a in one])
    own = [torch.stack([_hsic(gram, gram) for gram in grams]).clamp_min(0).sqrt() for grams in (one, other)]
    return (cross / (own[0][:, None] * own[1][None, :]).clamp_min(1e-30)).float()


def _grams(states: torch.Tensor) -> list[torch.Tensor]:
    """Return the Gram matrices of centered states by layer, with a zero diagonal."""
    found = []
    for state in states.double():
        centered = state - state.mean(0)
        gram = centered @ centered.T
        found.append(gram - torch.diag(gram.diagonal()))
    return found


def _hsic(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the unbiased estimate of HSIC from two Gram matrices with a zero diagonal."""
    n = len(one)
    trace = (one * other).sum()
    sums = one.sum() * other.sum() / ((n - 1) * (n - 2))
    rows = (one.sum(0) * other.sum(0)).sum() * 2 / (n - 2)
    return (trace + sums - rows) / (n * (n - 3))
