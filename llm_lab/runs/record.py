"""Validation of a run's files: run.json, and the lines of metrics.jsonl. Damaged ones are recognized."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeGuard

from llm_lab.limits import parse_json

# Columns that are used in computations: numbers in every row that has them.
_COUNTED = ("wall_seconds", "train_tokens", "tokens_per_second", "loss", "eval_loss", "memory_bytes")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]*")
_LATEST = 2**35  # seconds since the epoch

WEIGHTS = ("model", "steps", "logs", "pictures")  # folders of a run that do not contain runs


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_text_or_null(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_whole_or_null(value: Any) -> bool:
    return value is None or _is_whole(value)


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _LATEST


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_versions(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text_or_null, value.values()))


def _is_data(value: Any) -> bool:
    return isinstance(value, dict) and _is_text(value.get("path")) and _is_text(value.get("fingerprint"))


def _is_model(value: Any) -> bool:
    return isinstance(value, dict) and _is_text(value.get("path")) and _is_text_or_null(value.get("digest"))


def _is_model_or_null(value: Any) -> bool:
    return value is None or _is_model(value)


def _is_models(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_model, value.values()))


def _list_of(is_one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_one, value))


# Types of the values that other modules read from run.json without checks; other keys may hold anything. Not checked
# with pydantic, which takes longer to import than everything else that the home screen needs.
_FACTS: dict[str, Callable[[Any], bool]] = {
    "name": _is_text,
    "asked_name": _is_text,
    "stage": _is_text,
    "status": _is_text,
    "error": _is_text_or_null,
    "created_at": _is_time,
    "process": _is_object,
    "processes": _is_whole,
    "resumed_at": _list_of(_is_time),
    "stages": _list_of(_is_name),
    "warnings": _list_of(_is_text),
    "results": _is_object,
    "predicted": _is_object,
    "versions": _is_versions,
    "recipe": _is_object,
    "parameters": _is_whole_or_null,
    "data": _list_of(_is_data),
    "parent": _is_model_or_null,
    "base": _is_model_or_null,
    "references": _is_models,
    "manifests_from_step": _is_whole,
}


def read_facts(file: Path) -> tuple[dict[str, Any], str | None]:
    """Return the contents of run.json, {} if there is none, and why it can't be read, or None."""
    if file.is_fifo() or file.is_char_device():  # reading it could block forever
        return {}, "it is not a file"
    try:
        found = parse_json(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}, None
    except (OSError, ValueError) as error:
        return {}, str(error)
    if not isinstance(found, dict):
        return {}, "its content is not an object"
    wrong = [key for key, is_valid in _FACTS.items() if key in found and not is_valid(found[key])]
    return ({}, f"{wrong[0]} has an invalid value") if wrong else (found, None)


def row_of(line: bytes) -> dict[str, Any] | None:
    """Return a line of metrics.jsonl, or None if it can't be read."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    known = isinstance(row, dict) and all(type(row.get(key, 0)) in (int, float) for key in _COUNTED)
    return row if known and type(row.get("step")) is int else None


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a recorded value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
