"""Experiments over runs: sweeps, duels, and studies found in folders."""

# Said the same wherever one is offered.
SWEEP_ABOUT = "find the best of many values: one run each, and a table"
DUEL_ABOUT = "decide between two: the same seeds, and a verdict"
