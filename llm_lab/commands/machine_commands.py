"""The commands for the machine and the lab: doctor, web, schema."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any

from llm_lab.errors import DONE
from llm_lab.terminal.console import print_text

from .documents import Document, doctor_document


def serve_web(arguments: argparse.Namespace) -> int:
    """Serve the web page until Ctrl-C."""
    from llm_lab.web.server import serve

    return serve(arguments.port, say=print_text)


def print_schema(arguments: argparse.Namespace) -> int:
    """Print the JSON Schema of recipes."""
    from llm_lab.recipe.registry import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))  # noqa: T201
    return DONE


def print_completion(arguments: argparse.Namespace) -> int:
    """Print the script that completes commands in a shell."""
    from llm_lab.job import SHIPPED_RECIPES
    from llm_lab.recipe.fields import leaf_keys
    from llm_lab.recipe.registry import STAGES
    from llm_lab.studies.experiment_files import list_experiments

    from .completion import completion_script

    found = {key.path for stage in STAGES.values() for key, _ in leaf_keys(stage.recipe)}
    keys = sorted(path.replace(".N.", ".0.") for path in found)
    recipes = sorted(file.stem for file in SHIPPED_RECIPES.glob("*.yaml"))
    experiments = [one.name for one in list_experiments()]
    values = {("new", "stage"): sorted(STAGES), ("study", "name"): experiments}
    print(completion_script(arguments.shell, keys, recipes, values), end="")  # noqa: T201
    return DONE


def examine_machine(arguments: argparse.Namespace) -> int | Document:
    """Show what this machine can do."""
    return doctor_document(_findings()) if arguments.json else print_doctor()


def print_doctor(*, title: str = "doctor", show: Callable[[Callable[[], None]], None] = lambda draw: draw()) -> int:
    """Show what this machine can do. title: the heading. show: receives the function that prints."""
    from llm_lab.terminal import listing

    show(partial(listing.print_doctor, _findings(), title))
    return DONE


def _findings() -> list[Any]:
    """Return the findings about the machine, and the disk space that the runs use."""
    from llm_lab.estimate.machine import Finding, examine
    from llm_lab.runs.housekeeping import describe_disk_use

    return [*examine(), Finding("runs", "good", describe_disk_use())]
