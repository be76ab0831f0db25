"""Which checkpoints of a run are kept: spread over the run, so that comparing them shows how the model changed."""

from __future__ import annotations

from collections.abc import Collection


def steps_to_keep(steps: Collection[int], most: int, last_step: int) -> set[int]:
    """Return the steps, at most `most` of them, whose checkpoints are kept.

    The last one, from which the run resumes, and the first one; between them those nearest to even distances up to
    last_step, where the run will end. Until the run gets that far, these are the latest ones. So 3 keeps the first, the
    middle and the last checkpoint of a run. 1 and 2 keep the last ones. The answer depends on nothing else, so a
    resumed run keeps the same ones.
    """
    known = sorted(steps)
    if most < 3 or len(known) <= most:
        return set(known[-most:])
    first, *between, last = known
    kept = {first, last}
    for part in range(1, most - 1):
        aim = first + (last_step - first) * part / (most - 1)
        kept.add(min((step for step in between if step not in kept), key=lambda step: (abs(step - aim), step)))
    return kept
