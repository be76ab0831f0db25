"""report.md: what a run was, what it reached, what to mind, with pictures of its curves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from llm_lab.estimate.formatting import decimal, duration, size
from llm_lab.recipe.registry import stage_of

from .charts import draw_curves, draw_predictions, draw_scores
from .describe import OF_THE_MACHINE, data_rows, describe_evaluation, describe_proof, reached, versions, warnings_of
from .evaluations import evaluations_of, evaluations_path
from .folder import ROOT, RunFolder, write_atomically
from .lineage import describe_line
from .safe_text import code, fence, plain, table


def write_report(run: RunFolder) -> None:
    """Write report.md and its pictures from what the run folder holds."""
    facts = run.facts()
    parts = [f"# {plain(facts.get('name', run.path.name))}", _summary(facts), *_warnings(run)]
    parts += picture_of(run, "curves.svg", draw_curves(run.metrics()), "curves over the steps")
    results = [[code(key), decimal(value)] for key, value in _in_order(facts.get("results") or {})]
    parts += _section("Results", table(("result", "value"), results))
    parts += _section("Measured since", [f"- {plain(describe_evaluation(row))}" for row in evaluations_of(run.path)])
    parts += _section(
        "Proof", [f"- {plain(line)}" for line in describe_proof(facts["proof"])] if facts.get("proof") else []
    )
    parts += _section("Samples over time", _samples(run))
    parts += _section("Predicted and actual", _predictions(run, facts))
    parts += _section("Data", table(("data", "fingerprint", "read"), _data(facts)))
    parts += _section("Where it comes from", [plain(describe_line(run))] if facts.get("stage") else [])
    parts += _section("How it was made", _making(run, facts))
    write_atomically(run.report_path, "\n\n".join(parts) + "\n")


def _summary(facts: Mapping[str, Any]) -> str:
    stage = stage_of(facts)
    told = [f"{stage.label if stage else 'Run'}, {facts.get('status')}."]
    if facts.get("created_at"):
        told.append(f"Begun {datetime.fromtimestamp(facts['created_at']):%d %b %Y, %H:%M}.")
    told.append(f"Machine: {facts.get('machine')}.")
    return plain(" ".join(told))


def _section(title: str, lines: Sequence[str]) -> list[str]:
    """Return a section; none where it would be empty. Lines of a table and of a list stay together."""
    return [f"## {title}", "\n".join(lines)] if lines else []


def _warnings(run: RunFolder) -> list[str]:
    warnings = [f"> - {plain(text)}" for text in warnings_of(run)]
    return ["\n".join(["> **Mind:**", ">", *warnings])] if warnings else []


def keep_evaluation(checkpoint: str | Path, row: Mapping[str, Any], *, root: Path = ROOT) -> Path:
    """Add a line to a model's evaluations; returns the file. OSError where it can't be written."""
    path = evaluations_path(checkpoint, root=root)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({"checkpoint": str(checkpoint), **row}, ensure_ascii=False) + "\n")
    run = RunFolder(path.parent)
    if run.report_path.is_file() and run.facts().get("stage"):
        write_report(run)
    return path


def picture_of(run: RunFolder, name: str, drawn: str | None, words: str) -> list[str]:
    """Write a picture into a run folder and return its place in the report; without one, drop what was there."""
    if drawn is None:
        (run.path / name).unlink(missing_ok=True)  # of the report before
        return []
    write_atomically(run.path / name, drawn)
    return [f"![{words}]({name})"]


def _in_order(results: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return what is of the model first, and what is of the machine last; a pipeline's scores have a table."""
    plain_results = [(key, value) for key, value in results.items() if not isinstance(value, Mapping)]
    return sorted(plain_results, key=lambda item: item[0] in OF_THE_MACHINE)


def _samples(run: RunFolder) -> list[str]:
    """Return the samples of the first, a middle and the last evaluation, the same prompts each time."""
    try:
        text = run.samples_path.read_text(encoding="utf-8")
    except OSError:
        return []
    steps = [part for part in re.split(r"(?m)^(?=## Step )", text) if part.startswith("## Step ")]
    if not steps:
        return []
    chosen = dict.fromkeys((0, (len(steps) - 1) // 2, len(steps) - 1))
    lines = []
    for index in chosen:
        heading, _, body = steps[index].partition("\n")
        lines += [f"**{heading.removeprefix('## ')}**", "", body.strip(), ""]
    return [*lines, "All of them: [samples.md](samples.md)."]


def _predictions(run: RunFolder, facts: Mapping[str, Any]) -> list[str]:
    rows = list(_predicted_and_actual(facts))
    if not rows:
        return []
    drawn = picture_of(run, "predicted.svg", draw_predictions(rows), "predicted and actual")
    lines = table(
        ("", "predicted", "actual", "actual / predicted"),
        [[title, *told, f"{actual / predicted:.2f}"] for title, predicted, actual, *told in rows],
    )
    return [*lines, "", f"The prediction: {facts['predicted'].get('basis', 'from experience')}.", "", *drawn]


def _predicted_and_actual(facts: Mapping[str, Any]) -> Iterator[tuple[str, float, float, str, str]]:
    """Yield (title, predicted, actual, both in words) where both are known and the run went to its end."""
    predicted, actual = facts.get("predicted") or {}, facts.get("results") or {}
    if facts.get("status") != "done" or facts.get("exhausted"):
        return  # of less than the whole that was planned
    for key, name, words in (("wall_seconds", "time", duration), ("memory_bytes", "memory, at most", size)):
        if predicted.get(key) and actual.get(key):
            yield name, predicted[key], actual[key], words(predicted[key]), words(actual[key])


def _data(facts: Mapping[str, Any]) -> list[list[str]]:
    return [[code(path), code(fingerprint), amount] for path, fingerprint, amount in data_rows(facts)]


def _making(run: RunFolder, facts: Mapping[str, Any]) -> list[str]:
    lines = [f"Versions: {plain(versions(facts))}."] if facts.get("versions") else []
    again = f"Again: `llm-lab run {run.recipe_path}`, or the whole line: `llm-lab replay {run.path}`."
    return ["\n\n".join([*lines, again, *recipe_part(run)])] if run.recipe_path.is_file() else lines


def recipe_part(run: RunFolder) -> list[str]:
    """Return a run's recipe in full, folded."""
    try:
        recipe = run.recipe_path.read_text(encoding="utf-8")
    except OSError:
        return []
    return [f"<details><summary>The recipe, in full</summary>\n\n{fence(recipe.rstrip(), 'yaml')}\n</details>"]


# Result of a stage -> its name in the table.
COLUMNS = {
    "exact_match": "exact_match",
    "exact_match_sampled": "exact_match_sampled",
    "eval_reward_sampled": "reward",
}
Scores = Mapping[str, Mapping[str, float]]


def collect_scores(outer: RunFolder) -> dict[str, dict[str, float]]:
    """Return {stage: {exact_match, exact_match_sampled, reward, seconds}} of the stages that were scored.

    exact_match is greedy; the other two are of answers sampled at temperature 1. seconds: the stage's training.
    """
    scores = {}
    for run in outer.stages():
        results = run.facts().get("results", {})
        row = {name: results[key] for key, name in COLUMNS.items() if key in results}
        if row:
            scores[run.path.name] = row | {"seconds": round(results.get("wall_seconds", 0.0), 1)}
    return scores


def describe_scores(scores: Scores) -> list[list[str]]:
    """Return the table as cells: a heading, then a row for each stage."""
    exact = any("exact_match" in row for row in scores.values())
    head = ["stage", *(["exact match", "sampled"] if exact else []), "reward", "time"]
    rows = [head]
    for stage, row in scores.items():
        shares = [_percent(row.get("exact_match")), _percent(row.get("exact_match_sampled"))] if exact else []
        reward = row.get("reward")
        rows.append([stage, *shares, "-" if reward is None else f"{reward:.3f}", f"{row['seconds']:.0f} s"])
    return rows


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def write_pipeline_report(outer: RunFolder) -> None:
    """Write report.md of a pipeline: its stages' scores as picture and table, what each came to, its recipe."""
    facts: dict[str, Any] = outer.facts()
    parts = [f"# {plain(facts.get('name', outer.path.name))}", f"A pipeline, {facts.get('status')}."]
    scores = facts.get("results", {}).get("scores") or {}
    if scores:
        head, *rows = describe_scores(scores)
        parts += ["## Scores", *picture_of(outer, "scores.svg", draw_scores(scores), "scores of the stages")]
        parts.append("\n".join(table(head, rows)))
        parts.append("On held-out prompts: exact match of greedy and of sampled answers; the reward is of sampled.")
    stages = [
        [f"[{run.path.name}]({run.path.name}/report.md)", *_stage_cells(run)] for run in outer.stages() if run.facts()
    ]
    parts += ["## Stages", "\n".join(table(("stage", "what", "status", "came to", "time"), stages))] if stages else []
    parts += _replay_part(facts)
    parts += recipe_part(outer)
    write_atomically(outer.report_path, "\n\n".join(parts) + "\n")


def _stage_cells(run: RunFolder) -> list[str]:
    facts = run.facts()
    results = facts.get("results") or {}
    seconds = results.get("wall_seconds")
    took = duration(seconds) if seconds else ""
    return [str(facts.get("stage")), run.status(), ", ".join(reached(results)), took]


def _replay_part(facts: Mapping[str, Any]) -> list[str]:
    """Return what a replay came to, held against the original."""
    replay = facts.get("replay")
    if not replay:
        return []
    words = {True: "the same, bit for bit", False: "other weights", None: "none to hold against each other"}
    rows = [[name, words[row["same"]], "; ".join(row["differences"])] for name, row in replay["stages"].items()]
    lines = [f"Against {code(replay['of'])} and its line:", "", *table(("stage", "weights", "differences"), rows)]
    return ["## Replay", "\n".join(lines)]
