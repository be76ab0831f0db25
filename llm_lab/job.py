"""Several stages one after the other: who goes on from whom, and what they hand on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_lab.errors import LabError, Problem, UserError, did_you_mean, one_of
from llm_lab.estimate.machine import Machine
from llm_lab.recipe.files import to_yaml
from llm_lab.recipe.registry import PipelineRecipe, stage_of
from llm_lab.recipe.resolve import Resolved, diagnose
from llm_lab.recipe.validate import validate_as

REFERENCE = "stage:"  # stage:sft means the result of the stage named sft


def read_pipeline(
    raw: dict[str, Any], name: str, root: Path, touched: set[str], machine: Machine
) -> tuple[str, list[Resolved] | None, list[Problem]]:
    """Resolve every stage of a pipeline; returns its name, the stages where all are right, and every problem."""
    pipeline, problems, _ = validate_as(PipelineRecipe, raw)
    if pipeline is None:
        return name, None, problems
    name = pipeline.name or name
    home = root / name
    resolved: dict[str, Resolved] = {}
    labels: list[str] = []
    for index, stage in enumerate(pipeline.stages):
        stage = {"seed": pipeline.seed, "device": pipeline.device, **stage}
        record = stage_of(stage)
        if record and record.has("score") and raw.get("score") is not None:
            stage.setdefault("score", raw["score"])
        label = str(stage.get("name") or stage.get("stage") or "stage")
        while label in labels:
            label += "-2"
        stage["name"] = label
        prefix = f"stages.{index}."
        unknown: list[Problem] = []
        if "model" not in stage and labels:
            stage["model"] = {"checkpoint": _last_policy(labels, resolved)}
        stage = _place(stage, labels, home, prefix, unknown)
        labels.append(label)
        parent = _stage_of(stage, home)
        before = resolved.get(parent)
        if not (record and record.accepts_reward_model) and _makes_reward_model(parent, resolved):
            why = "this stage makes a reward model, which scores answers and generates none"
            unknown.append(Problem(f"{prefix}model.checkpoint", why, REFERENCE + parent, fix="Name another."))
        if parent in resolved and resolved[parent].stage.makes is None:
            why = "this stage measures a model and makes none"
            unknown.append(Problem(f"{prefix}model.checkpoint", why, REFERENCE + parent, fix="Name what it measured."))
        own = {key.removeprefix(prefix) for key in touched if key.startswith(prefix)}
        try:
            result, found = diagnose(stage, machine=machine, name=label, overrides=own, before=before)
        except UserError as error:
            result, found = None, list(error.problems)
        # The result of a stage before is not there yet, and will be.
        found = [p for p in found if not (isinstance(p, Problem) and _is_inside(p.value, home))]
        problems += unknown + [within_stage(index, problem) for problem in found]
        if result:
            resolved[label] = result
    return name, list(resolved.values()) if len(resolved) == len(labels) else None, problems


def _last_policy(labels: list[str], resolved: Mapping[str, Resolved]) -> str:
    """Return the last stage whose result can be talked to and trained on, or the model that the first ones look at."""
    policies = [
        label for label in labels if not _makes_reward_model(label, resolved) and not _is_aside(label, resolved)
    ]
    if not policies and _is_aside(labels[0], resolved):
        return resolved[labels[0]].recipe.model.checkpoint
    return REFERENCE + (policies or labels)[-1]


def _is_aside(label: str | None, resolved: Mapping[str, Resolved]) -> bool:
    """Tell whether a stage stands beside the line: it measures a model, or writes it in a form for others."""
    return label in resolved and not resolved[label].stage.continues


def _makes_reward_model(label: str | None, resolved: Mapping[str, Resolved]) -> bool:
    """Tell whether a stage makes a reward model, or merges the adapter of one."""
    if label not in resolved:
        return False
    stage, recipe = resolved[label].stage, resolved[label].recipe
    if stage.trains:
        return stage.makes == "reward model"
    return stage.continues and _makes_reward_model(Path(recipe.model.checkpoint).name, resolved)


def _stage_of(stage: Mapping[str, Any], home: Path) -> str | None:
    model = stage.get("model")
    checkpoint = model.get("checkpoint") if isinstance(model, Mapping) else model
    return Path(checkpoint).name if _is_inside(checkpoint, home) else None


def _place(stage: Any, labels: list[str], home: Path, prefix: str, problems: list[Problem]) -> Any:
    """Put the folders in where stages are named: stage:sft becomes checkpoints/demo/sft."""

    def place(text: str, path: str) -> str:
        if not text.startswith(REFERENCE):
            return text
        wanted = text.removeprefix(REFERENCE)
        if wanted not in labels:
            fix = did_you_mean(wanted, labels) or "A stage can go on from those that stand before it."
            problems.append(
                Problem(prefix + path, "no stage before this one has that name", text, one_of(labels) or "none", fix)
            )
        return str(home / wanted)

    return map_texts(stage, place)


def map_texts(node: Any, change: Callable[[str, str], str], path: str = "") -> Any:
    """Return nested values with every text replaced by change(text, dotted key)."""
    if isinstance(node, Mapping):
        return {key: map_texts(value, change, f"{path}.{key}" if path else str(key)) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [map_texts(value, change, f"{path}.{index}") for index, value in enumerate(node)]
    return change(node, path) if isinstance(node, str) else node


def move(resolved: Resolved, planned: Path, actual: Path) -> Resolved:
    """Point a stage at the pipeline folder that was really made (its name may have got a number)."""
    if planned == actual:
        return resolved

    def moved(text: str, path: str) -> str:
        return str(actual / Path(text).name) if _is_inside(text, planned) else text

    values = map_texts(resolved.values, moved)
    return replace(resolved, values=values, recipe=type(resolved.recipe).model_validate(values))


def pipeline_values(stages: tuple[Resolved, ...], home: Path) -> dict[str, Any]:
    """Return the values of a pipeline's recipe.yaml: stages refer to each other by name."""

    def name_stage(text: str, path: str) -> str:
        return REFERENCE + Path(text).name if _is_inside(text, home) else text

    written = [map_texts(resolved.values, name_stage) for resolved in stages]
    for values in written:
        if str(values.get("tokenizer", "")).startswith(REFERENCE):
            del values["tokenizer"]
    return {"name": home.name, "stages": written}


def pipeline_yaml(values: Mapping[str, Any]) -> str:
    """Write a pipeline's values as YAML, each stage's keys in the order of its schema."""
    return to_yaml(dict(values), PipelineRecipe, lambda path, text: None)


def _is_inside(text: Any, home: Path) -> bool:
    return isinstance(text, str) and Path(text).parent == home


def error_within_stage(index: int, resolved: Resolved, error: LabError) -> LabError:
    """Return what went wrong in a running stage, its keys as they are in the pipeline's file."""
    known = {info.alias or name for name, info in type(resolved.recipe).model_fields.items()}
    problems = [
        within_stage(index, problem) if isinstance(problem, Problem) and problem.key.split(".")[0] in known else problem
        for problem in error.problems
    ]
    return type(error)(*problems)


def within_stage(index: int, problem: Problem | str) -> Problem | str:
    """Return a stage's problem under the key that it has in the pipeline's file."""
    return replace(problem, key=f"stages.{index}.{problem.key}") if isinstance(problem, Problem) else problem
