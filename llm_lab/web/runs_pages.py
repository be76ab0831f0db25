"""The pages of runs: the list, one run, several compared."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llm_lab.runs.folder import list_runs

from .addresses import find_run
from .responses import page


def runs_page(request: Request) -> Response:
    """Show all runs."""
    return page(request, "runs.html", title="Runs", data=runs_topic("", None)[1])


def run_page(request: Request) -> Response:
    """Show one run."""
    run = find_run(request.path_params["name"])
    return page(request, "run.html", title=request.path_params["name"], data={"facts": run.facts()})


def runs_topic(argument: str, cursor: Any) -> tuple[Any, Any]:
    """Return the rows of the list."""
    rows = [{"name": run.path.name, "status": run.status()} for run in list_runs()]
    return None, {"runs": rows}


ROUTES = [Route("/", runs_page), Route("/runs/{name:path}", run_page)]
TOPICS = {"runs": runs_topic}
