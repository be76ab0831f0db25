"""Small sets for fine-tuning, written for LLM Lab: conversations of a support desk, and instructions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_EVERY = 6  # one of this many rows is held out
_KINDS = ("conversation", "prompt")


def support_rows(kind: str, split: str) -> Iterator[dict[str, Any]]:
    """Yield rows with messages: customers of Tidebox, an invented service for online storage, and its support desk.

    kind: conversation or prompt. split: train or test. Raises KeyError for anything else.
    """
    return _rows("support_chat.jsonl", kind, split)


def instruction_rows(kind: str, split: str) -> Iterator[dict[str, Any]]:
    """Yield rows with a prompt, its completion, and the same text as the reference answer.

    kind: conversation or prompt. split: train or test. Raises KeyError for anything else.
    """
    rows = _rows("instruct.jsonl", kind, split)
    return (row | {"answer": row["completion"]} for row in rows)


def _rows(file: str, kind: str, split: str) -> Iterator[dict[str, Any]]:
    if kind not in _KINDS or split not in ("train", "test"):
        raise KeyError("test, train" if kind in _KINDS else f"none, only for {' and '.join(_KINDS)} examples")
    lines = Path(__file__).with_name(file).read_text(encoding="utf-8").splitlines()
    return (json.loads(line) for number, line in enumerate(lines) if (number % _EVERY == 0) == (split == "test"))
