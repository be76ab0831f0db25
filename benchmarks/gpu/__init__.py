"""Measurements that need a CUDA GPU with bf16. `run.sh` runs them all; README.md describes each."""
