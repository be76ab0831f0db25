"""Sweeps and duels whose cells are copies of one real run, with results of their own."""

import shutil
from collections.abc import Callable
from pathlib import Path

from llm_lab.runs.folder import RunFolder
from llm_lab.studies.sweep import Cell, Sweep


def fill_cells(sweep: Sweep, run: Path, results: Callable[[int, Cell], dict]) -> Sweep:
    """Write a sweep, and for each of its cells a copy of a finished run with some results changed.

    results: called with the number of the cell and the cell.
    """
    sweep.write()
    for number, cell in enumerate(sweep.cells()):
        shutil.copytree(run, cell.folder)
        copy = RunFolder(cell.folder)
        recipe = sweep.jobs[cell.configuration.name].stages[0].values
        copy.update(results={**copy.facts()["results"], **results(number, cell)}, recipe={**recipe, "seed": cell.seed})
    return sweep
