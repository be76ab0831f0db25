"""The keys of recipes, and which of them the default suite changes."""

from collections.abc import Iterable
from typing import Any

import pytest

from llm_lab.recipe.fields import groups_of, keys_of


def every_key(group, prefix=""):
    for key in keys_of(group, prefix):
        inner = groups_of(key.info)
        if inner:
            for each in inner:
                yield from every_key(each, key.path + ".")
        else:
            yield key


def every_fifth(keys: Iterable[str], *, always: Iterable[str] = ()) -> list[Any]:
    """Return the keys as parameters of a test, all but every fifth marked slow, because each takes a run.

    always: keys that are never slow.
    """
    kept = set(always)
    return [
        pytest.param(key, marks=[] if number % 5 == 0 or key in kept else [pytest.mark.slow])
        for number, key in enumerate(keys)
    ]


def is_checkpointed(model: Any) -> bool:
    return any(
        "Checkpoint" in type(module).__name__ or getattr(module, "gradient_checkpointing", False)
        for module in model.modules()
    )
