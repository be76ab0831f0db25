"""From rewards to advantages: compared with brute force and a closed form; masked values never matter."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_lab.stages.advantages import (
    explained_variance,
    generalized_advantages,
    masked_mean,
    token_rewards,
    whiten,
)


def masks_of(lengths, width):
    return torch.arange(width)[None] < torch.tensor(lengths)[:, None]


@st.composite
def rollouts(draw):
    lengths = draw(st.lists(st.integers(0, 6), min_size=1, max_size=4))
    width = max(lengths) + draw(st.integers(0, 2))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, len(lengths), width, generator=generator, dtype=torch.float64)
    return rewards, values, lengths, draw(st.floats(0, 1)), draw(st.floats(0, 1))


@settings(max_examples=60, deadline=None)
@given(rollouts())
def test_gae_equals_the_discounted_sum_of_all_later_deltas(rollout):
    rewards, values, lengths, gamma, lam = rollout
    mask = masks_of(lengths, values.shape[1])
    advantages, returns = generalized_advantages(rewards, values, mask, gamma=gamma, lam=lam)
    for row, length in enumerate(lengths):
        deltas = [
            rewards[row, t] + (gamma * values[row, t + 1] if t + 1 < length else 0) - values[row, t]
            for t in range(length)
        ]
        for t in range(length):
            brute = sum((gamma * lam) ** (later - t) * deltas[later] for later in range(t, length))
            assert advantages[row, t] == pytest.approx(float(brute), abs=1e-9)
            assert returns[row, t] == pytest.approx(float(brute + values[row, t]), abs=1e-9)
    assert not advantages[~mask].any()
    assert not returns[~mask].any()


def test_gae_equals_its_closed_form():
    rewards = torch.tensor([[0.0, 0.0, 1.0]])
    values = torch.tensor([[0.5, 0.25, 0.75]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    # lambda 1: the discounted future reward minus the predicted value.
    advantages, returns = generalized_advantages(rewards, values, mask, gamma=0.9, lam=1.0)
    assert returns[0].tolist() == pytest.approx([0.81, 0.9, 1.0])
    assert advantages[0].tolist() == pytest.approx([0.31, 0.65, 0.25])
    # lambda 0: the delta of one step.
    advantages, _ = generalized_advantages(rewards, values, mask, gamma=0.9, lam=0.0)
    assert advantages[0].tolist() == pytest.approx([0.9 * 0.25 - 0.5, 0.9 * 0.75 - 0.25, 0.25])


def test_values_after_a_completion_never_matter():
    mask = masks_of([2, 0, 4], 5)
    rewards, values = torch.randn(2, 3, 5)
    clean = generalized_advantages(rewards, values, mask, gamma=1.0, lam=0.95)
    broken = generalized_advantages(
        rewards.masked_fill(~mask, math.nan), values.masked_fill(~mask, math.inf), mask, gamma=1.0, lam=0.95
    )
    for one, other in zip(clean, broken, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(whiten(clean[0], mask), whiten(clean[0].masked_fill(~mask, math.nan), mask))


def test_the_score_is_on_the_last_real_token_and_never_on_padding():
    mask = masks_of([1, 3, 0, 4], 4)
    penalties = torch.full((4, 4), 0.5)
    rewards = token_rewards(torch.tensor([10.0, 20.0, 30.0, 40.0]), penalties, mask)
    assert rewards.tolist() == [
        [9.5, 0, 0, 0],
        [-0.5, -0.5, 19.5, 0],
        [0, 0, 0, 0],
        [-0.5, -0.5, -0.5, 39.5],
    ]


def test_masked_tokens_are_skipped():
    rewards, values = torch.randn(2, 1, 4)
    mask = torch.tensor([[True, False, True, True]])
    holed, _ = generalized_advantages(rewards, values, mask, gamma=0.9, lam=0.8)
    joined, _ = generalized_advantages(
        rewards[mask][None], values[mask][None], torch.ones(1, 3, dtype=torch.bool), gamma=0.9, lam=0.8
    )
    assert torch.equal(holed[mask], joined[0])


def test_whitened_advantages_have_mean_0_and_variance_1_over_real_tokens():
    mask = masks_of([3, 5, 0, 1], 5)
    whitened = whiten(torch.randn(4, 5) * 7 + 3, mask)
    assert whitened[mask].mean() == pytest.approx(0, abs=1e-6)
    assert whitened[mask].var(correction=0) == pytest.approx(1, abs=1e-4)
    assert not whitened[~mask].any()


def test_whitening_in_two_processes_equals_whitening_everything():
    x, mask = torch.randn(4, 5, dtype=torch.float64), masks_of([3, 5, 0, 1], 5)
    whole = whiten(x, mask)
    sums = []  # of the other half, in the order of the calls

    def other_half(total):
        sums.append(total)
        return total

    mean_of_other = torch.stack([x[2:].masked_fill(~mask[2:], 0).sum(), mask[2:].sum().to(x.dtype)])
    mean = masked_mean(x, mask)
    spread_of_other = torch.stack([(x[2:] - mean).square().masked_fill(~mask[2:], 0).sum(), mask[2:].sum().to(x.dtype)])
    others = iter([mean_of_other, spread_of_other])
    half = whiten(x[:2], mask[:2], lambda mine: mine + next(others))
    assert torch.allclose(half, whole[:2])


@pytest.mark.parametrize("lengths", [[0], [1], [0, 0], [0, 1]])
def test_ppo_empty_and_single_completions_give_no_nan(lengths):
    mask = masks_of(lengths, 2)
    rewards = token_rewards(torch.ones(len(lengths)), torch.zeros(mask.shape), mask)
    advantages, returns = generalized_advantages(rewards, torch.zeros(mask.shape), mask, gamma=1.0, lam=0.95)
    for result in (whiten(advantages, mask), returns, masked_mean(returns, mask)):
        assert result.isfinite().all()
    assert explained_variance(torch.zeros(mask.shape), returns, mask) is None


def test_completions_without_any_token_are_allowed():
    nothing = torch.zeros(2, 0)
    mask = nothing.bool()
    assert token_rewards(torch.ones(2), nothing, mask).shape == (2, 0)
    advantages, returns = generalized_advantages(nothing, nothing, mask, gamma=1.0, lam=0.95)
    assert advantages.shape == returns.shape == (2, 0)
    assert whiten(advantages, mask).shape == (2, 0)


def test_explained_variance_is_1_for_perfect_values_and_0_for_a_constant():
    returns, mask = torch.tensor([[1.0, 2.0, 5.0, 9.0]]), torch.tensor([[True, True, True, False]])
    assert explained_variance(returns, returns, mask) == pytest.approx(1)
    assert explained_variance(torch.full((1, 4), 3.0), returns, mask) == pytest.approx(0)
    assert explained_variance(-returns, returns, mask) < 0
