"""Experiments: sweeps and duels over runs, and studies, each a Python file."""

# Said the same wherever one is offered.
SWEEP_ABOUT = "find the best of many values: one run each, and a table"
DUEL_ABOUT = "decide between two: the same seeds, and a verdict"
STUDY_ABOUT = "train small models and see how something works"
