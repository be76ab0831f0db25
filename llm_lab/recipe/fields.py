"""Recipe keys: type, bounds, default, and the texts that the wizard and the docs show."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

LARGEST_INT = 2**53  # products of several larger numbers would not fit in a float


def _within_a_float(value: int) -> int:
    if abs(value) > LARGEST_INT:
        raise PydanticCustomError("too_large", "a whole number may not exceed 2^53")
    return value


# Strict numbers: `true` is not 1 and "12" is not 12, but 3 is a float.
Int = Annotated[int, Field(strict=True), AfterValidator(_within_a_float)]
Float = Annotated[float, Field(strict=True)]
Bool = Annotated[bool, Field(strict=True)]
# The type of a key that is derived if it is left out. It is never None in a resolved recipe, so the type checker sees
# the plain type.
if TYPE_CHECKING:
    T = TypeVar("T")
    Derived = Annotated[T, "derived"]
else:
    Derived = Optional


@dataclass(frozen=True)
class OneOf:
    """Restricts a string to these values, as a Literal would: Annotated[str, OneOf(DEVICES)]."""

    values: tuple[str, ...]

    def __init__(self, values: Iterable[str]):
        object.__setattr__(self, "values", tuple(values))

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.literal_schema(list(self.values))


class Group(BaseModel):
    """A group of recipe keys. Frozen: validated once, at construction."""

    # Validators are built at first use, so that the wizard's first prompt appears sooner.
    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True, populate_by_name=True)


NAME = r"^[A-Za-z0-9][A-Za-z0-9._=-]*$"
REPOSITORY = r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$"
WINDOWS = r"^[SL]+$"
DATE = r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$"
IN_WORDS = {
    NAME: "letters, digits and . _ = -, starting with a letter or digit",
    REPOSITORY: "owner/name with letters, digits and . _ -",
    DATE: "a date such as 2026-11-28",
    WINDOWS: "letters S and L, as in SSSL",
}


def option(
    default: Any = None,
    *,
    help: str,
    question: str | None = None,
    why: str | None = None,
    choices: Mapping[Any, str] | None = None,
    candidates: tuple[Any, ...] | None = None,
    derived: str | None = None,
    when: Mapping[str, tuple[Any, ...]] | None = None,
    advanced: bool = False,
    names: str | None = None,
    **constraints: Any,
) -> Any:
    """Declare one recipe key.

    help: one line, shown with the key everywhere. question: how the wizard asks for it; without one it is not asked.
    why: the longer text behind `?`. choices: {allowed value: what it means}. candidates: numbers to offer in a list.
    derived: what the value is when the key is left out, in words. when: {dotted key: values} under which the key has an
    effect. advanced: asked only on request. names: what the value refers to: "model" (weights), "config", "tokenizer"
    or "function" (file.py:function). constraints: pydantic's (ge, le, gt, min_length ...).
    """
    extra: dict[str, Any] = {
        "question": question,
        "why": why,
        "choices": dict(choices) if choices else None,
        "candidates": list(candidates) if candidates else None,
        "derived": derived,
        "when": {key: list(values) for key, values in when.items()} if when else None,
        "advanced": advanced or None,
        "names": names,
    }
    kept: dict[str, Any] = {key: value for key, value in extra.items() if value is not None}
    return Field(default, description=help, json_schema_extra=kept, **constraints)


@dataclass(frozen=True)
class Key:
    """A recipe key as the wizard, the errors and the docs use it."""

    path: str  # dotted, without list indices: "model.hidden_size"
    info: FieldInfo

    @property
    def name(self) -> str:
        return self.path.rsplit(".", 1)[-1]

    @property
    def help(self) -> str:
        return self.info.description or ""

    @property
    def meta(self) -> dict[str, Any]:
        extra = self.info.json_schema_extra
        return extra if isinstance(extra, dict) else {}

    @property
    def question(self) -> str | None:
        return self.meta.get("question")

    @property
    def why(self) -> str | None:
        return self.meta.get("why")

    @property
    def derived(self) -> str | None:
        return self.meta.get("derived")

    @property
    def when(self) -> dict[str, list[Any]]:
        return self.meta.get("when") or {}

    @property
    def names(self) -> str | None:
        return self.meta.get("names")

    @property
    def choices(self) -> dict[Any, str] | None:
        """{allowed value: what it means}, or None if the value is free."""
        if "choices" in self.meta:
            return self.meta["choices"]
        if self.kind == "bool":
            return {True: "", False: ""}
        return None

    @property
    def default(self) -> Any:
        return self.info.get_default(call_default_factory=True)

    @property
    def required(self) -> bool:
        return self.info.is_required()

    @property
    def kind(self) -> str:
        """The type: int, float, bool, text, choice, list or group."""
        types = _plain_types(self.info.annotation)
        if bool in types:
            return "bool"
        if any(get_origin(t) is Literal for t in types) or any(isinstance(i, OneOf) for i in _metadata(self.info)):
            return "choice"
        if float in types:
            return "float"
        if int in types:
            return "int"
        if any(get_origin(t) is tuple for t in types):
            return "list"
        if any(isinstance(t, type) and issubclass(t, BaseModel) for t in types):
            return "group"
        return "text"

    @property
    def bounds(self) -> tuple[float | None, float | None, bool]:
        """(minimum, maximum, whether the minimum is excluded) of a number."""
        low = high = None
        exclusive = False
        for item in _metadata(self.info):
            for name in ("ge", "gt"):
                if getattr(item, name, None) is not None:
                    low, exclusive = getattr(item, name), name == "gt"
            for name in ("le", "lt"):
                if getattr(item, name, None) is not None:
                    high = getattr(item, name)
        return low, high, exclusive

    @property
    def excludes_maximum(self) -> bool:
        """Whether a number must be below its maximum."""
        return any(getattr(item, "lt", None) is not None for item in _metadata(self.info))

    @property
    def entries(self) -> int | None:
        """The number of entries of a list of fixed length, else None."""
        inner = next((t for t in _plain_types(self.info.annotation) if get_origin(t) is tuple), None)
        return len(get_args(inner)) if inner is not None and Ellipsis not in get_args(inner) else None

    @property
    def shown_help(self) -> str:
        """The help for a form, which shows null as none, and a value for each key that is left out."""
        return self.help.partition("; left out:")[0].replace("; null:", "; none:")

    def allowed(self) -> str:
        """Return the allowed values in words."""
        if self.kind == "bool":
            return "true, false"
        if self.choices:
            return ", ".join(str(choice) for choice in self.choices)
        pattern = next((item.pattern for item in _metadata(self.info) if getattr(item, "pattern", None)), None)
        kinds = {"int": "a whole number", "float": "a number", "list": self._allowed_list(), "text": "text"}
        kinds["group"] = "text or a group" if str in _plain_types(self.info.annotation) else "a group"
        words = IN_WORDS.get(pattern or "") or kinds.get(self.kind, self.kind)
        if self.kind != "list":
            words += _within(*self.bounds, self.excludes_maximum)
        return words + (", or null" if not self.required and self.default is None else "")

    def _allowed_list(self) -> str:
        inner = next((t for t in _plain_types(self.info.annotation) if get_origin(t) is tuple), None)
        if inner is None:
            return "a list"
        entry = Key(self.path, FieldInfo(annotation=get_args(inner)[0]))
        if self.entries:
            within = _within(*entry.bounds, entry.excludes_maximum)
            return f"a list of {self.entries} numbers" + (f", each{within}" if within else "")
        return "a list of strings" if entry.kind == "text" else "a list"


def _within(low: float | None, high: float | None, exclusive: bool, excludes_maximum: bool) -> str:
    """Return the bounds of a number in words, after a space."""
    if low is not None and high is not None and not exclusive and not excludes_maximum:
        return f" from {_number(low)} to {_number(high)}"
    least = "" if low is None else f" above {_number(low)}" if exclusive else f" of at least {_number(low)}"
    most = "" if high is None else f" below {_number(high)}" if excludes_maximum else f" up to {_number(high)}"
    return f"{least},{most}" if least and most else least or most


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{int(value):,}" if float(value).is_integer() else f"{value:g}"


def _plain_types(annotation: Any) -> list[Any]:
    """Return the types in Annotated and in unions, without NoneType."""
    if get_origin(annotation) is Annotated:
        return _plain_types(get_args(annotation)[0])
    if get_origin(annotation) in (tuple, Literal) or not get_args(annotation):
        return [] if annotation is type(None) else [annotation]
    return [t for arg in get_args(annotation) for t in _plain_types(arg)]


def _metadata(info: FieldInfo) -> Iterator[Any]:
    yield from info.metadata
    stack = [info.annotation]
    while stack:
        item = stack.pop()
        if isinstance(item, FieldInfo):
            yield from item.metadata
        elif isinstance(item, OneOf):
            yield item
        elif get_origin(item) is tuple:
            continue  # bounds of a list's entries are not bounds of the list
        elif get_args(item):
            stack.extend(get_args(item))


def groups_of(info: FieldInfo) -> list[type[Group]]:
    """Return the groups a key may hold (several for a tagged union), list items included."""
    found: list[type[Group]] = []
    stack = [info.annotation]
    while stack:
        item = stack.pop(0)
        if isinstance(item, type) and issubclass(item, Group):
            found.append(item)
        else:
            stack = [arg for arg in get_args(item) if arg is not type(None)] + stack
    return found


@functools.cache
def infos_of(group: type[Group]) -> Mapping[str, FieldInfo]:
    """Return {name of a key in a recipe: its field} of one group. Every recipe looks up all of its keys here."""
    return {info.alias or name: info for name, info in group.model_fields.items()}


@functools.cache
def inner_groups(group: type[Group], key: str) -> tuple[type[Group], ...]:
    """Return groups_of for a key of a group; none for a key that the group does not have."""
    info = infos_of(group).get(key)
    return tuple(groups_of(info)) if info is not None else ()


def keys_of(group: type[Group], prefix: str = "") -> Iterator[Key]:
    """Yield the keys of one group, in order, without those of inner groups."""
    for name, info in group.model_fields.items():
        yield Key(prefix + (info.alias or name), info)


def leaf_keys(group: type[Group], prefix: str = "") -> Iterator[tuple[Key, str]]:
    """Yield (key, name of its group) for every key that has a value; members of a union follow each other."""
    for key in keys_of(group, prefix):
        inner = groups_of(key.info)
        if not inner or key.name == "tokenizer":
            yield key, group.__name__
            continue
        for member in inner:
            yield from leaf_keys(member, f"{key.path}.N." if key.kind == "list" else f"{key.path}.")


def value_at(values: Any, path: str) -> Any:
    """Return the value at a dotted key of nested mappings and lists, or None."""
    for step in path.split("."):
        if isinstance(values, list | tuple) and step.isdigit() and int(step) < len(values):
            values = values[int(step)]
        elif isinstance(values, Mapping):
            values = values.get(step)
        else:
            return None
    return values


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every leaf; lists of groups by index, other lists whole."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, path + ".")
        elif isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
            for index, item in enumerate(value):
                yield from flatten(item, f"{path}.{index}.")
        else:
            yield path, value
