"""The grid of a sweep: recipe keys and their values, as written on the command line."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_lab.errors import Problem, UserError, sentence
from llm_lab.recipe.files import format_value, parse_yaml
from llm_lab.recipe.validate import with_overrides
from llm_lab.runs.folder import slug

LONGEST_NAME = 80
_OPENING, _CLOSING = "[{", "]}"


@dataclass(frozen=True)
class Configuration:
    """One of the recipes that are compared.

    label: for tables; name: for folders; values: the swept keys with their values, as text; recipe: as a user would
    write it, without the seed of a cell.
    """

    label: str
    name: str
    values: dict[str, str]
    recipe: dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """The swept keys, each with its values as texts, and the overrides that apply to all cells."""

    values: dict[str, tuple[str, ...]]
    fixed: tuple[str, ...] = ()


def read_grid(words: Iterable[str]) -> Grid:
    """Read key=v1,v2 and key=value. UserError for an empty or repeated value, and for a key that is given twice.

    A comma inside brackets or quotes belongs to its value: optimizer.betas=[0.9,0.95],[0.9,0.99].
    """
    values: dict[str, tuple[str, ...]] = {}
    fixed: list[str] = []
    problems: list[Problem] = []
    for word in words:
        key, equals, text = (part.strip() for part in word.partition("="))
        parts = split_values(text)
        if not equals or len(parts) < 2:
            fixed.append(word)
            continue
        if key in values:
            fix = f"List all its values at once: {key}={','.join(values[key] + tuple(parts))}"
            problems.append(Problem(key, "the key is given twice", fix=fix))
        problems += _wrong_values(key, parts)
        values[key] = tuple(parts)
    for key in values.keys() & {word.partition("=")[0].strip() for word in fixed}:
        problems.append(Problem(key, "the key is given with one value and with several", fix="Give it once."))
    if "seed" in values:
        fix = f"Use {len(values['seed'])} seeds (--seeds): every configuration is then run with the same seeds."
        problems.append(Problem("seed", "a seed is not compared with another one", fix=fix))
    if "name" in values:
        problems.append(Problem("name", "a name has no effect on a run", fix="Leave it out; --name names a sweep."))
    if problems:
        raise UserError(*problems)
    return Grid(values, tuple(fixed))


def _wrong_values(key: str, parts: Sequence[str]) -> Iterable[Problem]:
    if not all(parts):
        fix = "Write null for a key that is left out, and '' for an empty text."
        yield Problem(key, "one of the values is empty", value=",".join(parts), fix=fix)
        return
    known: list[Any] = []
    for part in parts:
        value = parse_yaml(part, key) if part[0] not in "*&!%@`" else part
        if value in known:
            first = parts[known.index(value)]
            same = f"{part} is listed twice" if first == part else f"{first} and {part} are the same value"
            yield Problem(key, same, fix="List it once; more seeds repeat every configuration.")
        known.append(value)


def split_values(text: str) -> list[str]:
    """Split a text at its commas, except those inside brackets and quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for position, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in _OPENING:
            depth += 1
        elif letter in _CLOSING:
            depth -= 1
        elif letter == "," and depth <= 0:
            parts.append(text[start:position].strip())
            start = position + 1
    return [*parts, text[start:].strip()]


def configurations_of(raw: Mapping[str, Any], grid: Grid) -> tuple[list[Configuration], list[str]]:
    """Return one configuration for each combination of values, and remarks on what they drop from the recipe."""
    short = short_keys(grid.values)
    remarks: dict[str, None] = {}
    found = []
    for combination in itertools.product(*grid.values.values()):
        values = dict(zip(grid.values, combination, strict=True))
        words = [f"{key}={text}" for key, text in values.items()]
        # A whole group first, then changes within it.
        recipe, _, dropped = with_overrides(raw, sorted([*grid.fixed, *words], key=_depth))
        remarks |= dict.fromkeys(map(sentence, dropped))
        label = ", ".join(f"{short[key]}={shown_value(text)}" for key, text in values.items()) or "recipe"
        name = "-".join(f"{short[key]}={slug(shown_value(text), 'empty')}" for key, text in values.items())
        found.append(Configuration(label, name, values, recipe))
    return _with_different_names(found), list(remarks)


def shown_value(text: str) -> str:
    """Return the display text of a value; for a group, its name and its keys, as in `adamw learning_rate=0.004`."""
    value = parse_yaml(text) if text.startswith("{") else None
    if not isinstance(value, Mapping):
        return text
    keys = [f"{key}={format_value(inner)}" for key, inner in value.items() if key != "name"]
    return " ".join([*([str(value["name"])] if "name" in value else []), *keys])


def _depth(word: str) -> int:
    return word.partition("=")[0].strip().removesuffix(".name").count(".")


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Return a unique short name for each key: learning_rate, optimizer (for optimizer.name), lora.r."""
    found = {}
    for key in keys:
        steps = key.removesuffix(".name").split(".")
        named = [number for number, step in enumerate(steps) if not step.isdigit()]
        found[key] = ".".join(steps[named[-1] :]) if len(steps[-1]) > 2 else ".".join(steps[-2:])
    taken = list(found.values())
    return {key: name if taken.count(name) == 1 else key for key, name in found.items()}


def _with_different_names(configurations: Sequence[Configuration]) -> list[Configuration]:
    """Return the configurations with unique names that are short enough for a folder."""
    names = [configuration.name for configuration in configurations]
    found = []
    for one in configurations:
        name = one.name
        if len(name) > LONGEST_NAME or names.count(name) > 1:
            digest = hashlib.sha256(one.label.encode()).hexdigest()[:6]
            name = f"{name[: LONGEST_NAME - 7].rstrip('-._=')}-{digest}"
        found.append(Configuration(one.label, name, one.values, one.recipe))
    return found
