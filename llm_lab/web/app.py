"""The web application: its routes, its static files, its guard."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from llm_lab.errors import LabError
from llm_lab.runs.palette import COLORS

from . import (
    chat_pages,
    comparison_pages,
    experiment_pages,
    look_pages,
    models_pages,
    new_pages,
    run_pictures,
    runs_pages,
    senses_api,
    study_pages,
    testing_pages,
)
from .guard import Guard
from .lab import Lab
from .responses import on_fault, on_http_error, on_lab_error
from .updates import updates_route

STATIC = Path(__file__).with_name("static")
# Each module has ROUTES, and TOPICS if its pages have live updates.
PAGES = (
    models_pages,
    new_pages,
    runs_pages,
    run_pictures,
    comparison_pages,
    study_pages,
    experiment_pages,
    look_pages,
    chat_pages,
    senses_api,
    testing_pages,
)


def make_app(*, port: int, token: str, session: str) -> Starlette:
    """Return the application. token, session: see guard.py."""
    topics = {name: look for pages in PAGES for name, look in getattr(pages, "TOPICS", {}).items()}
    routes = [route for pages in PAGES for route in pages.ROUTES]
    return Starlette(
        routes=[
            *routes,
            updates_route(topics),
            Route("/static/palette.css", palette),
            Mount("/static", _Files(directory=STATIC)),
        ],
        middleware=[Middleware(Guard, port=port, token=token, session=session)],
        exception_handlers={
            LabError: on_lab_error,
            OSError: on_lab_error,
            RuntimeError: on_lab_error,  # a path that begins with ~ and an unknown user
            HTTPException: on_http_error,
            Exception: on_fault,
        },
        lifespan=_lifespan,
    )


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    app.state.lab = Lab()
    yield
    await app.state.lab.workers.close()


class _Files(StaticFiles):
    """Static files. A browser asks whether each one is current, and gets a 304 if it is."""

    def file_response(self, *args: object, **options: object) -> Response:
        response = super().file_response(*args, **options)  # type: ignore[arg-type]
        response.headers["cache-control"] = "no-cache"
        return response


async def palette(request: Request) -> Response:
    """Return the colors of all pictures as CSS variables, for light and dark backgrounds."""
    colors = " ".join(f"--{name}: light-dark({light}, {dark});" for name, (light, dark) in COLORS.items())
    return Response(f":root {{ {colors} }}\n", media_type="text/css", headers={"cache-control": "no-cache"})
