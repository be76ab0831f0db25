"""Which checkpoints of a run are kept on disk."""

import pytest

from llm_lab.runs.retention import steps_to_keep


def kept_by(run_of, most, every=10, stop_at=None, before=()):
    """Return the steps that are on disk when a run with this number of steps has saved every 10 steps until a stop."""
    on_disk = set(before)
    for step in range(max(on_disk, default=0) + every, (stop_at or run_of) + 1, every):
        on_disk = steps_to_keep({*on_disk, step}, most, run_of)
    return sorted(on_disk)


@pytest.mark.parametrize(
    ("most", "kept"),
    [(1, [200]), (2, [190, 200]), (3, [10, 190, 200]), (4, [10, 100, 190, 200]), (20, list(range(10, 201, 10)))],
)
def test_a_finished_run_keeps_the_last_two_checkpoints_the_first_and_some_between(most, kept):
    assert kept_by(200, most) == kept


@pytest.mark.parametrize("most", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("killed_at", [10, 50, 110, 190])
def test_a_resumed_run_keeps_the_same_checkpoints(most, killed_at):
    assert kept_by(200, most, before=kept_by(200, most, stop_at=killed_at)) == kept_by(200, most)


def test_a_run_that_is_not_half_done_keeps_the_first_and_the_latest_ones():
    assert kept_by(1000, 4, stop_at=300) == [10, 280, 290, 300]


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_the_last_checkpoint_stays_and_no_more_than_allowed(most):
    for step in range(10, 500, 10):
        kept = kept_by(1000, most, stop_at=step)
        assert kept[-1] == step
        assert len(kept) == min(most, step // 10)
