"""report.md: what a run was, what it reached, and a picture of its curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .folder import RunFolder, write_atomically

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT, MARGIN = 640, 320, 48


def write_report(run: RunFolder) -> None:
    """Write report.md and curves.svg from run.json and metrics.jsonl."""
    facts, rows = run.facts(), run.metrics()
    training = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    held_out = [(row["step"], row["eval_loss"]) for row in rows if "eval_loss" in row]
    lines = [f"# {facts.get('name', run.path.name)}", ""]
    lines += [f"{facts.get('stage', 'run').capitalize()}, {facts.get('status')}. Machine: {facts.get('machine')}.", ""]
    if training:
        write_atomically(run.path / "curves.svg", draw_svg({"training loss": training, "validation loss": held_out}))
        lines += ["![loss over steps](curves.svg)", ""]
    lines += ["| result | value |", "| --- | --- |"]
    lines += [f"| {key} | {_number(value)} |" for key, value in facts.get("results", {}).items()]
    if facts.get("mix"):
        lines += ["", "| data | share of what was read | times read |", "| --- | --- | --- |"]
        lines += [f"| {item['path']} | {100 * item['share']:.1f} % | {item['epochs']:.2f} |" for item in facts["mix"]]
    planned = facts.get("planned", {})
    if planned.get("wall_seconds"):
        lines += ["", f"Planned: about {planned['wall_seconds']:.0f} s, {planned['memory_bytes'] / 2**30:.2f} GiB."]
    versions = ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items())
    lines += ["", f"Recipe: [recipe.yaml](recipe.yaml). Samples: [samples.md](samples.md). Versions: {versions}.", ""]
    write_atomically(run.report_path, "\n".join(lines))


def draw_svg(series: dict[str, Points]) -> str:
    """Draw line curves over a shared x axis as a small SVG."""
    series = {name: points for name, points in series.items() if points}
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    low, high = min(ys), max(ys)
    left, right = min(xs), max(xs)

    def place(x: float, y: float) -> str:
        across = MARGIN + (x - left) / (right - left or 1) * (WIDTH - 2 * MARGIN)
        down = HEIGHT - MARGIN - (y - low) / (high - low or 1) * (HEIGHT - 2 * MARGIN)
        return f"{across:.1f},{down:.1f}"

    body = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    for mark in range(5):
        value = low + (high - low) * mark / 4
        y = float(place(left, value).split(",")[1])
        body.append(f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        body.append(f'<text x="{MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.2f}</text>')
    for number, x in enumerate((left, right)):
        anchor = "end" if number else "start"
        across = WIDTH - MARGIN if number else MARGIN
        body.append(f'<text x="{across}" y="{HEIGHT - MARGIN + 18}" text-anchor="{anchor}">step {x:g}</text>')
    for points, colour in zip(series.values(), ("#8aa8c8", "#c0392b"), strict=False):
        path = " ".join(place(x, y) for x, y in points)
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for number, (name, colour) in enumerate(zip(series, ("#8aa8c8", "#c0392b"), strict=False)):
        body.append(
            f'<text x="{WIDTH - MARGIN}" y="{24 + 16 * number}" text-anchor="end" fill="{colour}">{name}</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12">' + "".join(body) + "</svg>\n"
    )


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
