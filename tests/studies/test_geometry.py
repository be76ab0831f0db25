"""Measures of how vectors are arranged."""

import pytest
import torch

from llm_lab.studies.geometry import (
    fit_axis,
    mean_absolute_cosine,
    principal_components,
    r_squared,
    random_absolute_cosine,
    without_direction,
)


def random_points(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_principal_components_are_those_of_the_covariance():
    points = random_points(200, 6) @ random_points(6, 6, seed=1)
    found = principal_components(points, 3)
    scales, axes = torch.linalg.eigh(torch.cov(points.double().T))
    assert found.shares.tolist() == pytest.approx((scales.flip(0)[:3] / scales.sum()).tolist())
    assert (found.axes @ axes.flip(1)[:, :3]).diagonal().abs().tolist() == pytest.approx([1, 1, 1])
    assert torch.cov(found.coordinates.T)[0, 1] == pytest.approx(0, abs=1e-9)


def test_points_on_a_line_have_one_component():
    line = torch.arange(10.0)[:, None] * torch.tensor([[1.0, -2.0, 2.0]])
    found = principal_components(line, 2)
    assert found.shares.tolist() == pytest.approx([1, 0], abs=1e-12)


def test_orthogonal_vectors_have_cosine_zero_and_random_ones_the_expected_value():
    assert mean_absolute_cosine(torch.eye(5)) == pytest.approx(0)
    assert mean_absolute_cosine(torch.ones(4, 3)) == pytest.approx(1)
    assert mean_absolute_cosine(random_points(400, 16)) == pytest.approx(random_absolute_cosine(16), rel=0.02)


def test_an_axis_finds_a_linear_signal_and_not_noise():
    vectors, direction = random_points(600, 8), random_points(8, seed=1)
    signal, noise = vectors @ direction + 3, random_points(600, seed=2)
    axis = fit_axis(vectors[:300], signal[:300])
    assert r_squared(signal[300:], axis.read(vectors[300:])) > 0.999
    assert abs(float(axis.direction @ (direction / direction.norm()).double())) > 0.999
    assert r_squared(noise[300:], fit_axis(vectors[:300], noise[:300]).read(vectors[300:])) < 0.1


def test_removing_a_direction_removes_all_variation_along_it_and_nothing_else():
    vectors = random_points(50, 4, seed=3)
    direction = torch.nn.functional.normalize(random_points(4, seed=4), dim=0)
    changed = without_direction(vectors, direction, vectors.mean(0))
    assert (changed @ direction).std() == pytest.approx(0, abs=1e-5)
    assert torch.allclose(changed.mean(0), vectors.mean(0), atol=1e-6)
    other = torch.linalg.svd(direction[None], full_matrices=True).Vh[1]
    assert torch.allclose(changed @ other, vectors @ other, atol=1e-5)
