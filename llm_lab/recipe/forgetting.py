"""The forgetting meter: general text whose bits per byte are measured while a model is fine-tuned on something else."""

from __future__ import annotations

from typing import Any

from .eval import EvalText
from .fields import Float, Int, option
from .stage import Values

KEY = "forgetting"


class Forgetting(EvalText):
    """General text that is not trained on, measured at every evaluation. A string on its own is the path."""

    path: str = option(
        ...,
        help="general text to measure: a file, folder or glob (txt, md, jsonl, csv, parquet, arrow), "
        "a built-in dataset such as builtin:stories, or a Hub name",
        min_length=1,
    )
    max_tokens: Int = option(20_000, help="number of tokens that are measured, from the beginning of the text", ge=2)
    threshold: Float = option(
        0.1, help="warn if the bits per byte of the text are this much above those of the starting model", gt=0.0
    )


def expand_forgetting(raw: Values) -> dict[str, Any]:
    """Expand `forgetting: TEXT` to its path."""
    given = raw.get(KEY)
    return {**raw, KEY: {"path": given}} if isinstance(given, str) else dict(raw)


def describe_forgetting(options: Values) -> str:
    """Return what is measured and when the run warns, in words."""
    return f"{options['max_tokens']:,} tokens of {options['path']}; warns at +{options['threshold']:g} bits per byte"
