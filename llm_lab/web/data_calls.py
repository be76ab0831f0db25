"""Calls that the worker of recipes and data answers; unlike the server, it may import heavy libraries."""

from __future__ import annotations

import json
import queue
import shutil
import threading
from collections.abc import Generator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from llm_lab.errors import LabError, Problem
from llm_lab.job import check
from llm_lab.wizard.data_questions import FORMS, OPTIONAL, can_ask_columns, columns_of, look_at_examples, look_at_texts
from llm_lab.wizard.walk import forget_looks

from . import study_calls
from .form_draft import check_draft, require_all

SHOWN_ROWS = 5
SHOWN_CHARACTERS = 400  # in one table cell
BARS = 24  # in a histogram of lengths


def check_recipe(recipe: str | Mapping[str, Any]) -> dict[str, Any]:
    """Check a recipe with its data and models before it starts. Raises UserError with every problem."""
    job = require_all(recipe)
    return {"name": job.name, "remarks": list(job.remarks)}


def look_at_data(source: Mapping[str, Any], kind: str, download: bool = False) -> dict[str, Any]:
    """Return what is recognized in a dataset, with its first rows; for one that can't be read, the problem.

    kind: text, conversation, preference or prompt. download: also read a dataset on the Hub, instead of only its page.
    """
    from llm_lab.data.paths import is_on_hub

    forget_looks()
    found: dict[str, Any] = {"on_hub": is_on_hub(source["path"]), "rows": [], "columns": [], "problem": None}
    ask_columns = False
    if problem := _unpacks_too_far(str(source["path"])):
        return {**found, "problem": problem, "ask_columns": False}
    try:
        look = look_at_texts(source) if kind == "text" else look_at_examples(source, kind)
        found["description"] = look.description.removeprefix("data.0: ")
    except LabError as error:
        found["problem"] = str(error)
        ask_columns = can_ask_columns(dict(source), kind, error)
    if not found["on_hub"] or download:
        try:
            found |= _first_rows(source, kind)
        except LabError as error:
            found["problem"] = found["problem"] or str(error)
    if kind != "text":
        found["forms"] = [[name, list(fields)] for name, fields in FORMS[kind].items()]
        found["optional"] = list(OPTIONAL[kind])
    found["ask_columns"] = ask_columns
    return found


def _unpacks_too_far(path: str) -> str | None:
    """Return why a Parquet file is not read: its tables, which are stored on disk, exceed half of the free space."""
    if not path.endswith(".parquet") or not Path(path).is_file():
        return None
    from pyarrow import ArrowException
    from pyarrow.parquet import read_metadata

    try:
        about = read_metadata(path)
    except (ArrowException, OSError):
        return None  # the error appears when it is read
    size = sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups))
    free = _free_bytes()
    if size <= free / 2:
        return None
    why = f"it unpacks to {size / 1024**3:.2f} GiB, and {free / 1024**3:.2f} GiB of the disk are free"
    return str(Problem(path, why, fix="Free some space, or take a part of it."))


def _free_bytes() -> int:
    return shutil.disk_usage(".").free


def _first_rows(source: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return the first rows and the columns of a dataset."""
    if kind == "text":
        from llm_lab.data.sources import open_source
        from llm_lab.data.streams import open_stream

        keys = {key: source[key] for key in ("subset", "split", "text_column") if source.get(key)}
        opened: Any = (open_stream if source.get("streaming") else open_source)(source["path"], **keys)
        texts = (piece.text for piece in opened.pieces()) if source.get("streaming") else opened.documents()
        return {"columns": list(opened.columns), "rows": [{"text": _cell(text)} for text in islice(texts, SHOWN_ROWS)]}
    from llm_lab.data.examples import first_rows_of_set

    keys = {key: source[key] for key in ("subset", "split") if source.get(key)}
    rows = first_rows_of_set(source["path"], kind=kind, **keys)[:SHOWN_ROWS]
    shown = [{str(name): _cell(value) for name, value in row.items()} for row in rows]
    return {"columns": list(columns_of(source, kind)), "rows": shown}


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " …"


def xray(recipe: Mapping[str, Any]) -> Generator[dict[str, Any], None, list[dict[str, Any]]]:
    """Yield the current task, then return the data of a recipe as tokens, trained or masked."""
    yield {"step": "Checking the recipe and its data"}
    job = check(recipe)
    yield {"step": "Loading the libraries"}
    from llm_lab.evaluation.xray import xray_stages
    from llm_lab.hf.load import quiet_libraries

    quiet_libraries()
    yield {"step": "Turning the data into tokens"}
    said: queue.Queue[str | None] = queue.Queue()
    done: list[Any] = []

    def work() -> None:
        try:
            done.append(xray_stages([one.recipe for one in job.stages], examples=2, say=said.put))
        except Exception as error:
            done.append(error)
        said.put(None)

    threading.Thread(target=work, daemon=True).start()
    while (text := said.get()) is not None:
        yield {"step": text}
    if isinstance(done[0], Exception):
        raise done[0]
    stages = done[0]
    return [
        {
            "template": stage.template,
            "max_length": stage.max_length,
            "sets": [
                {**asdict(one), "lengths": {name: _lengths(values) for name, values in one.lengths.items()}}
                for one in stage.sets
            ],
        }
        for stage in stages
    ]


def _lengths(values: tuple[int, ...]) -> dict[str, Any]:
    """Return the distribution of lengths in tokens: smallest, median, 90th percentile, largest, and a histogram."""
    ordered = sorted(values)
    if not ordered:
        return {"count": 0}
    low, high = ordered[0], ordered[-1]
    bars = [0] * BARS
    for value in ordered:
        bars[min(BARS - 1, (value - low) * BARS // max(1, high - low + 1))] += 1
    median, most = ordered[(len(ordered) - 1) // 2], ordered[(len(ordered) * 9 - 1) // 10]
    return {"count": len(ordered), "min": low, "median": median, "p90": most, "max": high, "bars": bars}


def write_design(design: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Write a design as configs/models/DESIGN/config.json."""
    from llm_lab.hf.load import write_design
    from llm_lab.wizard.home import MODELS

    write_design(MODELS / design, values)
    return {"config": str(MODELS / design)}


CALLS = {
    "check_recipe": check_recipe,
    "check_draft": check_draft,
    "look_at_data": look_at_data,
    "xray": xray,
    "write_design": write_design,
    **study_calls.CALLS,
}
