"""Calls about sweeps and duels that the worker of recipes answers: it checks their recipes, and runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm_lab.errors import Problem, UserError
from llm_lab.studies.cells import state_of
from llm_lab.studies.duel import TOKENS, plan_duel
from llm_lab.studies.sweep import plan_sweep
from llm_lab.studies.sweep_report import at_equal_time, plan_rows

from .known_code import require_known


def plan_comparison(
    kind: str,
    recipe: str,
    words: Sequence[str],
    command: str,
    other: str | None = None,
    preset: str | None = None,
    seeds: int | None = None,
    name: str | None = None,
    measure: str | None = None,
    by: str = "both",
    jobs: int = 1,
) -> dict[str, Any]:
    """Return what a sweep or duel would run. UserError with every problem of every recipe, and for unknown code.

    command: the equivalent command in a terminal.
    """
    if jobs < 1:
        raise UserError(Problem("--jobs", "there must be at least one run at a time", value=jobs))
    if kind == "duel":
        planned = plan_duel(recipe, words, other=other, seeds=seeds, name=name, measure=measure, by=by)
    else:
        planned = plan_sweep(recipe, words, seeds=seeds, name=name, measure=measure, preset=preset)
    require_known((code for job in planned.jobs.values() for code in job.code()), command)
    cells = planned.cells_to_run()
    third = kind == "duel" and by != TOKENS
    then = at_equal_time(len(cells) // 2) if third else ""
    rows = plan_rows(planned, [state_of(cell, planned.measure) for cell in cells], jobs=jobs, then=then)
    return {
        "name": planned.folder.name,
        "rows": rows,
        "runs": len(cells),
        "configurations": [one.label for one in planned.configurations],
    }


CALLS = {"plan_comparison": plan_comparison}
