"""The scores of a pipeline's stages, side by side: what each stage added on the same held-out prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .charts import draw_scores
from .describe import duration, reached
from .folder import RunFolder, write_atomically
from .markdown import code, plain, table
from .report import picture_of, recipe_part

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
