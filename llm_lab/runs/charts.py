"""The pictures of reports, as SVG: the curves of a run, the scores of a pipeline, predicted against actual."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .axis import SMALLEST, Axis, axis_of, draw_flat, draw_upright, number, tick_labels
from .figure import TITLE_SIZE, is_number
from .glossary import name_of, quantity, write
from .palette import SERIES
from .svg import WIDTH, bar, curve, dot, fit, line, picture, ring, width_of, words

Points = Sequence[tuple[float, float]]
Series = Mapping[str, Points]  # {key in metrics.jsonl: its (step, value) points}


# The curves of a run: the first panel takes the full width; the others are below it, two in a row

NUMBERS = 44  # pixels for the numbers of a vertical axis
LEFT, RIGHT, BETWEEN = NUMBERS + 16, 20, NUMBERS + 28
TOP, GAP, BOTTOM = 36, 60, 44
WIDE, SMALL = 240, 130  # heights of panels
# Above this ratio of largest to smallest value, a curve of positive values is drawn on a logarithmic scale.
WIDE_RANGE = 30.0
LEAST_SPAN = 1e-3  # of an axis, relative to its values: 0.6925 to 0.6935, not 0.6930925 to 0.6931


@dataclass(frozen=True)
class Panel:
    """One axis and the metrics drawn on it, by their keys in metrics.jsonl.

    from_zero: whether the axis starts at 0. linear: whether it is never logarithmic.
    """

    keys: tuple[str, ...]
    from_zero: bool = False
    linear: bool = False

    @property
    def title(self) -> str:
        """The words that the names of the panel's metrics share."""
        names = [_words_of(key) for key in self.keys]
        return " ".join(word for word in names[0] if all(word in other for other in names))

    @property
    def is_percent(self) -> bool:
        """Whether the metrics are shares."""
        return quantity(self.keys[0]).form == "percent"

    @property
    def labels(self) -> dict[str, str]:
        """For each key, the words that distinguish it from the panel's other metrics."""
        if len(self.keys) == 1:
            return {self.keys[0]: "last"}
        shared = self.title.split()
        rest = {key: [word for word in _words_of(key) if word not in shared] for key in self.keys}
        return {key: " ".join(words) or "training" for key, words in rest.items()}


def _words_of(key: str) -> list[str]:
    return name_of(key).replace("(", "").replace(")", "").split()


PANELS = (
    Panel(("loss", "eval_loss")),
    Panel(("reward", "eval_reward_sampled"), linear=True),
    Panel(("exact_match", "exact_match_sampled"), from_zero=True, linear=True),
    Panel(("forgetting",), linear=True),
    Panel(("accuracy", "eval_accuracy"), from_zero=True, linear=True),
    Panel(("margin", "eval_margin"), linear=True),
    Panel(("kl",), from_zero=True, linear=True),
    Panel(("entropy",), from_zero=True),
    Panel(("token_accuracy",), linear=True),
    Panel(("completion_length", "eval_completion_length"), from_zero=True),
    Panel(("value_loss",), from_zero=True),
    Panel(("unclipped_share",), from_zero=True, linear=True),
    Panel(("learning_rate",), from_zero=True, linear=True),
    Panel(("grad_norm",), from_zero=True),
)


def panels_for(keys: Container[str]) -> list[Panel]:
    """Return the panels of a run with these metrics, the most informative one first.

    In GRPO and PPO, that is the reward; their loss is not informative, so it comes after what the model does. If
    outputs are only scored, as in SFT, the loss comes first.
    """
    panels = [panel for panel in PANELS if any(key in keys for key in panel.keys)]
    if "reward" not in keys:
        return panels
    late = ("loss", "learning_rate", "grad_norm")
    return [*(panel for panel in panels if panel.keys[0] not in late), *(p for p in panels if p.keys[0] in late)]


MEASURED_RARELY = (
    "eval_",
    "exact_match",
    "forgetting",
    "bits_per_byte",
    "general_bits_per_byte",
)  # curves whose keys start so have a dot at every point


@dataclass(frozen=True)
class Box:
    """The place of a panel in pixels."""

    left: float
    top: float
    width: float
    height: float


def draw_curves(rows: Iterable[Mapping[str, Any]]) -> str | None:
    """Draw the rows of metrics.jsonl, or return None if there is nothing to draw."""
    rows = list(rows)
    drawn = []
    for panel in panels_for({key for row in rows for key in row}):
        series: Series = {
            key: [(row["step"], row[key]) for row in rows if is_number(row.get(key))] for key in panel.keys
        }
        series = {key: points for key, points in series.items() if points}
        if series and not _repeats_exact_match(panel, series, rows):
            drawn.append((panel, series))
    # A single point is not a curve; the table of results shows it better.
    curves = [(panel, series) for panel, series in drawn if max(map(len, series.values())) > 1]
    return draw_panels(curves or drawn) if drawn else None


def _repeats_exact_match(panel: Panel, series: Series, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the panel shows only a held-out reward that equals the exact match."""
    scored = [row for row in rows if "eval_reward_sampled" in row]
    same = all(row["eval_reward_sampled"] == row.get("exact_match_sampled") for row in scored)
    return list(series) == ["eval_reward_sampled"] and same


def draw_panels(panels: Sequence[tuple[Panel, Series]]) -> str:
    """Draw each panel's series, none of them empty, over the steps of all panels.

    The first panel has the full width, and so does a last one without a neighbor.
    """
    steps = [x for _, series in panels for points in series.values() for x, _ in points]
    whole = WIDTH - LEFT - RIGHT
    half = (whole - BETWEEN) / 2
    parts: list[str] = []
    top = TOP
    rows = [panels[:1], *(panels[start : start + 2] for start in range(1, len(panels), 2))]
    for row in rows:
        height = WIDE if row is rows[0] else SMALL
        for column, (panel, series) in enumerate(row):
            width = whole if len(row) == 1 else half
            box = Box(LEFT + column * (half + BETWEEN), top, width, height)
            parts += _panel(panel, series, steps, box)
        top += height + GAP
    under = top - GAP
    parts.append(words(WIDTH - RIGHT, under + 34, "step", "end"))
    last = [
        f"{' '.join((panel.title, panel.labels[key]))} {write(key, points[-1][1])}"
        for panel, series in panels
        for key, points in series.items()
    ]
    return picture(under + BOTTOM, parts, title="curves over the steps", description=", ".join(last))


def _panel(panel: Panel, series: Series, steps: Sequence[float], box: Box) -> list[str]:
    scale = 100 if panel.is_percent else 1
    values = [scale * y for points in series.values() for _, y in points]
    right, bottom = box.left + box.width, box.top + box.height
    logarithmic = min(values) > SMALLEST and max(values) / min(values) > WIDE_RANGE and not panel.linear
    if not (logarithmic or panel.from_zero):
        values = _with_span(values)
    upright = axis_of(values, bottom, box.top, log=logarithmic, room=0.06, zero=panel.from_zero)
    flat = axis_of(steps, box.left, right, room=0.0)
    parts = draw_upright(upright, upright.marks(max(4, int(box.height // 45))), box.left, right)
    whole = [step for step in flat.marks(max(2, int(box.width // 70))) if step == int(step)]
    parts += draw_flat(flat, whole, bottom)
    title = f"{panel.title} (%)" if panel.is_percent else panel.title
    parts.append(words(box.left - NUMBERS, box.top - 12, title, color="ink", bold=True))
    # A metric keeps its color, whether the panel's other curves are drawn or not.
    colors = dict(zip(panel.keys, SERIES, strict=False))
    offset, start = right, box.left - NUMBERS + width_of(title, bold=True) + 10
    for key, points in reversed(list(series.items())):
        label = fit(f"{panel.labels[key]} {write(key, points[-1][1])}", max(offset - start, 30))
        parts.append(words(offset, box.top - 12, label, "end", colors[key]))
        offset -= width_of(label) + 12
    for key, points in series.items():
        pixels = [(flat.place(x), upright.place(scale * y)) for x, y in points]
        rare = key.startswith(MEASURED_RARELY)
        parts.append(curve(pixels, colors[key], width=1.3 if len(series) > 1 and not rare else 1.8))
        dotted = len(points) <= 30 and rare
        parts += [dot(*pixel, colors[key]) for pixel in (pixels if dotted else pixels[-1:])]
    return parts


def _with_span(values: Sequence[float]) -> list[float]:
    """Return values with two ends added if they differ too little for readable axis numbers."""
    low, high = min(values), max(values)
    missing = LEAST_SPAN * max(abs(low), abs(high)) - (high - low)
    return [*values, low - missing / 2, high + missing / 2] if missing > 0 else list(values)


# Scores of a pipeline, and predictions

ROW, HEAD, FOOT = 26, 40, 32
BAR = 12
NAME_ROOM = 230.0


def draw_scores(scores: Mapping[str, Mapping[str, float]]) -> str | None:
    """Draw the exact match of each stage, greedy and sampled, or else the reward. None if there is neither."""
    is_exact = any("exact_match" in row for row in scores.values())
    panel = Panel(("exact_match", "exact_match_sampled")) if is_exact else Panel(("eval_reward_sampled",))
    labels = list(panel.labels.values()) if is_exact else [panel.title]
    keys = panel.keys if is_exact else ("reward",)  # the key in a pipeline's scores
    values = [row[key] for row in scores.values() for key in keys if key in row]
    if not values:
        return None
    low, high = (0.0, 1.0) if is_exact else (min(0.0, *values), max(values) or 1.0)
    names = min(max(map(width_of, scores)), NAME_ROOM)
    left, right, height = 24 + names, float(WIDTH - RIGHT - 8), ROW * len(scores)
    axis = Axis(low, high, left, right)
    marks = axis.marks(5)
    texts = [f"{100 * mark:.0f} %" for mark in marks] if is_exact else tick_labels(marks)
    parts = draw_flat(axis, marks, HEAD + height, HEAD, texts=texts)
    parts.append(words(16, 24, f"{panel.title}, held-out prompts", color="ink", bold=True, size=TITLE_SIZE))
    offset = right
    for index, name in reversed(list(enumerate(labels))):
        parts.append(words(offset, 24, name, "end", SERIES[index]))
        parts.append(dot(offset - width_of(name) - 8, 20, SERIES[index], 4))
        offset -= width_of(name) + 28
    about = []
    for index, (stage, row) in enumerate(scores.items()):
        middle = HEAD + ROW * (index + 0.5)
        parts.append(words(left - 8, middle + 4, stage, "end", "ink", room=names + 1))
        found = [(at, row[key]) for at, key in enumerate(keys) if key in row]
        if len(found) > 1:
            parts.append(line(axis.place(found[0][1]), middle, axis.place(found[1][1]), middle, "axis", width=2))
        parts += [ring(axis.place(value), middle, SERIES[at], 5) for at, value in found]
        about += [f"{stage} {labels[at]} {number(value)}" for at, value in found]
    title = f"{panel.title} of each stage"
    return picture(HEAD + height + FOOT, parts, title=title, description=", ".join(about))


def draw_predictions(rows: Sequence[tuple[str, float, float, str, str]]) -> str | None:
    """Draw pairs of bars from (title, predicted, actual, both as texts); each pair has its own scale."""
    rows = [row for row in rows if row[1] > 0 and row[2] > 0]
    if not rows:
        return None
    left = 24 + max(width_of(title) for title, *_ in rows)
    room = WIDTH - RIGHT - left - 150  # leaves space for the number after the longest bar
    parts = []
    for index, (title, predicted, actual, predicted_text, actual_text) in enumerate(rows):
        top = 14 + index * (2 * BAR + 20)
        parts.append(words(left - 10, top + BAR + 5, title, "end", "ink"))
        both = (("predicted", predicted, predicted_text), ("actual", actual, actual_text))
        for at, (name, value, text) in enumerate(both):
            width = room * value / max(predicted, actual)
            parts.append(bar(left, top + at * (BAR + 2), width, BAR, ("axis", "c0")[at]))
            parts.append(words(left + width + 6, top + at * (BAR + 2) + 10, f"{name} {text}"))
    about = ", ".join(f"{title}: predicted {one}, actual {other}" for title, _, _, one, other in rows)
    return picture(14 + len(rows) * (2 * BAR + 20), parts, title="predicted and actual", description=about)
