"""Recipes as text: YAML in (numbers as people write them, no duplicate keys), overrides, commented YAML out."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from llm_lab.errors import Problem, UserError, did_you_mean

from .fields import Group, groups_of


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core types. PyYAML's own (1.1) reads 3e-4 as text, `no` as false and 1:30 as 90."""


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
            raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
        if str(key) in found:
            raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' stands twice", key_node.start_mark)
        found[str(key)] = loader.construct_object(value_node, deep=True)
    return found


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


# What a plain text can't begin with in YAML; on a command line nothing else can be meant by them.
_YAML_SIGNS = ("*", "&", "!", "%", "@", "`")


def parse_yaml(text: str, where: str = "recipe") -> Any:
    """Parse YAML 1.2 core types. UserError with line and column where it is no YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        reason = getattr(error, "problem", None) or str(error)
        raise UserError(
            Problem(place, f"this is not YAML: {reason}", fix="Indent with spaces; `key: value`.")
        ) from None


def read_recipe_file(path: Path) -> dict[str, Any]:
    """Read a recipe file into a plain dict. UserError where there is none or it is no mapping."""
    if not path.exists():
        nearby = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise UserError(
            Problem(
                str(path),
                "there is no such recipe file",
                fix=did_you_mean(path.name, nearby) or "`llm-lab list recipes` shows what there is.",
            )
        )
    if path.is_dir():
        path = path / "recipe.yaml"
        if not path.exists():
            raise UserError(Problem(str(path.parent), "this folder holds no recipe.yaml"))
    try:
        if not path.is_file():
            raise UserError(Problem(str(path), "this is a device or a pipe; a recipe is read more than once"))
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(Problem(str(path), f"this is no UTF-8 text (byte {error.start})")) from None
    raw = parse_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise UserError(
            Problem(str(path), "a recipe is a mapping of keys to values", fix="Begin with `stage: pretrain`.")
        )
    return raw


def apply_overrides(raw: dict[str, Any], overrides: Iterable[str]) -> tuple[dict[str, Any], set[str]]:
    """Return a copy of `raw` with `dotted.key=value` applied, and the dotted keys that were set.

    Values are typed as in a recipe file; `data.0.path` reaches into a list, one past its end adds an
    item; `key=null` takes a key out, so that it is derived again (`data.0=null`: an item).
    """
    result = copy.deepcopy(raw)
    touched: set[str] = set()
    problems: list[Problem | str] = []
    for text in overrides:
        # From Python it may be anything: a list or a dict where words were meant.
        key, equals, value_text = text.partition("=") if isinstance(text, str) else ("", "", "")
        key = key.strip()
        if not equals or not all(key.split(".")):
            why = "an override is written key=value"
            problems.append(Problem(str(text), why, fix="For example train.max_steps=500."))
            continue
        try:
            _set(result, key.split("."), _typed(value_text, key), key)
            touched.add(key)
        except UserError as error:
            problems.extend(error.problems)
    if problems:
        raise UserError(*problems)
    return result, touched


def _typed(text: str, key: str) -> Any:
    """Type a value as a recipe file would, but take a glob as it is: YAML has other uses for its first sign."""
    return text.strip() if text.lstrip().startswith(_YAML_SIGNS) else parse_yaml(text, key)


def _set(node: Any, steps: list[str], value: Any, key: str) -> None:
    for position, step in enumerate(steps):
        last = position == len(steps) - 1
        if isinstance(node, list):
            if not step.isdigit() or int(step) > len(node):
                raise UserError(Problem(key, f"'{step}' is no place in this list", allowed=f"0 to {len(node)}"))
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


def format_value(value: Any) -> str:
    """Write one value as a recipe file would hold it, on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        # repr is the shortest text that reads back as the same number; YAML spells the odd ones with a dot.
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
    """Write values as commented YAML, in the schema's order.

    comment(path, help) gives the remark beside a key, or None for no remark.
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
                body = [line for line in body if line]
                yield indent + "  - " + body[0].lstrip()
                yield from body[1:]
        else:
            yield _with_remark(f"{indent}{key}: {format_value(value)}", remark)


def _with_remark(line: str, remark: str | None) -> str:
    return f"{line:<36} # {remark}" if remark else line


def _group_for(info: Any, value: dict[str, Any]) -> type[Group] | None:
    """Pick the member of a union that has the keys at hand."""
    groups = groups_of(info)
    for group in groups:
        name = group.model_fields.get("name")
        if len(groups) > 1 and name is not None and value.get("name") == name.default:
            return group
    for group in groups:
        if all(key in {(i.alias or n) for n, i in group.model_fields.items()} for key in value):
            return group
    return groups[0] if groups else None
