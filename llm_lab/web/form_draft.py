"""A run that is set up in the form: the page sends the answers, and receives what follows from them.

The draft itself is in the browser. Derived values, their reasons and the problems are computed as in the wizard.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_lab.errors import MachineError, Problem, UserError, sentence
from llm_lab.estimate.machine import find_machine
from llm_lab.job import Job, check, hub_models, read_job
from llm_lab.recipe.fields import Key, flatten, value_at
from llm_lab.recipe.files import parse_yaml, to_yaml
from llm_lab.recipe.forgetting import expand_forgetting
from llm_lab.recipe.plan_warnings import plan_warnings
from llm_lab.recipe.post_training import fill_steps
from llm_lab.recipe.registry import STAGES, Stage, expand_model
from llm_lab.recipe.resolve import Resolved, diagnose, require_device
from llm_lab.recipe.validate import find_key, optional_groups, stage_schema
from llm_lab.runs.folder import free_name, slug
from llm_lab.runs.plan_lines import BANNER, plan_lines
from llm_lab.wizard.draft import Draft, first_name
from llm_lab.wizard.key_questions import effect
from llm_lab.wizard.model_questions import with_model
from llm_lab.wizard.review import answers_of, recipe_text
from llm_lab.wizard.walk import forget_looks

from .form_fields import as_text, fields_of
from .launches import CONFIGS, command_text
from .responses import problems_of

# Used until the user has chosen a model and data, so that the page can show values and a first plan.
NO_MODEL = "model"
NO_DATA = {"text": "builtin:stories"}
NO_EXAMPLES = "builtin:instruct"
SHOWN_EFFECT = "model."  # for parts of the model, show how a choice changes its size


def begin(stage: str, model: str | None = None) -> dict[str, Any]:
    """Return the answers that the form of a stage begins with."""
    facts = STAGES[stage]
    raw: dict[str, Any] = {"stage": stage, "name": first_name(stage, None), "device": "auto"}
    if facts.trains:
        raw["data"] = []
    if facts.has("rewards"):
        raw["rewards"] = [{"name": "exact_number"}]
    return raw if model is None else change(raw, [{"path": "model.checkpoint", "value": model}]).raw


def take_up(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe of a run without values that would be derived again unchanged, so that they follow changes."""
    raw = expand_forgetting(expand_model(raw))
    machine, schema = find_machine(), stage_schema(raw)
    whole, problems = diagnose(raw, machine=machine)
    if whole is None or problems:
        return raw
    paths = [path for path, _ in flatten(raw) if (key := find_key(schema, path, raw)) is not None and key.derived]
    left_out = [path for path in paths if path != "name"]
    for _ in range(len(paths)):
        found, problems = diagnose(_without(raw, left_out), machine=machine)
        kept = [
            path
            for path in left_out
            if found is None or problems or value_at(found.values, path) != value_at(whole.values, path)
        ]
        if not kept:
            return _without(raw, left_out)
        left_out = [path for path in left_out if path not in kept]
    return raw


def _without(raw: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """Return a recipe without some of its keys."""
    result = copy.deepcopy(dict(raw))
    for path in paths:
        group, _, last = path.rpartition(".")
        holder = value_at(result, group) if group else result
        if isinstance(holder, dict):
            holder.pop(last, None)
    return result


def change(raw: dict[str, Any], changes: Iterable[Mapping[str, Any]]) -> Draft:
    """Return the draft after changes: {path, text} as typed, {path, value} as JSON, {path, off: true} for a group.

    An empty text, or no value, removes an answer. UserError if there is no such stage.
    """
    raw = expand_forgetting(expand_model(raw))
    stage_schema(raw)
    draft, notices = Draft(raw, find_machine(), STAGES[raw["stage"]].title), []
    for one in changes:
        path = one.get("path") if isinstance(one, Mapping) else None
        if not isinstance(path, str) or not _leads_somewhere(draft.raw, path):
            continue
        draft = _change(draft, path, one)
        notices += [draft.notice] if draft.notice else []
    return replace(draft, notice=" ".join(notices))


def _leads_somewhere(node: Any, path: str) -> bool:
    """Return whether a value can be set at a path: false for an entry that a list lacks, and for a whole entry."""
    steps = path.split(".")
    for step in steps:
        if isinstance(node, list) and step.isdecimal():
            if len(step) > 6 or int(step) >= len(node) or step is steps[-1]:
                return False
            node = node[int(step)]
        elif isinstance(node, Mapping):
            node = node.get(step)
    return True


def _change(draft: Draft, path: str, one: Mapping[str, Any]) -> Draft:
    if one.get("off"):
        if path not in optional_groups(draft.raw):
            raise UserError(Problem("changes", "this is not a group that can be off", value=path))
        return draft.with_none(path)
    value = _parsed(draft, path, str(one["text"])) if "text" in one else one.get("value")
    if path == "model.checkpoint" and not value:
        return draft.with_answer("model", None)
    if path == "model.checkpoint" and not STAGES[draft.raw["stage"]].from_scratch:
        return with_model(draft, str(value))
    if path == "model.checkpoint":  # a checkpoint brings its own tokenizer
        return draft.with_answer("tokenizer", None).with_answer("model", {"checkpoint": value})
    return draft.with_answer(path, value)


def _parsed(draft: Draft, path: str, text: str) -> Any:
    """Return a typed text as the recipe holds it; one that can't be parsed stays a text, and is then a problem."""
    text = text.strip()
    if not text:
        return None
    key = find_key(stage_schema(draft.raw), path, draft.raw)
    if key is None or key.kind in ("text", "choice"):
        return text
    if key.kind == "list" and not key.entries and not text.startswith("["):
        return [line for line in text.splitlines() if line.strip()]
    try:
        return parse_yaml(text)
    except UserError:
        return text


def look(draft: Draft) -> dict[str, Any]:
    """Return what the page shows of a draft: values with origins, problems, choices, the plan, the recipe."""
    forget_looks()  # files may have changed since the last look
    stage = STAGES[draft.raw["stage"]]
    has_model = stage.from_scratch or draft.raw.get("model") is not None
    seen, missing = draft, list[Problem | str]()
    if not has_model:
        seen = replace(seen, raw={**seen.raw, "model": {"checkpoint": NO_MODEL}})
        missing.append(Problem("model.checkpoint", "choose the model to start from"))
    has_data = not stage.trains or bool(draft.raw.get("data"))
    if not has_data:
        seen = replace(seen, raw={**seen.raw, "data": [_sample_data(stage)]})
        missing.append(Problem("data", "choose a dataset"))
    resolved, problems = seen.look()
    problems = [*missing, *problems]
    file = recipe_file(draft.raw, resolved)
    found: dict[str, Any] = {
        "raw": draft.raw,
        "notice": draft.notice,
        "answers": {path: as_text(value) for path, value in flatten(draft.raw)},
        "problems": problems_of(UserError(*problems))["problems"],
        "choices": dict(_choices(seen)),
        "idle": [path for path in _single_paths(draft) if not seen.applies(path)],
        "file": str(file),
        "taken": _taken(draft.raw),
        "command": command_text(["run", str(file)]),
    }
    if resolved is not None:
        found |= {
            **what_follows(resolved),
            "plan": plan_of(resolved, has_data=has_data) if has_model else None,
            "recipe": to_yaml(answers_of(draft.raw, resolved), type(resolved.recipe), lambda path, text: None),
            "cannot_start": cannot_start(resolved) if not problems else None,
            "banner": BANNER if resolved.values.get("device") == "cpu" else None,
        }
    return found


def _sample_data(stage: Stage) -> dict[str, str]:
    return {"path": NO_DATA.get(stage.examples or "", NO_EXAMPLES)}


def _taken(raw: Mapping[str, Any]) -> str | None:
    """Return the new name of the run if its name is already taken, or None."""
    name = raw.get("name")
    if not isinstance(name, str) or slug(name, "") != name:
        return None
    free = free_name(name)
    return free if free != name else None


def check_draft(raw: dict[str, Any]) -> dict[str, Any]:
    """Return what changes in a look after a recipe is checked with its data and models, or the problems of these.

    It reads the data, and asks the Hub.
    """
    raw = change(raw, ()).raw
    stage = STAGES[raw["stage"]]
    has_data = not stage.trains or bool(raw.get("data"))
    if not has_data:  # problems of the model can be found before there is a dataset
        raw = {**raw, "data": [_sample_data(stage)]}
    try:
        resolved = require_all(raw).stages[0]
    except UserError as error:
        return {"checked": problems_of(error)["problems"]}
    if not has_data:
        return {"checked": []}
    return {**what_follows(resolved), "plan": plan_of(resolved), "cannot_start": cannot_start(resolved), "checked": []}


def require_all(recipe: str | Mapping[str, Any]) -> Job:
    """Return the job of a recipe or its file, checked as `llm-lab check` does.

    UserError also if a model can't be loaded now, such as one on the Hub that can't be reached.
    """
    from llm_lab.hf.hub import require_models

    problems: list[Problem | str] = []
    try:
        job: Job | None = check(recipe)
    except UserError as error:
        problems, job = [*error.problems], read_job(recipe)[0]
    try:
        require_models(name for resolved in (job.stages if job else ()) for name in hub_models(resolved))
    except UserError as error:
        problems += [problem for problem in error.problems if problem not in problems]
    if problems or job is None:
        raise UserError(*problems)
    return job


def what_follows(resolved: Resolved) -> dict[str, Any]:
    """Return every value as text, the reasons of derived ones, and which groups are off."""
    values, reasons = resolved.values, dict[str, str]()
    if resolved.examples:
        examples, processes = resolved.examples.training, resolved.machine.processes
        values, reasons = fill_steps(resolved.stage, values, examples=examples, processes=processes)
    reasons |= {path: origin.reason for path, origin in resolved.origins.items() if origin.kind == "derived"}
    return {
        "values": {path: as_text(value) for path, value in flatten(values)},
        "reasons": reasons,
        "off": [group for group in optional_groups(resolved.values) if value_at(values, group) is None],
    }


def _single_paths(draft: Draft) -> Iterator[str]:
    return (field["path"] for field in fields_of(draft.raw["stage"]) if ".N." not in field["path"])


def _choices(draft: Draft) -> Iterator[tuple[str, dict[str, dict[str, str]]]]:
    """Yield (path, {choice: {why_not} or {effect}}) for the keys with choices that have an effect now."""
    for path in dict.fromkeys(_single_paths(draft)):
        key = draft.key(path)
        if key is not None and key.choices and path != "stage" and draft.applies(path):
            yield path, {as_text(choice): _of_choice(draft, path, key, choice) for choice in key.choices}


def _of_choice(draft: Draft, path: str, key: Key, choice: Any) -> dict[str, str]:
    if why_not := draft.why_not(path, choice):
        return {"why_not": why_not}
    if not path.startswith(SHOWN_EFFECT):
        return {}
    return {"effect": effect(draft.with_answer(path, choice).look()[0], draft.look()[0])}


def plan_of(resolved: Resolved, folder: Path | None = None, *, has_data: bool = True) -> dict[str, Any]:
    """Return a plan: its numbers (bytes, seconds, tokens), and its lines as text. folder: as for plan_lines."""
    cost = resolved.estimate
    return {
        "parameters": cost.parameters,
        "parts": cost.parameters_by_part,
        "memory": cost.memory_bytes,
        "memory_parts": cost.memory_by_part,
        "memory_measured": bool(cost.measurement and cost.measurement.memory_bytes),
        "memory_available": cost.memory_available_bytes,
        "assumed": resolved.values.get("device") == "cuda" and not resolved.machine.gpus,
        "fits": cost.fits,
        "seconds": cost.wall_seconds,
        "basis": cost.basis,
        "tokens": cost.tokens,
        "disk": cost.disk_bytes,
        "disk_parts": cost.disk_by_part,
        "warnings": [
            {"key": key, "text": sentence(text[:1].upper() + text[1:])} for key, text in plan_warnings(resolved)
        ],
        "lines": [
            list(line)
            for line in plan_lines(resolved, folder)
            if line[0] != "warning" and (has_data or line[0] != "data")
        ],
    }


def cannot_start(resolved: Resolved) -> str | None:
    """Return why this machine can't run a recipe, or None."""
    try:
        require_device(resolved)
    except MachineError as error:
        return str(error)
    return None


def recipe_file(raw: Mapping[str, Any], resolved: Resolved | None) -> Path:
    """Return the file that a start writes: configs/NAME.yaml, or NAME-2 if that is already another recipe."""
    if resolved is None or "name" not in resolved.values:
        return CONFIGS / "my-run.yaml"
    name = resolved.values["name"]
    numbered = (CONFIGS / f"{name}-{number}.yaml" for number in itertools.count(2))
    files = itertools.chain([CONFIGS / f"{name}.yaml"], numbered)
    return next(file for file in files if not file.exists() or _holds(file, recipe_text(raw, resolved, file)))


def _holds(file: Path, text: str) -> bool:
    try:
        return file.read_text(encoding="utf-8") == text
    except (OSError, UnicodeDecodeError):
        return False
