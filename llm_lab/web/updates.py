"""What has changed since a page's last request.

A page asks once a second, in one short request for everything that it shows. No stream stays open, because browsers
allow six connections per server, and the seventh tab would wait forever. A hidden tab does not ask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llm_lab.errors import LabError, Problem, UserError

from .lab import lab_of
from .responses import answer, body_of, problems_of

# A topic's function gets what follows the colon of its name (metrics:demo/sft) and the cursor that it returned last
# time, or None. It returns (cursor, data), or None if nothing has changed.
Topic = Callable[[str, Any], tuple[Any, Any] | None]


def updates_route(topics: Mapping[str, Topic]) -> Route:
    """Return the route that answers pages with what has changed in the topics they show."""

    def look(asked: Mapping[str, Any], topics: Mapping[str, Topic]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, cursor in asked.items():
            kind, _, argument = name.partition(":")
            if kind not in topics:
                continue
            try:
                new = topics[kind](argument, cursor)
            except HTTPException as error:  # what the page shows was deleted, or never existed
                found[name] = {"cursor": cursor, **problems_of(UserError(error.detail))}
            except LabError as error:
                found[name] = {"cursor": cursor, **problems_of(error)}
            else:
                if new is not None:
                    found[name] = {"cursor": new[0], "data": new[1]}
        return found

    async def updates(request: Request) -> Response:
        asked = (await body_of(request)).get("topics")
        if not isinstance(asked, dict):
            raise UserError(Problem("topics", "it is not a JSON object of topics and cursors"))
        launches = lab_of(request).launches
        launches.reap()
        known = {**topics, "launches": launches.without_run}
        return answer({"updates": await run_in_threadpool(look, asked, known)})

    return Route("/api/updates", updates, methods=["POST"])
