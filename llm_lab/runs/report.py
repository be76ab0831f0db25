"""report.md of a run and of a pipeline: results, warnings, curves, samples, data, lineage and recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from llm_lab.estimate.formatting import duration, size
from llm_lab.recipe.registry import stage_of
from llm_lab.safe_text import redact, redact_values

from .charts import draw_curves, draw_predictions, draw_scores
from .describe import data_rows, describe_evaluation, describe_proof, headline_results, versions, warnings_of
from .disk import append_line, write_atomically
from .evaluations import evaluations_of, evaluations_path, named_results
from .folder import ROOT, RunFolder, require_no_links
from .glossary import OF_THE_MACHINE, name_of, quantity, rank, write
from .lineage import describe_line
from .markdown import Markdown, code, fence, plain, table
from .record import is_number

RESULT_HEAD = ("result", "value", "unit", "what it is")
Scores = Mapping[str, Mapping[str, float]]


def write_report(run: RunFolder) -> None:
    """Write report.md and its pictures from the contents of the run folder."""
    facts = run.facts()
    parts = [f"# {plain(facts.get('name', run.path.name))}", _summary(facts), *_warnings(run)]
    parts += picture_of(run, "curves.svg", draw_curves(run.metrics()), "curves over the steps")
    results = named_results(facts) if facts.get("measured") else facts.get("results") or {}
    parts += _section("Results", table(RESULT_HEAD, result_rows(results)))
    parts += _section("Evaluations", [f"- {plain(describe_evaluation(row))}" for row in evaluations_of(run.path)])
    checks = describe_proof(facts["proof"]) if facts.get("proof") else []
    parts += _section("Verification", [f"- {plain(line)}" for line in checks])
    parts += _section("Samples", _samples(run))
    parts += _section("Predicted and actual", _predictions(run, facts))
    parts += _section("Data", table(("data", "fingerprint", "used"), _data(facts)))
    parts += _section("Lineage", [plain(describe_line(run))] if facts.get("stage") else [])
    parts += _section("Reproduce", _reproduction(run, facts))
    write_atomically(run.report_path, redact("\n\n".join(parts)) + "\n")


def keep_evaluation(checkpoint: str | Path, row: Mapping[str, Any], *, root: Path = ROOT) -> Path:
    """Append a line to a model's evaluations and update its run's report; returns the file.

    OSError if it can't be written.
    """
    path = evaluations_path(checkpoint, root=root)
    require_no_links(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    append_line(path, json.dumps({"checkpoint": str(checkpoint), **redact_values(row)}, ensure_ascii=False))
    run = RunFolder(path.parent)
    if run.report_path.is_file() and run.facts().get("stage"):
        write_report(run)
    return path


def _summary(facts: Mapping[str, Any]) -> str:
    stage = stage_of(facts)
    words = [f"{stage.label if stage else 'Run'}, {facts.get('status')}."]
    if facts.get("created_at"):
        words.append(f"Started {datetime.fromtimestamp(facts['created_at']):%d %b %Y, %H:%M}.")
    words.append(f"Machine: {facts.get('machine')}.")
    return plain(" ".join(words))


def _section(title: str, lines: Sequence[str]) -> list[str]:
    """Return a section, or nothing if it would be empty. The lines of a table or a list stay together."""
    return [f"## {title}", "\n".join(lines)] if lines else []


def _warnings(run: RunFolder) -> list[str]:
    warnings = [f"> - {plain(text)}" for text in warnings_of(run)]
    return ["\n".join(["> **Warnings:**", ">", *warnings])] if warnings else []


def picture_of(run: RunFolder, name: str, svg: str | None, alternative: str) -> list[str]:
    """Write a picture into a run folder and return its line in the report; if there is none, delete the file."""
    if svg is None:
        (run.path / name).unlink(missing_ok=True)  # from an earlier report
        return []
    write_atomically(run.path / name, svg)
    return [f"![{alternative}]({name})"]


def result_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Return a row for each result: name, value, unit, meaning. Those that depend on the machine come last."""
    keys = [key for key, value in results.items() if is_number(value)]
    return [
        [plain(name_of(key)), write(key, results[key]), _unit_of(key), quantity(key).meaning]
        for key in sorted(keys, key=lambda key: (key in OF_THE_MACHINE, rank(key)))
    ]


def _unit_of(key: str) -> str:
    """Return the unit of a formatted value, or nothing if it already has one, as in 62.5 % and 3:41."""
    return "" if quantity(key).form in ("percent", "clock", "milliseconds") else quantity(key).unit


def _samples(run: RunFolder) -> list[str]:
    """Return the samples of the first, a middle and the last evaluation, with the same prompts each time."""
    steps = [text for _, text in run.samples()]
    if not steps:
        return []
    chosen = dict.fromkeys((0, (len(steps) - 1) // 2, len(steps) - 1))
    lines = []
    for index in chosen:
        heading, _, body = steps[index].partition("\n")
        lines += [f"**{plain(heading.removeprefix('## '))}**", "", fence(body.strip()), ""]
    return [*lines, "All samples: [samples.md](samples.md)."]


def _predictions(run: RunFolder, facts: Mapping[str, Any]) -> list[str]:
    rows = list(_predicted_and_actual(facts))
    if not rows:
        return []
    picture = picture_of(run, "predicted.svg", draw_predictions(rows), "predicted and actual")
    lines = table(
        ("", "predicted", "actual", "actual / predicted"),
        [[title, *texts, f"{actual / predicted:.2f}"] for title, predicted, actual, *texts in rows],
    )
    basis = facts["predicted"].get("basis", "not recorded")
    return [*lines, "", f"Prediction: {plain(basis)}.", "", *picture]


def _predicted_and_actual(facts: Mapping[str, Any]) -> Iterator[tuple[str, float, float, str, str]]:
    """Yield (title, predicted, actual, both as texts) if both are known and the run was completed."""
    predicted, actual = facts.get("predicted") or {}, facts.get("results") or {}
    if facts.get("status") != "done" or facts.get("exhausted"):
        return  # the run did less than predicted
    for key, as_text in (("wall_seconds", duration), ("memory_bytes", size)):
        if predicted.get(key) and actual.get(key):
            yield name_of(key), predicted[key], actual[key], as_text(predicted[key]), as_text(actual[key])


def _data(facts: Mapping[str, Any]) -> list[list[str]]:
    return [[code(path), code(fingerprint), amount] for path, fingerprint, amount in data_rows(facts)]


def _reproduction(run: RunFolder, facts: Mapping[str, Any]) -> list[str]:
    lines = [f"Versions: {plain(versions(facts))}."] if facts.get("versions") else []
    if not run.recipe_path.is_file():
        return lines
    one, all_of_it = code(f"llm-lab run {run.recipe_path}"), code(f"llm-lab replay {run.path}")
    again = f"This run: {one}. Its whole lineage: {all_of_it}."
    return ["\n\n".join([*lines, again, *recipe_part(run)])]


def recipe_part(run: RunFolder) -> list[str]:
    """Return a run's full recipe, folded."""
    try:
        recipe = run.recipe_path.read_text(encoding="utf-8")
    except OSError:
        return []
    return [f"<details><summary>Full recipe</summary>\n\n{fence(recipe.rstrip(), 'yaml')}\n</details>"]


# Pipelines

# {result of a stage: its key in the pipeline's scores}
SCORE_KEYS = {
    "exact_match": "exact_match",
    "exact_match_sampled": "exact_match_sampled",
    "eval_reward_sampled": "reward",
}


def collect_scores(outer: RunFolder) -> dict[str, dict[str, float]]:
    """Return {stage: {exact_match, exact_match_sampled, reward, seconds}} for the stages that were scored.

    exact_match is greedy; the other two are measured on answers sampled at temperature 1. seconds: the stage's training
    time.
    """
    scores = {}
    for run in outer.stages():
        results = run.facts().get("results", {})
        row = {name: results[key] for key, name in SCORE_KEYS.items() if key in results}
        if row:
            scores[run.path.name] = row | {"seconds": round(results.get("wall_seconds", 0.0), 1)}
    return scores


def describe_scores(scores: Scores) -> list[list[str]]:
    """Return the scores as a table: a heading, then a row for each stage.

    The reward is left out if it only repeats the exact match.
    """
    rows = scores.values()
    same = all(row.get("reward") in (None, row.get("exact_match_sampled")) for row in rows)
    shown = {key: name for key, name in SCORE_KEYS.items() if any(name in row for row in rows)}
    if same and len(shown) > 1:
        shown.pop("eval_reward_sampled", None)
    head = ["stage", *map(name_of, shown), name_of("wall_seconds")]
    return [
        head,
        *(
            [stage, *(write(key, row.get(name)) for key, name in shown.items()), duration(row["seconds"])]
            for stage, row in scores.items()
        ),
    ]


def write_pipeline_report(outer: RunFolder) -> None:
    """Write report.md of a pipeline: the scores of its stages, a table of the stages, its recipe."""
    facts: dict[str, Any] = outer.facts()
    parts = [f"# {plain(facts.get('name', outer.path.name))}", f"A pipeline, {plain(str(facts.get('status')))}."]
    scores = facts.get("results", {}).get("scores") or {}
    if scores:
        head, *rows = describe_scores(scores)
        parts += ["## Scores", *picture_of(outer, "scores.svg", draw_scores(scores), "scores of the stages")]
        parts += ["\n".join(table(head, rows)), "All on the same held-out prompts."]
    stages = [
        [Markdown(f"[{plain(run.path.name)}]({quote(run.path.name)}/report.md)"), *_stage_cells(run)]
        for run in outer.stages()
        if run.facts()
    ]
    parts += _section("Stages", table(("stage", "kind", "status", "results", "time"), stages))
    parts += _section("Replay", _replay_lines(facts))
    parts += recipe_part(outer)
    write_atomically(outer.report_path, redact("\n\n".join(parts)) + "\n")


def _stage_cells(run: RunFolder) -> list[str]:
    facts = run.facts()
    results = facts.get("results") or {}
    seconds = results.get("wall_seconds")
    return [
        str(facts.get("stage")),
        run.status(),
        ", ".join(headline_results(results)),
        duration(seconds) if seconds else "",
    ]


def _replay_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return how a replay compares with the original."""
    replay = facts.get("replay")
    if not replay:
        return []
    words = {True: "identical, bit for bit", False: "different", None: "no weights to compare"}
    rows = [[name, words[row["same"]], "; ".join(row["differences"])] for name, row in replay["stages"].items()]
    head = f"Compared with {code(replay['of'])} and its lineage:"
    return [head, "", *table(("stage", "weights", "differences"), rows)]
