"""report.md: what a run was, what it reached, what it was predicted to take, and a picture of its curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .curves import draw_curves
from .folder import RunFolder, write_atomically


def write_report(run: RunFolder) -> None:
    """Write report.md and curves.svg from run.json and metrics.jsonl."""
    facts = run.facts()
    lines = [f"# {facts.get('name', run.path.name)}", ""]
    lines += [f"{facts.get('stage', 'run').capitalize()}, {facts.get('status')}. Machine: {facts.get('machine')}.", ""]
    picture = draw_curves(run.metrics())
    if picture:
        write_atomically(run.path / "curves.svg", picture)
        lines += ["![curves over the steps](curves.svg)", ""]
    lines += ["| result | value |", "| --- | --- |"]
    lines += [f"| {key} | {_number(value)} |" for key, value in facts.get("results", {}).items()]
    if facts.get("mix"):
        lines += ["", "| data | share of what was read | times read |", "| --- | --- | --- |"]
        lines += [
            f"| {item['path']} | {100 * item['share']:.1f} % | {_times(item['epochs'])} |" for item in facts["mix"]
        ]
    compared = list(_predicted_and_actual(facts))
    if compared:
        lines += ["", "| | predicted | actual | actual / predicted |", "| --- | --- | --- | --- |", *compared]
        lines += ["", f"The prediction: {facts['predicted'].get('basis', 'from experience')}."]
    versions = ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items())
    lines += ["", f"Recipe: [recipe.yaml](recipe.yaml). Samples: [samples.md](samples.md). Versions: {versions}.", ""]
    write_atomically(run.report_path, "\n".join(lines))


def _predicted_and_actual(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield a row for time and memory, where both are known and the run went to its end."""
    predicted, actual = facts.get("predicted") or {}, facts.get("results") or {}
    if facts.get("status") != "done" or facts.get("exhausted"):
        return  # of less than the whole that was planned
    for key, name, words in (("wall_seconds", "time", _duration), ("memory_bytes", "memory, at most", _size)):
        if predicted.get(key) and actual.get(key):
            ratio = actual[key] / predicted[key]
            yield f"| {name} | {words(predicted[key])} | {words(actual[key])} | {ratio:.2f} |"


def _times(epochs: float | None) -> str:
    return "less than once" if epochs is None else f"{epochs:.2f}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5_400 else f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"


def _number(value: Any) -> str:
    if isinstance(value, float):
        if 0 < abs(value) < 1e-3:
            return f"{value:.2e}"
        return f"{value:,.4f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
