"""Experiments over runs: sweeps, duels, and studies found in folders."""
