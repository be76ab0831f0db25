"""A checkpoint's whole line as one pipeline that makes it again, and whether what came out is the same."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError
from llm_lab.estimate.formatting import decimal
from llm_lab.recipe.files import read_recipe_file, to_yaml
from llm_lab.recipe.registry import PipelineRecipe

from .describe import OF_THE_MACHINE
from .folder import ROOT, RunFolder, write_atomically
from .lineage import CHANGED, GONE, PARENT, UNRECORDED, Digest, Link, Node, file_digest, find_traced, line_of, trace

STAGE = "stage:"  # how a pipeline's recipe names the result of one of its stages
HEADER = "Made by `llm-lab replay`: the whole line of"


@dataclass(frozen=True)
class Replay:
    """A line as a pipeline: its recipe, the runs that it makes again by the names of their stages, and what to mind."""

    recipe: Mapping[str, Any]
    target: Node
    runs: Mapping[str, RunFolder]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class StageOutcome:
    """What became of one run when it was made again. same: None where it has no weights to hold against each other."""

    stage: str
    same: bool | None
    differences: tuple[str, ...]


def compose(checkpoint: str | Path, *, name: str | None, digest_of: Digest, root: Path = ROOT) -> Replay:
    """Return the pipeline that makes a checkpoint again, from the beginning of its line.

    A checkpoint within a run is made again by the whole of its run. UserError where no run of ours made it, and
    where a part of the line is gone; all that is missing is told.
    """
    target = trace(find_traced(checkpoint, root=root), digest_of=digest_of, root=root)
    line = line_of(target)
    problems = list(_missing(line, target, digest_of))
    if target.run is None:
        why = "no run of LLM Lab made it, so there is no recipe to replay"
        problems.insert(0, Problem(str(checkpoint), why))
    if problems:
        raise UserError(*problems)
    labels = _labels(line)
    recipe = {"name": name or _name(target, root), "stages": []}
    runs: dict[str, RunFolder] = {}
    for node in line:
        if node.run is not None and (label := labels[node.run.path]) not in runs:
            runs[label] = node.run
            recipe["stages"].append(_stage(node, label, labels))
    return Replay(recipe, target, runs, tuple(dict.fromkeys(_remarks(line, target))))


def _missing(line: Iterable[Node], target: Node, digest_of: Digest) -> Iterator[Problem]:
    for node in line:
        for link in node.links:
            if link.state == GONE or link.node is None:
                why = f"{node.name} came from it, and it is gone" if link.key == PARENT else f"{node.name} needs it"
                yield Problem(link.place, f"{why} ({link.key})", fix="Put it back, and replay then.")
        if node.run is not None and not node.run.recipe_path.is_file():
            yield Problem(str(node.run.recipe_path), "there is no such file: nothing says how the run was made")
        if node.step is not None and node is not target and not _is_its_end(node, digest_of):
            why = f"the line goes on from within {node.run.path}, and a pipeline goes on from the end of its stages"
            yield Problem(node.place, why, fix="Replay its run alone, and go on from its checkpoint by hand.")


def _is_its_end(node: Node, digest_of: Digest) -> bool:
    end = digest_of(node.run.model_path) if node.run.model_path.is_dir() else None
    return end is not None and end == digest_of(node.place)


def _labels(line: Iterable[Node]) -> dict[Path, str]:
    """Return the name of the stage that makes each run again."""
    labels: dict[Path, str] = {}
    for node in line:
        if node.run is None or node.run.path in labels:
            continue
        label = re.sub(r"[^A-Za-z0-9._-]+", "-", node.run.path.name).strip("-._") or "stage"
        number = 1
        while (taken := label if number == 1 else f"{label}-{number}") in labels.values():
            number += 1
        labels[node.run.path] = taken
    return labels


def _name(target: Node, root: Path) -> str:
    path = target.run.path.resolve()
    inside = path.relative_to(root.resolve()).parts if path.is_relative_to(root.resolve()) else path.parts[-1:]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(inside)).strip("-._")[:80] + "-replay"


def _stage(node: Node, label: str, labels: Mapping[Path, str]) -> dict[str, Any]:
    """Return a run's recipe as a stage, in which the results of other stages go by their names."""
    values = read_recipe_file(node.run.recipe_path)
    before = (values.get("model") or {}).get("checkpoint")
    if before is not None and values.get("tokenizer") == before:
        del values["tokenizer"]  # the checkpoint's own: it is found again
    for link in node.links:
        if link.key == "base":
            continue
        run = link.node.run
        _put(values, link.key.split("."), STAGE + labels[run.path] if run is not None else link.node.place)
    return {**values, "name": label}


def _put(values: Any, steps: list[str], value: str) -> None:
    for step in steps[:-1]:
        values = values[int(step)] if isinstance(values, list) else values.setdefault(step, {})
    values[steps[-1]] = value


def _remarks(line: Iterable[Node], target: Node) -> Iterator[str]:
    """Tell what may make the replay come out otherwise than the original."""
    if target.step is not None:
        yield f"checkpoint-{target.step} lies within its run: the run is replayed to its end, which passes there"
    for node in line:
        for link in node.links:
            yield from _remarks_on(link, node)
        if node.run is None:
            continue
        if node.run.status() != "done":
            step = (node.facts.get("results") or {}).get("step")
            at = f" after step {step:,}" if step is not None else ""
            yield f"{node.name} did not come to its end ({node.run.status()}{at}): it is replayed to its end"
        count = node.facts.get("processes", 1)
        if count > 1:
            how = f"run the recipe with --nproc {count} for the same batches"
            yield f"{node.name} was trained by {count} processes: {how}"
        for key, file in (node.facts.get("references") or {}).items():
            is_file = key.endswith(".python") or key == "model.config"
            if is_file and file.get("digest") is not None and file_digest(file["path"]) != file["digest"]:
                yield f"{file['path']} has changed since {node.name} was made ({key})"


def _remarks_on(link: Link, node: Node) -> Iterator[str]:
    other = link.node
    if other is not None and link.state == CHANGED:
        yield f"{link.place}: its weights have changed since {node.name} was made from it"
    elif other is not None and other.run is None and link.state == UNRECORDED:
        yield f"{link.place} was not made here, and nothing tells whether it is what it was"
    elif other is not None and other.run is None:
        yield f"{link.place} was not made here: it is taken as it is"


def write_recipe(replay: Replay, folder: Path = Path("configs")) -> Path:
    """Write the pipeline as configs/<name>.yaml, over one that an earlier replay wrote there.

    UserError where a file of another's has that name.
    """
    path = folder / f"{replay.recipe['name']}.yaml"
    if path.exists() and HEADER not in path.read_text(encoding="utf-8", errors="replace"):
        why = "there is a recipe of this name already, and it is not overwritten"
        raise UserError(Problem(str(path), why, fix="Choose another with --name."))
    header = (f"{HEADER} {replay.target.place}.", f"llm-lab run {path}")
    write_atomically(path, to_yaml(dict(replay.recipe), PipelineRecipe, lambda key, text: None, header))
    return path


def write_outcome(replay: Replay, outer: RunFolder, outcomes: Iterable[StageOutcome]) -> None:
    """Keep in the replay's run.json what it was to be, and what it came to."""
    stages = {outcome.stage: {"same": outcome.same, "differences": outcome.differences} for outcome in outcomes}
    outer.update(replay={"of": replay.target.place, "stages": stages})


def changed_versions(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return in words which versions, and which machine, differ between the run.json of two runs."""
    told = []
    known, new = before.get("versions") or {}, now.get("versions") or {}
    for name in dict.fromkeys([*known, *new]):
        if known.get(name) != new.get(name):
            told.append(f"{name} {known.get(name, 'none')}, now {new.get(name, 'none')}")
    for key in ("machine", "device", "processes", "threads"):
        if key in before and before[key] != now.get(key):
            told.append(f"{key} {before[key]}, now {now.get(key)}")
    return told


def compare(replay: Replay, outer: RunFolder, *, digest_of: Digest) -> tuple[StageOutcome, ...]:
    """Hold what was made again against the original, run by run; a stage that has not run yet is left out."""
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
    return run.model_path if run.model_path.is_dir() else run.path / "gguf"


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
            yield f"{key} was {decimal(old)}, and was not measured"
        else:
            yield f"{key} {decimal(value)}, was {decimal(old)} ({value - old:+.3g})"
    prints = [[source.get("fingerprint") for source in facts.get("data") or ()] for facts in (before, now)]
    for index, source in enumerate(before.get("data") or ()):
        if index < len(prints[1]) and prints[0][index] != prints[1][index]:
            yield f"data.{index}: {source['path']} is not what it was"
    yield from changed_versions(before, now)
