"""Measures of how a model arranges vectors: principal components, orthogonality, and directions that carry a number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Principal:
    """Principal components: coordinates (points, components), shares of the variance, and axes (components, size)."""

    coordinates: torch.Tensor
    shares: torch.Tensor
    axes: torch.Tensor


def principal_components(points: torch.Tensor, count: int) -> Principal:
    """Return the first `count` principal components of points (points, size).

    The sign of an axis is arbitrary; here its largest entry is positive, so that the pictures of two runs look alike.
    """
    centered = points.double() - points.double().mean(0)
    _, scales, axes = torch.linalg.svd(centered, full_matrices=False)
    signs = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()
    axes = (axes * signs)[:count]
    shares = scales.square() / scales.square().sum().clamp(min=1e-300)
    return Principal(centered @ axes.T, shares[:count], axes)


def mean_absolute_cosine(vectors: torch.Tensor) -> float:
    """Return the mean |cosine| of all pairs of different rows: 0 if all are orthogonal."""
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    cosines = (unit @ unit.T).abs()
    count = len(vectors)
    return float((cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1)))


def random_absolute_cosine(size: int) -> float:
    """Return the expected |cosine| of two random directions in `size` dimensions."""
    return math.exp(math.lgamma(size / 2) - math.lgamma((size + 1) / 2)) / math.sqrt(math.pi)


@dataclass(frozen=True)
class Axis:
    """A linear reading of a number from vectors: number = vectors @ weights + offset."""

    weights: torch.Tensor
    offset: torch.Tensor

    def read(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors.double() @ self.weights + self.offset

    @property
    def direction(self) -> torch.Tensor:
        """The unit vector along which the number rises fastest."""
        return self.weights / self.weights.norm().clamp(min=1e-300)


def fit_axis(vectors: torch.Tensor, numbers: torch.Tensor, strength: float = 1e-3) -> Axis:
    """Fit a number linearly by ridge regression in closed form. strength: penalty relative to the mean variance."""
    x, y = vectors.double(), numbers.double()
    mean_x, mean_y = x.mean(0), y.mean()
    x, y = x - mean_x, y - mean_y
    gram = x.T @ x
    penalty = strength * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    weights = torch.linalg.lstsq(gram + penalty, (x.T @ y)[:, None]).solution[:, 0]
    return Axis(weights, mean_y - mean_x @ weights)


def r_squared(numbers: torch.Tensor, predicted: torch.Tensor) -> float:
    """Return the share of the variance that a prediction explains; below 0 if it is worse than the mean."""
    numbers, predicted = numbers.double(), predicted.double()
    return float(1 - (numbers - predicted).square().sum() / (numbers - numbers.mean()).square().sum())


def without_direction(vectors: torch.Tensor, direction: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Return vectors (..., size) whose component along a unit direction is replaced by that of the mean vector.

    The mean, not zero: a zero would also remove the part that all vectors share, which carries no information.
    """
    direction = direction.to(vectors.dtype)
    along = (vectors - mean.to(vectors.dtype)) @ direction
    return vectors - along[..., None] * direction
