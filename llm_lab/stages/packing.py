"""Several examples in one row of the batch, each with positions from 0: attention keeps them apart."""

from __future__ import annotations

from collections.abc import Sequence

from llm_lab.hf.conversations import Encoded


def pack(rows: Sequence[Encoded], max_length: int) -> list[list[Encoded]]:
    """Return groups of examples that fit into max_length tokens together, each example in one group.

    Best fit, the longest first (Ding et al. 2024, arXiv 2404.10830): no example is cut.
    """
    import bisect

    groups: list[list[Encoded]] = []
    room: list[tuple[int, int]] = []  # (tokens left, number of the group), sorted
    for index in sorted(range(len(rows)), key=lambda i: (-len(rows[i].input_ids), i)):
        size = len(rows[index].input_ids)
        at = bisect.bisect_left(room, (size, -1))
        if at < len(room):
            left, group = room.pop(at)
        else:
            left, group = max_length, len(groups)
            groups.append([])
        groups[group].append(rows[index])
        bisect.insort(room, (left - size, group))
    return groups
