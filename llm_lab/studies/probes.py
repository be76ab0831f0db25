"""Linear probes: what can be read from vectors by a linear classifier, and whether that means anything.

The classifier is linear discriminant analysis, in closed form: every class has its mean, all share one covariance. It
has nothing to tune, and classes that lie in a row (numbers on a line) do not mask each other, as they would in a
least-squares fit.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

SHRINKAGE = 1e-2


@dataclass(frozen=True)
class Probe:
    """A linear classifier. weights: (size, classes). offset: (classes,). classes: the labels, sorted."""

    weights: torch.Tensor
    offset: torch.Tensor
    classes: list[int]

    def predict(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the most likely label of each vector (count, size)."""
        return torch.tensor(self.classes)[(vectors.double() @ self.weights + self.offset).argmax(dim=1)]

    def accuracy(self, vectors: torch.Tensor, labels: torch.Tensor) -> float:
        """Return the share of vectors whose label the probe predicts."""
        return float((self.predict(vectors) == labels).double().mean())


def fit_probe(vectors: torch.Tensor, labels: torch.Tensor) -> Probe:
    """Fit linear discriminant analysis to vectors (count, size) and whole-number labels (count,).

    The covariance within classes is mixed with SHRINKAGE of its mean variance, so that it can be inverted.
    """
    center = vectors.double().mean(0)
    x = vectors.double() - center
    classes, indices = labels.unique(sorted=True, return_inverse=True)
    counts = torch.bincount(indices, minlength=len(classes)).double()
    means = torch.zeros(len(classes), x.shape[1], dtype=torch.float64).index_add_(0, indices, x) / counts[:, None]
    inner = x - means[indices]
    covariance = inner.T @ inner / max(1, len(x) - len(classes))
    # Equal vectors differ only by rounding errors, which must not be magnified.
    scale = covariance.diagonal().mean().clamp(min=float(vectors.double().square().mean()) * 1e-9 + 1e-30)
    eye = torch.eye(len(covariance), dtype=torch.float64)
    weights = torch.linalg.solve((1 - SHRINKAGE) * covariance + SHRINKAGE * scale * eye, means.T)
    offset = (counts / counts.sum()).log() - 0.5 * (means.T * weights).sum(0) - center @ weights
    return Probe(weights, offset, classes.tolist())


def control_labels(kinds: Sequence[Hashable], labels: Sequence[int], seed: int) -> list[int]:
    """Return meaningless labels: every kind of input gets one of the real labels at random.

    A probe can find them only by memorizing kinds. The accuracy on the real labels minus that on these is the
    selectivity (Hewitt & Liang, arXiv:1909.03368).
    """
    draw = random.Random(seed)
    of_kind = {kind: draw.choice(labels) for kind in sorted(set(kinds), key=repr)}
    return [of_kind[kind] for kind in kinds]


def most_common_share(train: Sequence[int], test: Sequence[int]) -> float:
    """Return the accuracy on `test` of always answering the most common label of `train`."""
    label = Counter(train).most_common(1)[0][0]
    return sum(other == label for other in test) / len(test)
