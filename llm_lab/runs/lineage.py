"""The lineage of a checkpoint: from run to run, back to a start from scratch or a model from elsewhere."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_lab.errors import UserError
from llm_lab.estimate.adapter_base import BASE_RECORD, CONFIG, places_after_move, read_object
from llm_lab.estimate.cached_models import cached_files, changed_files
from llm_lab.estimate.gguf_header import is_gguf
from llm_lab.recipe.pretrain import PRETRAIN
from llm_lab.recipe.registry import named_in

from .evaluations import evaluations_of
from .folder import ROOT, RunFolder, find_checkpoint, find_model, require_no_links, run_of
from .recipe_paths import read_run_recipe

Digest = Callable[[str | Path], str | None]
Files = Callable[[str], Mapping[str, str]]
PARENT = "model.checkpoint"
SAME, CHANGED, GONE, UNRECORDED = "same", "changed", "gone", "unrecorded"


@dataclass(frozen=True)
class Link:
    """A model that a run used.

    key: the recipe key that names it: model.checkpoint, dpo.reference, rewards.0.model ... place: its recorded name.
    state: "same" if its weights are still the recorded ones, "changed", "gone", or "unrecorded" if there is no digest
    to compare with (an older record, or a name on the Hub that is not in the cache).
    """

    key: str
    place: str
    state: str
    node: Node | None


@dataclass(frozen=True)
class Node:
    """One model of a lineage: the result of a run, a folder from elsewhere, or a name on the Hub.

    place: the folder of the weights, or the name. step: that of a checkpoint within a run, else None. parent: None for
    a model trained from scratch, and for one from elsewhere.
    """

    place: str
    run: RunFolder | None
    step: int | None
    facts: Mapping[str, Any]
    evaluations: tuple[Mapping[str, Any], ...]
    parent: Link | None
    others: tuple[Link, ...]

    @property
    def stage(self) -> str | None:
        """The stage that made the model, or None if no run did."""
        return self.facts.get("stage") if self.run else None

    @property
    def name(self) -> str:
        """Its short name: the run's folder, or its place."""
        return str(self.run.path) if self.run else self.place

    @property
    def links(self) -> tuple[Link, ...]:
        return ((self.parent,) if self.parent else ()) + self.others


def trace(folder: str | Path, *, digest_of: Digest, files_of: Files = cached_files, root: Path = ROOT) -> Node:
    """Return a model with its whole lineage.

    folder: that of its weights (or its run, or a name on the Hub). digest_of: returns the digest of a folder's weights;
    if it returns None, every link is unrecorded. files_of: returns {file: its id} of a model on the Hub.
    """
    return _Tracer(digest_of, files_of, root).trace(str(folder))


def find_traced(checkpoint: str | Path, *, root: Path = ROOT) -> str:
    """Return what a user means by a checkpoint: a folder of weights, a run without a model, or a name on the Hub.

    UserError if it does not exist.
    """
    given = Path(checkpoint).expanduser()
    for folder in (given, root / given):
        facts = RunFolder(folder).facts()
        if facts.get("stage") and not any((folder / "model").glob("*config.json")):
            require_no_links(folder)
            return str(folder)  # an evaluation, a GGUF export, or a run that has not saved anything yet
    return find_checkpoint(str(checkpoint), root=root)


def line_of(node: Node) -> tuple[Node, ...]:
    """Return every model of a lineage once, each after those it was made from; the given one is last."""
    found: dict[str, Node] = {}

    def visit(one: Node) -> None:
        if one.place in found:
            return
        for link in (*one.others, *((one.parent,) if one.parent else ())):
            if link.node is not None:
                visit(link.node)
        found[one.place] = one

    visit(node)
    return tuple(found.values())


def main_line(node: Node) -> tuple[Node, ...]:
    """Return the chain of models from the root to this one, without side branches such as references."""
    line = [node]
    while line[-1].parent is not None and line[-1].parent.node is not None:
        line.append(line[-1].parent.node)
    return tuple(reversed(line))


def describe_line(run: RunFolder) -> str:
    """Return a run's lineage on one line: its start, and the runs up to this one. Weights are not read."""
    line = main_line(trace(run.path, digest_of=lambda folder: None))
    names = [f"{node.stage} ({node.name})" if node.run else f"{node.place} (not made by LLM Lab)" for node in line]
    if line[0].parent is not None:
        names.insert(0, f"{line[0].parent.place} (missing)")
    elif line[0].stage == PRETRAIN.name:
        names.insert(0, "scratch")
    return " -> ".join(names)


def references_of(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, name) of every model that a recipe uses in addition to the one it starts from."""
    return ((key, name) for key, name in named_in(values, "model") if key != "model.checkpoint")


def files_of(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, file) of the user's own files that a recipe names in addition to its data."""
    for key, name in named_in(values, "config"):
        yield key, str(Path(name) / "config.json" if Path(name).is_dir() else name)
    for key, name in named_in(values, "function"):
        yield key, name.rpartition(":")[0]
    path = (values.get("score") or {}).get("path")
    if path and Path(path).expanduser().is_file():
        yield "score.path", path


def file_digest(path: str | Path) -> str | None:
    """Return the SHA-256 of a file, or None if it can't be read."""
    try:
        return hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
    except OSError:
        return None


class _Tracer:
    """Traces one lineage; each model is read once, however many others were made from it."""

    def __init__(self, digest_of: Digest, files_of: Files, root: Path):
        self.digest_of: Digest = functools.cache(lambda folder: digest_of(folder))
        self.files_of: Files = functools.cache(files_of)
        self.root = root
        self.known: dict[Path, Node] = {}
        self.begun: set[Path] = set()  # models whose sources are being traced

    def trace(self, place: str) -> Node:
        here = Path(place).expanduser().resolve()
        if here not in self.known:
            self.begun.add(self._identity(place))
            self.known[here] = self._read(place)
            self.begun.discard(self._identity(place))
        return self.known[here]

    def _identity(self, place: str) -> Path:
        """Return the identity for detecting loops: the run that a model belongs to, or its folder."""
        folder = Path(place).expanduser()
        run = run_of(folder) if folder.exists() else None
        return (run.path if run is not None and run.facts().get("stage") else folder).resolve()

    def _read(self, place: str) -> Node:
        folder = Path(place).expanduser()
        run = run_of(folder) if folder.exists() else None
        if run is None or not run.facts().get("stage"):  # a pipeline's own folder does not hold a model
            return Node(place, None, None, {}, tuple(evaluations_of(place, root=self.root)), self._base(folder), ())
        facts = run.facts()
        match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        recorded = facts.get("parent")
        parent = self._link(PARENT, recorded["path"], recorded, run.path) if recorded else None
        others = []
        if parent is not None and parent.node is None and facts.get("base"):  # a merge whose adapter no longer exists
            others.append(self._link("base", facts["base"]["path"], facts["base"], run.path))
        known = facts.get("references") or {}
        for key, name in references_of(_recipe_of(run)):
            others.append(self._link(key, name, known.get(key) or {}, run.path))
        rows = tuple(evaluations_of(run.path, root=self.root))
        return Node(place, run, int(match[1]) if match else None, facts, rows, parent, tuple(others))

    def _base(self, folder: Path) -> Link | None:
        """Return the base of an adapter that no run made."""
        name = (read_object(folder / CONFIG) or {}).get("base_model_name_or_path")
        return self._link(PARENT, name, read_object(folder / BASE_RECORD) or {}, folder) if name else None

    def _link(self, key: str, name: str, recorded: Mapping[str, Any], near: Path) -> Link:
        digest = recorded.get("digest")
        place = self._find(name, digest, near)
        if place is None:
            return Link(key, name, GONE, None)
        now = self.digest_of(Path(place)) if digest is not None else None
        state = UNRECORDED if digest is None or now is None else SAME if now == digest else CHANGED
        if digest is None and recorded.get("files") and (files := self.files_of(place)):
            state = CHANGED if changed_files(recorded["files"], files) else SAME
        if self._identity(place) in self.begun:
            return Link(key, name, CHANGED, None)  # a loop: the parent was overwritten by a descendant
        return Link(key, name, state, self.trace(place))

    def _find(self, name: str, digest: str | None, near: Path) -> str | None:
        """Return the current place of a model (it may have moved with the run that names it); None if missing."""
        given = Path(name).expanduser()
        for candidate in (given, *places_after_move(near, given, shortest=2 if digest is None else 1)):
            if not candidate.is_dir() and not is_gguf(candidate):
                continue
            try:
                found = find_model(candidate, root=self.root)
            except UserError:
                continue
            if candidate == given or digest is None or self.digest_of(found) == digest:
                return str(found)
        looks_local = given.is_absolute() or name.startswith((".", "~", f"{self.root}/")) or name.count("/") > 1
        return None if looks_local or digest is not None else name


def _recipe_of(run: RunFolder) -> Mapping[str, Any]:
    try:
        return read_run_recipe(run)
    except UserError:
        return {}
