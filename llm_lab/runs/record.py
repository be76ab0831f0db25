"""What a run's files must be to be read: run.json, and the lines of metrics.jsonl. A damaged one is recognized."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from llm_lab.limits import parse_json

# Columns that are computed with: numbers in every row that has them.
_COUNTED = ("wall_seconds", "train_tokens", "tokens_per_second", "loss", "eval_loss", "memory_bytes")
# What others read from run.json without asking; other keys may hold anything.
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._=-]*$")]
_Time = Annotated[float, Field(ge=0, le=2**35, allow_inf_nan=False)]


class _Data(TypedDict):
    path: str
    fingerprint: str


class _Model(TypedDict):
    path: str
    digest: NotRequired[str | None]


class _Facts(TypedDict, total=False):
    name: str
    asked_name: str
    stage: str
    status: str
    error: str | None
    created_at: _Time
    process: dict[str, Any]
    processes: int
    resumed_at: list[_Time]
    stages: list[_Name]
    warnings: list[str]
    results: dict[str, Any]
    predicted: dict[str, Any]
    versions: dict[str, str | None]
    recipe: dict[str, Any]
    parameters: int | None
    data: list[_Data]
    parent: _Model | None
    base: _Model | None
    references: dict[str, _Model]
    manifests_from_step: int


_FACTS = TypeAdapter(_Facts)


def read_facts(file: Path) -> tuple[dict[str, Any], str | None]:
    """Return what run.json holds, {} if there is none, and why it can't be read, or None."""
    if file.is_fifo() or file.is_char_device():  # reading it might never end
        return {}, "it is not a file"
    try:
        found = parse_json(file.read_bytes())
        _FACTS.validate_python(found, strict=True)
    except (FileNotFoundError, NotADirectoryError):
        return {}, None
    except ValidationError as error:
        first = error.errors()[0]
        return {}, f"{'.'.join(map(str, first['loc'])) or 'its content'}: {first['msg']}"
    except (OSError, ValueError) as error:
        return {}, str(error)
    return found, None


def row_of(line: bytes) -> dict[str, Any] | None:
    """Return a line of metrics.jsonl, or None if it can't be read."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    known = isinstance(row, dict) and all(type(row.get(key, 0)) in (int, float) for key in _COUNTED)
    return row if known and type(row.get("step")) is int else None
