"""Recipes as text: read YAML (1e-4 is a number, duplicate keys are errors), apply overrides, write commented YAML."""

from __future__ import annotations

import codecs
import copy
import functools
import math
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from llm_lab.errors import Problem, UserError, suggest
from llm_lab.safe_text import has_secret

from .fields import Group, flatten, groups_of


class _Loader(yaml.SafeLoader):
    """The core types of YAML 1.2. PyYAML itself (1.1) reads 3e-4 as text, `no` as false and 1:30 as 90."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9][0-9_]*", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^$"), [""])


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node).replace("_", ""))


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float):
            raise yaml.constructor.ConstructorError(None, None, "a key must be text", key_node.start_mark)
        if str(key) in found:
            raise yaml.constructor.ConstructorError(None, None, f"duplicate key '{key}'", key_node.start_mark)
        found[str(key)] = loader.construct_object(value_node, deep=True)
    return found


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


LONGEST_RECIPE, MOST_VALUES = 1_000_000, 100_000
# An unquoted string in YAML can't start with these. On a command line they start a glob or other text.
_YAML_INDICATORS = ("*", "&", "!", "%", "@", "`")


def _require_small(root: yaml.Node) -> None:
    """Raise a YAMLError if aliases (`*name`), which repeat their targets, turn a small text into a huge value."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = 1  # 1 for now; the loader refuses an alias inside its own target
            inner = node.value if isinstance(node, yaml.CollectionNode) else ()
            parts = (part for item in inner for part in (item if isinstance(item, tuple) else (item,)))
            sizes[id(node)] += sum(map(size, parts))
        return sizes[id(node)]

    if size(root) > MOST_VALUES:
        why = f"aliases repeat so much that it has more than {MOST_VALUES:,} values"
        raise yaml.constructor.ConstructorError(None, None, why, root.start_mark)


def parse_yaml(text: str, where: str = "recipe") -> Any:
    """Parse YAML with the core types of YAML 1.2. Raises UserError with line and column if it is invalid."""
    if len(text) > LONGEST_RECIPE:
        raise UserError(Problem(where, f"a recipe has at most {LONGEST_RECIPE:,} characters, this has {len(text):,}"))
    try:
        return copy.deepcopy(_parse(text))
    except (RecursionError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UserError(Problem(where, f"invalid YAML: {why}")) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        reason = getattr(error, "problem", None) or str(error)
        raise UserError(
            Problem(place, f"invalid YAML: {reason}", fix="Write `key: value`, indented with spaces.")
        ) from None


@functools.lru_cache(maxsize=64)  # one command reads the recipe of a run many times
def _parse(text: str) -> Any:
    loader = _Loader(text)
    node = loader.get_single_node()
    if node is None:
        return None
    _require_small(node)
    return loader.construct_document(node)


PLAIN_TEXT = (".txt", ".text", ".md", ".markdown")  # suffixes of text files
MODELS = (".gguf", ".safetensors")
# What a file is by its suffix, and the command for it.
KINDS = {
    **dict.fromkeys((".yaml", ".yml"), ("a recipe", "To run it: `llm-lab run {}`")),
    **dict.fromkeys(PLAIN_TEXT, ("a text file", "To train on it: `llm-lab new pretrain data.0.path={}`")),
    **dict.fromkeys(
        (".jsonl", ".ndjson", ".jsonlines", ".csv", ".tsv", ".parquet", ".arrow"),
        ("data", "To train on it, for example: `llm-lab new sft data.0.path={}`"),
    ),
    **dict.fromkeys(MODELS, ("a model", "To chat with it: `llm-lab chat {}`")),
}


def refuse_file(path: Path, wanted: str) -> UserError | None:
    """Return the error for a file that is not what is wanted, such as "a recipe", by its suffix.

    None if the suffix is unknown, or belongs to what is wanted.
    """
    what, command = KINDS.get(path.suffix.lower(), (wanted, ""))
    if what == wanted:
        return None
    if path.suffix.lower() in PLAIN_TEXT and is_binary(path):
        what, command = "a binary file", ""
    return UserError(Problem(str(path), f"this is {what}, not {wanted}", fix=command.format(shlex.quote(str(path)))))


def is_binary(path: Path) -> bool:
    """Whether a file begins with bytes that no text has."""
    with path.open("rb") as file:
        head = file.read(4096)
    return b"\0" in head and not head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def read_recipe_file(path: Path) -> dict[str, Any]:
    """Read a recipe file into a dict. Raises UserError if it does not exist or is not a mapping."""
    if not path.exists():
        nearby = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise UserError(
            Problem(
                str(path),
                "there is no such recipe file",
                fix=suggest(path.name, nearby, f"There is no recipe in {path.parent}/."),
            )
        )
    if path.is_dir():
        path = path / "recipe.yaml"
        if not path.exists():
            raise UserError(Problem(str(path.parent), "this folder contains no recipe.yaml"))
    if not path.is_file():
        raise UserError(Problem(str(path), "this is not a regular file"))
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        not_text = UserError(Problem(str(path), f"not UTF-8 text (byte {error.start})"))
        raise refuse_file(path, "a recipe") or not_text from None
    except UserError as error:
        raise refuse_file(path, "a recipe") or error from None
    is_recipe = isinstance(raw, dict) and raw.keys() & {"stage", "stages"}
    if not is_recipe and (found := refuse_file(path, "a recipe")):
        raise found
    if not isinstance(raw, dict):
        raise UserError(
            Problem(str(path), "a recipe is a mapping of keys to values", fix="Start with `stage: pretrain`.")
        )
    return raw


def apply_overrides(raw: dict[str, Any], overrides: Iterable[str]) -> tuple[dict[str, Any], set[str]]:
    """Return a copy of `raw` with `dotted.key=value` applied, and the dotted keys that were set.

    Values are typed as in a recipe file. `data.0.path` sets a key of a list item; the index after the last adds an
    item. `key=null` removes a key, so that it is derived again; `data.0=null` removes an item. (`key=off`, which makes
    a group null, stays text here: see validate.with_groups_off.)
    """
    result = copy.deepcopy(raw)
    touched: set[str] = set()
    problems: list[Problem | str] = []
    why = "this looks like an access token or a password, and recipes are kept with the run and in model cards"
    for text in overrides:
        # A caller in Python may pass anything, such as a dict.
        key, equals, value_text = text.partition("=") if isinstance(text, str) else ("", "", "")
        key = key.strip()
        if not equals or not all(key.split(".")):
            form = "an override has the form key=value"
            problems.append(Problem(str(text), form, fix="For example train.max_steps=500."))
            continue
        try:
            _set(result, key.split("."), _typed(value_text, key), key)
            touched.add(key)
        except UserError as error:
            problems.extend(error.problems)
    problems += [
        Problem(key, why, fix="Set it in the environment, or log in with `hf auth login`.")
        for key, text in flatten(result)
        for part in (text if isinstance(text, list | tuple) else [text])
        if isinstance(part, str) and has_secret(part)
    ]
    if problems:
        raise UserError(*problems)
    return result, touched


def _typed(text: str, key: str) -> Any:
    """Parse a value as in a recipe file. A glob stays text, although its first character has a meaning in YAML."""
    return text.strip() if text.lstrip().startswith(_YAML_INDICATORS) else parse_yaml(text, key)


def _set(node: Any, steps: list[str], value: Any, key: str) -> None:
    for position, step in enumerate(steps):
        last = position == len(steps) - 1
        if isinstance(node, list):
            if not step.isdigit() or int(step) > len(node):
                raise UserError(_not_an_entry(node, steps, position, value, key))
            index = int(step)
            if index == len(node):
                node.append({})
            if last and value is None:
                del node[index]
            elif last:
                node[index] = value
            else:
                if not isinstance(node[index], dict | list):
                    node[index] = {}
                node = node[index]
        else:
            if last:
                if value is None:
                    node.pop(step, None)
                else:
                    node[step] = value
            else:
                following = steps[position + 1]
                if not isinstance(node.get(step), dict | list):
                    node[step] = [] if following.isdigit() else {}
                node = node[step]


def _not_an_entry(entries: list[Any], steps: list[str], position: int, value: Any, key: str) -> Problem:
    """Return the problem of an override that names no entry of a list."""
    name, step, count = ".".join(steps[:position]), steps[position], len(entries)
    of_groups = all(isinstance(entry, dict) for entry in entries)
    why = f"{name} is a list"
    if step.isdigit():
        why += f", and it has no entry {step}"
    else:
        example = ".".join([name, "0", *(steps[position:] if of_groups else ())])
        why += f": name an entry by its number, as in {example}={shlex.quote(format_value(value))}"
    numbers = "" if not count else f" ({'0' if count == 1 else f'0 to {count - 1}'})"
    has = f"It has {'1 entry' if count == 1 else f'{count} entries' if count else 'no entries'}{numbers}"
    # A stage is several keys, and other lists may have a fixed length.
    grows = name != "stages" and of_groups
    return Problem(key, why, fix=f"{has}; {count} adds {'another' if count else 'one'}" if grows else has)


def format_value(value: Any) -> str:
    """Return one value as YAML, on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        # repr is the shortest text that reads back as the same number; YAML spells inf and nan with a dot.
        return repr(value) if math.isfinite(value) else repr(value).replace("inf", ".inf").replace("nan", ".nan")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(format_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {format_value(item)}" for key, item in value.items()) + "}"
    text = str(value)
    plain = re.fullmatch(r"[A-Za-z0-9_./~*+-][A-Za-z0-9_./~*+ -]*|builtin:[a-z]+", text) and text == text.strip()
    if plain and text[0] not in "*-~" and parse_yaml(f"[{text}]") == [text]:
        return text
    return yaml.dump(text, Dumper=yaml.SafeDumper, default_style='"', width=10**9, allow_unicode=True).strip()


def to_yaml(
    values: dict[str, Any],
    group: type[Group],
    comment: Callable[[str, str], str | None],
    header: Iterable[str] = (),
) -> str:
    """Return values as commented YAML, in the order of the schema.

    comment(path, help) returns the comment of a key, or None.
    """
    lines = [f"# {line}".rstrip() for line in header]
    lines += _lines(values, group, comment, "", "")
    return "\n".join(lines) + "\n"


def _lines(
    values: dict[str, Any], group: type[Group] | None, comment: Callable, prefix: str, indent: str
) -> Iterator[str]:
    infos = {(info.alias or name): info for name, info in group.model_fields.items()} if group else {}
    order = [key for key in infos if key in values] + [key for key in values if key not in infos]
    for key in order:
        value, info, path = values[key], infos.get(key), prefix + key
        remark = comment(path, info.description or "" if info else "")
        if isinstance(value, dict) and value:
            inner = _group_for(info, value) if info else None
            if not indent:
                yield ""
            yield _with_remark(f"{indent}{key}:", remark)
            yield from _lines(value, inner, comment, path + ".", indent + "  ")
        elif isinstance(value, list | tuple) and value and all(isinstance(item, dict) for item in value):
            if not indent:
                yield ""
            yield _with_remark(f"{indent}{key}:", remark)
            for index, item in enumerate(value):
                inner = _group_for(info, item) if info else None
                body = list(_lines(item, inner, comment, f"{path}.{index}.", indent + "    "))
                body = [line for line in body if line] or ["{}"]
                yield indent + "  - " + body[0].lstrip()
                yield from body[1:]
        else:
            yield _with_remark(f"{indent}{key}: {format_value(value)}", remark)


def _with_remark(line: str, remark: str | None) -> str:
    return f"{line:<36} # {remark}" if remark else line


def _group_for(info: Any, value: dict[str, Any]) -> type[Group] | None:
    """Return the member of a union that has the given keys."""
    groups = groups_of(info)
    for group in groups:
        name = group.model_fields.get("name")
        if len(groups) > 1 and name is not None and value.get("name") == name.default:
            return group
    for group in groups:
        if all(key in {(i.alias or n) for n, i in group.model_fields.items()} for key in value):
            return group
    return groups[0] if groups else None
