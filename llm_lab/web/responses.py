"""The kinds of answers: HTML from a template, JSON, lines of JSON as they arrive, and errors as HTML or JSON."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

from llm_lab import __version__
from llm_lab.errors import LONGEST, LabError, Problem, UserError, file_error
from llm_lab.limits import parse_json
from llm_lab.runs.glossary import name_of, write
from llm_lab.safe_text import printable, redact, shorten, valid_text

T = TypeVar("T", list[Any], dict[str, Any])
TEMPLATES = Path(__file__).with_name("templates")
LONGEST_BODY = 4 * 1024 * 1024  # bytes of a JSON request
# (title, address, icon). The icon is a symbol in base.html.
NAVIGATION = (
    ("Runs", "/", "runs"),
    ("New run", "/new", "new"),
    ("Experiments", "/experiments", "experiments"),
    ("Look inside", "/look", "look"),
    ("Chat", "/chat", "chat"),
    ("Models", "/models", "models"),
)


@cache
def templates() -> Environment:
    """Return the templates. All values are escaped; an undefined name is an error."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(printable=printable, name_of=name_of, write=lambda value, key: write(key, value))
    found.globals.update(navigation=NAVIGATION, version=__version__)
    return found


def page(request: Request, template: str, *, title: str, status: int = 200, **values: Any) -> HTMLResponse:
    """Return a page. Its template extends base.html; `data` is passed to the page's scripts as JSON (see lab.js)."""
    values["data"] = _finite(values.get("data", {}))
    html = templates().get_template(template).render(title=title, path=request.url.path, **values)
    return HTMLResponse(html, status)


def answer(value: Any, status: int = 200) -> JSONResponse:
    """Return JSON, without secrets; numbers that JSON does not have (NaN, infinity) become null."""
    return JSONResponse(_finite(value, lambda text: _valid(redact(text))), status)


def _valid(text: str) -> str:
    return text if text.isascii() else valid_text(text)


def _finite(value: Any, write_text: Callable[[str], str] = _valid) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return write_text(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(one, write_text) for key, one in value.items()}
    if isinstance(value, list | tuple):
        if set(map(type, value)) == {float} and math.isfinite(sum(value)):
            return value  # unchanged for speed: thousands of points of a curve
        return [_finite(one, write_text) for one in value]
    return value


async def body_of(request: Request) -> dict[str, Any]:
    """Return the JSON object of a request. UserError if it is not an object or is too large."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > LONGEST_BODY:
            raise UserError(Problem("request", f"it is larger than {LONGEST_BODY // 1024**2} MiB"))
    try:
        value = parse_json(bytes(content))
        # A lone surrogate ("\ud800") can't be encoded, so it can be neither a file name nor its content.
        value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"), parse_constant=_refuse)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(Problem("request", "its body is not a JSON object"))
    return value


def part_of(body: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """Return a list or an object in a request's body, an empty one if it is missing. UserError for another type."""
    value = body.get(name)
    if value is not None and not isinstance(value, kind):
        raise UserError(Problem(name, f"it is not {'an object' if kind is dict else 'a list'}"))
    return kind() if value is None else value


def _refuse(constant: str) -> None:
    raise ValueError(constant)  # JSON has neither NaN nor infinity


def lines(pieces: AsyncIterator[Any]) -> StreamingResponse:
    """Return lines of JSON as they are produced; an error for the user is the last line, {"problems": [...]}."""

    async def encoded() -> AsyncIterator[bytes]:
        try:
            async for piece in pieces:
                yield json.dumps(_finite(piece)).encode() + b"\n"
        except LabError as error:
            yield json.dumps(problems_of(error)).encode() + b"\n"

    return StreamingResponse(encoded(), media_type="application/x-ndjson")


def problems_of(error: LabError) -> dict[str, Any]:
    """Return an error as JSON: each problem as one paragraph, with its key."""
    problems = [
        {"key": problem.key if isinstance(problem, Problem) else None, "text": printable(str(problem))}
        for problem in error.problems
    ]
    return {"problems": problems}


async def on_lab_error(request: Request, error: Exception) -> Response:
    """Answer an error that a user can fix: 400."""
    known = error if isinstance(error, LabError) else file_error(error)
    if known is None:
        raise error
    if request.url.path.startswith("/api/"):
        return answer(problems_of(known), 400)
    return page(request, "error.html", title="This can't be done", text=str(known), status=400)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer 404 and other HTTP errors."""
    assert isinstance(error, HTTPException)
    if request.url.path.startswith("/api/"):
        return answer({"problems": [{"key": None, "text": error.detail}]}, error.status_code)
    title = "Not found" if error.status_code == 404 else error.detail
    return page(request, "error.html", title=title, text=error.detail, status=error.status_code)


async def on_fault(request: Request, error: Exception) -> Response:
    """Answer an internal error: 500, with the type of the exception. The server prints the traceback."""
    text = shorten(f"Internal error: {type(error).__name__}: {error}", LONGEST)
    return answer({"problems": [{"key": None, "text": f"{text} The terminal of `llm-lab web` has the details."}]}, 500)
