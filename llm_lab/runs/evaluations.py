"""What was measured of a checkpoint, kept with it: evaluations.jsonl, a line for each evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .folder import ROOT, RunFolder, run_of

FILE = "evaluations.jsonl"


def evaluations_path(checkpoint: str | Path, *, root: Path = ROOT) -> Path:
    """Return where the evaluations of a model are kept.

    checkpoint: the folder of the weights, or a name on the Hub. In the run folder of a run's model, in the folder
    itself of another's, under checkpoints/hub/ for a name.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        return root / "hub" / str(checkpoint).replace("/", "--") / FILE
    run = run_of(folder)
    return (run.path if run else folder) / FILE


def keep_evaluation(checkpoint: str | Path, row: Mapping[str, Any], *, root: Path = ROOT) -> Path:
    """Add a line to a model's evaluations; returns the file. OSError where it can't be written."""
    path = evaluations_path(checkpoint, root=root)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({"checkpoint": str(checkpoint), **row}, ensure_ascii=False) + "\n")
    run = RunFolder(path.parent)
    if run.report_path.is_file() and run.facts().get("stage"):
        from .report import write_report  # which reads what is kept here

        write_report(run)
    return path


def evaluations_of(checkpoint: str | Path, *, root: Path = ROOT) -> list[dict[str, Any]]:
    """Return what was measured of a model, oldest first: of a run, of all its checkpoints."""
    path = evaluations_path(checkpoint, root=root)
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:  # a line that a crash cut off
                continue
    return rows
