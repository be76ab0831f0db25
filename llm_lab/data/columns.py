"""Which column of a table holds the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llm_lab.errors import Problem, UserError, did_you_mean, one_of

PREFERRED = ("text", "content", "body", "document", "story")
_CLEARLY_LONGER = 3.0


def string_columns(columns: Sequence[str], sample: Sequence[Mapping[str, Any]], *, typed: bool = True) -> list[str]:
    """Return the columns that hold text in every sampled row that has a value.

    In a table without types (CSV) a column of nothing but numbers is no text.
    """
    found = []
    for name in columns:
        values = [row[name] for row in sample if row.get(name) is not None]
        if not values or not all(isinstance(value, str) for value in values):
            continue
        if typed or not all(_is_number(value) for value in values):
            found.append(name)
    return found


def pick_column(
    key: str,
    path: str,
    columns: Sequence[str],
    strings: Sequence[str],
    sample: Sequence[Mapping[str, Any]],
    wanted: str | None,
) -> str:
    """Return the column to read: the wanted one, or the one that is plainly the text.

    UserError, under `key`.text_column, where it is missing, is no text, or can't be told.
    """
    if wanted is not None:
        return _check_wanted(key, columns, strings, wanted)
    for name in PREFERRED:
        if name in strings:
            return name
    if len(strings) == 1:
        return strings[0]
    lengths = {name: _mean_length(name, sample) for name in strings}
    longest = sorted(strings, key=lambda name: -lengths[name])
    if len(longest) > 1 and lengths[longest[0]] >= _CLEARLY_LONGER * lengths[longest[1]]:
        return longest[0]
    chats = [name for name in columns if name in ("messages", "conversations")]
    if not strings:
        fix = "Give it a column of strings."
        if chats:
            fix = f"Column {chats[0]!r} looks like conversations: stage sft reads those."
        raise UserError(
            Problem(f"{key}.path", f"No column holds text. Columns: {one_of(columns)}", value=path, fix=fix)
        )
    raise UserError(
        Problem(
            f"{key}.text_column",
            f"Which column of {path} holds the text can't be told. Columns: {one_of(columns)}",
            allowed=one_of(strings),
            fix=f"Set text_column, for example text_column: {longest[0]}",
        )
    )


def _check_wanted(key: str, columns: Sequence[str], strings: Sequence[str], wanted: str) -> str:
    if wanted not in columns:
        raise UserError(
            Problem(
                f"{key}.text_column",
                "There is no such column",
                value=wanted,
                allowed=one_of(columns),
                fix=did_you_mean(wanted, columns),
            )
        )
    if wanted not in strings:
        raise UserError(
            Problem(
                f"{key}.text_column",
                "This column does not hold text",
                value=wanted,
                allowed=one_of(strings) if strings else None,
                fix="Name a column of strings.",
            )
        )
    return wanted


def _mean_length(name: str, sample: Sequence[Mapping[str, Any]]) -> float:
    return sum(len(row.get(name) or "") for row in sample) / max(1, len(sample))


def _is_number(text: str) -> bool:
    try:
        float(text or "0")
    except ValueError:
        return False
    return True
