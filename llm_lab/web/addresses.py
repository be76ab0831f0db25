"""What an address of a page names: a run, a checkpoint, a file; never anything outside the lab's own folders."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from starlette.exceptions import HTTPException

from llm_lab.runs.folder import ROOT, RunFolder

UPLOADS = Path("uploads")
DESIGNS = Path("configs") / "models"
# The files that the pages of a run read.
SHOWN = ("run_json", "recipe_path", "metrics_path", "samples_path", "report_path")


def inside(folder: Path, name: str) -> Path:
    """Return folder/name. 404 if that is outside the folder, through .., an absolute path or a link."""
    path = folder / name
    home = folder.resolve()
    if "\0" in name or not name or not path.resolve().is_relative_to(home) or path.resolve() == home:
        raise HTTPException(404, f"There is nothing of that name in {folder}/.")
    return path


def find_run(name: str) -> RunFolder:
    """Return the run of an address, such as demo or demo/sft. 404 if there is none."""
    run = RunFolder(inside(ROOT, name))
    if not run.run_json.is_file():
        raise HTTPException(404, f"There is no run named {name} in {ROOT}/.")
    home = ROOT.resolve()
    for file in (getattr(run, one) for one in SHOWN):
        if file.exists() and not (file.is_file() and file.resolve().is_relative_to(home)):
            raise HTTPException(
                404, f"{file} is not a file, or is a link that leads out of {ROOT}/, so it is not shown."
            )
    return run


def name_in(run: RunFolder) -> str:
    """Return the name of a run as addresses contain it: demo, demo/sft."""
    return run.path.relative_to(ROOT).as_posix()


def address_of(name: str) -> str:
    """Return the address of a run's page."""
    return f"/runs/{quote(name)}"
