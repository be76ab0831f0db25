"""Small charts of reports as SVG: what a pipeline's stages scored, and what was predicted against what was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .svg import BLACK, COLOURS, LIGHT, RIGHT, WIDTH, bar, dot, frame, line, picture, ticks, width_of, words

ROW, TOP, BOTTOM = 26, 34, 40
BAR = 12


def draw_scores(scores: Mapping[str, Mapping[str, float]]) -> str | None:
    """Draw exact match, greedy and sampled, of each stage; where there is none, the reward. None without either."""
    exact = {"exact_match": "greedy", "exact_match_sampled": "sampled"}
    series = exact if any("exact_match" in row for row in scores.values()) else {"reward": "reward"}
    values = [row[key] for row in scores.values() for key in series if key in row]
    if not values:
        return None
    is_exact = series is exact
    low, high = (0.0, 1.0) if is_exact else (min(0.0, *values), max(values) or 1.0)
    left = 24 + max(width_of(stage) for stage in scores)
    right, height = WIDTH - RIGHT - 8, ROW * len(scores)

    def across(value: float) -> float:
        return left + (value - low) / ((high - low) or 1) * (right - left)

    marks = ticks(low, high, 5)
    parts = [line(across(mark), TOP, across(mark), TOP + height, LIGHT) for mark in marks]
    parts.append(frame(left, TOP, right - left, height))
    told = [f"{100 * mark:.0f} %" if is_exact else f"{mark:.4g}" for mark in marks]
    parts += [words(across(mark), TOP + height + 16, text, "middle") for mark, text in zip(marks, told, strict=True)]
    parts.append(
        words(left, TOP - 12, "exact match, held out" if is_exact else "reward, held out", "start", BLACK, bold=True)
    )
    offset = right
    for number, name in reversed(list(enumerate(series.values()))):
        parts.append(words(offset, TOP - 12, name, "end", COLOURS[number]))
        parts.append(dot(offset - width_of(name) - 8, TOP - 16, COLOURS[number], 4))
        offset -= width_of(name) + 28
    for index, (stage, row) in enumerate(scores.items()):
        middle = TOP + ROW * (index + 0.5)
        parts.append(words(left - 8, middle + 4, stage, "end", BLACK))
        found = [(number, row[key]) for number, key in enumerate(series) if key in row]
        if len(found) > 1:
            parts.append(line(across(found[0][1]), middle, across(found[1][1]), middle, "#bbb"))
        parts += [dot(across(value), middle, COLOURS[number], 5) for number, value in found]
    return picture(TOP + height + BOTTOM - 12, parts)


def draw_predictions(rows: Sequence[tuple[str, float, float, str, str]]) -> str | None:
    """Draw pairs of bars: (title, predicted, actual, and both in words); each pair has a scale of its own."""
    rows = [row for row in rows if row[1] > 0 and row[2] > 0]
    if not rows:
        return None
    left = 24 + max(width_of(title) for title, *_ in rows)
    room = WIDTH - RIGHT - left - 150  # beside the longest bar stands its number
    parts = []
    for index, (title, predicted, actual, *told) in enumerate(rows):
        top = 10 + index * (2 * BAR + 18)
        parts.append(words(left - 10, top + BAR + 4, title, "end", BLACK))
        both = (("predicted", predicted, told[0]), ("actual", actual, told[1]))
        for number, (name, value, text) in enumerate(both):
            width = room * value / max(predicted, actual)
            parts.append(bar(left, top + number * (BAR + 2), width, BAR, COLOURS[number]))
            parts.append(words(left + width + 6, top + number * (BAR + 2) + 10, f"{name} {text}", "start"))
    return picture(10 + len(rows) * (2 * BAR + 18), parts)
