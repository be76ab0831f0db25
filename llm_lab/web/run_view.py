"""What the page of a run shows, read from its folder: its state, numbers, plan, recipe, lineage."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from llm_lab.errors import UserError
from llm_lab.estimate.cost import BASES
from llm_lab.estimate.formatting import count, duration, size
from llm_lab.recipe.registry import stage_of
from llm_lab.runs.charts import MEASURED_RARELY, PANELS, Panel
from llm_lab.runs.describe import data_rows, describe_proof, headline_results, versions, warnings_of
from llm_lab.runs.evaluations import evaluations_of
from llm_lab.runs.folder import EVALUATES_FIRST, ROOT, RunFolder, find_model, is_reward_model, status_of
from llm_lab.runs.glossary import OF_THE_MACHINE, name_of, quantity, rank, write
from llm_lab.runs.lock import is_holder
from llm_lab.runs.record import is_number, read_facts
from llm_lab.runs.report import describe_scores
from llm_lab.safe_text import printable

from .addresses import name_in
from .metric_columns import Columns, columns_of
from .run_index import STATUS_NOTES, max_steps_of, seconds_left, stage_text
from .run_texts import evaluation_row

SPEED_ROWS = 40  # newest rows, from which the remaining time is estimated
# The results at the top of the page of a run, if it has them, and their names while it works.
FIRST_STATS = ("eval_loss", "bits_per_byte", "exact_match", "exact_match_sampled", "eval_accuracy", "reward", "loss")
MOST_FIRST = 3
HEAD_SECONDS = 0.05  # of reading metrics.jsonl; the curves read the rest of a long file


def outer_of(run: RunFolder) -> RunFolder | None:
    """Return the pipeline or study that a run is part of, or the folder of its sweep; None if there is none."""
    return RunFolder(run.path.parent) if run.path.parent != ROOT else None


def glossary_of(keys: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return what a page needs in order to label and format quantities, by key."""
    return {
        key: {
            "name": printable(name_of(key)),
            "meaning": quantity(key).meaning,
            "healthy": quantity(key).healthy,
            "unit": quantity(key).unit,
            "form": quantity(key).form,
            "rank": rank(key),
        }
        for key in keys
    }


def panels_of(keys: Iterable[str]) -> list[dict[str, Any]]:
    """Return the charts for metrics: those of the reports, then the others in the order of the glossary."""
    known = set(keys)
    found = [(panel, [key for key in panel.keys if key in known]) for panel in PANELS]
    rest = known.difference(*(panel.keys for panel in PANELS))
    others: dict[str, list[str]] = {}
    for key in sorted(rest, key=lambda one: (rank(one), one)):
        others.setdefault(re.split("[/:]", key)[0], []).append(key)
    found += [(Panel(tuple(group)), group) for group in others.values()]
    return [
        {
            "title": printable(panel.title or name_of(group[0])),
            "keys": [
                {
                    "key": key,
                    "label": printable(panel.labels[key]) if len(panel.keys) > 1 else "",
                    "rare": key.startswith(MEASURED_RARELY),
                    "color": panel.keys.index(key) % 6,
                }
                for key in group
            ],
            "zero": panel.from_zero,
        }
        for panel, group in found
        if group
    ]


def head_of(run: RunFolder) -> dict[str, Any]:
    """Return everything about a run that may change while it works, except its curves and samples."""
    facts, damage = read_facts(run.run_json)
    status = status_of(run.path, facts, damage)
    columns = columns_of(run.metrics_path, HEAD_SECONDS)
    results = {key: value for key, value in (facts.get("results") or {}).items() if is_number(value)}
    latest = columns.latest() if status in ("running", "interrupted") else {}
    numbers = results | {key: value for key, value in latest.items() if key not in ("learning_rate", "grad_norm")}
    stages = [_stage_row(one) for one in inner_runs(run, facts)]
    stage = stage_of(facts)
    error = facts.get("error")
    return {
        "status": status,
        "note": STATUS_NOTES.get(status, ""),
        "error": printable(str(error)) if error else None,
        "stage": stage.label if stage else None,
        "evaluates_first": status == "running" and EVALUATES_FIRST in facts and not columns.count,
        "about": _about(facts),
        "stats": list(_stats(facts, status, numbers, columns, max_steps_of(run, facts))),
        "progress": _progress(status, numbers, max_steps_of(run, facts)) or _stage_progress(facts, status, stages),
        "actions": _actions(run, facts, status),
        "warnings": [printable(text) for text in warnings_of(run, columns.broken)],
        "results": result_rows(numbers),
        "plan": _plan(facts, status, numbers, columns, max_steps_of(run, facts)),
        "stages": stages,
        "scores": _scores(facts),
        "evaluations": [evaluation_row(row) for row in reversed(evaluations_of(run.path))],
        "proof": [printable(line) for line in describe_proof(facts["proof"])] if facts.get("proof") else [],
        "pictures": [one for one in PICTURES if (run.path / one).is_file()],
        "has_report": run.report_path.is_file(),
    }


NO_MODEL_YET = "Its model is saved with the first checkpoint."
PICTURES = ("curves.svg", "scores.svg", "predicted.svg")


def _about(facts: Mapping[str, Any]) -> list[list[str]]:
    """Return (name, text) pairs that describe a run in a few words."""
    found = []
    if is_number(facts.get("parameters")):
        trained = facts.get("trained_parameters")
        part = f", {count(trained)} of them trained" if is_number(trained) and trained != facts["parameters"] else ""
        found.append(["Parameters", f"{count(facts['parameters'])}{part}"])
    for name, key in (("Model", "model"), ("Device", "device")):
        if facts.get(key):
            found.append([name, printable(str(facts[key]))])
    if is_number(facts.get("created_at")):
        found.append(["Started", f"{datetime.fromtimestamp(facts['created_at']):%d %b %Y, %H:%M}"])
    return found


def _stats(
    facts: Mapping[str, Any], status: str, numbers: Mapping[str, float], columns: Columns, max_steps: int | None
) -> Iterator[dict[str, str]]:
    """Yield the numbers at the top: name, value, note, and meaning."""

    def stat(key: str, value: float, note: str = "") -> dict[str, str]:
        return {"key": key, "name": name_of(key), "value": write(key, value), "note": note, "title": _meaning(key)}

    predicted = facts.get("predicted") or {}
    left = None
    if status == "running":
        left = seconds_left(columns.rows_of("step", "wall_seconds", most=SPEED_ROWS), max_steps)
    if left is not None:
        yield stat("time_left", left)
    shown = [key for key in FIRST_STATS if key in numbers][:MOST_FIRST]
    for key in shown:
        yield stat(key, numbers[key])
    if "stages" in facts:  # the results of a pipeline are those of its last stage
        if is_number(facts.get("created_at")) and is_number(facts.get("ended_at")):
            yield stat("wall_seconds", facts["ended_at"] - facts["created_at"])
        return
    for key in ("tokens_per_second", "train_tokens", "wall_seconds", "memory_bytes"):
        if key in numbers:
            known = predicted.get(key)
            note = f"predicted {write(key, known)}" if is_number(known) else ""
            if key == "wall_seconds" and left is not None:  # a current measurement is better than the prediction
                note = f"about {write(key, numbers[key] + left)} in all"
            yield stat(key, numbers[key], note)


def _meaning(key: str) -> str:
    known = quantity(key)
    return " ".join(filter(None, (known.meaning, f"Healthy: {known.healthy}" if known.healthy else "")))


def _progress(status: str, numbers: Mapping[str, float], max_steps: int | None) -> dict[str, Any] | None:
    step = numbers.get("step", 0 if status == "running" else None)
    if step is None or max_steps is None or status == "done":
        return None
    return {"share": min(1.0, step / max_steps), "text": f"step {step:,.0f} of {max_steps:,}"}


def _stage_progress(facts: Mapping[str, Any], status: str, stages: list[dict[str, Any]]) -> dict[str, Any] | None:
    begun = [one for one in stages if one["begun"]]
    if status != "running" or "stages" not in facts or not stages:
        return None
    done = sum(one["status"] == "done" for one in begun)
    text = stage_text(len(begun), len(stages), begun[-1]["name"] if begun else None)
    return {"share": done / len(stages), "text": text}


def _actions(run: RunFolder, facts: Mapping[str, Any], status: str) -> dict[str, Any]:
    """Return what can be done with a run: true, or why it can't be done; null if it makes no sense."""
    process = facts.get("process") or {}
    stop: Any = None
    if status == "running":
        host = process.get("host", "another host")
        where = f"Its process runs on {printable(str(host))}, not here."
        unknown = "The recorded process does not work in this folder. Stop it where it was started, with Ctrl-C."
        stop = is_holder(run.path, process) or (where if host != socket.gethostname() else unknown)
    model = _model_of(run)
    stage = stage_of(facts)
    expected = model is None and status == "running" and stage is not None and stage.trains and stage.writes_text

    def use(address: str) -> str | None:
        return address if model == "text" else NO_MODEL_YET if expected else None

    return {
        "stop": stop,
        "resume": _resume(run) if status in ("stopped", "interrupted", "failed") else None,
        "chat": use(f"/chat?model={quote(str(run.path))}"),
        "test": use(f"/test?model={quote(str(run.path))}"),
        "look": use(f"/look?model={quote(str(run.path))}"),
        "tune": use(f"/new?stage=sft&model={quote(str(run.path))}"),
        "new": f"/new?from={quote(name_in(run))}" if run.recipe_path.is_file() else None,
    }


def _resume(run: RunFolder) -> Any:
    if run.recipe_path.is_file() and resumed_as(run) is not None:
        return True
    return "It belongs to a study or a sweep: start that again, and it resumes what is not done."


def resumed_as(run: RunFolder) -> RunFolder | None:
    """Return the run that resumes a run: itself, or the pipeline that contains it. None inside a study or a sweep."""
    outer = outer_of(run)
    if outer is None:
        return run if "study" not in run.facts() else None
    return resumed_as(outer) if run.path.name in (outer.facts().get("stages") or ()) else None


def _model_of(run: RunFolder) -> str | None:
    """Return what the model of a run can do: text, score, or None if there is no model yet."""
    try:
        folder = find_model(run.path)
    except (UserError, OSError):
        return None
    return "score" if is_reward_model(folder) else "text"


def result_rows(numbers: Mapping[str, float]) -> list[dict[str, str]]:
    """Return a row for each result: name, value, unit, meaning. Those that depend on the machine come last."""
    return [
        {
            "name": printable(name_of(key)),
            "value": write(key, numbers[key]),
            "unit": quantity(key).unit,
            "meaning": _meaning(key),
        }
        for key in sorted(numbers, key=lambda key: (key in OF_THE_MACHINE, rank(key), key))
    ]


def _plan(
    facts: Mapping[str, Any], status: str, numbers: Mapping[str, float], columns: Columns, max_steps: int | None
) -> dict[str, Any]:
    """Return the predictions, next to the actual values or, while the run works, the values now expected."""
    predicted = facts.get("predicted") or {}
    actual: dict[str, float | None] = {key: numbers.get(key) for key in ("wall_seconds", "memory_bytes")}
    word = "actual"
    if status != "done":
        word = "so far"
        left = seconds_left(columns.rows_of("step", "wall_seconds", most=SPEED_ROWS), max_steps)
        if status == "running" and left is not None and actual["wall_seconds"] is not None:
            word, actual["wall_seconds"] = "so far; time at this speed", actual["wall_seconds"] + left
    rows = []
    for key, as_text in (("wall_seconds", duration), ("memory_bytes", size)):
        then, now = predicted.get(key), actual[key]
        if is_number(then) or is_number(now):
            shares = {"predicted": then, "actual": now}
            rows.append(
                {
                    "name": name_of(key),
                    **{name: as_text(value) if is_number(value) else "not known" for name, value in shares.items()},
                    "ratio": f"{now / then:.2f}" if is_number(then) and is_number(now) and then else "",
                    "values": [then, now],
                }
            )
    parts = predicted.get("seconds_by_part") or {}
    known = {
        "Seed": facts.get("seed"),
        "Processes": facts.get("processes"),
        "Machine": facts.get("machine"),
        "FLOPs per token": count(facts["flops_per_token"]) if is_number(facts.get("flops_per_token")) else None,
        "Versions": versions(facts) or None,
    }
    return {
        "rows": rows,
        "word": word,
        "basis": _basis(predicted),
        "parts": [[printable(str(name)), duration(value)] for name, value in parts.items() if is_number(value)],
        "known": [[name, printable(str(value))] for name, value in known.items() if value is not None],
        "data": [[printable(cell) for cell in row] for row in data_rows(facts)],
    }


def _basis(predicted: Mapping[str, Any]) -> str:
    """Return the basis of a prediction, and why it differs from the form's plan."""
    basis = printable(str(predicted.get("basis") or ""))
    if not basis:
        return ""
    first = BASES["trial"] in basis
    why = "At its start a run times a few steps, so its prediction can differ from the plan in the form."
    return f"Prediction: {basis}. {why}" if first else f"Prediction: {basis}."


def inner_runs(run: RunFolder, facts: Mapping[str, Any]) -> list[RunFolder]:
    """Return the stages of a pipeline, or the runs of a study, in order."""
    children = facts.get("children")
    names = facts.get("stages") or (list(children) if isinstance(children, Mapping) else [])
    return [RunFolder(run.path / name) for name in names if isinstance(name, str) and Path(name).name == name]


def _stage_row(run: RunFolder) -> dict[str, Any]:
    facts, damage = read_facts(run.run_json)
    results = facts.get("results") or {}
    stage, seconds = stage_of(facts), results.get("wall_seconds")
    has_begun = bool(facts or damage)
    return {
        "name": printable(run.path.name),
        "run": name_in(run),
        "stage": stage.label if stage else "",
        "status": status_of(run.path, facts, damage) if has_begun else "waiting",
        "numbers": headline_results(results),
        "time": duration(seconds) if is_number(seconds) else "",
        "begun": has_begun,
    }


def _scores(facts: Mapping[str, Any]) -> list[list[str]]:
    scores = (facts.get("results") or {}).get("scores")
    if not isinstance(scores, Mapping) or not scores:
        return []
    try:
        return [[printable(cell) for cell in row] for row in describe_scores(scores)]
    except (AttributeError, KeyError, TypeError, ValueError):  # not written by us
        return []
