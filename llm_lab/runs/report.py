"""report.md: what a run was, what it reached, what to mind, with pictures of its curves."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from .charts import draw_predictions
from .curves import draw_curves
from .describe import (
    OF_THE_MACHINE,
    data_rows,
    describe_evaluation,
    describe_proof,
    duration,
    number,
    size,
    versions,
    warnings_of,
)
from .evaluations import evaluations_of
from .folder import RunFolder, write_atomically
from .lineage import describe_line
from .markdown import code, fence, plain, table

ACRONYMS = ("sft", "dpo", "grpo", "ppo")


def write_report(run: RunFolder) -> None:
    """Write report.md and its pictures from what the run folder holds."""
    facts = run.facts()
    parts = [f"# {plain(facts.get('name', run.path.name))}", _summary(facts), *_warnings(run)]
    parts += picture_of(run, "curves.svg", draw_curves(run.metrics()), "curves over the steps")
    results = [[code(key), number(value)] for key, value in _in_order(facts.get("results") or {})]
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
    stage = str(facts.get("stage", "run"))
    told = [f"{stage.upper() if stage in ACRONYMS else stage.capitalize()}, {facts.get('status')}."]
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
