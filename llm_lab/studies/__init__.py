"""Experiments: sweeps and duels over runs, and studies, each a Python file."""

# Said the same wherever one is offered.
SWEEP_ABOUT = "compare values of recipe keys: one run each, and a table"
DUEL_ABOUT = "decide which of two recipes is better, with the same seeds"
STUDY_ABOUT = "train small models and see how something works"
