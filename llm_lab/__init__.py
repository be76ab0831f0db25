"""LLM Lab: build a language model from parts, train it, evaluate it, chat with it, export it."""

from __future__ import annotations

import os
import sys
import warnings
from types import ModuleType
from typing import TYPE_CHECKING, Any

from llm_lab import export as _exports

if TYPE_CHECKING:
    from llm_lab.python_api import compare, dpo, evaluate, grpo, merge, models, ppo, pretrain, reward, sft
    from llm_lab.run_result import Run

__version__ = "0.1.0"
__all__ = [
    "Run",
    "__version__",
    "compare",
    "dpo",
    "duel",
    "evaluate",
    "export",
    "grpo",
    "load",
    "look",
    "merge",
    "models",
    "ppo",
    "pretrain",
    "reward",
    "run",
    "sft",
    "study",
    "sweep",
]
# Imported when they are first used.
_PLACES = dict.fromkeys(
    ("compare", "dpo", "evaluate", "grpo", "merge", "models", "ppo", "pretrain", "reward", "sft"), "llm_lab.python_api"
)
_PLACES["Run"] = "llm_lab.run_result"

# No telemetry: TRL's trainers send usage statistics through the Hub client unless this is set before any Hugging Face
# library is imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# A warning in notebooks about progress bars, which LLM Lab does not show.
warnings.filterwarnings("ignore", message="IProgress not found")


class _BeforeTorch:
    """Sets how PyTorch's threads wait, just before anything imports PyTorch."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "torch":
            sys.meta_path.remove(self)
            from llm_lab.runs.processes import sleep_where_busy

            sleep_where_busy()


sys.meta_path.insert(0, _BeforeTorch())


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)


class _Exports(ModuleType):
    """The package llm_lab.export, which is also a function: `llm_lab.export(run, to="gguf")`."""

    def __call__(self, model: Any, to: str = "hf", keys: Any = None, **options: Any) -> Any:
        """Write a model as a Hugging Face folder, a GGUF file or a Space, verify it, and return the run."""
        from llm_lab.python_api import export

        return export(model, to, keys, **options)


_exports.__class__ = _Exports  # the function and the package have the same name


def load(checkpoint: Any, **options: Any) -> Any:
    """Load a run, a Hugging Face folder or a Hub name; returns (model, tokenizer)."""
    from llm_lab.runner import load

    return load(os.fspath(checkpoint), **options)


def look(
    checkpoint: Any, prompt: str | None = None, *, against: str | None = None, device: str | None = None, **options: Any
) -> Any:
    """Look inside a model as `llm-lab look` does; returns what was found, with tables as pandas and the report's path.

    options: steps, out and trust_remote_code, as for the command.
    """
    from functools import partial

    from llm_lab.looking.look import look
    from llm_lab.runner import load

    return look(os.fspath(checkpoint), load=partial(load, device=device), text=prompt, against=against, **options)


def run(recipe: Any, *overrides: str, **options: Any) -> Any:
    """Run a recipe (a file, or a dict) as `llm-lab run` does; returns the run's facts (its run.json).

    The facts are a dict; their attribute `run` is the Run.
    """
    from llm_lab.run_result import RunFacts
    from llm_lab.runner import run

    return RunFacts(run(recipe, overrides, **options))


def sweep(recipe: Any, *words: Any, **options: Any) -> Any:
    """Run a recipe for several values and seeds as `llm-lab sweep` does; returns its tables as pandas.

    words: "key=v1,v2", "key=value", or {"key": [v1, v2]}. options: seeds, preset, measure, name, jobs, retry_failed.
    """
    from llm_lab.commands.study_commands import sweep_from_python

    return sweep_from_python(recipe, words, **options)


def duel(recipe: Any, *words: Any, **options: Any) -> Any:
    """Compare two recipes with the same seeds as `llm-lab duel` does; returns the verdict and the pairs.

    words: as for `sweep`, with one key of two values. options: other (the second recipe), seeds, by, measure, name,
    jobs, retry_failed.
    """
    from llm_lab.commands.study_commands import duel_from_python

    return duel_from_python(recipe, words, **options)


def study(name: str | None = None, **options: Any) -> Any:
    """Run an experiment as `llm-lab study` does; returns its results, tables and pictures. Without a name, list all."""
    from llm_lab.studies.study_result import study

    return study(name, options)
