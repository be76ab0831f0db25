"""Check a recipe, against the schema and across its keys, and report every problem at once."""

from __future__ import annotations

import copy
import difflib
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from llm_lab.errors import Problem, UserError, did_you_mean, leave_out, one_of, with_article

from .fields import Group, Key, flatten, groups_of, infos_of, inner_groups, keys_of, value_at
from .files import apply_overrides, format_value
from .parts import ModelConfig, ModelParts
from .registry import STAGES, PipelineRecipe, load_installed_stages, stage_of
from .stage import Stage, StageRecipe, Values

AnyGroup = TypeVar("AnyGroup", bound=Group)
OFF, NULL = "off", {type(None)}
CHECKPOINT = "model.checkpoint"
NEW_MODEL = {*infos_of(ModelParts), *infos_of(ModelConfig)}  # the keys of a model that starts from random weights
_UNIONS = ("model", "optimizer", "tokenizer")
MOST_NAMED = 3  # maximum number of keys in a remark or a suggestion


def find_key(group: type[Group], path: str, raw: dict[str, Any] | None = None) -> Key | None:
    """Return the schema's key at a dotted path (list indices allowed), or None.

    raw picks the member of a tagged union (the optimizer's own keys).
    """
    options: Sequence[type[Group]] = [group]
    steps = path.split(".")
    info = None
    node: Any = raw
    for step in steps:
        node = _child(node, step)
        if step.isdigit():
            continue
        owner = next((candidate for candidate in options if step in infos_of(candidate)), None)
        if owner is None:
            return None
        info = infos_of(owner)[step]
        options = _narrow(inner_groups(owner, step), node)
    return Key(".".join(s for s in steps if not s.isdigit()), info) if info is not None else None


def _at(node: Any, steps: list[Any]) -> Any:
    for step in steps:
        node = _child(node, str(step))
    return node


def _child(node: Any, step: str) -> Any:
    if isinstance(node, dict):
        return node.get(step)
    if isinstance(node, list | tuple) and step.isdigit() and int(step) < len(node):
        return node[int(step)]
    return None


def _narrow(groups: Sequence[type[Group]], node: Any) -> Sequence[type[Group]]:
    if isinstance(node, dict) and "name" in node:
        named = [g for g in groups if "name" in g.model_fields and g.model_fields["name"].default == node["name"]]
        return named or groups
    return groups


def require_stage(raw: Values) -> Stage:
    """Return the stage that a recipe names. Raises UserError if there is no such stage."""
    if stage := stage_of(raw):
        return stage
    name, names = raw.get("stage"), list(STAGES)  # with the stages of installed packages, which stage_of has loaded
    if name is None:
        why = "a recipe must name a stage"
        raise UserError(Problem("stage", why, allowed=one_of(names), fix=f"Add `stage: {names[0]}`."))
    unusable = "; ".join(load_installed_stages())
    fix = f"A package with stages can't be imported: {unusable}" if unusable else did_you_mean(str(name), names)
    raise UserError(Problem("stage", "there is no such stage", value=name, allowed=one_of(names), fix=fix))


def stage_schema(raw: Values) -> type[StageRecipe]:
    """Return the schema of the stage that a recipe names. Raises UserError if there is no such stage."""
    return require_stage(raw).recipe


def with_groups_off(raw: Values) -> dict[str, Any]:
    """Return a stage's values with null for each group that is `off`; on a command line, null removes a key."""
    groups = optional_groups(raw) if stage_of(raw) else ()
    return {key: None if value == OFF and key in groups else value for key, value in raw.items()}


def optional_groups(raw: Values) -> list[str]:
    """Return the groups of a stage's recipe that null switches off as a whole, such as lora."""
    found = stage_schema(raw).model_fields.items()
    return [
        name for name, info in found if groups_of(info) and {*get_args(info.annotation)} - {*groups_of(info)} == NULL
    ]


def with_overrides(raw: Values, words: Iterable[str]) -> tuple[dict[str, Any], set[str], list[str]]:
    """Return a recipe with overrides, the dotted keys that they set, and remarks on what they drop.

    An override that names another optimizer drops the settings of the recipe's own: a learning rate for Muon says
    nothing about AdamW. Raises UserError as from `apply_overrides`.
    """
    words = list(words)
    result, touched = apply_overrides(dict(raw), words)
    dropped, remarks = [], []
    for group in sorted(key.removesuffix(".name") for key in touched if key.endswith(".name")):
        own, name = _named_group(raw, group), value_at(result, f"{group}.name")
        if own is None or name is None or own.model_fields["name"].default == name:
            continue
        known = {info.alias or key for key, info in own.model_fields.items()} - {"name"}
        # Keys that no optimizer has stay: validation reports them.
        given = [(f"{group}.{key}", value) for key, value in (value_at(raw, group) or {}).items() if key in known]
        dropped += [f"{key}=null" for key, _ in given]
        if given:
            named = ", ".join(f"{key} = {format_value(value)}" for key, value in given[:MOST_NAMED])
            more = f" and {len(given) - MOST_NAMED} more" if len(given) > MOST_NAMED else ""
            of = own.model_fields["name"].default
            remarks.append(f"With {name}, the recipe's settings of {of} are not used: {named}{more}")
    if dropped:
        result, _ = apply_overrides(apply_overrides(dict(raw), dropped)[0], words)
    return result, touched, remarks


def _named_group(raw: Values, path: str) -> type[Group] | None:
    """Return the group that a recipe chose among several with names, such as its optimizer; None for other keys."""
    owner: Any = raw
    if match := re.match(r"(stages\.\d+)\.(.+)", path):
        owner, path = value_at(raw, match[1]), match[2]
    stage = stage_of(owner) if isinstance(owner, Mapping) else None
    key = find_key(stage.recipe, path) if stage else None
    groups = [group for group in groups_of(key.info) if "name" in group.model_fields] if key else []
    if key is None or len(groups) < 2:
        return None
    given = value_at(owner, path)
    name = given.get("name") if isinstance(given, Mapping) else None
    name = name or getattr(key.info.get_default(call_default_factory=True), "name", None)
    return next((group for group in groups if group.model_fields["name"].default == name), None)


def validate(raw: dict[str, Any]) -> tuple[StageRecipe | None, list[Problem], set[str]]:
    """Validate the recipe of one stage; see validate_as. Raises UserError if there is no such stage."""
    return validate_as(stage_schema(raw), raw)


def validate_as(schema: type[AnyGroup], raw: dict[str, Any]) -> tuple[AnyGroup | None, list[Problem], set[str]]:
    """Validate raw values without raising.

    Returns the recipe without its wrong keys (so that the rules across keys can still be checked and every problem is
    reported at once), the problems, and the dotted keys of the wrong ones.
    """
    rest = copy.deepcopy(raw)
    problems: list[Problem] = []
    wrong: set[str] = set()
    for _ in range(50):
        try:
            return schema.model_validate(rest), problems, wrong
        except ValidationError as error:
            removed = set()
            for item in [item for item in error.errors(include_url=False) if not _is_echo(item)]:
                steps = _plain_steps(item["loc"], schema)
                path = ".".join(str(step) for step in steps)
                if path not in wrong and not _follows(item, path, wrong, raw):
                    wrong.add(path)
                    problems.append(_problem(item, path, steps, schema, raw))
                if path not in removed:
                    removed.add(path)
                    _remove(rest, steps, schema)
    return None, problems, wrong


def build(schema: type[AnyGroup], values: Values) -> tuple[AnyGroup | None, list[Problem]]:
    """Return the recipe of complete values, or None and the problems of values that were derived out of bounds."""
    try:
        return schema.model_validate(values), []
    except ValidationError:
        return None, validate_as(schema, dict(values))[1]


def _is_echo(item: Mapping[str, Any]) -> bool:
    """Return whether a list counts as too short only because pydantic skips its invalid entries."""
    return item["type"] == "too_short" and len(item["input"]) >= item["ctx"]["min_length"]


def _follows(item: Mapping[str, Any], path: str, wrong: set[str], raw: Values) -> bool:
    """Return whether an error only follows from one that is reported.

    A group is missing because its wrong keys were removed, or a key of a new model is given instead of a checkpoint.
    """
    if item["type"] == "missing":
        return any(key.startswith(f"{path}.") for key in wrong)
    group, _, last = path.partition(".")
    is_new = group == "model" and last in NEW_MODEL
    return item["type"] == "extra_forbidden" and is_new and CHECKPOINT in wrong and value_at(raw, CHECKPOINT) is None


def _plain_steps(loc: tuple[Any, ...], schema: type[Group]) -> list[Any]:
    """Drop what is not a key in the file: union tags, as in ('model', 'parts', 'norm'), and indices of values."""
    steps = list(loc)
    one_group = bool(steps) and steps[0] == "model" and len(inner_groups(schema, "model")) == 1
    if len(steps) > 1 and steps[0] in _UNIONS and not one_group:
        del steps[1]
    if steps[:2] == ["train", "report_to"]:
        del steps[2:3]
    if len(steps) > 2 and isinstance(steps[-1], int):
        del steps[-1]
    return steps


def _remove(node: Any, steps: list[Any], schema: type[Group]) -> None:
    """Remove a wrong key. If it is required (a data source's path), remove its item."""
    parents = []
    for step in steps[:-1]:
        parents.append((node, step))
        node = _child(node, str(step))
    last = steps[-1] if steps else None
    if isinstance(node, dict) and last in node:
        del node[last]
        key = find_key(schema, ".".join(map(str, steps)))
        if key is None or not key.required:
            return
    if isinstance(node, list) and isinstance(last, int) and last < len(node):
        del node[last]
    elif parents:
        parent, step = parents[-1]
        if isinstance(parent, list) and isinstance(step, int) and step < len(parent):
            del parent[step]
        elif isinstance(parent, dict):
            parent.pop(step, None)
    root = parents[0][0] if parents else node
    if isinstance(root, dict) and not root.get("data") and "data" in schema.model_fields:
        root["data"] = [{"path": "builtin:stories"}]


def _names_of(groups: Iterable[type[Group]]) -> list[str]:
    """Return the names that choose between groups; a group whose name is free text has none."""
    names = [group.model_fields["name"].default for group in groups if "name" in group.model_fields]
    return [name for name in names if isinstance(name, str)]


def _problem(item: Mapping[str, Any], path: str, steps: list[Any], schema: type[Group], raw: dict[str, Any]) -> Problem:
    kind, value = item["type"], item.get("input")
    key = find_key(schema, path, raw)
    if len(item["loc"]) and isinstance(item["loc"][-1], int) and not isinstance(steps[-1], int):
        kind, value = "list_entry", _at(raw, steps)
    if kind == "extra_forbidden":
        return _unknown_key(path, steps, schema, raw)
    if kind == "missing":
        return Problem(path, "this key is required", fix=_what_is_missing(key, path, raw) if key else None)
    if kind == "union_tag_invalid":
        choices = _names_of(groups_of(key.info)) if key else []
        name = value.get("name") if isinstance(value, dict) else value
        return Problem(
            f"{path}.name",
            f"{raw['stage']} has no {path} with this name" if "stage" in raw else f"there is no {path} with this name",
            value=name,
            allowed=one_of(choices),
            fix=did_you_mean(str(name), choices),
        )
    if key is None:
        return Problem(path, item["msg"], value=value)
    if kind == "dict_type":
        return Problem(path, "this must be a group of keys, as in {stage: pretrain, data: [...]}", value=value)
    if kind in ("model_type", "model_attributes_type"):
        groups = groups_of(key.info)
        near = difflib.get_close_matches(str(value), _names_of(groups), n=1)
        fix = f"Write {path}: {{name: {near[0]}}}. On the command line: {path}.name={near[0]}." if near else None
        fix = fix or (_as_entry(key, path, value) if isinstance(steps[-1], int) else _without(path, value))
        names = list(dict.fromkeys(name for group in groups for name in infos_of(group)))
        allowed = None if near or (isinstance(steps[-1], int) and fix) else one_of(names)
        return Problem(path, "this must be a group of keys", value=value, allowed=allowed, fix=fix)
    fix = did_you_mean(str(value), map(str, key.choices)) if key.choices and isinstance(value, str) else None
    if isinstance(value, str) and key.kind in ("int", "float"):
        number = _number(value)
        fix = f"Write it without quotes: {key.name}: {number}" if number else fix
    if kind == "tuple_type":
        fix = _as_entry(key, path, value)
    why = {
        "string_pattern_mismatch": "not of the allowed form",
        "tuple_type": "this must be a list",
        "string_too_long": too_long(value, item),
        "too_large": "a whole number may not exceed 2^53",
        "too_short": "at least one entry is required",
        **dict.fromkeys(("greater_than", "greater_than_equal"), "too small"),
        **dict.fromkeys(("less_than", "less_than_equal"), "too large"),
        **dict.fromkeys(("int_type", "int_from_float", "int_parsing"), "not a whole number"),
        **dict.fromkeys(("float_type", "float_parsing"), "not a number"),
        **dict.fromkeys(("bool_type", "bool_parsing"), "neither true nor false"),
    }.get(kind, f"invalid value ({key.help})")
    # The help of a group with a shorthand (the tokenizer) names what is allowed; so does a list that is written out.
    named = key.kind == "group" or (kind == "tuple_type" and fix)
    return Problem(path, why, value=value, allowed=None if named else key.allowed(), fix=fix)


def _what_is_missing(key: Key, path: str, raw: Values) -> str:
    """Describe a required key that was left out. For datasets, with an example."""
    stage, parts = stage_of(raw), value_at(raw, path.rpartition(".")[0]) if "." in path else None
    new = [name for name in parts if name in NEW_MODEL] if isinstance(parts, Mapping) else []
    if path == CHECKPOINT and stage and new:
        return f"{stage.name} starts from a trained model, so model takes checkpoint ({key.help}), not {one_of(new)}"
    if key.kind != "list" or _first_required(key) != "path":
        return _capital(key.help)
    file = "my-text.txt" if stage and stage.examples == "text" else "my-examples.jsonl"
    return f"{_capital(key.help)}. For example {path}.0.path={file}"


def _first_required(key: Key) -> str | None:
    """Return the first required key of a list's entries, such as the path of a dataset, or None."""
    return next((inner.name for group in groups_of(key.info) for inner in keys_of(group) if inner.required), None)


def _as_entry(key: Key, path: str, value: Any) -> str | None:
    """Explain how to write one value as an entry of a list of groups, such as data: [{path: mytext.txt}]."""
    required, entry = _first_required(key), re.search(r"\.\d+$", path)
    is_group = isinstance(value, Mapping)
    if not required or not (is_group or isinstance(value, str)):
        return None
    values = value if is_group else {required: value}
    place = path if entry else f"{path}.0"
    words = " ".join(f"{place}.{name}={shlex.quote(format_value(one))}" for name, one in values.items())
    name = path[: entry.start()] if entry else path
    return f"Write {name}: [{format_value(values)}]; on the command line: {words}"


def _without(path: str, value: Any) -> str | None:
    """Explain how to do without a group that can't be null."""
    is_off = value is None or value is False or value in (OFF, "none", "no")
    return "For no validation: validation.fraction=0." if path == "validation" and is_off else None


def too_long(value: Any, item: Mapping[str, Any]) -> str:
    """Return why a text is too long. item: pydantic's description of the error."""
    length, most = len(value) if isinstance(value, str) else 0, (item.get("ctx") or {}).get("max_length")
    return f"{length} characters are too long: at most {most}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _number(text: str) -> str | None:
    """Return the number that a text spells, as YAML spells it, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return None if math.isnan(number) else text if math.isfinite(number) else format_value(number)


def _unknown_key(path: str, steps: list[Any], schema: type[Group], raw: dict[str, Any]) -> Problem:
    parent_path = ".".join(str(s) for s in steps[:-1])
    parent = find_key(schema, parent_path, raw) if parent_path else None
    node: Any = raw
    for step in steps[:-1]:
        node = _child(node, str(step))
    groups = _narrow(groups_of(parent.info), node) if parent else [schema]
    if isinstance(node, dict) and len(groups) > 1:
        source = next((kind for kind in ("config", "checkpoint") if kind in node), None)
        if parent_path == "model" and source:
            why = f"unknown key of a model that is given by its {source}"
            return Problem(path, why, fix=leave_out(path))
        groups = [g for g in groups if any(k in infos_of(g) for k in node)] or groups
    keys = {name: info.description or "" for group in groups[:1] for name, info in infos_of(group).items()}
    names = list(keys)
    last = str(steps[-1])
    one_stage = "stages" not in schema.model_fields and "stage" in raw
    where = parent_path or (with_article(f"{raw['stage']} recipe") if one_stage else "a pipeline")
    if isinstance(node, dict) and "name" in node and parent is not None and len(groups_of(parent.info)) > 1:
        where = f"{parent_path} {node['name']}"
    fix = _of_another(last, parent_path, groups_of(parent.info)) if parent else None
    if path == "weights" and "data" in schema.model_fields:
        fix = _where_weights_go(raw)
    fix = fix or _elsewhere(last, schema) or _by_ending(last, schema, parent_path) or did_you_mean(last, names)
    fix = fix or _by_meaning(last, keys)
    allowed = None if fix else one_of([*names])
    if schema is PipelineRecipe and not fix:
        fix = _of_one_stage(path, raw)
    return Problem(path, f"unknown key of {where}", allowed=allowed, fix=fix)


def _of_one_stage(path: str, raw: Values) -> str | None:
    """Explain where the key of one stage goes in a pipeline, with what was given as the example."""
    for index, values in enumerate(raw.get("stages") or ()):
        stage = stage_of(values) if isinstance(values, Mapping) else None
        if stage and stage.has(path):
            inner, value = next(flatten({path: raw[path]}))
            example = f"stages.{index}.{inner}={shlex.quote(format_value(value))}"
            return f"A key of one stage is stages.NUMBER.KEY, for example {example}"
    return None


def _by_ending(name: str, schema: type[Group], parent_path: str) -> str | None:
    """Suggest the keys that end with a name such as steps, epochs or batch_size.

    Of all groups, or, inside a group, of those that count something: others have a different meaning elsewhere.
    """
    found = [
        f"{top}.{key}"
        for top, info in schema.model_fields.items()
        for group in groups_of(info)
        for key in infos_of(group)
        if key.endswith(f"_{name.lower()}")
    ]
    whole = [key for key in found if key.split(".")[1].startswith(("max_", "num_"))]
    found = [key for key in found if not parent_path or key.startswith(f"{parent_path}.")]
    found = list(dict.fromkeys(whole or found))
    return f"Did you mean {' or '.join(found)}?" if 0 < len(found) <= MOST_NAMED else None


def _by_meaning(name: str, keys: Mapping[str, str]) -> str | None:
    """Suggest a key by the end of its name or a word of its help, for a name such as epochs or rank."""
    word = name.lower()
    found = [key for key in keys if key.endswith(f"_{word}")]
    found = found or [key for key, text in keys.items() if word in re.findall(r"\w+", text.lower())]
    return f"Did you mean {found[0]}?" if len(found) == 1 else None


def _where_weights_go(raw: Mapping[str, Any]) -> str:
    """Explain where to put weights that were given as a separate list, as in other tools."""
    weights, sets, mismatch = raw["weights"], raw.get("data"), ""
    if isinstance(weights, list) and isinstance(sets, list) and len(weights) != len(sets):
        mismatch = f"There are {len(weights)} weights and {len(sets)} datasets. "
    return mismatch + "Each dataset has its own: data: [{path: a.txt, weight: 2.0}, {path: b.txt, weight: 1.0}]."


def _of_another(name: str, path: str, groups: list[type[Group]]) -> str | None:
    """Name the members of the union that have the key, such as another optimizer."""
    owners = [g.model_fields["name"].default for g in groups if name in infos_of(g) and "name" in g.model_fields]
    return f"It belongs to {path} {' or '.join(owners)}." if len(groups) > 1 and owners else None


def _elsewhere(name: str, schema: type[Group]) -> str | None:
    """Suggest the right place of a key that is in the wrong group."""
    for top, info in schema.model_fields.items():
        if top == name:
            return f"It belongs at the top level: {name}."
        for group in groups_of(info):
            if name in infos_of(group):
                named = group.model_fields.get("name")
                owner = f" (of {named.default})" if named is not None and len(groups_of(info)) > 1 else ""
                return f"It belongs in {top}.{name}{owner}."
    return None


# Set for every kind of attention, although only grouped-query attention uses it: readers expect the number.
ALWAYS_SHOWN = "model.num_key_value_heads"


def check_rules(values: Values, given: Values) -> list[Problem]:
    """Return every broken rule across keys. values: the derived recipe; given: what the user wrote."""
    stage = require_stage(values)
    problems = [problem for rule in stage.rules for problem in rule(values)]
    return problems + list(_keys_without_effect(stage, values, given))


def applies(path: str, values: Values) -> bool:
    """Return whether a key has an effect with the other values."""
    key = find_key(stage_schema(values), path, dict(values))
    return key is None or all(value_at(values, other) in wanted for other, wanted in key.when.items())


def _keys_without_effect(stage: Stage, values: Values, given: Values) -> Iterator[Problem]:
    for path, value in flatten(given):
        key = find_key(stage.recipe, path, dict(values))
        if value is None or key is None or path == ALWAYS_SHOWN:  # ALWAYS_SHOWN has its own rule
            continue
        for other, wanted in key.when.items():
            if (current := value_at(values, other)) not in wanted:
                fix = f"Leave it out; it belongs to {other} = {' or '.join(map(str, wanted))}."
                yield Problem(path, f"has no effect with {other} = {current}", value=value, fix=fix)
