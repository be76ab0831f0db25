"""The schema as documents: option tables for the README and a JSON Schema for editors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .fields import Group, Key, groups_of, keys_of
from .files import format_value
from .schema import StageRecipe
from .stages import STAGE_RECIPES


def leaf_keys(group: type[Group], prefix: str = "") -> Iterator[tuple[Key, str]]:
    """Yield (key, the group it stands in) for every key that holds a value; union members one after the other."""
    for key in keys_of(group, prefix):
        inner = groups_of(key.info)
        if not inner or key.name == "tokenizer":
            yield key, group.__name__
        for member in inner if key.name != "tokenizer" else ():
            step = f"{key.path}.N." if key.kind == "list" else f"{key.path}."
            yield from leaf_keys(member, step)


def option_rows(stage: str) -> dict[str, list[str]]:
    """Return {group: the rows of its table} of a stage's recipe."""
    schema: type[StageRecipe] = STAGE_RECIPES[stage]
    tables: dict[str, list[str]] = {}
    for key, owner in leaf_keys(schema):
        row = f"| `{key.name}` | {_cell(key.allowed())} | {_cell(_default(key))} | {_cell(key.help)} |"
        tables.setdefault(_heading(key, owner, schema), []).append(row)
    return tables


def _heading(key: Key, owner: str, schema: type[StageRecipe]) -> str:
    top, _, _ = key.path.rpartition(".")
    if not top:
        return "top level"
    groups = groups_of(schema.model_fields[top.split(".")[0]])
    named = next((g for g in groups if g.__name__ == owner), None)
    label = top.replace(".N", "[]")
    if named is None or len(groups) == 1:
        return label
    name = named.model_fields.get("name")
    return f"{label}: {name.default}" if name is not None else f"{label}: {named.__doc__.split('.')[0].lower()}"


def _default(key: Key) -> str:
    if key.required:
        return "(needed)"
    if key.derived:
        return f"derived: {key.derived}"
    return f"`{format_value(key.default)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def json_schema() -> dict[str, Any]:
    """Return a JSON Schema of recipes: one stage, or a pipeline of stages."""
    stages = [schema.model_json_schema(by_alias=True) for schema in STAGE_RECIPES.values()]
    definitions: dict[str, Any] = {}
    members = []
    for schema in stages:
        definitions |= schema.pop("$defs", {})
        members.append(schema)
    pipeline = {
        "type": "object",
        "required": ["stages"],
        "properties": {
            "name": {"type": "string"},
            "seed": {"type": "integer"},
            "device": {"enum": ["cuda", "cpu", "auto"]},
            "stages": {"type": "array", "minItems": 1, "items": {"anyOf": members}},
        },
        "additionalProperties": False,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "LLM Lab recipe",
        "anyOf": [*members, pipeline],
        "$defs": definitions,
    }
