"""The measurements of a sweep, read from its folder: one row per configuration, one per cell, and the differences."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_lab.recipe.fields import flatten
from llm_lab.recipe.files import format_value
from llm_lab.runs.disk import write_atomically
from llm_lab.runs.folder import RunFolder

from .cells import CellState, state_of
from .grid import Configuration
from .measures import less_is_better
from .sweep import Cell, Sweep, open_sweep
from .verdict import mean_interval

if TYPE_CHECKING:
    import pandas

MISSING = math.nan


@dataclass(frozen=True)
class Row:
    """One configuration: its value for every seed, their mean and standard deviation, and the cost of a run.

    values: by seed, for the finished cells. mean and spread: NaN if unknown.
    """

    configuration: Configuration
    values: dict[int, float]
    mean: float
    spread: float
    low: float
    high: float
    seconds: float
    tokens: float
    states: tuple[CellState, ...]

    @property
    def n(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep. It stores only the folder; every property reads the files there."""

    path: Path

    @property
    def sweep(self) -> Sweep:
        """A description of the comparison."""
        return open_sweep(self.path)

    @property
    def table(self) -> pandas.DataFrame:
        """One row per configuration, best first: values of the swept keys, mean, spread, n, every seed, cost."""
        return _frame(result_records(self.sweep))

    @property
    def cells(self) -> pandas.DataFrame:
        """One row per run: its configuration, seed, status, results and folder."""
        return _frame(cell_records(self.sweep))

    @property
    def differences(self) -> pandas.DataFrame:
        """One row per recipe key that differs between the configurations, derived values included."""
        sweep = self.sweep
        rows = difference_rows(sweep)
        return _frame(
            [dict(zip(("key", *(one.label for one in sweep.configurations)), row, strict=True)) for row in rows]
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})\n{self.table.to_string(index=False)}"

    def _repr_html_(self) -> str:
        return self.table.to_html(index=False)


def _frame(records: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    import pandas

    return pandas.DataFrame.from_records(list(records))


def summarize(sweep: Sweep) -> list[Row]:
    """Return a row for each configuration, the best mean first; those without a value come last."""
    by_name: dict[str, list[CellState]] = {}
    for cell in sweep.cells():
        by_name.setdefault(cell.configuration.name, []).append(state_of(cell, sweep.measure))
    rows = [_row(states) for states in by_name.values()]
    sign = 1 if less_is_better(sweep.measure) else -1
    return sorted(rows, key=lambda row: (not row.n, sign * row.mean if row.n else 0.0))


def _row(states: Sequence[CellState]) -> Row:
    values = {state.cell.seed: state.value for state in states if state.value is not None}
    found = list(values.values())
    low, high = mean_interval(found)
    done = [RunFolder(state.cell.folder).facts().get("results") or {} for state in states if state.status == "done"]
    return Row(
        configuration=states[0].cell.configuration,
        values=values,
        mean=statistics.fmean(found) if found else MISSING,
        spread=statistics.stdev(found) if len(found) > 1 else MISSING,
        low=low,
        high=high,
        seconds=_mean(one.get("wall_seconds") for one in done),
        tokens=_mean(one.get("train_tokens") for one in done),
        states=tuple(states),
    )


def _mean(values: Iterable[Any]) -> float:
    found = [value for value in values if isinstance(value, int | float)]
    return statistics.fmean(found) if found else MISSING


def result_records(sweep: Sweep) -> list[dict[str, Any]]:
    """Return the table of configurations, best first, as records; None for unknown values."""
    return [
        {
            **(row.configuration.values or {"configuration": row.configuration.label}),
            "mean": _known(row.mean),
            "standard_deviation": _known(row.spread),
            "n": row.n,
            **{f"seed={seed}": row.values.get(seed) for seed in sweep.seeds},
            "wall_seconds": _known(row.seconds),
            "train_tokens": _known(row.tokens),
            "failed": sum(state.status == "failed" for state in row.states),
        }
        for row in summarize(sweep)
    ]


def cell_records(sweep: Sweep) -> list[dict[str, Any]]:
    """Return one record per run, with all its results."""
    return [_cell_record(cell, sweep.measure) for cell in sweep.cells()]


def _cell_record(cell: Cell, measure: str) -> dict[str, Any]:
    state, facts = state_of(cell, measure), RunFolder(cell.folder).facts()
    results = {key: value for key, value in (facts.get("results") or {}).items() if isinstance(value, int | float)}
    named = cell.configuration.values or {"configuration": cell.configuration.label}
    return {**named, "seed": cell.seed, "status": state.status, **results, "folder": str(cell.folder)} | (
        {"error": state.error} if state.error else {}
    )


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def difference_rows(sweep: Sweep) -> list[list[str]]:
    """Return a row for each key whose value differs between configurations: the key, and each one's value.

    The values are those of the runs' own recipes, derived ones included; unknown for cells that have not started.
    """
    recipes: dict[str, Any] = {}
    for cell in sweep.cells():
        if not recipes.get(cell.configuration.name):
            recipes[cell.configuration.name] = RunFolder(cell.folder).facts().get("recipe") or {}
    flat = [
        {key: value for key, value in flatten(recipes[one.name]) if key not in ("name", "seed")}
        for one in sweep.configurations
    ]
    keys = list(dict.fromkeys(key for values in flat for key in values))
    swept = [key for key in keys if any(key == one or key.startswith(f"{one}.") for one in sweep.keys)]
    rows = []
    for key in [*swept, *(key for key in keys if key not in swept)]:
        texts = [format_value(values[key]) if key in values else "-" for values in flat]
        if len(set(texts)) > 1:
            rows.append([key, *texts])
    return rows


def write_tables(sweep: Sweep) -> None:
    """Write results.csv (a line per configuration), cells.csv (a line per run), and results.json with all of that."""
    results, cells = result_records(sweep), cell_records(sweep)
    for name, records in (("results.csv", results), ("cells.csv", cells)):
        head = list(dict.fromkeys(key for record in records for key in record))
        text = io.StringIO()
        writer = csv.DictWriter(text, head, restval="")
        writer.writeheader()
        writer.writerows(records)
        write_atomically(sweep.folder / name, text.getvalue())
    labels = [one.label for one in sweep.configurations]
    record = {
        "sweep": sweep.folder.name,
        "measure": sweep.measure,
        "less_is_better": less_is_better(sweep.measure),
        "keys": list(sweep.keys),
        "seeds": list(sweep.seeds),
        "results": results,
        "cells": cells,
        "differences": [
            {"key": key, **dict(zip(labels, texts, strict=True))} for key, *texts in difference_rows(sweep)
        ],
        "remarks": list(sweep.remarks),
    }
    write_atomically(sweep.folder / "results.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
