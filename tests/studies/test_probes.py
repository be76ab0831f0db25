"""Linear probes find linearly encoded labels, and nothing else."""

import pytest
import torch

from llm_lab.studies.probes import control_labels, fit_probe, most_common_share


def vectors_and_noise(count: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def test_a_probe_finds_numbers_that_lie_on_a_line():
    vectors = vectors_and_noise(2000, 8)
    labels = torch.randint(10, (2000,), generator=torch.Generator().manual_seed(1))
    vectors[:, 3] = labels + 0.05 * vectors[:, 3]
    probe = fit_probe(vectors[:1000], labels[:1000])
    assert probe.accuracy(vectors[1000:], labels[1000:]) > 0.99


def test_a_probe_finds_nothing_in_noise_on_new_vectors():
    vectors = vectors_and_noise(2000, 8)
    labels = torch.randint(4, (2000,), generator=torch.Generator().manual_seed(1))
    assert fit_probe(vectors[:1000], labels[:1000]).accuracy(vectors[1000:], labels[1000:]) < 0.32


def test_a_linear_probe_does_not_find_an_exclusive_or():
    vectors = vectors_and_noise(2000, 2)
    labels = ((vectors[:, 0] > 0) ^ (vectors[:, 1] > 0)).long()
    assert fit_probe(vectors[:1000], labels[:1000]).accuracy(vectors[1000:], labels[1000:]) < 0.6


def test_with_two_classes_the_probe_is_fishers_discriminant():
    vectors = vectors_and_noise(4000, 3) @ torch.tensor([[2.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 0.7]])
    labels = torch.arange(4000) % 2
    vectors[labels == 1] += torch.tensor([0.5, -1.0, 0.2])
    probe = fit_probe(vectors, labels)
    first, second = vectors[labels == 0].double(), vectors[labels == 1].double()
    inner = (torch.cov(first.T) + torch.cov(second.T)) / 2
    wanted = torch.linalg.solve(inner, second.mean(0) - first.mean(0))
    found = probe.weights[:, 1] - probe.weights[:, 0]
    assert torch.nn.functional.cosine_similarity(found, wanted, dim=0) > 0.999


def test_labels_may_be_any_whole_numbers():
    vectors = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    probe = fit_probe(vectors, torch.tensor([7, 7, 30, 30]))
    assert probe.predict(torch.tensor([[0.2], [4.0]])).tolist() == [7, 30]


def test_control_labels_are_one_per_kind_and_are_drawn_from_the_real_ones():
    kinds = [f"kind {number % 40}" for number in range(400)]
    labels = [0] * 300 + [5] * 100
    control = control_labels(kinds, labels, seed=3)
    assert len(set(zip(kinds, control, strict=True))) == 40
    assert set(control) == {0, 5}
    assert 0.5 < control.count(0) / 400 < 0.95
    assert control == control_labels(kinds, labels, seed=3)


def test_the_most_common_label_is_that_of_the_training_rows():
    assert most_common_share([1, 1, 2], [1, 2, 2, 2]) == pytest.approx(0.25)


def test_vectors_that_are_all_the_same_give_the_most_common_label():
    vectors = torch.full((90, 5), 0.1) * torch.arange(1, 6)
    labels = torch.tensor([4, 4, 9] * 30)
    assert fit_probe(vectors, labels).predict(vectors).tolist() == [4] * 90
