"""The pictures in run folders, as images: documents of their own in which no script runs."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Route

from llm_lab.runs.folder import ROOT
from llm_lab.studies.sweep import FILE

from .addresses import inside

RECORDS = ("run.json", FILE)
# A picture has its own styles, for a dark background.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox"


def picture(request: Request) -> FileResponse:
    """Return a picture: an SVG file in the folder of a run, a study or a sweep, or in its pictures/."""
    name = request.path_params["name"]
    path = inside(ROOT, name)
    homes = [path.parent, path.parent.parent] if path.parent.name == "pictures" else [path.parent]
    in_run = any((home / record).is_file() for home in homes for record in RECORDS)
    if path.suffix != ".svg" or not path.is_file() or not in_run:
        raise HTTPException(404, f"There is no picture named {name} in {ROOT}/.")
    headers = {"content-security-policy": POLICY, "cache-control": "no-cache"}
    return FileResponse(path, media_type="image/svg+xml", headers=headers)


ROUTES = [Route("/runs-files/{name:path}", picture)]
