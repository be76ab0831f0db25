"""Which checkpoints of a run are kept: the newest, to resume from, and others that show how the model changed."""

from __future__ import annotations

from collections.abc import Collection


def steps_to_keep(steps: Collection[int], most: int, last_step: int) -> set[int]:
    """Return the steps (at most `most`) whose checkpoints are kept.

    The last two are always kept: a run resumes from the last one, or from the previous one if that is damaged. Then
    comes the first one, and between these the ones closest to even spacing up to last_step, where the run will end. So
    4 keeps the first, the middle and the last two checkpoints. The answer depends on nothing else, so a resumed run
    keeps the same ones.
    """
    known = sorted(steps)
    if most < 3 or len(known) <= most:
        return set(known[-most:])
    first, *between = known[:-2]
    kept = {first, *known[-2:]}
    for part in range(1, most - 2):
        aim = first + (last_step - first) * part / (most - 2)
        kept.add(min((step for step in between if step not in kept), key=lambda step: (abs(step - aim), step)))
    return kept
