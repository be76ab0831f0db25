"""The schedule keeps its shares, reads every token once per epoch, and gives random access to samples."""

import pickle
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_lab.data.block_dataset import BlockDataset, ValidationBlocks
from llm_lab.data.mixing import build_schedule
from llm_lab.errors import UserError

WEIGHTS = st.lists(
    st.one_of(st.integers(1, 300), st.floats(0.01, 100).map(lambda weight: round(weight, 3))),
    min_size=1,
    max_size=8,
)


def schedule(tokens=(1000,), weights=None, max_length=10, num_samples=500, seed=0):
    weights = weights or [1.0] * len(tokens)
    return build_schedule(tokens, weights, max_length=max_length, num_samples=num_samples, seed=seed)


@settings(max_examples=150, deadline=None)
@given(WEIGHTS)
def test_every_share_is_within_one_sample_at_any_time(weights):
    plan = schedule([1000] * len(weights), weights, num_samples=700)
    picked = np.array([plan.source(i) for i in range(700)])
    counts = np.cumsum(picked[:, None] == np.arange(len(weights)), axis=0)
    shares = np.arange(1, 701)[:, None] * np.array(weights) / sum(weights)
    assert np.abs(counts - shares).max() <= 1 + 1e-9
    for samples in (0, 1, 350, 700):
        assert plan.counts(samples) == np.bincount(picked[:samples], minlength=len(weights)).tolist()


def test_weights_2_and_1_give_two_of_three_samples():
    plan = schedule([1000, 1000], [2.0, 1.0], num_samples=300)
    assert plan.counts() == [200, 100]
    assert len({tuple(plan.source(i + j) for j in range(3)) for i in range(0, 300, 3)}) == 1


def test_in_the_first_epoch_every_token_but_the_first_is_a_target_once():
    plan = schedule([1001], max_length=10, num_samples=100)
    targets = np.concatenate([np.arange(plan.start(i) + 1, plan.start(i) + 11) for i in range(100)])
    assert sorted(targets) == list(range(1, 1001))
    assert plan.epochs() == [1.0]


@settings(max_examples=60, deadline=None)
@given(st.integers(11, 3000), st.integers(1, 10), st.integers(0, 5))
def test_no_token_is_a_target_twice_in_an_epoch_and_few_are_skipped(tokens, max_length, seed):
    plan = schedule([tokens], max_length=max_length, num_samples=10**6, seed=seed)
    blocks = plan.blocks[0]
    position = 0
    for epoch in range(3):
        count = blocks.later if epoch else blocks.first
        starts = np.array([blocks.start(position + j) for j in range(count)])
        targets = (starts[:, None] + np.arange(1, max_length + 1)).ravel()
        assert len(set(targets.tolist())) == len(targets)
        assert targets.min() >= 1
        assert targets.max() < tokens
        assert tokens - 1 - len(targets) < (2 * max_length if epoch else max_length)
        position += count


@settings(max_examples=80, deadline=None)
@given(WEIGHTS, st.lists(st.integers(11, 900), min_size=8, max_size=8), st.integers(1, 1500))
def test_the_first_repeat_is_the_first_sample_of_a_second_epoch(weights, tokens, samples):
    plan = schedule(tokens[: len(weights)], weights, num_samples=samples)
    seen = [0] * len(weights)
    expected = None
    for i in range(samples):
        source = plan.source(i)
        if seen[source] == plan.blocks[source].first:
            expected = i
            break
        seen[source] += 1
    assert plan.first_repeat() == expected
    if expected is not None:
        assert max(plan.epochs(expected)) <= 1 < max(plan.epochs(expected + 1))


@settings(max_examples=40, deadline=None)
@given(WEIGHTS, st.sets(st.integers(0, 7)), st.integers(0, 300), st.integers(0, 5))
def test_a_mix_is_the_same_from_any_sample_on(weights, streamed, middle, seed):
    """Streams get their exact share, and the blocks of a source do not depend on which others are streams."""
    tokens = [None if source in streamed else 200 + 31 * source for source in range(len(weights))]
    plan = schedule(tokens, weights, num_samples=301, seed=seed)
    plain = schedule([count or 500 for count in tokens], weights, num_samples=301, seed=seed)
    before = plan.counts(middle)
    assert before == plain.counts(middle)
    for i in range(middle, 301):
        source, position = plan.place(i)
        assert position == before[source], "the next one of its source"
        before[source] += 1
        assert source == plain.source(i)
        if tokens[source] is not None:
            assert plan.start(i) == plain.start(i)
    assert all((times is None) == (count is None) for times, count in zip(plan.epochs(), tokens, strict=True))


def test_later_epochs_have_other_block_boundaries_and_another_order():
    plan = schedule([5003], num_samples=5000)
    first, later = plan.blocks[0].first, plan.blocks[0].later
    epochs = [[plan.start(first + e * later + j) for j in range(later)] for e in range(6)]
    assert len({starts[0] % 10 for starts in epochs}) > 1
    assert len({tuple(np.argsort(starts)) for starts in epochs}) == 6


def test_a_text_of_one_block_can_be_read_repeatedly():
    plan = schedule([11], num_samples=50)
    assert {plan.start(i) for i in range(50)} == {0}
    assert plan.epochs() == [50.0]


@settings(max_examples=30, deadline=None)
@given(WEIGHTS, st.integers(0, 2**31), st.randoms())
def test_random_access_equals_reading_in_order(weights, seed, shuffler):
    arguments = ([300 + 7 * i for i in range(len(weights))], weights)
    in_order = schedule(*arguments, num_samples=400, seed=seed)
    expected = [(in_order.source(i), in_order.start(i)) for i in range(400)]
    order = list(range(400))
    shuffler.shuffle(order)
    fresh = schedule(*arguments, num_samples=400, seed=seed)
    found = {i: (fresh.source(i), fresh.start(i)) for i in order}
    assert [found[i] for i in range(400)] == expected


def test_more_samples_do_not_change_the_first_ones():
    short = schedule([500, 900], [0.123, 0.77], num_samples=100)
    long = schedule([500, 900], [0.123, 0.77], num_samples=4000)
    assert [(short.source(i), short.start(i)) for i in range(100)] == [
        (long.source(i), long.start(i)) for i in range(100)
    ]


def test_the_order_depends_on_the_seed():
    starts = {tuple(schedule(seed=seed).start(i) for i in range(99)) for seed in range(4)}
    assert len(starts) == 4


def test_adding_a_source_does_not_change_the_order_within_the_first():
    alone = schedule([1000], num_samples=99)
    mixed = schedule([1000, 2000], [1.0, 1.0], num_samples=198)
    assert [alone.start(i) for i in range(99)] == [mixed.start(i) for i in range(198) if mixed.source(i) == 0]


def test_ten_million_samples_are_scheduled_quickly_with_random_access():
    began = time.perf_counter()
    plan = schedule([10**9, 10**8], [0.9, 0.1], max_length=1024, num_samples=10**7)
    plan.start(9_999_999)
    assert time.perf_counter() - began < 2
    assert len(pickle.dumps(plan._pattern)) < 1000


def test_reading_past_the_last_sample_is_an_index_error():
    plan = schedule(num_samples=5)
    for i in (-1, 5):
        with pytest.raises(IndexError):
            plan.source(i)


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), float("inf")])
def test_invalid_weights_and_short_sources_are_reported_together(weight):
    with pytest.raises(UserError) as caught:
        schedule([1000, 10], [weight, 1.0])
    message = str(caught.value).splitlines()
    assert message[0].startswith("data.0.weight = ")
    assert "Allowed: a number above 0." in message[0]
    assert message[1].startswith("data.1: It has 10 training tokens, but a sequence needs max_length + 1 = 11.")


# Items


def test_an_item_is_inputs_and_the_tokens_that_follow_them():
    tokens = [np.arange(0, 100, dtype=np.uint16), np.arange(1000, 1200, dtype=np.uint32)]
    plan = schedule([100, 200], [1.0, 1.0], num_samples=40)
    blocks = BlockDataset(plan, tokens)
    assert len(blocks) == 40
    for i in range(40):
        item = blocks[i]
        assert item["input_ids"].dtype == item["shift_labels"].dtype == np.int64
        assert item["input_ids"].shape == item["shift_labels"].shape == (10,)
        assert item["input_ids"][0] == plan.start(i) + 1000 * plan.source(i)
        assert (item["shift_labels"] == item["input_ids"] + 1).all()


def test_a_dataset_is_pickled_as_a_path_without_its_tokens(tmp_path):
    np.arange(50_000, dtype=np.uint16).tofile(tmp_path / "tokens.bin")
    tokens = np.memmap(tmp_path / "tokens.bin", dtype=np.uint16, mode="r")
    blocks = BlockDataset(schedule([50_000]), [tokens])
    parcel = pickle.dumps(blocks)
    assert len(parcel) < 20_000
    assert (pickle.loads(parcel)[7]["input_ids"] == blocks[7]["input_ids"]).all()


@settings(deadline=None)
@given(st.integers(0, 100), st.integers(1, 30))
def test_validation_blocks_predict_every_token_but_the_first_once(count, max_length):
    blocks = ValidationBlocks(np.arange(count, dtype=np.uint16), max_length)
    targets = []
    for i in range(len(blocks)):
        item = blocks[i]
        assert item["input_ids"].shape == item["shift_labels"].shape == (max_length,)
        real = item["shift_labels"] != -100
        assert (item["input_ids"][real] + 1 == item["shift_labels"][real]).all()
        assert (item["input_ids"][~real] == 0).all()
        targets += item["shift_labels"][real].tolist()
    assert targets == list(range(1, count))
    assert blocks.targets == len(targets)
