"""What the commands over the user's runs do: list, rm, mv, gc."""

from __future__ import annotations

import argparse

from llm_lab.errors import DONE


def list_things(arguments: argparse.Namespace) -> int:
    """List recipes, data, models, parts and runs."""
    from llm_lab.job import list_recipes
    from llm_lab.terminal.listing import print_listing

    print_listing(arguments.what, list_recipes())
    return DONE
