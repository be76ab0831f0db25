"""The rows of a mix as the Dataset that TRL asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from datasets import Dataset

from llm_lab.data.mixing import ExampleMix


def dataset_in_order(order: ExampleMix, row_of: Callable[[Any], Mapping[str, Any]] = lambda row: row) -> Dataset:
    """Return the rows in the mix's order, each stored once. row_of: makes a row's columns."""
    starts, flat = [0], []
    for rows in order.sets:
        starts.append(starts[-1] + len(rows))
        flat += [row_of(row) for row in rows]
    places = (order.locate(index) for index in range(len(order)))
    return Dataset.from_list(flat).select([starts[source] + place for source, place in places])
