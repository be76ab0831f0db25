"""Walk over the keys of recipes."""

from typing import Any

from llm_lab.recipe.fields import groups_of, keys_of


def every_key(group, prefix=""):
    for key in keys_of(group, prefix):
        inner = groups_of(key.info)
        if inner:
            for each in inner:
                yield from every_key(each, key.path + ".")
        else:
            yield key


def is_checkpointed(model: Any) -> bool:
    return any(
        "Checkpoint" in type(module).__name__ or getattr(module, "gradient_checkpointing", False)
        for module in model.modules()
    )
