"""Numbers as people read them."""

import pytest

from llm_lab.estimate.formatting import sizes_apart


@pytest.mark.parametrize(
    ("one", "other", "shown"),
    [
        (24.3, 24.0, ("24.3 GiB", "24.0 GiB")),
        (23.98, 24.0, ("23.98 GiB", "24.00 GiB")),
        (24.0, 24.0, ("24 GiB", "24 GiB")),
        (30.0, 24.0, ("30 GiB", "24 GiB")),
    ],
)
def test_two_sizes_that_differ_never_look_equal(one, other, shown):
    assert sizes_apart(one * 2**30, other * 2**30) == shown
