"""Retrain a checkpoint: its whole lineage as one pipeline, and a comparison of the result with the original."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError
from llm_lab.estimate.cached_models import cached_files
from llm_lab.recipe.files import to_yaml
from llm_lab.recipe.registry import PipelineRecipe

from .disk import write_atomically
from .folder import ROOT, RunFolder, require_no_links, slug
from .glossary import OF_THE_MACHINE, name_of, write
from .lineage import (
    CHANGED,
    GONE,
    PARENT,
    UNRECORDED,
    Digest,
    Files,
    Link,
    Node,
    file_digest,
    find_traced,
    line_of,
    trace,
)
from .recipe_paths import read_run_recipe

STAGE = "stage:"  # prefix by which a pipeline refers to the result of one of its stages
HEADER = "Made by `llm-lab replay`"


@dataclass(frozen=True)
class Replay:
    """A lineage as a pipeline. runs: the original of each stage, by stage name. remarks: what may change the result."""

    recipe: Mapping[str, Any]
    target: Node
    runs: Mapping[str, RunFolder]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class StageOutcome:
    """How one retrained run compares with the original. same: None if there are no weights to compare."""

    stage: str
    same: bool | None
    differences: tuple[str, ...]


def compose(
    checkpoint: str | Path,
    *,
    name: str | None,
    digest_of: Digest,
    files_of: Files = cached_files,
    root: Path = ROOT,
) -> Replay:
    """Return the pipeline that retrains a checkpoint from the start of its lineage.

    For a checkpoint within a run, the whole run is repeated. UserError if no run made the checkpoint, or if parts of
    the lineage are missing; the error lists all of them.
    """
    target = trace(find_traced(checkpoint, root=root), digest_of=digest_of, files_of=files_of, root=root)
    line = line_of(target)
    for node in line:
        if node.run is not None:
            require_no_links(node.run.path)
    problems = list(_missing(line, target, digest_of))
    if target.run is None:
        why = "it was not made by a run of LLM Lab, so there is no recipe to replay"
        problems.insert(0, Problem(str(checkpoint), why))
    if problems or target.run is None:
        raise UserError(*problems)
    labels = _labels(line)
    stages: list[dict[str, Any]] = []
    runs: dict[str, RunFolder] = {}
    for node in line:
        if node.run is not None and (label := labels[node.run.path]) not in runs:
            runs[label] = node.run
            stages.append(_stage(node, node.run, label, labels))
    recipe = {"name": name or _name(target.run, root), "stages": stages}
    return Replay(recipe, target, runs, tuple(dict.fromkeys(_remarks(line, target))))


def _missing(line: Iterable[Node], target: Node, digest_of: Digest) -> Iterator[Problem]:
    for node in line:
        for link in node.links:
            if link.state == GONE or link.node is None:
                why = f"missing, but {node.name} {'was made from it' if link.key == PARENT else 'requires it'}"
                yield Problem(link.place, f"{why} ({link.key})", fix="Restore it, then replay.")
        if node.run is None:
            continue
        if not node.run.recipe_path.is_file():
            yield Problem(str(node.run.recipe_path), "no such file: the recipe of the run is missing")
        if node.step is not None and node is not target and not _is_final(node, node.run, digest_of):
            why = (
                f"a later run started from this intermediate checkpoint, but a pipeline can only start from the final "
                f"model of {node.run.path}"
            )
            fix = (
                f"Replay {node.run.path} alone. Then run the recipe of the later run, with `model` set to "
                f"checkpoint-{node.step} of the replay."
            )
            yield Problem(node.place, why, fix=fix)


def _is_final(node: Node, run: RunFolder, digest_of: Digest) -> bool:
    """Whether a checkpoint within a run has the same weights as the run's result."""
    final = digest_of(run.model_path) if run.model_path.is_dir() else None
    return final is not None and final == digest_of(node.place)


def _labels(line: Iterable[Node]) -> dict[Path, str]:
    """Return the name of the stage that repeats each run."""
    labels: dict[Path, str] = {}
    for node in line:
        if node.run is None or node.run.path in labels:
            continue
        label = slug(node.run.path.name, "stage")
        number = 1
        while (taken := label if number == 1 else f"{label}-{number}") in labels.values():
            number += 1
        labels[node.run.path] = taken
    return labels


def _name(run: RunFolder, root: Path) -> str:
    path = run.path.resolve()
    inside = path.relative_to(root.resolve()).parts if path.is_relative_to(root.resolve()) else path.parts[-1:]
    return slug("-".join(inside)) + "-replay"


def _stage(node: Node, run: RunFolder, label: str, labels: Mapping[Path, str]) -> dict[str, Any]:
    """Return a run's recipe as a stage, which refers to the results of other stages by name."""
    values = read_run_recipe(run)
    before = (values.get("model") or {}).get("checkpoint")
    if before is not None and values.get("tokenizer") == before:
        del values["tokenizer"]  # the checkpoint's own tokenizer, which is the default
    for link in node.links:
        if link.key == "base" or link.node is None:
            continue
        made_by = link.node.run
        _put(values, link.key.split("."), STAGE + labels[made_by.path] if made_by else link.node.place)
    date = run.facts().get("template_date")  # for a chat template that writes the current date
    return {**values, "name": label, **({"template_date": date} if date else {})}


def _put(values: Any, steps: list[str], value: str) -> None:
    for step in steps[:-1]:
        values = values[int(step)] if isinstance(values, list) else values.setdefault(step, {})
    values[steps[-1]] = value


def _remarks(line: Iterable[Node], target: Node) -> Iterator[str]:
    """Yield reasons why the replay may differ from the original."""
    if target.step is not None:
        yield f"checkpoint-{target.step} is an intermediate checkpoint: its whole run is replayed"
    for node in line:
        for link in node.links:
            yield from _remarks_on(link, node)
        if node.run is None:
            continue
        if node.run.status() != "done":
            step = (node.facts.get("results") or {}).get("step")
            at = f" at step {step:,}" if step is not None else ""
            yield f"{node.name} is incomplete ({node.run.status()}{at}): it is replayed to the end"
        count = node.facts.get("processes", 1)
        if count > 1:
            how = f"run the recipe with --nproc {count} to get the same batches"
            yield f"{node.name} was trained with {count} processes: {how}"
        for key, file in (node.facts.get("references") or {}).items():
            is_file = key.endswith(".python") or key == "model.config"
            if is_file and file.get("digest") is not None and file_digest(file["path"]) != file["digest"]:
                yield f"{file['path']} has changed since {node.name} was made ({key})"


def _remarks_on(link: Link, node: Node) -> Iterator[str]:
    other = link.node
    if other is not None and link.state == CHANGED:
        yield f"{link.place}: the weights have changed since {node.name} was made from them"
    elif other is not None and other.run is None and link.state == UNRECORDED:
        yield f"{link.place} was not made by LLM Lab, and its weights were not recorded: they may have changed"
    elif other is not None and other.run is None:
        yield f"{link.place} was not made by LLM Lab: it is used as it is, not trained again"


def write_recipe(replay: Replay, folder: Path = Path("configs")) -> Path:
    """Write the pipeline as configs/<name>.yaml, replacing one from an earlier replay.

    UserError if another file has that name.
    """
    path = folder / f"{replay.recipe['name']}.yaml"
    if path.exists() and HEADER not in path.read_text(encoding="utf-8", errors="replace"):
        why = "a recipe with this name exists, and it is not overwritten"
        raise UserError(Problem(str(path), why, fix="Choose another name with --name."))
    header = (f"{HEADER}: the lineage of {replay.target.place}.", f"llm-lab run {path}")
    write_atomically(path, to_yaml(dict(replay.recipe), PipelineRecipe, lambda key, text: None, header))
    return path


def write_outcome(replay: Replay, outer: RunFolder, outcomes: Iterable[StageOutcome]) -> None:
    """Record in the replay's run.json what it repeats, and the comparison."""
    stages = {outcome.stage: {"same": outcome.same, "differences": outcome.differences} for outcome in outcomes}
    outer.update(replay={"of": replay.target.place, "stages": stages})


def changed_versions(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the versions and machine properties that differ between two runs."""
    changes = []
    known, new = before.get("versions") or {}, now.get("versions") or {}
    for name in dict.fromkeys([*known, *new]):
        if known.get(name) != new.get(name):
            changes.append(f"{name} {known.get(name, 'none')}, now {new.get(name, 'none')}")
    for key in ("machine", "device", "processes", "threads"):
        if key in before and before[key] != now.get(key):
            changes.append(f"{key} {before[key]}, now {now.get(key)}")
    return changes


def compare(replay: Replay, outer: RunFolder, *, digest_of: Digest) -> tuple[StageOutcome, ...]:
    """Compare the replay with the original, run by run; stages that have not run yet are left out."""
    outcomes = []
    for label, run in replay.runs.items():
        again = RunFolder(outer.path / label)
        if again.facts().get("status") != "done":
            continue
        within = replay.target.step if replay.target.run == run else None
        places = [_weights_of(one, within) for one in (run, again)]
        first, second = (_digest(place, digest_of) for place in places)
        same = None if first is None or second is None else first == second
        differences = tuple(_differences(run.facts(), again.facts()))
        outcomes.append(StageOutcome(label, same, differences))
    return tuple(outcomes)


def _weights_of(run: RunFolder, step: int | None) -> Path:
    if step is not None:
        return run.steps_path / f"checkpoint-{step}"
    places = (run.model_path, run.path / "space" / "model")
    return next((place for place in places if place.is_dir()), run.path / "gguf")


def _digest(folder: Path, digest_of: Digest) -> str | None:
    if not folder.is_dir():
        return None
    files = sorted(folder.glob("*.gguf"))
    return digest_of(folder) or (" ".join(file_digest(file) or "" for file in files) if files else None)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    known, new = before.get("results") or {}, now.get("results") or {}
    for key, old in known.items():
        value = new.get(key)
        if key in OF_THE_MACHINE or old == value or not isinstance(old, int | float):
            continue
        if not isinstance(value, int | float):
            yield f"{name_of(key)} was {write(key, old)}, now not measured"
        else:
            yield f"{name_of(key)} {write(key, value)}, was {write(key, old)} ({value - old:+.3g})"
    prints = [[source.get("fingerprint") for source in facts.get("data") or ()] for facts in (before, now)]
    for index, source in enumerate(before.get("data") or ()):
        if index < len(prints[1]) and prints[0][index] != prints[1][index]:
            yield f"data.{index}: {source['path']} has changed"
    yield from changed_versions(before, now)
