"""The pages of runs: the list, one run, and several runs compared."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llm_lab.errors import LabError, Problem, UserError
from llm_lab.runs.entries import kind_of_run
from llm_lab.runs.folder import RunFolder
from llm_lab.safe_text import printable, redact_values

from .addresses import find_run, name_in
from .gpu_meter import read_gpus
from .lab import lab_of
from .launches import last_lines, log_of, stop_run
from .metric_columns import AXES, MOST_SECONDS, columns_of
from .responses import answer, page
from .run_differences import differences_of
from .run_index import INDEX, STATUS_NOTES, STRANGE, stamp_of
from .run_texts import lineage_of, recipe_of, samples_of
from .run_view import PICTURES, glossary_of, head_of, outer_of, panels_of, resumed_as

MOST_POINTS = 2000  # of a curve
MOST_APPENDED = 2000  # rows sent one by one; if there are more, the thinned curves are sent again
MOST_COMPARED = 200
FIRST_SECONDS = (
    0.1  # of reading a long file before the first curves: in the background, and again when they are requested
)


# Pages


def runs_page(request: Request) -> Response:
    """Show all runs."""
    cursor, data = INDEX.since(None) or (None, {})
    return page(request, "runs.html", title="Runs", data={**data, "cursor": cursor, "notes": STATUS_NOTES})


def run_page(request: Request) -> Response:
    """Show one run."""
    run = _run_or_why_not(request)
    cursor, head = run_topic(name_in(run), None) or (None, {})
    facts = run.facts()
    outer = outer_of(run)
    around = name_in(outer) if outer else None
    kind = kind_of_run(facts)
    data = {
        "name": name_in(run),
        "kind": kind,
        "outer": around,
        "outer_is_run": bool(outer and (outer.facts().get("stages") or outer.facts().get("study"))),
        "head": head,
        "cursor": cursor,
        "recipe": recipe_of(run),
    }
    # Merges, exports and evaluations do not have steps.
    has_curves = kind == "run" and (run.metrics_path.is_file() or facts.get("status") == "running")
    if has_curves:
        axis = request.query_params.get("axis", AXES[0])
        data["early"] = _early_curves(name_in(run), axis if axis in AXES else AXES[0])
    names: dict[str, Any] = {"short": run.path.name, "outer": around}
    shown = page(
        request, "run.html", title=name_in(run), kind=kind, has_curves=has_curves, data=redact_values(data), **names
    )
    if has_curves:  # while the browser loads the page
        shown.background = BackgroundTask(columns_of, run.metrics_path, FIRST_SECONDS)
    return shown


def _early_curves(name: str, axis: str) -> dict[str, str]:
    """Return the address of the first curves of a run, which a browser requests while it loads the page's scripts."""
    address = f"/api/runs/{quote(name)}/curves/first?axis={axis}"
    return {"topic": f"metrics:{axis}:{MOST_POINTS}:{name}", "address": address}


def _run_or_why_not(request: Request) -> RunFolder:
    """Return the run of an address. 404 if there is none, with the error of the command that was to create it."""
    name = request.path_params["name"]
    try:
        return find_run(name)
    except HTTPException:
        launch = lab_of(request).launches.newest_of(name)
        error = launch.error() if launch else None
        if error is None:
            raise
        raise HTTPException(404, f"{name} ended before anything was trained, and has no folder. {error}") from None


def compare_page(request: Request) -> Response:
    """Show several runs next to each other."""
    return page(request, "compare.html", title="Compare", data={**redact_values(_compared(request)), "names": _names()})


def _names() -> list[dict[str, str]]:
    return [{"name": name, "label": printable(name)} for name, row in INDEX.rows().items() if row["kind"] == "run"]


def _compared(request: Request) -> dict[str, Any]:
    names = list(dict.fromkeys(request.query_params.getlist("run")))
    if len(names) > MOST_COMPARED:
        raise UserError(Problem("run", "too many runs at once", value=len(names), allowed=f"at most {MOST_COMPARED}"))
    runs = [find_run(name) for name in names]
    with _shown(*runs):
        return differences_of(runs)


# Requests of a page


def first_curves(request: Request) -> Response:
    """Return the curves of a run as the topic `metrics` does, and the cursor for what follows."""
    name, axis = request.path_params["name"], request.query_params.get("axis", AXES[0])
    cursor, data = metrics_topic(f"{axis}:{MOST_POINTS}:{name}", None, FIRST_SECONDS) or (None, {})
    return answer({"cursor": cursor, "data": data})


def run_curves(request: Request) -> Response:
    """Return a part of the curves of a run, from one place of an axis to another."""
    run = find_run(request.path_params["name"])
    axis = request.query_params.get("axis", AXES[0])
    try:
        low, high = (float(request.query_params[name]) for name in ("from", "to"))
    except (KeyError, ValueError):
        raise UserError(Problem("from, to", "they are not two numbers")) from None
    if axis not in AXES or not low < high or not all(map(math.isfinite, (low, high))):
        raise UserError(Problem("axis, from, to", "there is no such part of a curve"))
    columns = columns_of(run.metrics_path)
    return answer({"points": columns.points(axis, most=MOST_POINTS, low=low, high=high)})


def run_lineage(request: Request) -> Response:
    """Return the models that a run was trained from, and the runs that were trained from it."""
    run = find_run(request.path_params["name"])
    with _shown(run):
        return answer(lineage_of(run, INDEX.made_from(name_in(run))))


def run_report(request: Request) -> Response:
    """Return report.md as text, and the pictures that it may include."""
    run = find_run(request.path_params["name"])
    try:
        text = run.report_path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        raise HTTPException(404, "This run has no report yet.") from None
    return answer({"text": printable(text), "pictures": [one for one in PICTURES if (run.path / one).is_file()]})


def run_log(request: Request) -> Response:
    """Return the output of a run's command, if a server started it."""
    log = log_of(find_run(request.path_params["name"]).facts().get("process") or {})
    return answer({"log": last_lines(log) if log else None})


def compare_data(request: Request) -> Response:
    """Return the differences of runs."""
    return answer(_compared(request))


# Start and stop


def stop(request: Request) -> Response:
    """Ask a run to save and stop."""
    stop_run(find_run(request.path_params["name"]))
    return answer({})


def resume(request: Request) -> Response:
    """Start the command that resumes a run, or the pipeline that it belongs to."""
    run = find_run(request.path_params["name"])
    whole = resumed_as(run)
    if whole is None:
        fix = "Start the study or the sweep again: it resumes what is not done."
        raise UserError(Problem(str(run.path), "this run belongs to a study or a sweep", fix=fix))
    if whole.status() == "running":
        raise UserError(Problem(str(whole.path), "this run is running already"))
    return answer(lab_of(request).launches.start_once(["run", str(whole.path), "--resume"]).as_json())


def dismiss(request: Request) -> Response:
    """Remove a command that ended before its run existed from the list of runs."""
    lab_of(request).launches.get(request.path_params["number"]).dismissed = True
    return answer({})


# Live topics


@contextmanager
def _shown(*runs: RunFolder) -> Iterator[None]:
    """Raise UserError if the block encounters values that LLM Lab does not write, such as a number of 400 digits."""
    try:
        yield
    except LabError:
        raise
    except STRANGE as error:
        files = ", ".join(str(run.run_json) for run in runs)
        raise UserError(Problem(files, f"a value can't be shown ({type(error).__name__}: {error})")) from None


def run_topic(argument: str, cursor: Any) -> tuple[Any, Any] | None:
    """Return the state and numbers of a run if any of them has changed."""
    run = find_run(argument)
    with _shown(run):
        head = head_of(run)
    now = hashlib.sha256(json.dumps(head, sort_keys=True, default=str).encode()).hexdigest()[:20]
    return None if now == cursor else (now, head)


def metrics_topic(argument: str, cursor: Any, seconds: float = MOST_SECONDS) -> tuple[Any, Any] | None:
    """Return the curves of a run, or the rows that were appended. argument: AXIS:POINTS:NAME.

    seconds: for reading a long file; data["complete"] says whether all of it was read.
    """
    axis, points, name = (*argument.split(":", 2), "", "")[:3]
    if axis not in AXES or not points.isdecimal():
        raise UserError(Problem("topic", "it names no axis", value=argument))
    most = min(max(int(points), 10), MOST_POINTS)
    columns = columns_of(find_run(name).metrics_path, seconds)
    known = cursor if _is_cursor(cursor) and cursor[0] == columns.generation else None
    if known and known[2] == columns.count:
        return None
    base, after = (known[1], known[2]) if known else (0, 0)
    appended = known is not None and columns.count - base <= MOST_APPENDED
    data: dict[str, Any] = {"appended": appended, "complete": columns.complete, "rows": columns.count}
    if appended:
        data["points"] = columns.points(axis, most=columns.count, after=after)
    else:
        data["points"], base = columns.points(axis, most=most), columns.count
    keys = list(columns.columns)
    if not appended or (known and known[3] != len(keys)):
        data |= {"glossary": glossary_of([*keys, *AXES]), "panels": panels_of(keys)}
        data["axes"] = [one for one in AXES if any(value == value for value in columns.axes[one].places[:64])]
    return [columns.generation, base, columns.count, len(keys)], data


def _is_cursor(value: Any) -> bool:
    return isinstance(value, list) and list(map(type, value)) == [int] * 4


def samples_topic(argument: str, cursor: Any) -> tuple[Any, Any] | None:
    """Return the samples of a run if they have changed."""
    run = find_run(argument)
    stamp = stamp_of(run.samples_path)
    now = list(stamp) if stamp else []
    return None if now == cursor else (now, {"samples": samples_of(run)})


def gpu_topic(argument: str, cursor: Any) -> tuple[Any, Any] | None:
    """Return the utilization of the GPUs."""
    rows = read_gpus()
    return None if rows == cursor else (rows, {"gpus": rows})


ROUTES = [
    Route("/", runs_page),
    Route("/compare", compare_page),
    Route("/runs/{name:path}", run_page),
    Route("/api/compare", compare_data),
    Route("/api/runs/{name:path}/curves", run_curves),
    Route("/api/runs/{name:path}/curves/first", first_curves),
    Route("/api/runs/{name:path}/lineage", run_lineage),
    Route("/api/runs/{name:path}/report", run_report),
    Route("/api/runs/{name:path}/log", run_log),
    Route("/api/runs/{name:path}/stop", stop, methods=["POST"]),
    Route("/api/runs/{name:path}/resume", resume, methods=["POST"]),
    Route("/api/launches/{number:int}/dismiss", dismiss, methods=["POST"]),
]
TOPICS = {
    "runs": lambda argument, cursor: INDEX.since(cursor),
    "run": run_topic,
    "metrics": metrics_topic,
    "samples": samples_topic,
    "gpu": gpu_topic,
}
