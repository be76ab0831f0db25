"""The experiments that LLM Lab ships: one file each, found without registration."""
