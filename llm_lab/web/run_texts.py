"""The texts of a run's page: its samples, evaluations, recipe and lineage, all safe to display."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from llm_lab.recipe.registry import stage_of
from llm_lab.runs.describe import headline_results
from llm_lab.runs.evaluations import named_results
from llm_lab.runs.folder import ROOT, RunFolder
from llm_lab.runs.glossary import name_of, rank, write
from llm_lab.runs.lineage import GONE, PARENT, Link, Node, trace
from llm_lab.runs.record import is_number
from llm_lab.runs.samples import samples_in
from llm_lab.safe_text import printable

from .addresses import address_of, name_in
from .launches import command_text


def evaluation_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row from a line of evaluations.jsonl: time, checkpoint, data, and results."""
    numbers = named_results(row)
    step = re.search(r"checkpoint-(\d+)$", str(row.get("checkpoint", "")))
    data = row.get("data")
    paths = [item.get("path") for item in data if isinstance(item, Mapping)] if isinstance(data, list) else []
    return {
        "when": f"{datetime.fromtimestamp(row['time']):%d %b %Y, %H:%M}" if is_number(row.get("time")) else "",
        "checkpoint": f"step {int(step[1]):,}" if step else "the final model",
        "data": printable(", ".join(str(path) for path in dict.fromkeys(paths) if path)),
        "results": [[printable(name_of(key)), write(key, numbers[key])] for key in sorted(numbers, key=rank)],
    }


def samples_of(run: RunFolder) -> list[dict[str, Any]]:
    """Return the samples of every evaluation, oldest first: the step, and each prompt with its text."""
    found = []
    for step, text in run.samples():
        pairs = [{"prompt": printable(prompt), "text": printable(written)} for prompt, written in samples_in(text)]
        found.append({"step": step, "samples": pairs})
    return found


_DERIVED = re.compile(r"^(\s*)(- )?([A-Za-z_][\w.]*):\s*(.*?)\s*# derived: (.*)$")
_KEY = re.compile(r"^(\s*)(- )?([A-Za-z_][\w.]*):")


def derived_of(recipe: str) -> list[list[str]]:
    """Return (dotted key, value, reason) for every derived value in a recipe.yaml that we wrote."""
    found: list[list[str]] = []
    above: list[tuple[int, str]] = []
    for line in recipe.split("\n"):
        if not (key := _KEY.match(line)):
            continue
        indent = len(key[1]) + len(key[2] or "")
        above = [(at, name) for at, name in above if at < indent]
        above.append((indent, key[3]))
        if derived := _DERIVED.match(line):
            found.append([".".join(name for _, name in above), printable(derived[4]), printable(derived[5])])
    return found


def recipe_of(run: RunFolder) -> dict[str, Any] | None:
    """Return the recipe of a run as text, its derived values, and the command that runs it again."""
    try:
        text = run.recipe_path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return {
        "text": printable(text),
        "derived": derived_of(text),
        "command": printable(command_text(["run", str(run.recipe_path)])),
        "replay": printable(command_text(["replay", str(run.path)])),
    }


def lineage_of(run: RunFolder, users: Iterable[str]) -> dict[str, Any]:
    """Return the tree of the models that a run was trained from, without reading weights.

    users: the names of the runs that were trained from this one.
    """
    tree = _node(trace(run.path, digest_of=lambda folder: None), name_in(run))
    return {"tree": tree, "users": [{"name": printable(name), "href": address_of(name)} for name in users]}


def _node(node: Node, here: str) -> dict[str, Any]:
    name = _run_name(node.run)
    results = headline_results(node.facts.get("results") or {})
    stage = stage_of(node.facts)
    return {
        "name": printable(name or node.place),
        "href": address_of(name) if name and name != here else None,
        "stage": printable(node.stage or "not made by LLM Lab"),
        "step": node.step,
        "numbers": results,
        "from": [_link(link, here) for link in node.links],
        "scratch": stage is not None and stage.from_scratch and node.run is not None and not node.links,
    }


def _run_name(run: RunFolder | None) -> str | None:
    """Return the name of a run if it has a page."""
    if run is None:
        return None
    try:
        return run.path.resolve().relative_to(ROOT.resolve()).as_posix()
    except ValueError:
        return None


def _link(link: Link, here: str) -> dict[str, Any]:
    return {
        "key": "made from" if link.key == PARENT else link.key,
        "place": printable(link.place),
        "gone": link.state == GONE,
        "node": _node(link.node, here) if link.node else None,
    }
