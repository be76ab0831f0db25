"""LLM Lab: build a language model from parts, train it, evaluate it, chat with it, export it."""

from __future__ import annotations

import os
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "duel", "load", "look", "run", "study", "sweep"]

# No telemetry: TRL's trainers send usage statistics through the Hub client unless this is set before any Hugging Face
# library is imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def load(checkpoint: str, **options: Any) -> Any:
    """Load a run, a Hugging Face folder or a Hub name; returns (model, tokenizer)."""
    from llm_lab.runner import load

    return load(checkpoint, **options)


def look(
    checkpoint: str, prompt: str | None = None, *, against: str | None = None, device: str | None = None, **options: Any
) -> Any:
    """Look inside a model as `llm-lab look` does; returns what was found, with tables as pandas and the report's path.

    options: steps, out and trust_remote_code, as for the command.
    """
    from functools import partial

    from llm_lab.looking.look import look
    from llm_lab.runner import load

    return look(checkpoint, load=partial(load, device=device), text=prompt, against=against, **options)


def run(recipe: Any, *overrides: str, **options: Any) -> Any:
    """Run a recipe (a file, or a dict) as `llm-lab run` does; returns the run's facts (its run.json)."""
    from llm_lab.runner import run

    return run(recipe, overrides, **options)


def sweep(recipe: Any, *words: Any, **options: Any) -> Any:
    """Run a recipe for several values and seeds as `llm-lab sweep` does; returns its tables as pandas.

    words: "key=v1,v2", "key=value", or {"key": [v1, v2]}. options: seeds, preset, measure, name, jobs, retry_failed.
    """
    from llm_lab.study_commands import sweep_from_python

    return sweep_from_python(recipe, words, **options)


def duel(recipe: Any, *words: Any, **options: Any) -> Any:
    """Compare two recipes with the same seeds as `llm-lab duel` does; returns the verdict and the pairs.

    words: as for `sweep`, with one key of two values. options: other (the second recipe), seeds, by, measure, name,
    jobs, retry_failed.
    """
    from llm_lab.study_commands import duel_from_python

    return duel_from_python(recipe, words, **options)


def study(name: str | None = None, **options: Any) -> Any:
    """Run an experiment as `llm-lab study` does; returns its results, tables and pictures. Without a name, list all."""
    from llm_lab.studies.study_result import study

    return study(name, options)
