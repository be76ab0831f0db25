"""The result of a study in Python: its tables and pictures, read from its folder."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_lab.errors import STOPPED, LabError, Problem
from llm_lab.runs.folder import ROOT, RunFolder

from .experiment_files import Experiment, check_values, find_experiment, list_experiments
from .study import REPORT_PAGE
from .study_process import open_study, start_study

if TYPE_CHECKING:
    import pandas

FRAME_HEIGHT = 720  # pixels of a report in a notebook


@dataclass(frozen=True)
class StudyResult:
    """The result of a study. It stores only the folder; every property reads the files there."""

    path: Path

    @property
    def results(self) -> dict[str, Any]:
        """The results of the study: numbers and strings, by name."""
        return RunFolder(self.path).facts().get("results", {})

    @property
    def tables(self) -> dict[str, pandas.DataFrame]:
        """The tables of the study, by name."""
        import pandas

        files = sorted((self.path / "tables").glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
        return {file.stem: pandas.DataFrame(json.loads(file.read_text(encoding="utf-8"))) for file in files}

    @property
    def table(self) -> pandas.DataFrame:
        """The first table of the study."""
        return next(iter(self.tables.values()))

    @property
    def pictures(self) -> dict[str, str]:
        """The pictures of the study as SVG, by name."""
        files = sorted((self.path / "pictures").glob("*.svg"), key=lambda file: file.stat().st_mtime_ns)
        return {file.stem: file.read_text(encoding="utf-8") for file in files}

    def __repr__(self) -> str:
        return f"StudyResult({str(self.path)!r}, results={self.results})"

    def _repr_html_(self) -> str:
        """Return the report in a frame of its own, for notebooks."""
        page = (self.path / REPORT_PAGE).read_text(encoding="utf-8")
        style = f"width:100%;height:{FRAME_HEIGHT}px;border:0"
        return f'<iframe title="report" sandbox style="{style}" srcdoc="{html.escape(page)}"></iframe>'


class ExperimentList(list[Experiment]):
    """The experiments found in the folders."""

    @property
    def table(self) -> pandas.DataFrame:
        """One row for each experiment: name, title, options, file and error."""
        import pandas

        rows = [
            (one.name, one.title, {key.path: key.default for key in one.option_keys()}, str(one.file), one.error or "")
            for one in self
        ]
        return pandas.DataFrame(rows, columns=["name", "title", "options", "file", "error"])

    def _repr_html_(self) -> str:
        return self.table.to_html(index=False)


def study(name: str | None, options: Mapping[str, Any]) -> StudyResult | ExperimentList:
    """Run an experiment in a process of its own; without a name, list the experiments.

    Raises KeyboardInterrupt if it was stopped, UserError if there is no such experiment or option, and LabError if the
    study failed, naming the folder that has the reason.
    """
    if name is None:
        return ExperimentList(list_experiments())
    experiment = find_experiment(name)
    folder, _ = open_study(experiment, check_values(experiment, options), root=ROOT)
    code = start_study(folder)
    if code == STOPPED:
        raise KeyboardInterrupt
    if code:
        error = folder.facts().get("error") or "see its output above"
        raise LabError(Problem(str(folder.path), f"the study failed: {error}"))
    return StudyResult(folder.path)
