"""E-mails and their subject lines, written for LLM Lab: a small set for fine-tuning on instructions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

_FILE = Path(__file__).with_name("email_subjects.jsonl")
_INSTRUCTION = "Write a subject line for this e-mail: "
_EVERY = 6  # one of this many rows is held out
_KINDS = ("conversation", "prompt")


def subject_rows(kind: str, split: str) -> Iterator[dict[str, str]]:
    """Yield rows with prompt and answer, the subject line; conversations also have it as completion.

    kind: conversation or prompt. split: train (180 rows) or test (36). Raises KeyError for anything else.
    """
    if kind not in _KINDS or split not in ("train", "test"):
        raise KeyError("test, train" if kind in _KINDS else f"none, only for {' and '.join(_KINDS)} examples")
    return _rows(kind, split)


def _rows(kind: str, split: str) -> Iterator[dict[str, str]]:
    for number, line in enumerate(_FILE.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        if (number % _EVERY == 0) == (split == "test"):
            found = {"prompt": _INSTRUCTION + row["email"], "answer": row["subject"]}
            yield found | ({"completion": row["subject"]} if kind == "conversation" else {})
