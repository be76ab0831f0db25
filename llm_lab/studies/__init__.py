"""Sweeps and duels over runs, and experiments, each of which is a Python file."""

# The same sentence is used wherever a study is offered.
SWEEP_ABOUT = "compare values of recipe keys: one run each, and a table"
DUEL_ABOUT = "decide which of two recipes is better, with the same seeds"
STUDY_ABOUT = "train small models and see how something works"
